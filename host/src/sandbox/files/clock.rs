//! The times and inode numbers of a guest's files. They reveal nothing about the host or other
//! tasks. For a deterministic guest, they depend only on its task.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::super::mode::{START, StepClock, World};
use super::types::{Datetime, DescriptorStat, DescriptorType, MetadataHashValue, NewTimestamp};

/// The clock for the times of files. It never goes back.
pub(super) struct Clock {
    /// The time at which the instance was created. Inputs have this time, because the time at which
    /// an input was stored or last read would reveal something about other tasks.
    started: Datetime,
    last: Mutex<Datetime>,
    /// The guest's own clock, if it is deterministic.
    steps: Option<StepClock>,
}

impl Clock {
    pub(super) fn start(steps: Option<StepClock>) -> Self {
        let started = datetime(match &steps {
            Some(_) => START,
            None => system(),
        });
        Self { started, last: Mutex::new(started), steps }
    }

    pub(super) fn started(&self) -> Datetime {
        self.started
    }

    pub(super) fn now(&self) -> Datetime {
        if let Some(steps) = &self.steps {
            return datetime(steps.time());
        }
        let mut last = self.last.lock();
        let now = datetime(system());
        if (now.seconds, now.nanoseconds) > (last.seconds, last.nanoseconds) {
            *last = now;
        }
        *last
    }
}

fn system() -> Duration {
    // A task must not fail because the clock is set to a time before 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn datetime(since_1970: Duration) -> Datetime {
    Datetime { seconds: since_1970.as_secs(), nanoseconds: since_1970.subsec_nanos() }
}

/// The times of one file or directory.
#[derive(Clone, Copy)]
pub(super) struct Times {
    accessed: Datetime,
    modified: Datetime,
    changed: Datetime,
}

impl Times {
    pub(super) fn all(at: Datetime) -> Self {
        Self { accessed: at, modified: at, changed: at }
    }

    pub(super) fn was_modified(&mut self, now: Datetime) {
        (self.modified, self.changed) = (now, now);
    }

    pub(super) fn was_changed(&mut self, now: Datetime) {
        self.changed = now;
    }

    /// Sets the times. If a time has 1,000,000,000 nanoseconds or more, sets nothing and returns
    /// false.
    pub(super) fn set(
        &mut self,
        accessed: NewTimestamp,
        modified: NewTimestamp,
        now: Datetime,
    ) -> bool {
        let is_valid = |new: &NewTimestamp| !matches!(new, NewTimestamp::Timestamp(at) if at.nanoseconds >= 1_000_000_000);
        if !is_valid(&accessed) || !is_valid(&modified) {
            return false;
        }
        for (time, new) in [(&mut self.accessed, accessed), (&mut self.modified, modified)] {
            match new {
                NewTimestamp::NoChange => {}
                NewTimestamp::Now => *time = now,
                NewTimestamp::Timestamp(at) => *time = at,
            }
        }
        self.changed = now;
        true
    }

    pub(super) fn stat(&self, kind: DescriptorType, size: u64) -> DescriptorStat {
        DescriptorStat {
            type_: kind,
            link_count: 1,
            size,
            data_access_timestamp: Some(self.accessed),
            data_modification_timestamp: Some(self.modified),
            status_change_timestamp: Some(self.changed),
        }
    }
}

/// Inode numbers. They differ between tasks, and between the instances of a task that is not
/// deterministic.
pub(super) enum Numbers {
    Random(RandomState),
    /// Seeded by the task.
    OfTask([u8; 32]),
}

impl Numbers {
    pub(super) fn new(world: Option<&World>) -> Self {
        match world {
            None => Self::Random(RandomState::new()),
            Some(world) => Self::OfTask(world.key("numbers")),
        }
    }

    /// The number of the file or directory `id`, which never changes.
    pub(super) fn of(&self, id: u64) -> MetadataHashValue {
        let lower = self.hash(id);
        MetadataHashValue { lower, upper: self.hash(lower) }
    }

    fn hash(&self, number: u64) -> u64 {
        match self {
            Self::Random(state) => state.hash_one(number),
            Self::OfTask(seed) => {
                let mut hasher = DefaultHasher::new();
                (seed, number).hash(&mut hasher);
                hasher.finish()
            }
        }
    }
}
