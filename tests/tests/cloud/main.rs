//! The real host against services of clouds.

mod deaths;
mod deploy;
mod faults;
mod python;
mod requests;
mod tools;
mod work;
