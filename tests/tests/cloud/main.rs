//! Runs the real host against cloud services.

mod chart;
mod deaths;
mod deploy;
mod faults;
mod finished;
mod heartbeats;
mod hostile_pointer;
mod hpc;
mod python;
mod receipts;
mod replay;
mod requests;
mod shared_work;
mod sick_calls;
mod sick_s3;
mod stack;
mod tools;
mod work;
