//! Requirements for a small simulated fleet, and the figures of a large one.

use std::time::Duration;

use clap::Parser;
use humantime::parse_duration;

use super::figures::Figures;
use super::fleet::{self, Plan, Wave};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The environment variable with the arguments of [`Large`].
const FLEET: &str = "TASK_HOST_FLEET";

/// A fleet of any size.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Large {
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    #[arg(long, default_value_t = 32)]
    slots: usize,
    #[arg(long, default_value_t = 1_000_000)]
    tasks: usize,
    #[arg(long, value_parser = parse_duration)]
    length: Duration,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// When hosts are taken away. May be repeated
    #[arg(long, value_parser = parse_duration)]
    wave: Vec<Duration>,
    /// The part of the hosts that is taken away each time
    #[arg(long, default_value_t = 0.3)]
    share: f64,
    /// How long before that they are told to stop
    #[arg(long, value_parser = parse_duration)]
    notice: Option<Duration>,
    /// When SQS begins to fail
    #[arg(long, value_parser = parse_duration)]
    outage: Option<Duration>,
    /// For how long
    #[arg(long, value_parser = parse_duration, default_value = "10m")]
    lasting: Duration,
    /// Arguments of `host run`
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Large {
    fn plan(self) -> Plan {
        let Self { hosts, slots, tasks, length, seed, share, notice, arguments, .. } = self;
        let waves = self.wave.into_iter().map(|at| Wave { at, share, notice }).collect();
        let outage = self.outage.map(|at| at..at + self.lasting);
        Plan { hosts, slots, tasks, length, seed, waves, outage, arguments }
    }
}

#[test]
#[ignore = "takes minutes; `cargo xtask bench --only fleet` runs it"]
fn a_large_fleet() {
    let arguments = std::env::var(FLEET).unwrap_or_else(|_| panic!("{FLEET} is not set"));
    println!("{}", fleet::run(&Large::parse_from(arguments.split_whitespace()).plan()));
}

/// Ten hosts with four slots each.
fn small(tasks: usize, length: Duration) -> Plan {
    Plan {
        hosts: 10,
        slots: 4,
        tasks,
        length,
        seed: 1,
        waves: Vec::new(),
        outage: None,
        arguments: Vec::new(),
    }
}

fn run(plan: &Plan) -> Figures {
    let figures = fleet::run(plan);
    assert_eq!((figures.charged, figures.given_up), (0, 0), "attempts are charged: {figures}");
    figures
}

#[test]
fn short_tasks_take_a_third_of_a_request_each() {
    let figures = run(&small(2_000, MS));
    assert!(figures.requests_per_task() <= 0.35, "{figures}");
}

#[test]
fn tasks_of_seconds_are_all_done() {
    run(&small(1_000, 10 * SECOND));
}

#[test]
fn tasks_of_an_hour_are_all_done() {
    run(&small(160, HOUR));
}

#[test]
fn a_wave_that_kills_hosts_loses_and_charges_nothing() {
    let waves = vec![Wave { at: 2 * HOUR, share: 0.3, notice: None }];
    run(&Plan { waves, ..small(160, HOUR) });
}

#[test]
fn a_wave_with_notice_loses_and_charges_nothing() {
    let waves = vec![Wave { at: 2 * HOUR, share: 0.3, notice: Some(2 * MINUTE) }];
    run(&Plan { waves, ..small(160, HOUR) });
}

#[test]
fn an_outage_of_ten_minutes_loses_and_charges_nothing() {
    let outage = Some(MINUTE..11 * MINUTE);
    run(&Plan { outage, ..small(1_000, 10 * SECOND) });
}
