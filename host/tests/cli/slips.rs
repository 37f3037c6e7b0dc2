//! Tests of mistakes that new users make.

use super::*;

#[test]
fn a_task_that_is_done_is_not_sent_back_from_a_queue_of_both_kinds_of_reports() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.write("bad.wasm", component(End::Reject));
    place.run("component push good.wasm --name NO_OP").ok();
    place.run("component push bad.wasm --name BAD").ok();
    place.feed("submit --fq ./queue", lines(0..2).as_bytes()).ok();
    place.run("submit --fq ./queue --name BAD --base-directory d").ok();
    place.run("run --fq ./queue -x --done-queue ./queue-errors").exits(3).says("2 done");
    let status = place.run("queue status ./queue").ok();
    status.says("Failed: 1 (reports in fq://./queue-errors, without 2 reports of done tasks)");
    place
        .run("queue errors ./queue")
        .ok()
        .says("1 error report in")
        .says("2 reports of tasks that are done");
    let again = "submit --fq ./again --from-errors ./queue-errors --dry-run";
    place.run(again).ok().says("1 task would be sent to fq://./again; 2 done before");
    let given = place.run(&format!("{again} --name X --json")).ok().json();
    let counts = ["sent", "skipped", "left", "refused"].map(|count| given[count].as_u64());
    assert_eq!(counts, [0, 2, 1, 0].map(Some));

    let skipped = "2 reports skipped of tasks that are done";
    let dry = place.run("queue redrive ./queue --dry-run").ok();
    dry.says("1 task would be sent back").says(skipped);
    let sent = place.run("queue redrive ./queue --json").ok().json();
    assert_eq!((&sent["sent"], &sent["done"], &sent["left"]), (&1.into(), &2.into(), &0.into()));
    assert_eq!(place.enqueued("queue"), 1);
    assert_eq!(place.enqueued("queue-errors"), 2);
    let ended = place.run("queue redrive ./queue").ok();
    ended.says("0 tasks sent back").says(skipped);
}

#[test]
fn a_url_with_a_slip_makes_no_directory() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    place.run("submit --fq ./queue --name A --base-directory d").ok();
    let before = names(&place);
    let slip = "looks like a mistyped URL; write";
    for line in [
        "run -x --queue sqs:/x",
        "run -x --fq sqs:x",
        "run -x --fq ./queue --error-queue sqs:/x",
        "run -x --fq ./queue --bucket s3:/x",
        "run -x --fq ./queue --cache-dir s3:/x",
        "queue cp ./queue sqs:/typo",
        "queue mv ./queue fq:./typo",
        "submit --queue sqs:x --name A --base-directory d",
        "component ls --bucket s3:/x",
        "component rm A --bucket gs:x",
    ] {
        place.run(line).exits(2).says(slip);
        assert_eq!(names(&place), before, "{line}");
    }
    place.run("queue status FQ://./queue").ok().says("Enqueued: 1");
    place.run("queue cp ./queue ./sqs:x").ok();
    assert!(place.has("sqs:x"));
}

/// The names of the entries in the directory.
fn names(place: &Place) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn what_a_host_would_refuse_is_refused_when_its_settings_are_shown() {
    let place = Place::new();
    place.run("config").ok().says("parallel");
    for (line, said) in [
        ("--parallel 0", "--parallel: \"0\" must be 1 or more"),
        ("--memory 9GiB", "the maximum is 4GiB"),
        ("--bucket s3:/x", "looks like a mistyped URL"),
        ("--error-queue sqs:/x", "looks like a mistyped URL"),
        ("--message-bucket s3://bucket/a --bucket s3://bucket/a", "overlap"),
    ] {
        place.run(&format!("config {line}")).exits(2).says(said);
        place.run(&format!("run --fq ./queue {line}")).exits(2).says(said);
    }
    let mut command = place.host("config");
    let ended = Ended::of(command.env("HOST_PARALLEL", "abc").output().unwrap());
    ended.exits(2).says("HOST_PARALLEL: \"abc\" is not a whole number");
    for (text, said) in [
        ("parallel = \"many\"", "host.toml: parallel: \"many\" is not a whole number"),
        ("receipts = \"yes, please\"", "host.toml: receipts: \"yes, please\" is neither"),
        ("[fleet]\nworkerz = 3", "host.toml: [fleet]: there is no option `workerz`"),
        ("[fleet]\nworkers = \"few\"", "host.toml: [fleet]: workers: \"few\" is not a number"),
    ] {
        place.write("host.toml", text);
        place.run("config").exits(2).says(said);
    }
    assert!(!place.has("queue"));
}

#[test]
fn a_file_of_settings_that_is_a_link_to_nothing_is_not_passed_over() {
    let place = Place::new();
    std::os::unix::fs::symlink("settings/host.toml", place.path("host.toml")).unwrap();
    place.run("config").exits(2).says("host.toml can't be read: No such file");
    fs::remove_file(place.path("host.toml")).unwrap();
    place.run("config").ok();
}

#[test]
fn a_health_check_of_a_wrong_address_fails_as_any_other() {
    let place = Place::new();
    place.run("health WRONG").exits(1).says("\"WRONG\" is not an address");
    let mut command = place.host("health");
    let ended = Ended::of(command.env("HOST_LISTEN", "WRONG").output().unwrap());
    ended.exits(1).says("HOST_LISTEN: \"WRONG\" is not an address");
    // No server listens there.
    place.run("health :9").exits(1).says("127.0.0.1:9: ");
}

#[test]
fn where_nobody_can_listen_the_reason_and_a_cure_are_told() {
    let place = Place::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    for command in ["run --fq ./queue -x", "dashboard --fq ./queue"] {
        // An address that is reserved for documentation, so no machine has it.
        let ended = place.run(&format!("{command} --listen 192.0.2.1:80")).exits(1);
        ended.says("192.0.2.1 is not an address of this machine; 127.0.0.1:80 is for");
        let ended = place.run(&format!("{command} --listen localhost:{taken}")).exits(1);
        ended.says(&format!("--listen 127.0.0.1:{taken}: ")).says("another program listens there");
    }
}

#[test]
fn a_machine_without_a_cache_has_an_empty_one() {
    let place = Place::new();
    for command in ["ls", "verify", "prune --to 1GiB", "quarantine"] {
        let said = match command {
            "quarantine" => "no components are in quarantine",
            _ => "there is no cache yet",
        };
        place.run(&format!("cache {command}")).ok().says(said);
        place.run(&format!("cache {command} --json")).ok();
    }
    assert!(!place.has(".cache"), "nothing is made by looking");
    // Some commands store only compiled code.
    place.write("good.wasm", component(End::Done));
    place.run("component push good.wasm --name NO_OP").ok();
    place.run("cache ls").ok();
    place.run("cache verify").ok().says("nothing is damaged");
}

#[test]
fn no_tasks_at_all_prove_nothing() {
    let place = Place::new();
    fs::create_dir(place.path("bucket")).unwrap();
    place.feed("receipts verify", b"").exits(1).says("no tasks were given, so nothing was checked");
    let json = place.feed("receipts verify --json", b"\n").exits(1);
    json.says("\"tasks\":0").says("no tasks were given");
    place.run("receipts verify --name A --each d/*.png").exits(1);
    place.feed("receipts audit --sample 100%", b"").exits(1).says("no tasks were given");
    place.feed("receipts verify", task(1).as_bytes()).exits(3).says("1 missing");
    place.feed("receipts verify", b"nonsense\n").exits(3).says("1 refused");
}

#[test]
fn the_queue_may_be_an_argument() {
    let place = Place::new();
    place.run("run ./queue -x").ok().says("queue       fq://./queue (created)");
    place.run("config ./queue").ok().says("fq://./queue");
    place.run("top ./queue --once").ok().says("fq://./queue");
    place.run("doctor ./queue").says("fq://./queue");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    place.run(&format!("dashboard ./queue --listen :{taken}")).exits(1).says("listens there");
    place.run("run ./queue --fq ./queue -x").exits(2).says("cannot be used with");
    place.run("run quuee -x").exits(2).says("QUEUE: \"quuee\" could be a new directory or an SQS");
}

#[test]
fn logs_are_not_stored_where_they_can_not_be_or_would_harm() {
    let place = Place::new();
    let check = |flags: &str, said: &str| {
        place.run(&format!("run --fq ./queue -x {flags}")).exits(2).says(said);
        assert!(!place.has("queue"), "{flags}");
    };
    check("--logs .task-host-tmp", "has a segment `.task-host-tmp`");
    check("--logs a/.task-host-tmp/b", "has a segment `.task-host-tmp`");
    check("--logs components", "--logs components and --component-prefix components overlap");
    check("--logs components/logs", "overlap");
    check("--logs a --component-prefix a/b", "overlap");
    place.run("run --fq ./queue -x --logs components-logs").ok();
}

#[test]
fn an_error_about_standard_output_says_so() {
    let full = std::path::Path::new("/dev/full");
    if !full.exists() {
        return;
    }
    let place = Place::new();
    place.run("submit --fq ./queue --name A --base-directory d").ok();
    for line in ["queue status ./queue", "queue ls ./queue", "queue ls ./queue --json", "config"] {
        let out = fs::OpenOptions::new().write(true).open(full).unwrap();
        let ended =
            Ended::of(place.host(line).stdout(out).stderr(Stdio::piped()).output().unwrap());
        ended.exits(1).says("error: can't write to standard output: No space left on device");
    }
}

#[test]
fn commands_for_the_host_itself_are_not_listed() {
    let ended = Place::new().run("-q").exits(2).says("doctor");
    assert!(!ended.stderr.contains("compile-component"), "{}", ended.stderr);
}

#[test]
fn a_push_that_fails_leaves_nothing() {
    let place = Place::new();
    place.write("good.wasm", component(End::Done));
    let versions = || {
        let names = fs::read_dir(place.path("bucket/components")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains('@')).count()
    };
    // A directory in the place of the component makes the push fail.
    place.write("bucket/components/NO_OP.wasm/in-the-way", "");
    place.run("component push good.wasm --name NO_OP").exits(1);
    assert_eq!(versions(), 0);
    fs::remove_dir_all(place.path("bucket/components/NO_OP.wasm")).unwrap();
    place.run("component push good.wasm --name NO_OP").ok();
    assert_eq!(versions(), 1);
    // A version that an earlier push kept stays.
    fs::remove_file(place.path("bucket/components/NO_OP.wasm")).unwrap();
    place.write("bucket/components/NO_OP.wasm/in-the-way", "");
    place.run("component push good.wasm --name NO_OP").exits(1);
    assert_eq!(versions(), 1);
}

#[test]
fn a_limit_that_leaves_one_task_at_a_time_is_told() {
    if std::thread::available_parallelism().unwrap().get() == 1 {
        return;
    }
    let place = Place::new();
    for flags in ["--output-memory 99TB", "--max-output-files 99999999999"] {
        let ended = place.run(&format!("run --fq ./queue -x {flags}")).ok();
        ended.says("so only 1 task may run at a time").says("--parallel N if tasks use less");
    }
    let ended = place.run("run --fq ./queue -x").ok();
    assert!(!ended.stderr.contains("may run at a time"), "{}", ended.stderr);
}

#[test]
fn q_ends_the_screen_of_top_and_the_terminal_is_as_before() {
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::ptr::null_mut;

    let place = Place::new();
    place.run("submit --fq ./queue --name A --base-directory d").ok();
    for signal in [None, Some(libc::SIGTERM), Some(libc::SIGHUP)] {
        let (mut master, mut terminal) = (0, 0);
        // SAFETY: the first two pointers are valid for writes, and the others may be null.
        let opened = unsafe {
            libc::openpty(&mut master, &mut terminal, null_mut(), null_mut(), null_mut())
        };
        assert_eq!(opened, 0);
        // SAFETY: the two descriptors were just opened, and nothing else owns them.
        let [master, terminal] = [master, terminal].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let modes = || rustix::termios::tcgetattr(&terminal).unwrap().local_modes;
        let before = modes();
        let mut command = place.host("top ./queue");
        let copy = || terminal.try_clone().unwrap();
        let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        let mut screen = fs::File::from(master);
        let mut seen = Vec::new();
        let mut some = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains("1 waiting") {
            let count = screen.read(&mut some).unwrap();
            seen.extend(&some[..count]);
        }
        assert_ne!(modes(), before, "keys are not shown");
        match signal {
            None => screen.write_all(b"xq").unwrap(),
            // SAFETY: `kill` has no preconditions. The child was not waited for yet, so the id is
            // still its own.
            Some(signal) => assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0),
        }
        assert!(child.wait().unwrap().success());
        assert_eq!(modes(), before);
    }
}
