//! Generates tables of settings for the reference of the command line. Tests compare the page with
//! them.

use clap::Arg;

use super::{default, is_switch, name};

/// The header of a table of options.
pub(crate) const HEADER: &str = "| setting | default | meaning |\n|---|---|---|\n";

/// The row of one option.
pub(crate) fn row(setting: &Arg) -> String {
    let short = setting.get_short().map_or(String::new(), |short| format!("`-{short}`, "));
    let value = match setting.get_value_names() {
        Some([value, ..]) if !is_switch(setting) => format!(" {value}"),
        _ => String::new(),
    };
    let help = setting.get_help().map(ToString::to_string).unwrap_or_default();
    let (help, default) = match help.split_once(" [default: ") {
        Some((help, default)) => (help, default.trim_end_matches(']').to_owned()),
        None if is_switch(setting) => (&*help, String::new()),
        None => (&*help, default(setting).map_or(String::new(), |d| format!("`{d}`"))),
    };
    let help = help.replace('|', "\\|");
    format!("| {short}`--{}{value}` | {default} | {help} |\n", name(setting))
}

/// Asserts that the page has this text between the marks of that name. Writes it there if snapshots
/// are to be updated.
pub(crate) fn is_on_the_page(what: &str, text: &str) {
    let begin = format!("<!-- {what}: written by a test -->\n");
    let end = format!("\n<!-- end of {what} -->");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/command-line.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(&begin).unwrap();
    let (listed, after) = rest.split_once(&end).unwrap();
    // The variable that updates snapshots updates this page too.
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(path, format!("{before}{begin}{text}{end}{after}")).unwrap();
    } else {
        assert_eq!(
            listed, text,
            "update the page: INSTA_UPDATE=always cargo xtask test --fast settings"
        );
    }
}
