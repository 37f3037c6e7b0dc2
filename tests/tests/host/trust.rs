//! Only components that the operator allows run: by digest, by name, by signature. Tasks of a
//! component that may not run wait, and lose no attempt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use task_host_tests::{Finished, Place, Signer, Watched, eventually, guest, no_op};

const TASKS: usize = 3;
/// The component of the tasks.
const NAME: &str = "NO_OP";

fn digest(file: &Path) -> String {
    let sums = Finished::run(Command::new("sha256sum").arg(file)).good();
    sums.stdout.split(' ').next().expect("a digest").to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn push(place: &Place, file: &Path, args: &[&str]) -> Finished {
    let push = ["component", "push", text(file), "--name", NAME, "--bucket", "./bucket"];
    place.host(&[&push[..], args].concat())
}

/// A copy of the component with different bytes and the same behavior.
fn version(place: &Place, number: u8) -> PathBuf {
    let file = place.path().join(format!("v{number}.wasm"));
    let mut bytes = fs::read(guest(NAME)).expect("a component");
    // A custom section with the name `v`.
    bytes.extend([0, 3, 1, b'v', number]);
    fs::write(&file, bytes).expect("a component");
    file
}

/// Waits until the host reports that the component may not run.
fn is_refused(host: &Watched, problem: &str) {
    host.is_out(&format!("component {NAME} may not run: {problem}"));
    eventually("a line of the log", || {
        let lines = host.lines("ERROR");
        lines.iter().any(|line| line.contains("may not run")).then_some(())
    });
}

#[test]
fn a_digest_that_is_not_listed_does_not_run_and_costs_no_task() {
    let place = Place::new();
    let [listed, other] = [1, 2].map(|number| version(&place, number));
    let toml = format!("[tasks.{NAME}]\ncomponents = [\"{}\"]\n", digest(&listed));
    fs::write(place.path().join("host.toml"), toml).expect("a file");
    push(&place, &other, &[]).good();
    let copy = ["component", "push", text(&other), "--name", "COPY", "--bucket", "./bucket"];
    place.host(&copy).good();
    place.submit(&place.innocent(TASKS));
    let host = place.watch(&[]);
    is_refused(&host, &format!("its digest is {}", digest(&other)));
    assert!(host.ready().1.contains(&digest(&listed)), "{}", host.ready().1);

    let doctor = place.host(&["doctor", "--fq", "./queue"]).code(1);
    let want = format!("component {NAME}: may not run: its digest is {}", digest(&other));
    assert!(doctor.stdout.contains(&want), "{}", doctor.stdout);

    // Tasks of other components run meanwhile.
    place.put("data/0_input/copied.dat", "content");
    let mut task = no_op(100, &["0_input/copied.dat".to_owned()]);
    task["basic_info"]["name"] = "COPY".into();
    place.submit(&[task]);
    eventually("the output of another component", || place.object("data/0_output/copied.dat"));
    // The output exists before the message is deleted.
    eventually("the tasks that wait", || (place.counts().0 == TASKS).then_some(()));

    push(&place, &listed, &[]).good();
    place.innocent_are_done(TASKS);
    host.did_without_harm(TASKS + 1);
}

#[test]
fn tasks_of_names_that_are_not_listed_are_rejected() {
    let place = Place::with(&[NAME]);
    fs::write(place.path().join("host.toml"), format!("[tasks.{NAME}]\n")).expect("a file");
    let mut task = no_op(7, &[]);
    task["basic_info"]["name"] = "other".into();
    place.submit(&place.innocent(TASKS));
    place.submit(&[task]);
    place.run_until_empty(&["--listed-tasks-only"]).code(3);
    let error = place.the_error();
    assert_eq!(
        error["exception"],
        "tasks named `other` are not run by this host: --listed-tasks-only is set, and host.toml has no \
         table [tasks.other]"
    );
    assert!(place.object("data/0_output/0.dat").is_some());
}

/// A place whose hosts accept only components of the first signer.
fn with_keys() -> (Place, Signer) {
    let (place, signer) = (Place::new(), Signer::new(1));
    fs::write(place.path().join("keys.pub"), signer.public_key()).expect("a key");
    (place, signer)
}

const KEYS: [&str; 2] = ["--component-keys", "./keys.pub"];

#[test]
fn only_signed_components_run_and_an_unsigned_one_costs_no_task() {
    let (place, signer) = with_keys();
    let file = version(&place, 1);
    push(&place, &file, &[]).good();
    // This puts the component's compiled code into the cache.
    place.submit(&place.innocent(1));
    place.run_until_empty(&[]).good();
    fs::remove_dir_all(place.path().join("bucket/data/0_output")).expect("an output");

    place.submit(&place.innocent(TASKS));
    let host = place.watch(&KEYS);
    is_refused(&host, "it has no signature: ");
    let signature = signer.sign_file(&file, NAME);
    push(&place, &file, &["--signature", text(&signature)]).good();
    place.innocent_are_done(TASKS);
    host.is_ready_again();

    // Pushes a new version while the host is running.
    let told = host.lines("ERROR").len();
    let next = version(&place, 2);
    let signature = signer.sign_file(&next, NAME);
    push(&place, &next, &[&["--signature", text(&signature)], &KEYS[..]].concat()).good();
    place.submit(&place.innocent(TASKS));
    place.innocent_are_done(TASKS);
    assert_eq!(host.lines("ERROR").len(), told, "a push looked like an attack");
    host.did_without_harm(2 * TASKS);
}

/// Hosts see a new component only after its signature exists.
#[test]
fn a_signature_is_pushed_before_its_component() {
    let (place, signer) = with_keys();
    let file = version(&place, 1);
    let signature = signer.sign_file(&file, NAME);
    let trace = place.path().join("trace");
    let strace = ["strace", "-f", "-qq", "-e", "trace=rename,renameat,renameat2,link,linkat"];
    let strace = [&strace[..], &["-o", text(&trace)]].concat();
    let args = ["component", "push", text(&file), "--name", NAME, "--bucket", "./bucket"];
    let args = [&args[..], &["--signature", text(&signature)]].concat();
    Finished::run(&mut place.command_by(&strace, &args)).good();
    let trace = fs::read_to_string(trace).expect("a trace");
    let line = |name: &str| trace.lines().position(|line| line.contains(name));
    let (signature, component) = (line("NO_OP.wasm.minisig\""), line("NO_OP.wasm\""));
    assert!(signature.is_some() && signature < component, "{trace}");
}

/// Signatures that are not for these bytes under this name, obtained in all possible ways.
#[test]
fn no_other_signature_is_accepted() {
    let (place, signer) = with_keys();
    let file = version(&place, 1);
    let bytes = fs::read(&file).expect("a component");
    let comment = format!("timestamp:1\tfile:{NAME}.wasm\thashed");
    push(&place, &file, &[]).good();
    let at = place.path().join("bucket/components/NO_OP.wasm.minisig");
    let own = signer.sign(&bytes, &comment);
    let wrong = [
        ("not a minisign signature file", "nonsense".to_owned()),
        ("by a key that is not among", Signer::new(2).sign(&bytes, &comment)),
        ("does not match its bytes", signer.sign(b"other bytes", &comment)),
        ("does not match its bytes", own.replace("timestamp:1", "timestamp:2")),
        ("has minisign's old format", signer.sign_as_before(&bytes, &comment)),
        ("is for another component", signer.sign(&bytes, "timestamp:1\tfile:other.wasm\thashed")),
        ("is for another component", signer.sign(&bytes, "NO_OP")),
    ];
    let inspect = |state: &str| {
        let args = [&["component", "inspect", NAME, "--bucket", "./bucket"], &KEYS[..]].concat();
        let shown = place.host(&args).good().stdout;
        let line = shown.lines().find(|line| line.starts_with("signature")).expect("a line");
        assert!(line.contains(state), "{line}");
    };
    inspect("none");
    place.submit(&place.innocent(TASKS));
    for (problem, signature) in &wrong {
        fs::write(&at, signature).expect("a signature");
        place.run(&[&["--for", "1s"], &KEYS[..]].concat()).good();
        assert!(place.object("data/0_output/0.dat").is_none(), "{problem}: it ran");
        assert_eq!((place.counts().0, place.errors()), (TASKS, Vec::<Value>::new()), "{problem}");
        inspect(problem);
        let doctor = place.host(&[&["doctor", "--fq", "./queue"], &KEYS[..]].concat()).code(1);
        let line = format!("component {NAME}: may not run: its signature");
        assert!(doctor.stdout.contains(&line), "{}", doctor.stdout);
        let pushed = place.path().join("wrong.minisig");
        fs::write(&pushed, signature).expect("a signature");
        let args = [&["--signature", text(&pushed)], &KEYS[..]].concat();
        let refused = push(&place, &file, &args).code(1);
        assert!(refused.stderr.contains(problem), "{}", refused.stderr);
    }
    fs::write(&at, own).expect("a signature");
    inspect("valid: timestamp:1");
    place.run_until_empty(&KEYS).good();
    place.innocent_are_done(TASKS);
    let doctor = place.host(&[&["doctor", "--fq", "./queue"], &KEYS[..]].concat()).good();
    assert!(doctor.stdout.contains("trust: may run: 1 component"), "{}", doctor.stdout);
}

#[test]
fn a_component_is_not_pushed_without_a_signature_where_one_is_needed() {
    let (place, _) = with_keys();
    let refused = push(&place, &guest(NAME), &KEYS).code(2);
    let want = "hosts with these --component-keys run no component without a signature";
    assert!(refused.stderr.contains(want), "{}", refused.stderr);
    assert!(place.keys().is_empty());
}

#[test]
fn keys_and_digests_that_mean_nothing_are_errors() {
    let place = Place::new();
    fs::write(place.path().join("keys.pub"), "nonsense\n").expect("a file");
    let ended = place.run(&KEYS).code(2);
    let want = "--component-keys: \"./keys.pub\" line 1 is not a minisign public key";
    assert!(ended.stderr.contains(want), "{}", ended.stderr);
    let check = |value: &str, want: &str| {
        let toml = format!("[tasks.a]\ncomponents = {value}\n");
        fs::write(place.path().join("host.toml"), toml).expect("a file");
        let ended = place.run(&[]).code(2);
        assert!(ended.stderr.contains(want), "{}", ended.stderr);
    };
    let place = "host.toml: [tasks.a]: components: ";
    check("[]", &format!("{place}expected a list of digests, found []"));
    check("\"abc\"", &format!("{place}expected a list of digests, found \"abc\""));
    check("[\"abc\"]", &format!("{place}\"abc\" is not a SHA-256: 64 lower-case"));
}
