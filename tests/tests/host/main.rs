//! The real host with real guests, from outside: one module for each promise.

mod attempts;
mod components;
mod drain;
mod endings;
mod finished;
mod invariants;
mod isolation;
mod limits;
mod python;
mod simple_tasks;
mod tools;
mod two_hosts;
