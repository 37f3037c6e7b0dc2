//! Shows the running tasks. Each task has a place, and places are reused, so that showing a task
//! does not allocate.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use super::snapshot::{LONGEST_LINE, LONGEST_NAME, MOST_RUNNING, Running, Step};
use super::{cut, unix};
use crate::message::Task;
use crate::sandbox::{Phase, Watched};

/// The places of all tasks.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    free: Vec<Arc<Place>>,
    all: Vec<Arc<Place>>,
}

/// The place of one task.
#[derive(Debug, Default)]
pub(super) struct Place {
    now: Mutex<Option<Now>>,
    watched: Arc<Watched>,
}

/// The task that uses a place.
#[derive(Debug)]
pub(super) struct Now {
    pub(super) task: Arc<Task>,
    pub(super) attempt: u32,
    /// The span for log lines about the task.
    pub(super) span: tracing::Span,
    pub(super) since: Instant,
    /// The host's current step for the task, and its start. `None` while the guest reports its own
    /// phase.
    step: Option<(Step, Instant)>,
    /// The log contains a warning that the task is slow.
    pub(super) is_slow: bool,
}

/// Shows a task as running until this value is dropped.
#[derive(Debug)]
pub struct Shown {
    places: Arc<Places>,
    place: Arc<Place>,
}

impl Shown {
    /// Where the guest reports its phase.
    pub fn watched(&self) -> &Arc<Watched> {
        &self.place.watched
    }

    /// Records that the guest has ended and its outputs are being published.
    pub fn publishes(&self) {
        self.is_at(Step::Publish);
    }

    /// Records that the task's message is being settled.
    pub fn settles(&self) {
        self.is_at(Step::Settle);
    }

    fn is_at(&self, step: Step) {
        if let Some(now) = &mut *self.place.now.lock() {
            now.step = Some((step, Instant::now()));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        *self.place.now.lock() = None;
        self.place.watched.clear();
        self.places.0.lock().free.push(self.place.clone());
    }
}

impl Places {
    pub(super) fn take(places: &Arc<Self>, task: Arc<Task>, attempt: u32) -> Shown {
        let place = {
            let pool = &mut *places.0.lock();
            pool.free.pop().unwrap_or_else(|| {
                let place = Arc::<Place>::default();
                pool.all.push(place.clone());
                place
            })
        };
        let (span, since) = (tracing::Span::current(), Instant::now());
        let now = Now { task, attempt, span, since, step: None, is_slow: false };
        *place.now.lock() = Some(now);
        Shown { places: places.clone(), place }
    }

    pub(super) fn running_count(&self) -> u64 {
        let pool = self.0.lock();
        (pool.all.len() - pool.free.len()) as u64
    }

    /// All places, including free ones.
    pub(super) fn all(&self) -> Vec<Arc<Place>> {
        self.0.lock().all.clone()
    }

    pub(super) fn running(&self) -> Vec<Running> {
        let (now, wall) = (Instant::now(), unix(SystemTime::now()));
        let at = |time: Instant| wall - now.saturating_duration_since(time).as_secs_f64();
        let mut places: Vec<(Instant, Arc<Place>)> = self
            .all()
            .into_iter()
            .filter_map(|place| {
                let since = place.now.lock().as_ref()?.since;
                Some((since, place))
            })
            .collect();
        places.sort_by_key(|(since, _)| *since);
        places.truncate(MOST_RUNNING);
        places.iter().filter_map(|(_, place)| place.running(at)).collect()
    }
}

impl Place {
    /// Calls `use_it` with the task in this place, if its guest runs.
    pub(super) fn with_guest<T>(&self, use_it: impl FnOnce(&mut Now, &Watched) -> T) -> Option<T> {
        let mut now = self.now.lock();
        let now = now.as_mut().filter(|now| now.step.is_none())?;
        Some(use_it(now, &self.watched))
    }

    fn running(&self, at: impl Fn(Instant) -> f64) -> Option<Running> {
        let (mut running, since) = {
            let now = self.now.lock();
            let now = now.as_ref()?;
            let (step, since) = now.step.unwrap_or_else(|| step_of(&self.watched, now.since));
            let running = Running {
                name: cut(now.task.name.as_str(), LONGEST_NAME).to_owned(),
                id: now.task.id.to_string(),
                attempt: now.attempt,
                step,
                since: at(now.since),
                step_since: 0.0,
                memory: self.watched.memory(),
                last_line: None,
            };
            (running, since)
        };
        running.step_since = at(since).max(running.since);
        running.last_line = self.watched.last_line(LONGEST_LINE);
        Some(running)
    }
}

/// The step of a guest, and its start. A guest without a phase has been waiting since the task
/// started.
fn step_of(watched: &Watched, started: Instant) -> (Step, Instant) {
    match watched.phase() {
        None => (Step::Wait, started),
        Some((Phase::Instantiate | Phase::Plan | Phase::Prepare, since)) => (Step::Prepare, since),
        Some((Phase::Execute, since)) => (Step::Execute, since),
        Some((Phase::Finalize, since)) => (Step::Finalize, since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::TaskName;
    use crate::message;

    fn task(name: &str, id: i64) -> Arc<Task> {
        let body =
            format!(r#"{{"basic_info": {{"id": {id}, "name": "blur", "base_directory": "d"}}}}"#);
        let task = message::decode(body.as_bytes()).unwrap();
        Arc::new(Task { name: TaskName::new(name).unwrap(), ..task })
    }

    #[test]
    fn a_task_is_shown_from_its_start_to_its_end_and_its_place_is_used_again() {
        let places = Arc::<Places>::default();
        let first = Places::take(&places, task("blur", 1), 1);
        let second = Places::take(&places, task("sharpen", 2), 3);
        let shown = places.running();
        let seen: Vec<_> =
            shown.iter().map(|r| (r.name.as_str(), r.id.as_str(), r.attempt)).collect();
        assert_eq!(seen, [("blur", "1", 1), ("sharpen", "2", 3)]);
        assert_eq!(shown[0].step, Step::Wait);
        assert!(shown.iter().all(|r| r.since > 1e9 && r.step_since >= r.since));

        second.publishes();
        assert_eq!(places.running()[1].step, Step::Publish);
        drop(first);
        assert_eq!((places.running().len(), places.running_count()), (1, 1));
        for id in 0..100 {
            drop(Places::take(&places, task("blur", id), 1));
        }
        assert_eq!(places.all().len(), 2);
        drop(second);
        assert_eq!((places.running(), places.running_count()), (vec![], 0));
    }

    #[test]
    fn more_tasks_than_a_snapshot_has_are_cut_and_the_longest_running_stay() {
        let places = Arc::<Places>::default();
        let long = ["n".repeat(LONGEST_NAME), "m".repeat(LONGEST_NAME)].join("/");
        let all: Vec<_> = (0..MOST_RUNNING as i64 + 10)
            .map(|id| Places::take(&places, task(&long, id), 1))
            .collect();
        let shown = places.running();
        assert_eq!(shown.len(), MOST_RUNNING);
        assert!(shown.iter().all(|running| running.name.len() == LONGEST_NAME));
        assert_eq!(places.running_count(), all.len() as u64);
        assert!(shown.iter().any(|running| running.id == "0"));
    }
}
