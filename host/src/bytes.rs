//! Fast comparisons of bytes for the statically linked program.
//!
//! The C library in that program compares one byte at a time. Rust calls these functions to compare
//! slices, strings and map keys, and the linker prefers them to those of the library.

#![cfg(any(target_env = "musl", test))]

use std::ffi::c_int;
use std::ptr::read_unaligned;

/// Compares the first `n` bytes, as C's `memcmp` does.
///
/// # Safety
/// `a` and `b` point to at least `n` bytes each.
#[cfg(target_env = "musl")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> c_int {
    // SAFETY: the caller guarantees `n` bytes.
    unsafe { compare(a, b, n) }
}

/// Returns zero if the first `n` bytes are equal, and another number if they differ.
///
/// # Safety
/// `a` and `b` point to at least `n` bytes each.
#[cfg(target_env = "musl")]
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> c_int {
    // SAFETY: the caller guarantees `n` bytes.
    unsafe { compare(a, b, n) }
}

/// Compares eight bytes at a time. Must not compare slices: that would call this function.
///
/// # Safety
/// `a` and `b` point to at least `n` bytes each.
unsafe fn compare(a: *const u8, b: *const u8, n: usize) -> c_int {
    // SAFETY: the condition before each read ensures that it stays within `n` bytes.
    unsafe {
        if n >= 8 {
            // The last word may overlap the one before it, whose bytes are the same in both.
            let last = n - 8;
            let mut at = 0;
            while at + 32 <= n && same_32(a.add(at), b.add(at)) {
                at += 32;
            }
            while at < last {
                let (left, right) = (eight(a.add(at)), eight(b.add(at)));
                if left != right {
                    return order(left, right);
                }
                at += 8;
            }
            order(eight(a.add(last)), eight(b.add(last)))
        } else if n >= 4 {
            let both = |bytes: *const u8| four(bytes) << 32 | four(bytes.add(n - 4));
            order(both(a), both(b))
        } else {
            let all = |bytes: *const u8| {
                (0..n).fold(0, |number, at| number << 8 | u64::from(*bytes.add(at)))
            };
            order(all(a), all(b))
        }
    }
}

fn order(a: u64, b: u64) -> c_int {
    c_int::from(a > b) - c_int::from(a < b)
}

/// Eight bytes as a number. Numbers are ordered as the bytes are.
///
/// # Safety
/// `bytes` points to at least eight bytes.
unsafe fn eight(bytes: *const u8) -> u64 {
    // SAFETY: the caller guarantees the bytes, and `read_unaligned` needs no alignment.
    u64::from_be(unsafe { read_unaligned(bytes.cast()) })
}

/// Four bytes as a number. Numbers are ordered as the bytes are.
///
/// # Safety
/// `bytes` points to at least four bytes.
unsafe fn four(bytes: *const u8) -> u64 {
    // SAFETY: the caller guarantees the bytes, and `read_unaligned` needs no alignment.
    u64::from(u32::from_be(unsafe { read_unaligned(bytes.cast()) }))
}

/// True when 32 bytes are equal.
///
/// # Safety
/// `a` and `b` point to at least 32 bytes each.
unsafe fn same_32(a: *const u8, b: *const u8) -> bool {
    // SAFETY: the caller guarantees the bytes, and `read_unaligned` needs no alignment.
    let (a, b) =
        unsafe { (read_unaligned(a.cast::<[u64; 4]>()), read_unaligned(b.cast::<[u64; 4]>())) };
    ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    fn compared(a: &[u8], b: &[u8]) -> c_int {
        assert_eq!(a.len(), b.len());
        // SAFETY: both slices have `a.len()` bytes.
        unsafe { compare(a.as_ptr(), b.as_ptr(), a.len()) }
    }

    #[test]
    fn bytes_are_ordered_by_the_first_that_differs() {
        // Every length, every place of a difference, and every alignment.
        for n in 0..100 {
            for shift in 0..8 {
                let a: Vec<u8> = (0..n + shift).map(|i| 0x7f + i as u8).collect();
                let a = &a[shift..];
                let copy = a.to_vec();
                assert_eq!(compared(a, &copy), 0);
                for at in 0..n {
                    for by in [1, 0x80] {
                        let mut b = a.to_vec();
                        b[at] = b[at].wrapping_add(by);
                        // Bytes after the first difference must not matter.
                        for rest in &mut b[at + 1..] {
                            *rest = rest.wrapping_sub(3);
                        }
                        let want = match a[at].cmp(&b[at]) {
                            Ordering::Less => -1,
                            Ordering::Equal => 0,
                            Ordering::Greater => 1,
                        };
                        let found = compared(a, &b);
                        assert_eq!(found, want, "{n} bytes, of which the one at {at} differs");
                    }
                }
            }
        }
    }
}
