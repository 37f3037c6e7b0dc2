//! Movement files: counts never exceed the number of lines, and each lease has a new name.

use task_host::queue::file::foreign;

use crate::memory::bounded;

pub(super) fn check(name: &str, text: &[u8]) {
    let Some((due, id)) = foreign::parse_name(name) else { return };
    let read = |text: &[u8], since| {
        let most = 64 * text.len() + 4096;
        bounded(most, || foreign::movement(text, since, name)).expect("the name was read")
    };
    let movement = read(text, 0);
    let lines = text.iter().filter(|&&byte| byte == b'\n').count();
    assert!(movement.failed as usize <= lines && movement.started as usize <= lines);
    assert!(movement.started_under as usize <= lines);
    assert_eq!(movement.is_torn, !text.is_empty() && !text.ends_with(b"\n"));
    assert_eq!(movement.was_moved, lines > 1);

    // The name proves a lease, so it must not be the name of an older lease.
    let unused = foreign::parse_name(&movement.unused).expect("the name of a message");
    assert!(unused.1 == id && unused.0 >= due, "{}", movement.unused);
    let has_it = text.split(|&byte| byte == b'\n').any(|line| line == movement.unused.as_bytes());
    assert!(!has_it || unused.0 == u64::MAX, "{} is used", movement.unused);

    if movement.is_torn {
        return;
    }
    // A new lease, one execution under it, and its end.
    let with = |lines: &str| [text, lines.as_bytes()].concat();
    let leased = format!("{}\n", movement.unused);
    let since = text.len();
    let read_leased = |text: &[u8]| {
        let movement = foreign::movement(text, since, leased.trim_end());
        movement.expect("the name was read")
    };
    let started = read_leased(&with(&format!("{leased}\n")));
    assert_eq!((started.started, started.started_under), (movement.started + 1, 1));
    assert_eq!(started.failed, movement.failed);
    let back = read_leased(&with(&format!("{leased}\n{since}--uncounted\n")));
    assert_eq!((back.started, back.started_under), (movement.started, 0));
    let failed = read_leased(&with(&format!("{leased}\n0--failed\n")));
    assert_eq!((failed.failed, failed.started), (movement.failed + 1, movement.started + 1));
}
