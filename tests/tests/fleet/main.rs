//! Tests of `host fleet` on real engines.

mod aws;
mod batch;
mod conformance;
mod docker;
mod ecs;
mod hostile;
mod k8s;
mod slurm;
mod stack;
