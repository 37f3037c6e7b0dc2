//! The real host with real guests, from outside: one module for each promise.

mod attempts;
mod components;
mod disks;
mod drain;
mod endings;
mod finished;
mod hostile;
mod images;
mod invariants;
mod limits;
mod logs;
mod programs;
mod python;
mod receipts;
mod shortages;
mod sick_calls;
mod sick_dirs;
mod sick_disk;
mod sick_limits;
mod sick_reports;
mod simple_tasks;
mod system_calls;
mod task_files;
mod tools;
mod two_hosts;
mod verified;
