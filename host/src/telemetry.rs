//! Exports each attempt to OpenTelemetry: a trace with a span for each step, and the durations of
//! the steps.
//!
//! The trace is created when the attempt has ended, from times that are measured in any case. A
//! layer such as `tracing-opentelemetry` would turn log lines into spans, at a cost for every task.

use std::time::{Duration, SystemTime};

use opentelemetry::global::BoxedTracer;
use opentelemetry::metrics::{Histogram, Meter};
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

use crate::activity::snapshot::{LONGEST_NAME, LONGEST_TEXT, OTHERS};
use crate::activity::{self, End};
use crate::message::Task;
use crate::stats::{Step, Steps};

/// The destinations of traces and durations.
#[derive(Debug, Default)]
pub struct Telemetry {
    tracer: Option<BoxedTracer>,
    times: Option<Times>,
}

#[derive(Debug)]
struct Times {
    steps: Histogram<f64>,
    executions: Histogram<f64>,
}

/// An attempt that has ended.
#[derive(Debug)]
pub(crate) struct Attempted<'a> {
    /// The task. `None` if the message is not a task.
    pub(crate) task: Option<&'a Task>,
    /// The task's name has its own counts.
    pub(crate) is_known: bool,
    pub(crate) attempt: u32,
    pub(crate) end: End,
    /// The error, if the attempt failed.
    pub(crate) reason: &'a str,
    pub(crate) steps: &'a Steps,
}

impl Telemetry {
    /// Sends traces to `tracer`, and durations to `meter`.
    pub fn new(tracer: Option<BoxedTracer>, meter: Option<&Meter>) -> Self {
        Self { tracer, times: meter.map(Times::new) }
    }

    /// Records the end of an attempt.
    pub(crate) fn ended(&self, attempted: &Attempted<'_>) {
        if let Some(times) = &self.times {
            times.add(attempted);
        }
        if let Some(tracer) = &self.tracer {
            trace(tracer, attempted);
        }
    }
}

impl Times {
    fn new(meter: &Meter) -> Self {
        let histogram = |name: &'static str, description: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s");
            histogram
                .with_description(description)
                .with_boundaries(activity::bounds_in_seconds())
                .build()
        };
        Self {
            steps: histogram("taskhost.step.duration", "Time of an attempt in each of its steps."),
            executions: histogram(
                "taskhost.execution.duration",
                "Time of an execution, from making the instance to its end.",
            ),
        }
    }

    fn add(&self, attempted: &Attempted<'_>) {
        for (step, spent) in spent(attempted.steps) {
            self.steps.record(spent.as_secs_f64(), &[KeyValue::new("step", step.name())]);
        }
        let steps = attempted.steps;
        let ran = steps.spent(Step::Instantiate) + steps.spent(Step::Run);
        if !ran.is_zero() {
            let name = match attempted.task.filter(|_| attempted.is_known) {
                Some(task) => task.name.as_str().to_owned(),
                None => OTHERS.to_owned(),
            };
            self.executions.record(ran.as_secs_f64(), &[KeyValue::new("task_name", name)]);
        }
    }
}

/// The steps that took time.
fn spent(steps: &Steps) -> impl Iterator<Item = (Step, Duration)> {
    let spent = Step::ALL.into_iter().map(|step| (step, steps.spent(step)));
    spent.filter(|(_, spent)| !spent.is_zero())
}

fn trace(tracer: &BoxedTracer, attempted: &Attempted<'_>) {
    let end = SystemTime::now();
    let mut at = end - spent(attempted.steps).map(|(_, spent)| spent).sum::<Duration>();
    let mut attributes = vec![
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("taskhost.attempt", i64::from(attempted.attempt)),
        KeyValue::new("taskhost.verdict", attempted.end.name()),
    ];
    if let Some(task) = attempted.task {
        attributes.push(KeyValue::new("taskhost.task.name", cut(task.name.as_str(), LONGEST_NAME)));
        attributes.push(KeyValue::new("taskhost.task.id", task.id));
    }
    let builder = tracer.span_builder("task").with_kind(SpanKind::Consumer);
    let builder = builder.with_start_time(at).with_attributes(attributes);
    let mut span = builder.start_with_context(tracer, &Context::new());
    if matches!(attempted.end, End::Rejected | End::Retried) {
        span.set_status(Status::error(cut(attempted.reason, LONGEST_TEXT)));
    }
    let task = Context::new().with_span(span);
    if task.span().is_recording() {
        for (step, spent) in spent(attempted.steps) {
            let builder = tracer.span_builder(step.name()).with_start_time(at);
            at += spent;
            builder.start_with_context(tracer, &task).end_with_timestamp(at);
        }
    }
    task.span().end_with_timestamp(end);
}

fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}
