//! The real host against services of clouds.

mod deploy;
mod faults;
mod finished;
mod python;
mod requests;
mod tools;
mod work;
