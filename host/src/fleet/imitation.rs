//! An engine in memory, for tests. Its workers start and end after fixed times.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Capacity, Counts, Engine, EngineError, FleetName, Line, Logs, Spec, Status, Stop, Times,
    Trouble, reasons,
};

/// When a worker starts and ends, relative to the request for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    /// `None`: never.
    pub(super) starts: Option<Duration>,
    /// How long it runs.
    pub(super) runs: Duration,
    pub(super) fails: bool,
}

struct Worker {
    asked: Instant,
    course: Course,
    /// When it was told to stop.
    stopped: Option<Instant>,
}

/// The engine. Worker `n` takes course `n`; workers beyond the last course take the last one.
pub(super) struct Imitation {
    pub(super) courses: Vec<Course>,
    pub(super) capacity: Option<Capacity>,
    pub(super) digest: Mutex<String>,
    workers: Mutex<Vec<Worker>>,
}

impl Imitation {
    pub(super) fn new(courses: &[Course]) -> Self {
        Self {
            courses: courses.to_vec(),
            capacity: None,
            digest: Mutex::default(),
            workers: Mutex::default(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for worker in &*self.workers.lock() {
            *worker.of(&mut counts) += 1;
        }
        counts
    }
}

impl Worker {
    /// The counter for this worker's current state.
    fn of<'a>(&self, counts: &'a mut Counts) -> &'a mut u32 {
        let age = self.asked.elapsed();
        let stopped = self.stopped.map(|at| at - self.asked);
        let started = self
            .course
            .starts
            .filter(|starts| *starts <= age && stopped.is_none_or(|stopped| *starts <= stopped));
        match started {
            None if stopped.is_some() => &mut counts.failed,
            None => &mut counts.waiting,
            Some(starts) if age < starts + self.course.runs && stopped.is_none() => {
                &mut counts.running
            }
            Some(_) if self.course.fails => &mut counts.failed,
            Some(_) => &mut counts.ended,
        }
    }
}

#[async_trait]
impl Engine for Imitation {
    fn times(&self) -> Times {
        Times { stop: Some(Duration::from_secs(30)), start: Duration::from_secs(60) }
    }

    async fn check(&self, _: &Spec) -> Result<Option<Capacity>, EngineError> {
        Ok(self.capacity.clone())
    }

    fn render(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        Ok(format!("{workers} workers of {}\n", spec.fleet))
    }

    async fn start(&self, spec: &Spec, workers: u32) -> Result<String, EngineError> {
        *self.digest.lock() = spec.digest();
        let mut all = self.workers.lock();
        for _ in 0..workers {
            let last = self.courses.len() - 1;
            let course = self.courses[all.len().min(last)];
            all.push(Worker { asked: Instant::now(), course, stopped: None });
        }
        Ok(format!("{workers} workers"))
    }

    async fn status(&self, _: &FleetName) -> Result<Option<Status>, EngineError> {
        let counts = self.counts();
        let waiting = (0..counts.waiting).map(|_| (Trouble::Waiting, "no room".to_owned()));
        let status = Status {
            counts,
            reasons: reasons(waiting),
            digest: self.digest.lock().clone(),
            ..Status::default()
        };
        Ok((counts != Counts::default()).then_some(status))
    }

    async fn fleets(&self) -> Result<BTreeSet<FleetName>, EngineError> {
        Ok(BTreeSet::new())
    }

    async fn logs(
        &self,
        _: &FleetName,
        _: &Logs,
    ) -> Result<BoxStream<'static, Result<Line, EngineError>>, EngineError> {
        Ok(stream::empty().boxed())
    }

    async fn stop(&self, _: &FleetName, which: Stop) -> Result<(), EngineError> {
        for worker in &mut *self.workers.lock() {
            let mut counts = Counts::default();
            *worker.of(&mut counts) += 1;
            if counts.waiting == 1 || (which == Stop::All && counts.running == 1) {
                worker.stopped = Some(Instant::now());
            }
        }
        Ok(())
    }
}
