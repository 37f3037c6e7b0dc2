//! Exports the list of metrics to OpenTelemetry, which reads them at each export. `telemetry.rs`
//! records durations, because OpenTelemetry can't read an existing histogram.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};

use super::list::{Find, METRICS};
use super::{Kind, Metric, Seen, Unit, Value};
use crate::services::Services;

/// Registers the metrics of a host with `meter`.
pub fn observe(meter: &Meter, services: &Arc<Services>) {
    for (metric, find) in METRICS {
        let name = metric.name.replace('_', ".");
        let unit = match metric.unit {
            Some(Unit::Bytes) => "By",
            Some(Unit::Seconds) => "s",
            None => "1",
        };
        let services = services.clone();
        let read = move |to: &dyn AsyncInstrument<f64>| read(metric, *find, &services, to);
        match metric.kind {
            Kind::Counter => {
                let counter = meter.f64_observable_counter(name).with_unit(unit);
                counter.with_description(metric.help).with_callback(read).build();
            }
            Kind::Gauge => {
                let gauge = meter.f64_observable_gauge(name).with_unit(unit);
                gauge.with_description(metric.help).with_callback(read).build();
            }
            Kind::Histogram => {}
        }
    }
}

fn read(metric: &Metric, find: Find, services: &Arc<Services>, to: &dyn AsyncInstrument<f64>) {
    for sample in find(&Seen::now(services)) {
        let labels = metric.labels.iter().zip(sample.labels);
        let labels: Vec<KeyValue> =
            labels.map(|(label, value)| KeyValue::new(*label, value)).collect();
        match sample.value {
            Value::Count(count) => to.observe(count as f64, &labels),
            Value::Number(number) => to.observe(number, &labels),
            Value::Times(_) => {}
        }
    }
}
