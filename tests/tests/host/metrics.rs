//! A host's metrics and status over HTTP: `/metrics` and `/api/host`; the page that lists the
//! metrics, and the Grafana dashboard that uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::http;
use task_host_tests::{Place, Watched, eventually, misbehaviour};

/// Labels with their values, in order.
type Labels = Vec<(String, String)>;

/// A metric with its series, as the host served it.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// Histogram buckets are left out.
    series: Vec<(Labels, f64)>,
}

impl Family {
    /// The value of the series with these label values.
    fn value(&self, labels: &[&str]) -> Option<f64> {
        let has = |found: &[(String, String)]| {
            let values: Vec<&str> = found.iter().map(|(_, value)| value.as_str()).collect();
            values == labels
        };
        self.series.iter().find(|(found, _)| has(found)).map(|(_, value)| *value)
    }
}

/// Parses the text format strictly: each line must be valid.
#[track_caller]
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let (name, labels, value) = sample(line).unwrap_or_else(|| panic!("{line}"));
            let of = |end: &str| name.strip_suffix(end).filter(|name| families.contains_key(*name));
            let is_part = ["_bucket", "_sum"].iter().any(|end| of(end).is_some());
            let family = of("_count").or_else(|| of("_bucket")).or_else(|| of("_sum"));
            let family = family.unwrap_or(&name).to_owned();
            let family = families.get_mut(&family).unwrap_or_else(|| panic!("no type: {line}"));
            if !is_part {
                let is_new = family.series.iter().all(|(known, _)| *known != labels);
                assert!(is_new, "a series is there twice: {line}");
                family.series.push((labels, value));
            }
        }
    }
    families
}

/// The name, the labels and the value of a sample line.
fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let is_word =
        |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    while let Some(after) = rest.strip_prefix(['{', ',']) {
        let (label, quoted) = after.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), quoted.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    _ => return None,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.push((is_word(label).then(|| label.to_owned())?, value));
        rest = &quoted[end + 1..];
    }
    let rest = if labels.is_empty() { rest } else { rest.strip_prefix('}')? };
    let value: f64 = rest.strip_prefix(' ')?.parse().ok()?;
    is_word(name).then(|| (name.to_owned(), labels, value))
}

#[track_caller]
fn metrics(host: &Watched) -> BTreeMap<String, Family> {
    let (status, text) = host.ask("/metrics");
    assert_eq!(status, 200, "{text}");
    parse(&text)
}

#[track_caller]
fn now(host: &Watched) -> Value {
    let (status, text) = host.ask("/api/host");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Waits until the host has no more work.
#[track_caller]
fn is_idle(place: &Place, host: &Watched) {
    eventually("an idle host", || {
        let is_idle = place.counts() == (0, 0) && now(host)["now"]["state"] == "idle";
        is_idle.then_some(())
    });
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a clone")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Kills a host with a task that does not end.
fn kill(host: Watched) {
    host.host().signal(Signal::KILL);
    host.into_host().wait();
}

#[test]
fn the_page_and_the_dashboard_have_the_metrics_that_a_host_serves() {
    let place = Place::with(&["NO_OP", "misbehave"]);
    let mut tasks = place.innocent(3);
    tasks.push(misbehaviour(10, &[], json!({"do": "reject", "text": "no good"})));
    tasks.push(misbehaviour(11, &[], json!({"do": "fail-until", "attempt": 2})));
    place.submit(&tasks);
    let message = place.path().join("queue/queue/0--no-task.json");
    std::fs::write(message, "{\"no\": \"task\"}").expect("a message");
    let host = place.watch(&["--retry-after", "10ms"]);
    is_idle(&place, &host);
    let served = eventually("a count of the queue", || {
        let served = metrics(&host);
        served["taskhost_queue_messages"].value(&["waiting"]).is_some().then_some(served)
    });
    let value = |name: &str, labels: &[&str]| served[name].value(labels);
    let tasks = |name: &str, end: &str| value("taskhost_tasks_total", &[name, end]);
    assert_eq!(tasks("NO_OP", "done"), Some(3.0));
    assert_eq!(
        (tasks("misbehave", "done"), tasks("misbehave", "rejected")),
        (Some(1.0), Some(1.0))
    );
    assert_eq!(tasks("/others", "rejected"), Some(1.0));
    assert_eq!(value("taskhost_attempts_total", &["misbehave", "retried"]), Some(1.0));
    assert_eq!(value("taskhost_execution_duration_seconds", &["NO_OP"]), Some(3.0));
    assert_eq!(value("taskhost_execution_duration_seconds", &["misbehave"]), Some(3.0));
    assert_eq!(value("taskhost_step_duration_seconds", &["decode"]), Some(7.0));
    assert!(value("taskhost_input_bytes_total", &[]) > Some(0.0));
    assert_eq!(value("taskhost_guest_memory_bytes", &[]), Some(0.0));
    // A directory queue has no paid requests.
    assert!(served["taskhost_queue_requests_total"].series.is_empty());

    the_page_lists(&served);
    the_dashboard_uses(&served);
    host.stop();
}

/// Checks that every row of the page is a metric, and that every metric has a row.
fn the_page_lists(served: &BTreeMap<String, Family>) {
    let page = read("docs/metrics.md");
    let list = page.split("\n## ").find(|part| part.starts_with("The metrics\n")).expect("a list");
    let rows = list.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        <[&str; 5]>::try_from(cells).unwrap_or_else(|_| panic!("not five cells: {line}"))
    });
    let rows: BTreeMap<String, [&str; 5]> =
        rows.map(|row| (row[0].trim_matches('`').to_owned(), row)).collect();
    let names = |names: Vec<&String>| names.into_iter().cloned().collect::<BTreeSet<String>>();
    assert_eq!(names(rows.keys().collect()), names(served.keys().collect()));
    for (name, family) in served {
        let [_, kind, unit, labels, help] = rows[name];
        assert_eq!((kind, help), (&*family.kind, &*family.help), "{name}");
        let base = name.strip_suffix("_total").unwrap_or(name);
        assert_eq!(base != name, kind == "counter", "{name}: only counters end in _total");
        let in_name = ["seconds", "bytes"].into_iter().find(|unit| base.ends_with(unit));
        assert_eq!(unit, in_name.unwrap_or("1"), "{name}");
        let labels: Vec<&str> = labels.split(", ").map(|label| label.trim_matches('`')).collect();
        for (found, _) in &family.series {
            let found: Vec<&str> = found.iter().map(|(label, _)| label.as_str()).collect();
            assert_eq!(found, labels.iter().copied().filter(|l| !l.is_empty()).collect::<Vec<_>>());
        }
    }
}

/// Checks that every query of the dashboard names existing metrics and labels.
fn the_dashboard_uses(served: &BTreeMap<String, Family>) {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/task-host.json")).expect("a dashboard");
    let mut queries = Vec::new();
    texts(&dashboard, &mut |name, text| {
        if ["expr", "query", "definition"].contains(&name) && text.contains("taskhost_") {
            queries.push(text.to_owned());
        }
    });
    assert!(queries.len() > 10, "hardly any query: {queries:?}");
    let page = read("docs/metrics.md");
    let mut used = BTreeSet::new();
    for query in &queries {
        for word in query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if !word.starts_with("taskhost_") {
                continue;
            }
            let of = |end: &str| word.strip_suffix(end).filter(|name| served.contains_key(*name));
            let times = of("_bucket").or_else(|| of("_sum")).or_else(|| of("_count"));
            let name = times.unwrap_or(word);
            let family = served.get(name).unwrap_or_else(|| panic!("no {word}: {query}"));
            assert_eq!(times.is_some(), family.kind == "histogram", "{query}");
            if ["counter", "histogram"].contains(&&*family.kind) {
                let is_rate = ["rate(", "increase("].iter().any(|f| query.contains(f));
                assert!(is_rate, "{word} only grows: {query}");
            }
            used.insert(name.to_owned());
        }
        for by in query.split("by (").skip(1) {
            let labels = by.split(')').next().unwrap_or_default();
            for label in labels.split(", ").filter(|label| !["instance", "le"].contains(label)) {
                assert!(page.contains(&format!("`{label}`")), "no label {label}: {query}");
            }
        }
    }
    assert!(used.len() > served.len() / 2, "most metrics are not shown: {used:?}");
}

/// Calls `each` with the field name and the content of every string in a value.
fn texts(value: &Value, each: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) => each(name, text),
                    None => texts(value, each),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, each)),
        _ => {}
    }
}

#[test]
fn names_of_tasks_can_not_break_the_text_nor_make_it_grow() {
    let place = Place::with(&["NO_OP"]);
    let bad = |name: &str, id| json!({"basic_info": {"id": id, "name": name, "base_directory": "d", "inputs": []}});
    let hostile =
        ["a\"} 1", "a=\"b\",c", "{}", "# TYPE x counter", "\u{1F480}'<b>", &"n".repeat(250)];
    let mut tasks: Vec<Value> = hostile.into_iter().zip(1..).map(|(n, id)| bad(n, id)).collect();
    tasks.extend((0..200).map(|n| bad(&format!("nobody-{n}"), 100 + n)));
    place.submit(&tasks);
    let host = place.watch(&["--max-attempts", "1"]);
    is_idle(&place, &host);
    // A name that has a component is counted, whatever other names came before.
    place.submit(&place.innocent(1));
    is_idle(&place, &host);
    let attempts = &metrics(&host)["taskhost_attempts_total"];
    assert_eq!(attempts.value(&["NO_OP", "done"]), Some(1.0));
    assert!(attempts.series.len() <= 5 * 12, "{} series", attempts.series.len());
    let rejected: f64 = attempts
        .series
        .iter()
        .filter(|(labels, _)| labels[1].1 == "rejected")
        .map(|(_, value)| value)
        .sum();
    assert_eq!(rejected, tasks.len() as f64);
    host.stop();
}

#[test]
fn a_host_says_what_runs_what_failed_and_what_it_was_told() {
    let place = Place::with(&["NO_OP", "misbehave"]);
    let mut tasks = place.innocent(2);
    let failures = (10..14).map(|id| {
        misbehaviour(id, &[], json!({"do": "reject", "text": format!("tile {id} is no good")}))
    });
    tasks.extend(failures);
    place.submit(&tasks);
    let host = place.watch(&["--parallel", "1", "--prefetch", "2", "--timeout", "2h"]);
    is_idle(&place, &host);
    let steps = json!([{"do": "say", "text": "tile 3 of 9\n"}, {"do": "sleep", "secs": 3600}]);
    let sleeper = |id| misbehaviour(id, &[], json!({"do": "all", "steps": steps}));
    place.submit(&[sleeper(20), sleeper(21), sleeper(22)]);
    let view = eventually("a task that runs, and two that wait", || {
        let view = now(&host);
        let has_said = view["now"]["running"][0]["last_line"] == "tile 3 of 9";
        (has_said && view["now"]["held"] == 2).then_some(view)
    });
    let seen = &view["now"];
    let running = seen["running"].as_array().expect("a list");
    assert_eq!(running.len(), 1, "{seen:#}");
    let task = &running[0];
    assert_eq!((&task["name"], &task["attempt"]), (&json!("misbehave"), &json!(1)));
    assert_eq!(task["step"], "execute");
    assert!(task["memory"].as_u64() > Some(0), "{task}");
    let times = [&seen["host"]["started"], &task["since"], &task["step_since"], &seen["time"]];
    let times: Vec<f64> = times.iter().map(|time| time.as_f64().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(seen["state"], "working");
    assert_eq!((&seen["totals"]["done"], &seen["totals"]["failed"]), (&json!(2), &json!(4)));
    assert!(seen["memory"]["guests"].as_u64() > Some(0));
    assert_eq!(
        (&seen["host"]["slots"], &seen["host"]["queue"]),
        (&json!(1), &json!("fq://./queue"))
    );

    let failures = seen["failures"].as_array().expect("a list");
    assert_eq!(failures.len(), 1, "{failures:#?}");
    assert_eq!((&failures[0]["count"], &failures[0]["given_up"]), (&json!(4), &json!(4)));
    let example = &failures[0]["example"];
    assert_eq!((&example["name"], &example["attempt"]), (&json!("misbehave"), &json!(1)));
    assert!(example["text"].as_str().is_some_and(|text| text.contains("is no good")), "{example}");
    assert_eq!(failures[0]["names"], json!(["misbehave"]));

    let minutes = view["minutes"].as_array().expect("a list");
    let done: u64 = minutes.iter().filter_map(|minute| minute["done"].as_u64()).sum();
    assert_eq!(done, 2, "{minutes:#?}");
    let settings = view["settings"].as_array().expect("a list");
    let timeout = settings.iter().find(|setting| setting["name"] == "timeout").expect("a setting");
    assert_eq!((&timeout["value"], &timeout["source"]), (&json!("2h"), &json!("--timeout")));

    // The HTTP interface is read-only.
    for path in ["/api/host", "/metrics", "/readyz"] {
        let answer = http::send(host.address(), "POST", path, &[], b"{}");
        assert_eq!(answer.status, 405, "{path}");
    }
    kill(host);
}

#[test]
fn a_task_that_runs_for_long_is_warned_of_once_with_its_last_line() {
    let place = Place::with(&["misbehave", "NO_OP"]);
    let steps = json!([{"do": "say", "text": "tile 3 of 9\n"}, {"do": "sleep", "secs": 3600}]);
    place.submit(&[misbehaviour(1, &[], json!({"do": "all", "steps": steps}))]);
    let host = place.watch(&["--slow", "1s", "--parallel", "2"]);
    let warned = || -> Vec<String> {
        host.lines("WARN").into_iter().filter(|line| line.contains("slow: ")).collect()
    };
    let line = eventually("a warning", || warned().into_iter().next());
    let line: Value = serde_json::from_str(&line).expect("JSON");
    let text = line.to_string();
    assert!(text.contains("\"last_line\":\"tile 3 of 9\""), "{text}");
    assert!(text.contains("misbehave"), "the task's name: {text}");
    // Waits until the host has looked at the task a few more times. Each look measures the rate.
    let measured = || now(&host)["now"]["rate"]["over_seconds"].as_f64().expect("a time");
    let then = measured();
    eventually("more looks", || (measured() > then + 3.0).then_some(()));
    assert_eq!(warned().len(), 1);
    assert_eq!(metrics(&host)["taskhost_slow_tasks_total"].value(&[]), Some(1.0));
    kill(host);
}

#[test]
fn what_is_no_line_of_the_format_is_found() {
    let good = "# HELP a_total B.\n# TYPE a_total counter\na_total{b=\"c\\\"\\\\\",d=\"\"} 1\n";
    let families = parse(good);
    assert_eq!(families["a_total"].value(&["c\"\\", ""]), Some(1.0));
    let type_line = "# TYPE a_total counter\n";
    for bad in ["a_total{b=\"c\"d\"} 1", "a_total{b=\"c\"}1", "a_total x", "b 1", "a_total{b} 1"] {
        let text = format!("{type_line}{bad}\n");
        assert!(std::panic::catch_unwind(|| parse(&text)).is_err(), "{bad}");
    }
    let twice = format!("{type_line}a_total 1\na_total 2\n");
    assert!(std::panic::catch_unwind(|| parse(&twice)).is_err());
}
