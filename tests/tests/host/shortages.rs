//! Shortages of the machine: `host doctor` reports them in advance, and `host run` suggests the
//! same fix.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use task_host_tests::{Finished, Place};

/// Runs `host ARGS…` after these `ulimit` commands.
fn under(place: &Place, limits: &str, args: &str) -> Finished {
    let host = place.command(&[]);
    let mut command = Command::new("sh");
    let script = format!("{limits}; exec \"$0\" {args}");
    command.args(["-c", &script]).arg(host.get_program()).current_dir(place.path());
    command.env_clear().envs(host.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Finished::run(&mut command)
}

/// The findings of `host doctor` for subjects that begin with `subject`, as `level: text -> cure`.
fn findings(doctor: &Finished, subject: &str) -> Vec<String> {
    let found: Value = serde_json::from_str(&doctor.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", doctor.stdout, doctor.stderr));
    let of_subject = |f: &&Value| f["subject"].as_str().is_some_and(|s| s.starts_with(subject));
    let told = |f: &Value| {
        let part = |name: &str| f[name].as_str().unwrap_or_default().to_owned();
        format!("{}: {} -> {}", part("level"), part("text"), part("cure"))
    };
    found["findings"].as_array().unwrap().iter().filter(of_subject).map(told).collect()
}

#[track_caller]
fn says(findings: &[String], words: &[&str]) {
    let is_said = |finding: &String| words.iter().all(|word| finding.contains(word));
    assert!(findings.iter().any(is_said), "{words:?} are not in {findings:#?}");
}

const DOCTOR: &str = "doctor --json --fq ./queue --parallel 4";

#[test]
fn little_address_space_is_found_before_a_run_and_explained_by_it() {
    let place = Place::with(&["NO_OP"]);
    let limit = "ulimit -v 8388608";
    let doctor = under(&place, limit, DOCTOR).code(1);
    says(&findings(&doctor, "sandbox"), &["problem", "8.0 GiB of address space", "`ulimit -v`"]);
    let run = under(&place, limit, "run -x --fq ./queue --parallel 4").code(1);
    assert!(run.stderr.contains("8.0 GiB of address space (`ulimit -v`)"), "{}", run.stderr);
    // Without the limit, there is no problem.
    says(&findings(&under(&place, "true", DOCTOR).code(0), "sandbox"), &["ok"]);
}

/// A user id that no user of the machine has. Limits do not apply to root.
fn user() -> u32 {
    1_900_000_000 + std::process::id()
}

fn give(path: &Path, user: u32) {
    Finished::run(Command::new("chown").args(["-R", &user.to_string()]).arg(path)).good();
}

/// Runs `host ARGS…` as that user, with at most `most` processes and threads.
fn as_user(place: &Place, most: usize, args: &str) -> Finished {
    let host = place.command(&[]);
    let mut command = Command::new("sh");
    // The directory of the program may be accessible only to its owner, so a descriptor passes the
    // program on.
    let script = format!(
        "exec 3<\"$0\"; exec setpriv --reuid={} --clear-groups prlimit --nproc={most}:{most} \
         /proc/self/fd/3 {args}",
        user()
    );
    command.args(["-c", &script]).arg(host.get_program()).current_dir(place.path());
    command.env_clear().envs(host.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Finished::run(&mut command)
}

#[test]
fn a_directory_of_another_user_is_named_with_its_owner() {
    for (part, subject) in [("queue", "queue"), ("queue-errors", "errors"), ("bucket", "bucket")] {
        let place = Place::with(&["NO_OP"]);
        for queue in ["./queue", "./queue-errors"] {
            place.host(&["submit", "--fq", queue, "/dev/null"]).good();
        }
        give(place.path(), user());
        as_user(&place, 4096, DOCTOR).code(0);
        give(&place.path().join(part), 0);
        let found = findings(&as_user(&place, 4096, DOCTOR).code(1), subject);
        says(&found, &["problem", &format!("by this user (uid {})", user()), "belongs to uid 0"]);
    }
}

#[test]
fn few_threads_are_told_from_little_address_space() {
    let place = Place::with(&["NO_OP"]);
    give(place.path(), user());
    let run = "run -x --fq ./queue --parallel 4";
    let refused = as_user(&place, 3, run).code(1).stderr;
    let is_told = refused.contains("3 processes and threads (`ulimit -u`");
    assert!(is_told && !refused.contains("address space"), "{refused}");
    as_user(&place, 4096, run).code(0);
    says(&findings(&as_user(&place, 4096, DOCTOR).code(0), "sandbox"), &["ok"]);
}

#[test]
fn few_open_files_and_small_ones_are_found_with_the_figures() {
    let place = Place::with(&["NO_OP"]);
    let doctor = under(&place, "ulimit -n 50", DOCTOR);
    says(
        &findings(&doctor, "files"),
        &["problem", "may open 50", "may need 347", "`ulimit -n 347`"],
    );
    let doctor = under(&place, "ulimit -n 100", DOCTOR);
    says(&findings(&doctor, "files"), &["warn", "may open 100"]);
    // Depending on the shell, a block has 512 or 1024 bytes.
    let doctor = under(&place, "ulimit -f 2048", DOCTOR);
    says(
        &findings(&doctor, "file size"),
        &["warn", "MiB", "an output may have 4.0 GiB", "`ulimit -f unlimited`"],
    );
    // The test file that `host doctor` writes to a disk must not end `host doctor`.
    let doctor = under(&place, "ulimit -f 1", DOCTOR);
    says(&findings(&doctor, "file size"), &["warn"]);
}

/// A small file system in memory. Dropping this unmounts it.
struct Disk(PathBuf);

impl Disk {
    fn new(place: &Place, name: &str, options: &str) -> Self {
        let path = place.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        let disk = Self(path);
        disk.mount(options);
        disk
    }

    fn mount(&self, options: &str) {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(&self.0);
        Finished::run(mount).good();
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Unmounts lazily, because a killed host may still be using the file system.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_and_one_that_is_read_only_are_found_wherever_they_are() {
    for (part, flags) in
        [("queue", ""), ("queue-errors", ""), ("bucket", ""), ("cache", "--cache-dir ./cache")]
    {
        for (state, word) in [("full", "full disk"), ("ro", "read-only"), ("small", "has only")] {
            let place = Place::new();
            // The place is declared first, so that it is removed last.
            let disk = Disk::new(&place, part, "size=2m");
            place.push("NO_OP");
            place
                .host(&["submit", "--fq", "./queue", "--name", "A", "--base-directory", "d"])
                .good();
            place
                .host(&["submit", "--fq", "./queue-errors", "--name", "A", "--base-directory", "d"])
                .good();
            match state {
                "full" => {
                    let fill = std::fs::write(disk.path().join("filler"), vec![1; 8 << 20]);
                    fill.expect_err("the disk is small");
                }
                "ro" => {
                    let mut mount = Command::new("mount");
                    Finished::run(mount.args(["-o", "remount,ro"]).arg(disk.path())).good();
                }
                _ => {}
            }
            let doctor = under(&place, "true", &format!("{DOCTOR} {flags}"));
            let subject = match part {
                "queue-errors" => "errors",
                part => part,
            };
            let level = if state == "small" { "warn" } else { "problem" };
            says(&findings(&doctor, subject), &[level, word]);
            assert_eq!(
                doctor.status.code(),
                Some(i32::from(state != "small")),
                "{}",
                doctor.stdout
            );
            drop(disk);
        }
    }
}
