//! The paths that any program needs on its machine, and the files with credentials that its
//! environment names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Rules, ports};
use crate::environment::Environment;

/// Directories with programs and libraries.
const PROGRAMS: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix/store",
    "/gnu/store",
    // The host's own program, which it starts to compile components.
    "/proc/self/exe",
];
/// Descriptions of the machine and its services: names, users, certificates, processors, memory.
///
/// Programs replace files in `/etc`, such as `resolv.conf`, so the whole directory is listed.
const DESCRIPTIONS: &[&str] = &[
    "/etc",
    "/proc",
    "/sys",
    "/run/nscd",
    "/var/run/nscd",
    "/var/lib/sss",
    "/var/lib/ca-certificates",
];
/// Files that may be links to files of other services, which may replace the files.
const NAME_SERVICE: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];
/// Devices that hold no data, and this process's own entries in `/proc`.
const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/proc/self",
];
/// Prefixes of variables that may name a file with credentials or certificates, or its directory.
const CLOUDS: &[&str] = &["AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "CLOUDSDK_", "SSL_CERT_"];
/// Directories of cloud tools in the home directory.
const OF_TOOLS: &[&str] = &[".config/gcloud", ".azure", ".cloudvolume/secrets"];
/// The directory of AWS's tools. Refreshed single sign-on tokens are written to it.
const OF_AWS: &str = ".aws";

pub(super) fn add(rules: &mut Rules, environment: &Environment) {
    rules.run.extend(PROGRAMS.iter().map(PathBuf::from));
    rules.read.extend(DESCRIPTIONS.iter().map(PathBuf::from));
    for file in NAME_SERVICE {
        rules.read_file(Path::new(file));
    }
    rules.write.extend(DEVICES.iter().map(PathBuf::from));
    for prefix in CLOUDS {
        for (_, value) in environment.starting(prefix) {
            // A variable may name several directories of certificates.
            for path in value.split(':').map(Path::new).filter(|path| path.is_absolute()) {
                rules.read_file(path);
            }
        }
    }
    rules.read.extend(OF_TOOLS.iter().filter_map(|dir| environment.home(dir)));
    rules.write.extend(environment.home(OF_AWS));
    of_aws(rules, environment);
    of_google(rules, environment);
}

/// Adds the files, programs and ports that the profiles of AWS name.
fn of_aws(rules: &mut Rules, environment: &Environment) {
    let files =
        [("AWS_CONFIG_FILE", ".aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")];
    for (variable, default) in files {
        let named = environment.get(variable).map(PathBuf::from);
        let Some(file) = named.or_else(|| environment.home(default)) else { continue };
        let text = fs::read_to_string(file).unwrap_or_default();
        rules.connect.extend(ports::in_text(&text));
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key.trim() {
                "web_identity_token_file" | "ca_bundle" => rules.read_file(Path::new(value.trim())),
                "credential_process" => starts(rules, environment, value),
                _ => {}
            }
        }
    }
}

/// Adds the ports, the file and the program that a file with Google's credentials names.
fn of_google(rules: &mut Rules, environment: &Environment) {
    let named = environment.get("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from);
    let default = || environment.home(".config/gcloud/application_default_credentials.json");
    let text = named.or_else(default).and_then(|file| fs::read_to_string(file).ok());
    let Some(text) = text else { return };
    rules.connect.extend(ports::in_text(&text));
    let Ok(json) = serde_json::from_str::<Value>(&text) else { return };
    let source = &json["credential_source"];
    if let Some(file) = source["file"].as_str() {
        rules.read_file(Path::new(file));
    }
    if let Some(command) = source["executable"]["command"].as_str() {
        starts(rules, environment, command);
    }
}

/// Adds what a program that prints credentials needs: its directory, the directories in `PATH`, and
/// the directory of temporary files.
fn starts(rules: &mut Rules, environment: &Environment, command: &str) {
    let path = environment.get("PATH").unwrap_or_default();
    rules.run.extend(path.split(':').map(PathBuf::from).filter(|dir| dir.is_absolute()));
    let program = command.split_whitespace().next().unwrap_or_default().trim_matches(['"', '\'']);
    let program = Path::new(program);
    if program.is_absolute() {
        rules.run.push(program.to_owned());
        rules.run.extend(program.parent().map(Path::to_owned));
    }
    rules.write.push(PathBuf::from(environment.get("TMPDIR").unwrap_or("/tmp")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_with_credentials_name_is_found() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        for dir in [".aws", "tokens/deep", "google"] {
            fs::create_dir_all(home.join(dir)).unwrap();
        }
        let [token, google] = ["tokens/token", "google/key.json"].map(|name| home.join(name));
        fs::write(
            home.join(".aws/config"),
            format!(
                "[default]\nendpoint_url = http://localhost:4566\n\
                 web_identity_token_file = {}\n[profile b]\n\
                 credential_process = /srv/helper/run --fast\n",
                token.display()
            ),
        )
        .unwrap();
        let deep = home.join("tokens/deep/token");
        let source = serde_json::json!({"credential_source": {"file": deep}});
        fs::write(&google, source.to_string()).unwrap();
        let variables = [
            ("HOME", home.to_str().unwrap()),
            ("GOOGLE_APPLICATION_CREDENTIALS", google.to_str().unwrap()),
        ];
        let rules = Rules::of(&variables.into_iter().collect());
        for dir in ["tokens", "google", "tokens/deep"] {
            assert!(rules.read.contains(&home.join(dir)), "{dir}: {:?}", rules.read);
        }
        assert!(rules.write.contains(&home.join(".aws")) && rules.connect.contains(&4566));
        assert!(rules.run.contains(&PathBuf::from("/srv/helper")), "{:?}", rules.run);
        assert!(!rules.paths().any(|path| path == home), "the home directory is too much");
    }
}
