//! Tests the cost per task of recording activity for monitoring.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use task_host::activity::{Activity, End};
use task_host::message;
use task_host::stats::{Step, Steps};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all calls are passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The count of an ending thread may already be destroyed.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn recording_a_task_allocates_nothing() {
    assert_eq!(allocations(|| drop(Box::new(1))), 1, "allocations are counted");
    let body = br#"{"basic_info": {"id": 1, "name": "blur", "base_directory": "d"}}"#;
    let task = Arc::new(message::decode(body).unwrap());
    let activity = Activity::default();
    let record = || {
        let shown = activity.runs(&task, 1);
        let mut steps = Steps::start();
        shown.publishes();
        steps.done(Step::Run);
        shown.settles();
        steps.done(Step::Settle);
        activity.ends(Some(&task.name), End::Done, &steps);
    };
    // The first task of a name and of a slot allocates memory that later tasks reuse.
    record();
    assert_eq!(allocations(|| (0..1000).for_each(|_| record())), 0);
    assert_eq!(activity.names()[0].counts.count(End::Done), 1001);
}
