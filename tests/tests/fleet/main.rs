//! `host fleet` on real engines.

mod conformance;
mod docker;
mod hostile;
mod k8s;
mod slurm;
mod stack;
