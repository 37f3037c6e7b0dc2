//! The metrics of a host: names and current values.
//!
//! Names follow the conventions of Prometheus: base units, and the unit as a suffix. The number of
//! time series is bounded, although task names come from messages: see `activity/names.rs`. This
//! module counts nothing itself, so metrics cost nothing until they are read.

mod list;
mod otel;
mod prometheus;

use std::sync::Arc;

use crate::activity::snapshot::Snapshot;
use crate::activity::{Histogram, Named};
use crate::services::Services;
use crate::stats::Step;
pub use otel::observe;
pub use prometheus::{CONTENT_TYPE, Metrics};

/// One metric.
#[derive(Debug, Clone, Copy)]
struct Metric {
    /// The name, without its unit and `_total`.
    name: &'static str,
    kind: Kind,
    /// The unit, unless the name already tells what is counted.
    unit: Option<Unit>,
    /// The labels of its series.
    labels: &'static [&'static str],
    /// The description.
    help: &'static str,
}

/// How the values of a metric change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The value only grows.
    Counter,
    /// The value goes up and down.
    Gauge,
    /// Durations, counted in buckets.
    Histogram,
}

/// A base unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Seconds,
}

/// A sample of one time series.
#[derive(Debug)]
struct Sample {
    /// The values of the labels, in the order of [`Metric::labels`].
    labels: Vec<String>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Count(u64),
    Number(f64),
    Times(Box<Histogram>),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

/// The data that metrics are computed from.
struct Seen<'a> {
    services: &'a Services,
    now: Snapshot,
    names: Vec<Named>,
    steps: Vec<(Step, Histogram)>,
}

impl<'a> Seen<'a> {
    fn now(services: &'a Arc<Services>) -> Self {
        let activity = services.activity();
        let (names, steps) = (activity.names(), activity.steps());
        Self { services, now: services.snapshot(), names, steps }
    }
}
