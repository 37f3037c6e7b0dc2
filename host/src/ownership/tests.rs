//! Directories as another user could have made them, and the result of checking each.

use std::os::unix::fs::{chown, lchown, symlink};

use super::*;

/// Another user.
const OTHER: u32 = 4321;
const PARTS: [&str; 2] = ["blobs", "tmp"];

struct Place(tempfile::TempDir);

impl Place {
    /// A directory with a cache that can be trusted.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        make(&place.cache(), &PARTS).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.path("way/cache")
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }

    /// Checks that `dir` is refused with these texts.
    #[track_caller]
    fn refuses(&self, dir: &Path, problem: &[&str], cure: &str) {
        let not_ours = check(dir, &PARTS).unwrap_err();
        for part in problem {
            assert!(not_ours.problem.contains(part), "{part}: {not_ours}");
        }
        assert!(not_ours.cure.contains(cure), "{not_ours}");
        let error = make(dir, &PARTS).unwrap_err();
        assert!(error.to_string().contains(&not_ours.problem), "{error}");
    }
}

/// Only root may change the owner of files.
fn is_root() -> bool {
    Us::now().0 == 0
}

#[test]
fn what_is_made_is_for_this_user_alone() {
    let place = Place::new();
    for made in ["way", "way/cache", "way/cache/blobs", "way/cache/tmp"] {
        assert_eq!(place.mode(made), 0o700, "{made}");
    }
    // As an earlier version made them; two hosts of one user share the cache.
    place.set_mode("way/cache", 0o755);
    place.set_mode("way/cache/blobs", 0o755);
    make(&place.cache(), &PARTS).unwrap();
    close(&place.path("way/cache/blobs")).unwrap();
    close(&place.path("way/cache/missing")).unwrap();
    make(&place.cache(), &PARTS).unwrap();
    assert_eq!((place.mode("way/cache"), place.mode("way/cache/blobs")), (0o755, 0o700));
    check(&place.path("not/there/yet"), &PARTS).unwrap();
    assert!(!place.path("not").exists(), "looking makes nothing");
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    for part in ["way/cache", "way/cache/blobs", "way/cache/tmp"] {
        for (mode, who) in [(0o777, "everybody"), (0o757, "everybody")] {
            let place = Place::new();
            place.set_mode(part, mode);
            let path = place.path(part);
            let problem = [path.to_str().unwrap(), who, &format!("(mode {mode:o}, owner uid ")];
            let cure = format!("`chmod -R go-w {}`", place.cache().display());
            place.refuses(&place.cache(), &problem, &cure);
        }
    }
}

#[test]
fn a_directory_like_tmp_is_used_if_what_is_in_it_is_ours() {
    for part in ["way/cache", "way/cache/blobs", "way/cache/tmp"] {
        let place = Place::new();
        place.set_mode(part, 0o1777);
        make(&place.cache(), &PARTS).unwrap();
        close(&place.path(part)).unwrap();
        assert_eq!(place.mode(part), 0o700);
    }
    let place = Place::new();
    place.set_mode("way/cache", 0o1777);
    place.set_mode("way/cache/blobs", 0o777);
    let blobs = place.cache().join("blobs");
    let problem = [blobs.to_str().unwrap(), "is writable by everybody (mode 777"];
    place.refuses(&place.cache(), &problem, "chmod -R go-w");
}

#[test]
fn a_group_may_write_if_nobody_else_is_in_it() {
    let passwd = "root:x:0:0::/root:/bin/sh\nana:x:1000:1000::/home/ana:\nbo:x:1001:100::/:\n";
    let groups = "root:x:0:\nana:x:1000:\nusers:x:100:ana,bo\nlab:x:200:ana, bo\nown:x:201:ana\n";
    let check = |group, user, want| {
        assert_eq!(is_private_by(passwd, groups, group, user), want, "{group} {user}");
    };
    check(1000, 1000, true);
    check(201, 1000, true);
    check(0, 0, true);
    check(100, 1000, false);
    check(200, 1000, false);
    check(1000, 1001, false);
    // Another user has this primary group; the group is unknown; the user is unknown.
    check(100, 1001, false);
    check(999, 1000, false);
    check(1000, 9999, false);

    if is_root() {
        let place = Place::new();
        chown(place.cache(), None, Some(OTHER)).unwrap();
        place.set_mode("way/cache", 0o775);
        let problem = ["is writable by the group 4321 (mode 775"];
        place.refuses(&place.cache(), &problem, "chmod -R go-w");
    }
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    if !is_root() {
        return;
    }
    for part in ["way/cache", "way/cache/blobs", "way/cache/tmp"] {
        let place = Place::new();
        let path = place.path(part);
        chown(&path, Some(OTHER), None).unwrap();
        let problem =
            [path.to_str().unwrap(), "belongs to uid 4321 (mode 700)", "host runs as uid 0"];
        let cache = place.cache();
        let cure = format!("with --cache-dir, for example {}/task-host", cache.display());
        place.refuses(&cache, &problem, &cure);
    }
    // The fix: the owner of the directory above is trusted, so a directory in it can be named.
    let place = Place::new();
    chown(place.cache(), Some(OTHER), None).unwrap();
    make(&place.cache().join("task-host"), &PARTS).unwrap();

    let place = Place::new();
    let (blobs, shard) = (place.cache().join("blobs"), place.cache().join("blobs/ab"));
    fs::create_dir(&shard).unwrap();
    let look = || check_inner(&place.cache(), &blobs, fs::File::open(&blobs).unwrap());
    look().unwrap();
    chown(&shard, Some(OTHER), None).unwrap();
    assert!(look().unwrap_err().to_string().contains("blobs/ab belongs to uid 4321"));
}

#[test]
fn a_way_that_everybody_may_change_is_a_risk_unless_it_is_sticky() {
    let place = Place::new();
    let risk = |dir: &Path| check(dir, &PARTS).unwrap();
    place.set_mode("way", 0o777);
    let told = risk(&place.cache()).expect("a risk").to_string();
    let way = place.path("way");
    assert!(told.starts_with(way.to_str().unwrap()), "{told}");
    assert!(told.contains("is writable by everybody (mode 777, owner uid "), "{told}");
    assert!(told.contains(&format!("`chmod +t {}`", way.display())), "{told}");
    assert_eq!(make(&place.cache(), &PARTS).unwrap(), risk(&place.cache()));
    // Also when the directory does not exist yet.
    assert!(risk(&place.path("way/new/cache")).is_some());
    place.set_mode("way", 0o1777);
    assert_eq!(risk(&place.cache()), None);
    // A team's directory.
    place.set_mode("way", 0o2775);
    assert_eq!(risk(&place.cache()), None);
}

#[test]
fn a_link_counts_if_nobody_else_could_have_made_it() {
    let place = Place::new();
    symlink("way/cache", place.path("link")).unwrap();
    symlink("../link", place.path("way/again")).unwrap();
    check(&place.path("way/again"), &PARTS).unwrap();
    check(&place.path("way/../link/../cache"), &PARTS).unwrap();
    // The target decides.
    place.set_mode("way/cache", 0o777);
    assert!(check(&place.path("way/again"), &PARTS).is_err());
    place.set_mode("way/cache", 0o700);

    fs::create_dir(place.path("shared")).unwrap();
    place.set_mode("shared", 0o1777);
    let planted = place.path("shared/task-host");
    symlink(place.cache(), &planted).unwrap();
    check(&planted, &PARTS).unwrap();
    check(&planted.join("below"), &PARTS).unwrap();
    if is_root() {
        lchown(&planted, Some(OTHER), None).unwrap();
        let problem = ["the link", "shared/task-host", "belongs to uid 4321", "(mode 1777"];
        place.refuses(&planted, &problem, "remove the link");
        place.refuses(&planted.join("below"), &problem, "remove the link");
    }
    // A loop of links is not reported here, but when the path is used.
    symlink("circle", place.path("circle")).unwrap();
    check(&place.path("circle"), &PARTS).unwrap();
}
