//! The TCP ports that a host connects to: the ports of HTTP and DNS, and the ports that settings,
//! variables and files with credentials name.

use std::collections::BTreeSet;

use crate::environment::Environment;

/// HTTPS, HTTP (also for metadata servers), and DNS, which uses TCP for long answers.
const ALWAYS: [u16; 3] = [443, 80, 53];
/// A variable whose name has such a part may be an address without a scheme, such as
/// `localhost:8085`.
const ADDRESSES: [&str; 5] = ["HOST", "ENDPOINT", "PROXY", "ADDR", "SERVER"];

/// Adds the ports that every host uses, and those in the environment.
pub(super) fn add(ports: &mut BTreeSet<u16>, environment: &Environment) {
    ports.extend(ALWAYS);
    for (name, value) in environment.starting("") {
        ports.extend(in_text(value));
        let name = name.to_ascii_uppercase();
        if !value.contains("://") && ADDRESSES.iter().any(|part| name.contains(part)) {
            ports.extend(value.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()));
        }
    }
}

/// The ports of all URLs in a text.
pub(super) fn in_text(text: &str) -> impl Iterator<Item = u16> {
    text.split("://").skip(1).filter_map(|rest| {
        let end = |c: char| c.is_whitespace() || "/?#\"',;\\".contains(c);
        let authority = rest.split(end).next()?;
        authority.rsplit_once(':')?.1.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_in_urls_and_addresses() {
        let check = |name: &str, value: &str, want: &[u16]| {
            let mut ports = BTreeSet::new();
            add(&mut ports, &[(name, value)].into_iter().collect());
            let others: Vec<u16> = ports.into_iter().filter(|p| !ALWAYS.contains(p)).collect();
            assert_eq!(others, want, "{name}={value}");
        };
        check("AWS_ENDPOINT_URL", "http://127.0.0.1:5000", &[5000]);
        check("AWS_ENDPOINT_URL", "http://[::1]:5000/path:7", &[5000]);
        check("AWS_ENDPOINT_URL", "https://s3.example.org/a", &[]);
        check("PUBSUB_EMULATOR_HOST", "localhost:8085", &[8085]);
        check("https_proxy", "proxy:3128", &[3128]);
        check("PATH", "/bin:22", &[]);
        let json = r#"{"token_url": "https://a.example:8443/t", "url": "http://b:81"}"#;
        assert_eq!(in_text(json).collect::<Vec<_>>(), [8443, 81]);
    }
}
