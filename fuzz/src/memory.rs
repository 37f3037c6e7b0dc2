//! Counts the memory that a parser uses, so that a target can check that it is bounded.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts the bytes of each thread.
struct Counting;

thread_local! {
    /// Bytes that this thread allocated and did not free.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The maximum of [`LIVE`] since the last call of [`bounded`] began.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(more: usize, less: usize) {
    let live = LIVE.get().wrapping_add_unsigned(more).wrapping_sub_unsigned(less);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: every call goes to the system's allocator unchanged. Counting does not allocate: the
// counters have constant initial values and no destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Calls `call` and returns its result. Panics if the call needed more than `most` bytes of memory
/// at a time.
pub(crate) fn bounded<T>(most: usize, call: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let result = call();
    let peak = PEAK.get().wrapping_sub(before);
    assert!(peak <= most.cast_signed(), "took {peak} bytes of memory, which is more than {most}");
    result
}
