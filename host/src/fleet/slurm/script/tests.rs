//! Tests of the script for Slurm.

use std::time::Duration;

use bytesize::ByteSize;

use super::*;

fn spec() -> Spec {
    let environment = [("HOST_QUEUE", "fq:///lab/queue"), ("HOST_BUCKET", "/lab/data")];
    Spec {
        fleet: "night".parse().unwrap(),
        cpus: 8,
        memory: ByteSize::gib(16),
        image: "unused".to_owned(),
        program: "/usr/bin/host".into(),
        walltime: Some(Duration::from_secs(4 * 3600)),
        relay: 6,
        stop_time: Duration::from_secs(45),
        directory: "/lab/work".into(),
        paths: Default::default(),
        environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        pass: Default::default(),
        options: [("account".to_owned(), vec!["lab".to_owned()])].into(),
    }
}

fn text(spec: &Spec, workers: u32) -> Result<String, String> {
    let script = Script { spec, partition: Some("main"), longest: USUAL_LONGEST_ARRAY };
    script.text(workers).map_err(|error| error.to_string())
}

#[test]
fn a_script_is_a_relay_of_workers() {
    let mut spec = spec();
    spec.environment.insert("HOST_EXIT_WHEN_IDLE".to_owned(), "1m".to_owned());
    let text = text(&spec, 40).unwrap().replace(&spec.digest(), "DIGEST");
    let about =
        r##"# task-host: {"digest":"DIGEST","logs":"/lab/work","workers":40,"environment":{"##;
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with(about)).collect();
    let want = r#"#!/bin/sh
#SBATCH --job-name=task-host.night
#SBATCH --partition=main
#SBATCH --array=0-239%40
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16384M
#SBATCH --time=240
#SBATCH --signal=B:TERM@45
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --chdir=/lab/work
#SBATCH --output=/lab/work/night-%A_%a.log
#SBATCH --comment="task-host DIGEST 40"
#SBATCH --account=lab
export HOST_BUCKET='/lab/data'
export HOST_EXIT_WHEN_IDLE='1m'
export HOST_QUEUE='fq:///lab/queue'
export HOST_WORKER_INDEX=$((SLURM_ARRAY_TASK_ID % 40))
if [ "$SLURM_ARRAY_TASK_ID" -ge 40 ]; then
  export HOST_EXIT_WHEN_EMPTY=true
fi
exec '/usr/bin/host' run"#;
    assert_eq!(text.join("\n"), want);
}

#[test]
fn a_script_tells_what_is_known_of_its_fleet() {
    let mut spec = spec();
    spec.environment.insert("HOST_NOTE".to_owned(), "'\"\n# task-host: {}\n$(x)".to_owned());
    let about = About::of_script(&text(&spec, 1).unwrap()).unwrap();
    assert_eq!((about.environment, about.digest), (spec.environment.clone(), spec.digest()));
    assert_eq!(about.logs, spec.directory);
}

#[test]
fn nothing_is_obeyed_by_a_shell() {
    let hostile = "a'b\"c $(touch pwned) `x`\n\\ é;#\n#SBATCH --account=other";
    let mut spec = spec();
    spec.environment = [("HOST_NOTE".to_owned(), hostile.to_owned())].into();
    spec.program = "/bin/sh".into();
    let script = text(&spec, 1).unwrap().replace("exec '/bin/sh' run", "printf %s \"$HOST_NOTE\"");
    let run = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stdout), hostile);
}

#[test]
fn what_slurm_can_not_have_is_refused() {
    let changed = |change: &dyn Fn(&mut Spec)| {
        let mut spec = spec();
        change(&mut spec);
        text(&spec, 1).unwrap_err()
    };
    let option = |name: &'static str, value: &'static str| {
        changed(&move |spec| {
            spec.options.insert(name.to_owned(), vec![value.to_owned()]);
        })
    };
    let errors = [
        option("array", "0-9"),
        option("output", "x"),
        option("account", "a\n#SBATCH --x"),
        changed(&|spec| spec.directory = "/a\nb".into()),
        changed(&|spec| spec.directory = "/a\\b".into()),
        changed(&|spec| spec.walltime = Some(Duration::from_secs(45))),
    ];
    let want = [
        "the option array of Slurm is set by --workers and --relay",
        "the option output of Slurm is set by the option logs=DIRECTORY",
        "Slurm can't have this account: \"a\\n#SBATCH --x\"",
        "Slurm can't use the directory \"/a\\nb\"",
        "Slurm can't use the directory \"/a\\\\b\"",
        "a walltime of 45s is too short: a worker needs 45s of it to stop",
    ];
    for (error, want) in errors.iter().zip(want) {
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn a_value_is_one_argument() {
    for (value, written) in [
        ("0-9%2", "0-9%2"),
        ("a b", "\"a b\""),
        ("a'b", "\"a'b\""),
        ("a\"b\\c#d", "\"a\\\"b\\\\c#d\""),
    ] {
        assert_eq!(quoted(value), written);
    }
}

#[test]
fn an_array_has_room_for_all_turns() {
    let mut spec = spec();
    for (relay, most) in [(1, 1001), (6, 166), (1001, 1)] {
        spec.relay = relay;
        let script = Script { spec: &spec, partition: None, longest: USUAL_LONGEST_ARRAY };
        assert_eq!(script.most(), most);
    }
}
