//! Exports traces and metrics to OpenTelemetry, if the standard variables name an endpoint.
//!
//! The exporters have their own threads and send with [`Client`], on the runtime that tasks can't
//! block. Data that can't be sent is dropped, with one warning per outage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::global::BoxedTracer;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use task_host::environment::Environment;
use task_host::metrics;
use task_host::services::Services;
use task_host::telemetry::Telemetry;
use tokio::runtime::Handle;

/// The name of this program in OpenTelemetry.
const NAME: &str = "task-host";
/// The timeout of one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an ending host waits until the last traces and metrics are sent. Short, because an
/// engine that stops the host kills it soon after the grace period.
const LAST: Duration = Duration::from_secs(3);
/// The maximum size of an answer in bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// The running exports, until [`end`](Self::end).
pub(super) struct Exports {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Exports {
    /// Starts the exports that the variables ask for. Requests run on `runtime`.
    ///
    /// # Errors
    /// If a variable has an invalid value.
    pub(super) fn start(services: &Arc<Services>, runtime: &Handle) -> anyhow::Result<Self> {
        let environment = Environment::of_process();
        let wants = |signal| wants(&environment, signal);
        let (traces, metrics) = (wants("TRACES"), wants("METRICS"));
        if !traces && !metrics {
            return Ok(Self { traces: None, metrics: None });
        }
        if let Some(other) = other_protocol(&environment) {
            tracing::warn!(
                "OpenTelemetry: {other} is not supported; http/protobuf is used instead"
            );
        }
        let client = Client::new(runtime)?;
        let resource = resource(services, &environment);
        let traces = match traces {
            true => {
                let exporter = SpanExporter::builder().with_http().with_http_client(client.clone());
                let exporter = exporter.with_protocol(Protocol::HttpBinary).build()?;
                let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
                Some(provider.with_resource(resource.clone()).build())
            }
            false => None,
        };
        let metrics = match metrics {
            true => {
                let exporter = MetricExporter::builder().with_http().with_http_client(client);
                let exporter = exporter.with_protocol(Protocol::HttpBinary).build()?;
                let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter);
                Some(provider.with_resource(resource).build())
            }
            false => None,
        };
        let exports = Self { traces, metrics };
        exports.connect(services);
        Ok(exports)
    }

    /// Connects the exporters to the host's tasks and metrics.
    fn connect(&self, services: &Arc<Services>) {
        let tracer = self.traces.as_ref().map(|traces| traces.tracer(NAME));
        let meter = self.metrics.as_ref().map(|metrics| metrics.meter(NAME));
        if let Some(meter) = &meter {
            metrics::observe(meter, services);
        }
        let tracer = tracer.map(|tracer| BoxedTracer::new(Box::new(tracer)));
        services.export_to(Telemetry::new(tracer, meter.as_ref()));
    }

    /// Sends the remaining data. Waits for at most a few seconds.
    pub(super) async fn end(self) {
        // On a thread for blocking calls, because shutting down an exporter blocks.
        let ending = tokio::task::spawn_blocking(move || {
            // Failures were logged already.
            if let Some(traces) = self.traces {
                let _ = traces.shutdown_with_timeout(LAST);
            }
            if let Some(metrics) = self.metrics {
                let _ = metrics.shutdown_with_timeout(LAST);
            }
        });
        let _ = tokio::time::timeout(LAST, ending).await;
    }
}

/// Whether to export a signal: `TRACES` or `METRICS`.
fn wants(environment: &Environment, signal: &str) -> bool {
    let get = |name: &str| environment.get(name).map(str::trim);
    let is_off = get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || get(&format!("OTEL_{signal}_EXPORTER")) == Some("none");
    let endpoints =
        ["OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")];
    !is_off && endpoints.iter().any(|name| get(name).is_some())
}

/// A variable that asks for an unsupported protocol, with its value.
fn other_protocol(environment: &Environment) -> Option<String> {
    ["", "TRACES_", "METRICS_"].into_iter().find_map(|signal| {
        let variable = format!("OTEL_EXPORTER_OTLP_{signal}PROTOCOL");
        let protocol = environment.get(&variable)?;
        (protocol != "http/protobuf").then(|| format!("{variable}={protocol}"))
    })
}

/// The attributes of this host in traces and metrics. The variables take precedence.
fn resource(services: &Services, environment: &Environment) -> Resource {
    let host = services.snapshot().host;
    let is_named = environment.get("OTEL_SERVICE_NAME").is_some()
        || environment
            .get("OTEL_RESOURCE_ATTRIBUTES")
            .is_some_and(|attributes| attributes.contains("service.name="));
    let resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", host.version),
        KeyValue::new("service.instance.id", host.id),
        KeyValue::new("host.name", host.hostname),
        KeyValue::new("process.pid", i64::from(host.pid)),
    ]);
    match is_named {
        true => resource.build(),
        false => resource.with_service_name(NAME).build(),
    }
}

/// Sends the exporters' requests on a runtime of the host, because their own threads have no
/// runtime.
#[derive(Debug, Clone)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
    /// The last request failed.
    fails: Arc<AtomicBool>,
}

impl Client {
    fn new(runtime: &Handle) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
        Ok(Self { client, runtime: runtime.clone(), fails: Arc::default() })
    }

    /// Logs the first failure in a row, and the first success after it.
    fn note(&self, failure: Option<&str>) {
        match (failure, self.fails.swap(failure.is_some(), Relaxed)) {
            (Some(failure), false) => {
                tracing::warn!(
                    "OpenTelemetry: {failure}; traces and metrics are lost until it works"
                );
            }
            (None, true) => tracing::info!("OpenTelemetry: the endpoint works again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let url = request.uri().to_string();
        let sending = self.runtime.spawn(send(self.client.clone(), request));
        let answer = sending.await.map_err(HttpError::from).flatten();
        match &answer {
            Ok(answer) if answer.status().is_success() => self.note(None),
            Ok(answer) => self.note(Some(&format!("{url} answers with {}", answer.status()))),
            Err(error) => self.note(Some(&format!("{url}: {}", root(&**error)))),
        }
        answer
    }
}

async fn send(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > LONGEST_ANSWER {
            return Err("the answer is too long".into());
        }
        body.extend_from_slice(&part);
    }
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

/// The root cause of an error. The errors above it only tell that a request failed.
fn root<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_say_what_is_exported() {
        let check = |variables: &[(&str, &str)], want: [bool; 2]| {
            let environment = variables.iter().copied().collect();
            let found = ["TRACES", "METRICS"].map(|signal| wants(&environment, signal));
            assert_eq!(found, want, "{variables:?}");
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        check(&[], [false, false]);
        check(&[endpoint], [true, true]);
        check(&[endpoint, ("OTEL_SDK_DISABLED", "true")], [false, false]);
        check(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], [false, true]);
        check(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost/t")], [true, false]);
    }

    #[test]
    fn another_protocol_is_named() {
        let other =
            |variables: &[(&str, &str)]| other_protocol(&variables.iter().copied().collect());
        assert_eq!(other(&[]), None);
        assert_eq!(other(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), None);
        let grpc = [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert_eq!(other(&grpc).as_deref(), Some("OTEL_EXPORTER_OTLP_PROTOCOL=grpc"));
    }
}
