//! The metrics of a host: their names, and their values now.
//!
//! A metric is named after the rules of Prometheus: base units, and a name that ends in its unit. The
//! number of time series has a bound, although names of tasks come from messages: see
//! `activity/names.rs`. Nothing is counted here, so a host that nobody asks pays nothing.

mod list;
mod otel;
mod prometheus;

use std::sync::Arc;

use crate::activity::snapshot::Snapshot;
use crate::activity::{Histogram, Named};
use crate::services::Services;
use crate::stats::Step;
pub use otel::observe;
pub use prometheus::{CONTENT_TYPE, Metrics};

/// One metric.
#[derive(Debug, Clone, Copy)]
struct Metric {
    /// Its name, without its unit and `_total`.
    name: &'static str,
    kind: Kind,
    /// The unit, if it is not the thing that the name says.
    unit: Option<Unit>,
    /// The labels of its series.
    labels: &'static [&'static str],
    /// What it says, in words.
    help: &'static str,
}

/// How the values of a metric behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
    /// They are times, by how long they were.
    Histogram,
}

/// A base unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Seconds,
}

/// The value of one series.
#[derive(Debug)]
struct Sample {
    /// The values of the labels, in the order of [`Metric::labels`].
    labels: Vec<String>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Count(u64),
    Number(f64),
    Times(Box<Histogram>),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

/// What metrics are made of: taken once for all of them.
struct Seen<'a> {
    services: &'a Services,
    now: Snapshot,
    names: Vec<Named>,
    steps: Vec<(Step, Histogram)>,
}

impl<'a> Seen<'a> {
    fn now(services: &'a Arc<Services>) -> Self {
        let activity = services.activity();
        let (names, steps) = (activity.names(), activity.steps());
        Self { services, now: services.snapshot(), names, steps }
    }
}
