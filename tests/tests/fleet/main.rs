//! `host fleet` on real engines.

mod conformance;
mod docker;
mod hostile;
mod slurm;
mod stack;
