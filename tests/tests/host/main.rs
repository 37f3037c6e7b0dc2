//! The real host with real guests, from outside: one module for each promise.

mod components;
mod disks;
mod drain;
mod endings;
mod invariants;
mod isolation;
mod limits;
mod logs;
mod python;
mod shortages;
mod simple_tasks;
mod tools;
mod two_hosts;
