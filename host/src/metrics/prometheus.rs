//! Metrics in the text format of Prometheus, version 0.0.4.
//!
//! `prometheus-client` writes the format and escapes task names. Its own counters are not used,
//! because they would allocate or lock for each label of each task.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{self, Registry};

use super::list::METRICS;
use super::{Kind, Seen, Unit, Value};
use crate::services::Services;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of a host.
#[derive(Debug)]
pub struct Metrics(Registry);

struct Host(Arc<Services>);

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl Metrics {
    /// The metrics of the host with these services.
    pub fn of(services: Arc<Services>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Host(services)));
        Self(registry)
    }

    /// All metrics with their current values.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::prometheus_text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

impl Collector for Host {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let seen = Seen::now(&self.0);
        for (metric, find) in METRICS {
            let unit = metric.unit.map(|unit| match unit {
                Unit::Bytes => registry::Unit::Bytes,
                Unit::Seconds => registry::Unit::Seconds,
            });
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family =
                encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
            for sample in find(&seen) {
                let values = sample.labels.iter().map(String::as_str);
                let labels: Vec<(&str, &str)> = metric.labels.iter().copied().zip(values).collect();
                let labels = labels.as_slice();
                write(family.encode_family(&labels)?, metric.kind, &sample.value)?;
            }
        }
        Ok(())
    }
}

fn write(mut series: MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Count(count)) => {
            series.encode_counter::<NoLabelSet, _, f64>(count, None)
        }
        (_, Value::Count(count)) => series.encode_gauge(count),
        (_, Value::Number(number)) => series.encode_gauge(number),
        (_, Value::Times(times)) => series.encode_histogram::<NoLabelSet>(
            times.sum().as_secs_f64(),
            times.count(),
            &times.buckets(),
            None,
        ),
    }
}
