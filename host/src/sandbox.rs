//! One guest, one instance, three calls, under limits.
