//! The targets: one for each kind of foreign data.

mod cache;
mod cause;
mod cloud_queue;
mod component;
mod config;
mod download;
mod json;
mod message;
mod names;
mod picture;
mod queue_directory;
mod receipt;
mod report;

use crate::Target;

/// All targets, sorted by name.
pub(crate) const ALL: &[Target] = &[
    Target { name: "cache", check: cache::check },
    Target { name: "cause", check: cause::check },
    Target { name: "cloud_queue", check: cloud_queue::check },
    Target { name: "component", check: component::check },
    Target { name: "config", check: config::check },
    Target { name: "download", check: download::check },
    Target { name: "json", check: json::check },
    Target { name: "message", check: message::check },
    Target { name: "names", check: names::check },
    Target { name: "picture", check: picture::check },
    Target { name: "queue_directory", check: queue_directory::check },
    Target { name: "receipt", check: receipt::check },
    Target { name: "report", check: report::check },
];

/// Splits an input into its first line and the rest.
fn first_line(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[]),
    }
}

/// Splits an input into lines such as `name: value` up to an empty line, and the rest.
fn headers(input: &[u8]) -> (Vec<(&str, &str)>, &[u8]) {
    let (mut headers, mut rest) = (Vec::new(), input);
    loop {
        let (line, after) = first_line(rest);
        rest = after;
        if line.is_empty() {
            return (headers, rest);
        }
        let line = std::str::from_utf8(line).unwrap_or_default();
        headers.extend(line.split_once(": "));
    }
}
