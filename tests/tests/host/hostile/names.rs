//! Names and texts that a terminal would interpret or that mislead a reader. New names like these
//! are refused, and existing ones are shown escaped.

use std::fs;

use serde_json::{Value, json};
use task_host_tests::{Finished, Place, guest, misbehaviour, python};

/// Terminal control sequences (a title and clearing the screen, as escapes and as C1 controls),
/// characters that reverse text, invisible characters, and a forged line.
pub(super) const ODD: &str =
    "\u{1b}]0;title\u{7}\u{1b}[2J\r\u{9b}2J\u{7f}\u{8}\u{202e}\u{200b}\u{2028}\nFORGED line";
/// The escaped form of `ODD`.
const SHOWN: &str = r"\u{1b}]0;title\u{7}\u{1b}[2J\r\u{9b}2J\u{7f}\u{8}\u{202e}\u{200b}\u{2028}";

fn is_odd(c: char) -> bool {
    c != '\n' && (c.is_control() || ODD.contains(c) && !c.is_ascii())
}

/// Checks that the text has no character that a terminal interprets, and no forged line.
#[track_caller]
fn is_plain(text: &str) {
    let odd: Vec<char> = text.chars().filter(|c| is_odd(*c)).collect();
    assert!(odd.is_empty(), "{odd:?} in {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{text}");
}

/// Checks the output of a command in the same way, and that it contains `words`.
#[track_caller]
fn says(finished: Finished, words: &[&str]) -> Finished {
    is_plain(&finished.stdout);
    is_plain(&finished.stderr);
    for word in words {
        let said = finished.stdout.contains(word) || finished.stderr.contains(word);
        assert!(said, "{word:?} is not in\n{}\n{}", finished.stdout, finished.stderr);
    }
    finished
}

fn strings(texts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in texts {
        bytes.push(u8::try_from(text.len()).expect("a short text"));
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    assert!(len < 1 << 14);
    let size = [(len & 0x7f) as u8 | 0x80, (len >> 7) as u8];
    [&[id][..], &size, content].concat()
}

/// WebAssembly whose `producers` section names a tool with an odd name.
fn made_by_odd(wasm: &[u8]) -> Vec<u8> {
    let (name, field) = (strings(&["producers"]), strings(&["processed-by"]));
    let content = [&name[..], &[1], &field, &[1], &strings(&[ODD, "1"])].concat();
    [wasm, &section(0, &content)].concat()
}

/// A core module that exports a memory with an odd name.
fn odd_module() -> Vec<u8> {
    let export = [&[1][..], &strings(&[ODD]), &[2, 0]].concat();
    [&b"\0asm\x01\0\0\0"[..], &section(5, &[1, 0, 1]), &section(7, &export)].concat()
}

/// Writes a message to the directory of a queue.
fn message(place: &Place, queue: &str, number: u32, body: &str) {
    let id = format!("00000000-0000-4000-8000-{number:012}");
    let dir = place.path().join(queue);
    for part in ["queue", "movement"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    let name = format!("0--{id}.json");
    fs::write(dir.join("movement").join(&id), format!("{name}\n")).unwrap();
    fs::write(dir.join("queue").join(name), body).unwrap();
}

fn report(exception: &str) -> String {
    let task = misbehaviour(7, &[], json!({"do": "leave"}));
    json!({"host_info": {}, "task": task, "exception": exception}).to_string()
}

#[test]
fn what_a_component_says_of_itself_is_escaped() {
    let place = Place::new();
    let no_op = fs::read(guest("NO_OP")).unwrap();
    fs::write(place.path().join("odd.wasm"), made_by_odd(&no_op)).unwrap();
    fs::write(place.path().join("core.wasm"), odd_module()).unwrap();
    let on_one_line = format!(r"{SHOWN}\nFORGED line");
    for (file, code) in [("odd.wasm", 0), ("core.wasm", 3)] {
        says(place.host(&["component", "inspect", file]).code(code), &[&on_one_line]);
        let said = says(place.host(&["component", "inspect", file, "--json"]).code(code), &[]);
        let value: Value = serde_json::from_str(&said.stdout).unwrap();
        assert!(
            format!("{:?}", value).contains("FORGED") && value.to_string().contains('\u{202e}')
        );
    }
    says(place.host(&["component", "push", "core.wasm"]).code(1), &["is a core module"]);
    says(place.host(&["try", "core.wasm"]).code(1), &["is a core module"]);
}

#[test]
fn names_of_components_are_plain_and_tell_themselves_apart() {
    let place = Place::new();
    let no_op = guest("NO_OP");
    let no_op = no_op.to_str().unwrap();
    let push = |name: &str| place.host(&["component", "push", no_op, "--name", name]);
    says(push("NO\u{200b}_OP").code(2), &[r"NO\u{200b}_OP", "has the character U+200B"]);
    says(push("a\u{202e}b").code(2), &["U+202E"]);
    says(push(ODD).code(2), &["has the control character"]);
    push("NO_OP").good();
    push("ΔF/F").good();
    let refused = [
        "the name no_op differs only in case from the component NO_OP",
        "give another name with --name, or remove file://",
        "/components/NO_OP.wasm first",
    ];
    says(push("no_op").code(1), &refused);
    says(push("δf/f").code(1), &["from the component ΔF/F"]);
    says(push("NO_OP").good(), &["replaced NO_OP"]);
    assert_eq!(place.keys().len(), 2);

    // Another program has put this component into the bucket.
    place.put("components/old\u{202e}\u{200b}.wasm", "x");
    says(place.host(&["component", "ls"]).good(), &[r"old\u{202e}\u{200b}", "ΔF/F"]);
    let json = says(place.host(&["component", "ls", "--json"]).good(), &[]);
    let rows: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows[1]["name"], "old\u{202e}\u{200b}", "{rows:#}");
}

#[test]
fn messages_and_reports_are_escaped_where_they_are_listed() {
    let place = Place::new();
    message(&place, "queue-errors", 1, &report(ODD));
    message(&place, "queue-errors", 2, ODD);
    message(&place, "queue-errors", 3, &json!({"a": ODD}).to_string().replace(r"\u200b", ODD));
    // This message is JSON with unescaped odd characters.
    let raw = "{\"basic_info\":\n {\"name\": \"A\u{202e}\u{9b}\", \"base_directory\": \"d\"}}";
    message(&place, "queue-errors", 4, raw);
    let ls = |args: &[&str]| {
        let args = [&["queue", "ls", "./queue-errors"], args].concat();
        says(place.host(&args).good(), &["00000000-0000-4000-8000-000000000001"])
    };
    assert!(ls(&[]).stdout.contains(&SHOWN.replace(r"\r", " ").replace(r"\u{2028}", "")[..20]));
    says(ls(&["--long"]), &[SHOWN, "FORGED line"]);
    let json = ls(&["--json"]);
    let lines: Vec<Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let of = |number: &str| {
        let is_it = |line: &&Value| line["id"].as_str().unwrap().ends_with(number);
        lines.iter().find(is_it).unwrap()
    };
    assert_eq!(of("1")["message"]["exception"], ODD);
    assert_eq!(of("2")["text"], ODD);
    assert_eq!(of("4")["message"], serde_json::from_str::<Value>(raw).unwrap());

    let redrive = ["queue", "redrive", "./queue", "--dry-run"];
    says(place.host(&redrive).code(3), &["1 task would be sent back", "misbehave 7"]);
    says(place.host(&redrive[..3]).code(3), &["1 task sent back"]);
    let submit = ["submit", "--fq", "./queue", "lines"];
    fs::write(place.path().join("lines"), format!("{}\n{ODD}\n", raw.replace('\n', " "))).unwrap();
    says(place.host(&submit).code(3), &[r"A\u{202e}\u{9b}"]);
}

#[test]
fn a_task_of_an_odd_name_is_no_task() {
    let place = Place::with(&["misbehave"]);
    let names = ["mis\u{200b}behave", "misbehave\u{202e}", "mis\u{ad}behave"];
    for (number, name) in (1..).zip(names) {
        let mut task = misbehaviour(1, &[], json!({"do": "leave"}));
        task["basic_info"]["name"] = json!(name);
        message(&place, "queue", number, &task.to_string());
    }
    let args = ["--log-format", "human"];
    says(place.run_until_empty(&args).code(3), &[r"mis\u{200b}behave", "U+200B", "U+202E"]);
    let errors = place.errors();
    assert_eq!(errors.len(), 3);
    for error in errors {
        let exception = error["exception"].as_str().unwrap();
        assert!(exception.starts_with("the message is not a task: basic_info.name: "), "{error:#}");
        assert!(exception.contains("which is not shown or changes"), "{error:#}");
        is_plain(exception);
    }
}

#[test]
pub(super) fn what_a_guest_says_forges_no_line_of_a_log() {
    let place = Place::with(&["misbehave"]);
    for do_what in ["reject", "retry", "panic"] {
        place.submit(&[misbehaviour(1, &[], json!({"do": do_what, "text": ODD}))]);
    }
    place.submit(&[misbehaviour(
        1,
        &[],
        json!({"do": "all", "steps": [
            {"do": "say", "text": ODD}, {"do": "reject", "text": ODD},
        ]}),
    )]);
    let args = ["--max-attempts", "2", "--log-level", "debug"];
    let human = [&args[..], &["--log-format", "human"]].concat();
    let said = says(place.run_until_empty(&human).code(3), &[SHOWN]);
    for line in said.stderr.lines().filter(|line| line.contains("FORGED")) {
        let is_ours = line.starts_with("    ") || line.starts_with("20");
        assert!(is_ours, "{line:?} passes for a line of the log:\n{}", said.stderr);
    }
    let errors = place.errors();
    assert_eq!(errors.len(), 4);
    for error in errors {
        message(&place, "queue", 9, &error["task"].to_string());
        let json = [&args[..], &["--log-format", "json"]].concat();
        let said = says(place.run_until_empty(&json).code(3), &[]);
        for line in said.stderr.lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok_and(|l| l.is_object()), "{line}");
        }
    }
}

#[test]
fn places_of_odd_names_are_shown_escaped() {
    let place = Place::new();
    let (bucket, cache) = (format!("./b{ODD}"), format!("c{ODD}"));
    let bucket_args = ["--bucket", &bucket, "--cache-dir", &cache];
    fs::create_dir_all(place.path().join(&bucket)).unwrap();
    let shown = &SHOWN[..20];
    let run = |args: &[&str]| place.run_until_empty(&[&bucket_args[..], args].concat());
    says(run(&["--log-format", "human"]).good(), &[shown]);
    says(run(&["--log-format", "json", "--json"]).good(), &["FORGED"]);
    says(place.host(&["cache", "verify", "--cache-dir", &cache]).good(), &[shown]);
    let config = ["config", "--bucket", &bucket];
    says(place.host(&config).good(), &[shown]);
    says(place.host(&["doctor", "--fq", "./queue", "--bucket", &bucket]).code(1), &[shown]);
    let missing = format!("no\u{1b}[2J{ODD}");
    says(place.host(&["component", "inspect", &missing]).code(1), &["no\\u{1b}[2J"]);
    says(place.host(&["queue", "ls", &format!("./{missing}")]).code(1), &["no\\u{1b}[2J"]);
}

#[test]
fn outputs_of_odd_names_can_not_be_made_and_inputs_of_odd_names_are_read() {
    let place = Place::with(&["misbehave"]);
    let input = "0_input/a\u{202e}\u{200b}gpj.exe";
    let mut reads = misbehaviour(1, &[input], json!({"do": "leave"}));
    reads["basic_info"]["base_directory"] = json!("old\u{202e}data");
    place.put(&format!("old\u{202e}data/{input}"), "an input");
    let odd = ["a\u{202e}gpj.exe", "zero\u{200b}width", "\u{feff}bom", "line\u{2028}line"];
    let fine = ["e\u{301}", "é", "ΔF", "日本 語", " leading", "-rf", "CON"];
    let names = [&odd[..], &fine].concat();
    let mut tries = misbehaviour(2, &[], json!({"do": "odd-names", "names": names}));
    tries["basic_info"]["base_directory"] = json!("fine");
    // A guest that stops after the error has the reason in its log.
    let first = json!({"do": "output", "key": odd[0], "text": ""});
    let gives_up = misbehaviour(3, &[], first);
    let twins = json!({"do": "odd-names", "names": ["Result.txt", "result.txt"]});
    place.submit(&[reads, tries, gives_up, misbehaviour(4, &[], twins)]);
    let words = "output /outputs/result.txt: differs only in case from the output \
                 /outputs/Result.txt; a file system that ignores case keeps only one of them";
    let args = ["--log-format", "human", "--max-attempts", "1"];
    says(place.run_until_empty(&args).code(3), &[words]);

    let errors = place.errors();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    let log = errors.iter().map(|error| error["log"].as_str().unwrap()).collect::<String>();
    let why =
        r#"host: an output can't have the name "a\u{202e}gpj.exe": it has the character U+202E"#;
    assert!(log.contains(why), "{log}");

    let seen = place.object("old\u{202e}data/report.json").expect("a report");
    let seen: Value = serde_json::from_slice(&seen).unwrap();
    assert!(seen["inputs"].as_array().unwrap().contains(&json!(input)), "{seen:#}");
    let report = place.object("fine/report.json").expect("a report");
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["written"], json!(fine), "{report:#}");
    assert_eq!(report["failed"].as_object().unwrap().len(), odd.len(), "{report:#}");
    let keys = place.keys();
    for name in fine {
        assert!(keys.contains(&format!("fine/{name}")), "{name:?} of {keys:#?}");
    }
    assert!(!keys.iter().any(|key| key.starts_with("tests/")), "{keys:#?}");
}

/// Checks the output of `host try` on a terminal, where it is used most.
#[test]
fn a_guest_prints_text_and_colours_to_a_terminal() {
    const ON_A_TERMINAL: &str = "\
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
";
    let place = Place::new();
    fs::write(place.path().join("terminal.py"), ON_A_TERMINAL).unwrap();
    let guest = guest("misbehave");
    let text = format!("\u{1b}[31mred\u{1b}[0m {ODD}");
    let payload = json!({"do": "say", "text": text}).to_string();
    let args = ["try", guest.to_str().unwrap(), "--payload", &payload];
    let python = python("python");
    let program = [python.to_str().unwrap(), "terminal.py"];
    let said = Finished::run(&mut place.command_by(&program, &args)).good().stdout;
    // The terminal changes the ends of lines.
    let said = said.replace("\r\n", "\n");
    let colours = "\u{1b}[31mred\u{1b}[0m ";
    assert!(said.contains(&format!("{colours}{SHOWN}\nFORGED line\n")), "{said:?}");
    let rest = said.replace(colours, "").replace("\u{1b}[0m", "");
    assert!(!rest.chars().any(is_odd), "{rest:?}");

    // A file gets the text unchanged.
    let said = place.host(&args).good().stderr;
    assert!(said.contains(&text), "{said:?}");
}
