//! The loop: a permit, a lease, a task; and how it drains.
