//! What a guest is told of files, where the truth would tell of other tasks.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::types;

/// The facts of one instance.
pub(super) struct Facts {
    /// When the instance was made. The cache keeps an input for whoever needs it: when that was
    /// stored, and last read, is nobody's business.
    started: Datetime,
    /// Numbers of files differ between instances, so that none can be followed.
    numbers: RandomState,
}

impl Facts {
    pub(super) fn new() -> Self {
        // A clock that is before 1970 is no reason to fail.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = Datetime { seconds: now.as_secs(), nanoseconds: now.subsec_nanos() };
        Self { started, numbers: RandomState::new() }
    }

    pub(super) fn of_input(&self, stat: types::DescriptorStat) -> types::DescriptorStat {
        let started = Some(self.started);
        let link_count = match stat.type_ {
            types::DescriptorType::RegularFile => 1,
            _ => stat.link_count,
        };
        types::DescriptorStat {
            link_count,
            data_access_timestamp: started,
            data_modification_timestamp: started,
            status_change_timestamp: started,
            ..stat
        }
    }

    /// Directories are used again: only what the guest did shows.
    pub(super) fn of_output(&self, stat: types::DescriptorStat) -> types::DescriptorStat {
        let since = |at: Datetime| match (at.seconds, at.nanoseconds) {
            at if at < (self.started.seconds, self.started.nanoseconds) => self.started,
            _ => at,
        };
        types::DescriptorStat {
            status_change_timestamp: stat.status_change_timestamp.map(since),
            ..stat
        }
    }

    pub(super) fn number(&self, of: types::MetadataHashValue) -> types::MetadataHashValue {
        let lower = self.numbers.hash_one((of.lower, of.upper));
        types::MetadataHashValue { lower, upper: self.numbers.hash_one(lower) }
    }
}
