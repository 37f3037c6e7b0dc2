//! The real host against services of clouds.

mod deploy;
mod python;
mod requests;
mod work;
