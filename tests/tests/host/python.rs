//! The real python-task-queue together with the host: as producer, as worker on the same queue, and
//! as a tool to inspect queues.

use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use task_host_tests::{Finished, Place, Script, eventually, misbehaviour, python};

/// The output of `ptq status`.
fn ptq_status(place: &Place) -> String {
    let mut ptq = Command::new(python("ptq"));
    Finished::run(ptq.args(["status", "queue"]).current_dir(place.path())).good().stdout
}

#[test]
fn registered_tasks_that_carry_a_task_of_ours_are_run() {
    let place = Place::with(&["NO_OP"]);
    for id in 0..20 {
        place.put(&format!("data/0_input/{id}.dat"), format!("content {id}"));
    }
    Script::new(
        "
class NoOp(RegisteredTask):
  def __init__(self, basic_info, payload_info):
    super().__init__(basic_info, payload_info)

tq.insert([NoOp({'id': i, 'name': 'NO_OP', 'base_directory': 'data',
                 'inputs': ['0_input/%d.dat' % i]}, 'number %d' % i) for i in range(20)])
",
    )
    .run(place.path());
    place.run(&["-x"]).good();
    for id in 0..20 {
        let output = place.object(&format!("data/0_output/{id}.dat"));
        assert_eq!(output.as_deref(), Some(format!("content {id}").as_bytes()));
    }
    assert_eq!(place.counts(), (0, 0));
}

#[test]
fn plain_registered_tasks_and_function_tasks_choose_their_component_by_name() {
    // No component has any of these names. The reports show how the host read the messages.
    let place = Place::new();
    Script::new(
        "
@queueable
def shrink(path, factor=2): pass

from functools import partial
tq.insert([PrintTask('hello'), MockTask(x=12345678901234567, y=0.1)])
tq.insert(partial(shrink, 'a.png', factor=4))
",
    )
    .run(place.path());
    place.run_until_empty(&["--max-attempts", "1"]).code(3);
    let mut exceptions: Vec<String> =
        place.errors().iter().map(|r| r["exception"].as_str().unwrap().to_owned()).collect();
    exceptions.sort();
    let all = exceptions.join("\n");
    for component in ["PrintTask.wasm", "MockTask.wasm", "__main__.shrink.wasm"] {
        assert!(all.contains(component), "{component} is not in {all}");
    }
}

#[test]
fn ptq_reads_our_queue_before_during_and_after() {
    let place = Place::with(&["misbehave"]);
    let tasks: Vec<Value> =
        (0..10).map(|id| misbehaviour(id, &[], json!({"do": "sleep", "secs": 4}))).collect();
    place.submit(&tasks);
    assert_eq!(
        ptq_status(&place),
        "Inserted: 10\nEnqueued: 10 (100.0% left)\nCompleted: 0 (0.0%)\nLeased: 0 (0.0% of queue)\n"
    );
    let host = place.start(&["-x", "--parallel", "5", "--prefetch", "0"]);
    eventually("leases", || (place.counts() == (10, 5)).then_some(()));
    // Stops the host, because Python may take longer to start than the tasks take.
    host.signal(Signal::STOP);
    assert_eq!(
        ptq_status(&place),
        "Inserted: 10\nEnqueued: 10 (100.0% left)\nCompleted: 0 (0.0%)\nLeased: 5 (50.0% of queue)\n"
    );
    host.signal(Signal::CONT);
    host.wait().good();
    assert_eq!(
        ptq_status(&place),
        "Inserted: 10\nEnqueued: 0 (0.0% left)\nCompleted: 10 (100.0%)\nLeased: 0 (--%) of queue\n"
    );
}

#[test]
fn a_python_worker_and_a_host_share_a_queue() {
    const TASKS: u64 = 400;
    let place = Place::with(&["misbehave"]);
    // Python runs the class of each task, and the host runs the component of that name. Both leave
    // one file that says which of them ran the task.
    let tasks: Vec<Value> = (0..TASKS)
        .map(|id| {
            let info = json!({"id": id, "name": "misbehave", "base_directory": "host"});
            let key = format!("{id}.txt");
            let payload = json!({"do": "output", "key": key, "text": "done"});
            let task = json!({"class": "Shared", "basic_info": info, "payload_info": payload});
            json!({"payload": task, "queueName": "queue"})
        })
        .collect();
    place.submit(&tasks);
    let worker = Script::new(
        "
class Shared(RegisteredTask):
  def __init__(self, basic_info, payload_info):
    super().__init__(basic_info, payload_info)
  def execute(self):
    with open('python/' + self.payload_info['key'], 'x') as f:
      f.write('done')
    time.sleep(0.005)

os.mkdir('python')
def stop_fn():
  return tq.is_empty()
tq.poll(lease_seconds=60, stop_fn=stop_fn, tally=True)
",
    );
    let python = worker.start(place.path(), &place.path().join("logs"));
    // The host is faster, so it starts when Python is already working.
    eventually("work by Python", || {
        let done = std::fs::read_dir(place.path().join("python")).ok()?.count();
        (done > 10).then_some(())
    });
    let host = place.start(&["-x", "--parallel", "2"]);
    host.wait().good();
    python.wait().good();

    let by_python = task_host_tests::files(&place.path().join("python"));
    let by_host = task_host_tests::files(&place.path().join("bucket/host"));
    assert!(!by_python.is_empty() && !by_host.is_empty(), "one of them did it all");
    let twice: Vec<_> = by_python.intersection(&by_host).collect();
    assert!(twice.is_empty(), "done by both: {twice:?}");
    assert_eq!((by_python.len() + by_host.len()) as u64, TASKS);
    assert_eq!(place.counts(), (0, 0));
    assert!(place.errors().is_empty());
    let status = ptq_status(&place);
    assert!(status.contains(&format!("Completed: {TASKS} (100.0%)")), "{status}");
}

#[test]
fn python_leases_renews_and_deletes_what_was_submitted_with_host() {
    let place = Place::new();
    let tasks: Vec<Value> = (0..10)
        .map(|id| json!({"payload": {"class": "MockTask", "n": id}, "queueName": "queue"}))
        .collect();
    place.submit(&tasks);
    let seen = Script::new(
        "
assert (tq.inserted, tq.enqueued, tq.leased) == (10, 10, 0), (tq.inserted, tq.enqueued, tq.leased)
seen = []
for _ in range(5):
  task = tq.lease(seconds=60)
  seen.append(task.n)
  tq.renew(task, 120)
  tq.delete(task, tally=True)
kept = tq.lease(seconds=60, num_tasks=2)
assert tq.leased == 2
tq.release_all()
assert (tq.enqueued, tq.leased, tq.completed) == (5, 0, 5), (tq.enqueued, tq.leased, tq.completed)
tq.poll(lease_seconds=60, tally=True, stop_fn=tq.is_empty,
        before_fn=lambda task: seen.append(task.n))
print(json.dumps(sorted(seen)))
",
    )
    .run(place.path())
    .stdout;
    assert_eq!(seen.trim(), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]");
    assert_eq!(place.counts(), (0, 0));
    assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
}

#[test]
fn numbers_that_only_python_writes_go_to_a_host_and_back() {
    let place = Place::with(&["misbehave"]);
    Script::new(
        "
nan, inf = float('nan'), float('inf')
class Misbehave(RegisteredTask):
  def __init__(self, basic_info, payload_info, extra):
    super().__init__(basic_info, payload_info, extra)
info = {'id': 1, 'name': 'misbehave', 'base_directory': 'host'}
tq.insert([PrintTask([nan, inf, -inf, 'NaN']),
           Misbehave(info, {'do': 'output', 'key': 'a.txt', 'text': 'done'}, [nan])])
",
    )
    .run(place.path());
    let sent = place.host(&["queue", "ls", "./queue", "--json"]).good().stdout;
    // One task has no component. The other task's payload is valid.
    place.run_until_empty(&["--max-attempts", "1"]).code(3);
    assert_eq!(place.object("host/a.txt").as_deref(), Some(&b"done"[..]));
    let report = place.the_error();
    assert!(report["exception"].as_str().unwrap().contains("PrintTask.wasm"), "{report:#}");
    let message = report["task"].as_str().expect("what not all parsers read is one text");
    assert!(message.contains("[NaN, Infinity, -Infinity, "), "{message}");
    assert!(sent.contains(&Value::from(message).to_string()), "{message} was not sent: {sent}");

    place.host(&["queue", "redrive", "./queue"]).good();
    let seen = Script::new(
        "
def seen(task):
  print(repr(task.txt))
tq.poll(lease_seconds=60, tally=True, stop_fn=tq.is_empty, before_fn=seen)
",
    )
    .run(place.path())
    .stdout;
    assert!(seen.contains("[nan, inf, -inf, 'NaN']"), "{seen}");
    assert_eq!(place.counts(), (0, 0), "Python could not delete it");
}

#[test]
fn python_passes_over_what_hosts_note_about_executions() {
    let place = Place::new();
    let tasks: Vec<Value> = (0..2)
        .map(|id| json!({"payload": {"class": "MockTask", "n": id}, "queueName": "queue"}))
        .collect();
    place.submit(&tasks);
    for entry in std::fs::read_dir(place.path().join("queue/movement")).unwrap() {
        let path = entry.unwrap().path();
        // One execution that failed, one that the host cut off, and one that lost its lease.
        let noted = "\n0--failed\n\n0--uncounted\n\n44--uncounted\n";
        let text = std::fs::read_to_string(&path).unwrap() + noted;
        std::fs::write(path, text).unwrap();
    }
    Script::new(
        "
task = tq.lease(seconds=60)
tq.renew(task, 120)
tq.release_all()
tq.delete(tq.lease(seconds=60), tally=True)
tq.poll(lease_seconds=60, tally=True, stop_fn=tq.is_empty)
assert tq.completed == 2, tq.completed
",
    )
    .run(place.path());
    assert_eq!(place.counts(), (0, 0));
    assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
}

#[test]
fn python_counts_no_task_as_completed_that_a_host_gave_up() {
    let place = Place::with(&["misbehave"]);
    let payloads = [
        json!({"do": "reject"}),
        json!({"do": "panic"}),
        json!({"do": "output", "key": "a", "text": "b"}),
    ];
    for payload in payloads {
        place.submit_misbehaviour(payload);
    }
    place.run_until_empty(&["--max-attempts", "2"]).code(3);
    Script::new("assert (tq.inserted, tq.enqueued, tq.completed) == (3, 0, 1), tq.completed")
        .run(place.path());
    let status = place.host(&["queue", "status", "./queue", "--json"]).good().stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["completed"], &status["failed"]), (&json!(1), &json!(2)), "{status}");
}
