//! Defines how each step is tested. A step without a definition does not compile.

use task_host_tests::step::Step;

/// Error numbers of Linux.
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const ENETUNREACH: i32 = 101;

/// A queue and a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// Directories.
    Directory,
    /// SQS and S3.
    Aws,
    /// Pub/Sub and Google Cloud Storage.
    Google,
}

/// The fault that a host gets at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The host is killed.
    Kill,
    /// The host is stopped for longer than its leases last.
    Stop,
    /// An operation of the host fails with this error number.
    Starve(i32),
}

/// The tasks of a scenario, in addition to tasks that copy their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// No other tasks.
    Copies,
    /// One task fails at its first attempt.
    OneFails,
    /// One task takes longer than half a lease.
    OneIsLong,
    /// One task names its own inputs.
    OnePlans,
    /// No other tasks, but the inputs are larger than the cache may hold.
    Large,
}

/// Defines how a step is tested.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The queues on which a host reaches the step.
    pub(crate) on: &'static [On],
    pub(crate) kill: bool,
    pub(crate) stop: bool,
    /// The error number of the operation at this step when a resource is short.
    pub(crate) starve: Option<i32>,
    pub(crate) work: Work,
    /// Whether hosts leave receipts. `None` if both are tested.
    pub(crate) receipts: Option<bool>,
    /// Whether a host reaches the step only without compiled code in the cache.
    pub(crate) cold: bool,
    /// The step at which a host was killed before.
    pub(crate) after: Option<Step>,
    /// Whether a stopped host holds the lock of a message for which another host waits.
    pub(crate) locks: bool,
    /// Whether a stopped host has a request in progress, which it completes when it continues.
    pub(crate) is_under_way: bool,
}

const EVERYWHERE: &[On] = &[On::Directory, On::Aws, On::Google];
const DIRECTORY: &[On] = &[On::Directory];
const SERVICES: &[On] = &[On::Aws, On::Google];
const AWS: &[On] = &[On::Aws];
const GOOGLE: &[On] = &[On::Google];

/// A step that a host reaches with tasks that copy their inputs.
fn on(on: &'static [On]) -> Plan {
    Plan {
        on,
        kill: true,
        stop: true,
        starve: None,
        work: Work::Copies,
        receipts: None,
        cold: false,
        after: None,
        locks: false,
        is_under_way: false,
    }
}

/// A step before an operation that may fail. Killing or stopping a host at this step is equivalent
/// to doing so at the step before.
fn short(on_queues: &'static [On], errno: i32) -> Plan {
    Plan { kill: false, stop: false, starve: Some(errno), ..on(on_queues) }
}

impl Plan {
    fn work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    fn starved(self, errno: i32) -> Self {
        Self { starve: Some(errno), ..self }
    }

    fn cold(self) -> Self {
        Self { cold: true, ..self }
    }

    fn receipts(self, receipts: bool) -> Self {
        Self { receipts: Some(receipts), ..self }
    }

    fn locks(self) -> Self {
        Self { locks: true, ..self }
    }

    fn under_way(self) -> Self {
        Self { is_under_way: true, ..self }
    }
}

/// Defines how a step is tested.
pub(crate) fn of(step: Step) -> Plan {
    match step {
        Step::Leased
        | Step::Decoded
        | Step::InputsFetched
        | Step::ComponentReady
        | Step::Started
        | Step::Prepare
        | Step::Execute
        | Step::Finalize
        | Step::Finalized
        | Step::Confirmed
        | Step::FirstOutputPut
        | Step::MiddleOutputPut
        | Step::LastOutputPut
        | Step::ReportSent
        | Step::Acknowledged => on(EVERYWHERE),
        Step::ReceiptRead | Step::ReceiptPut => on(EVERYWHERE).receipts(true),
        Step::Released => on(EVERYWHERE).work(Work::OneFails),
        Step::Renewed => on(EVERYWHERE).work(Work::OneIsLong),
        Step::Plan | Step::Planned => on(EVERYWHERE).work(Work::OnePlans),

        Step::Compile => on(DIRECTORY).cold().starved(EAGAIN),
        Step::Compiled | Step::CodeStored => on(DIRECTORY).cold(),
        Step::StoreCode => on(DIRECTORY).cold().starved(ENOSPC),
        Step::Download => on(EVERYWHERE).cold().starved(EMFILE),
        Step::StoreBlob => on(EVERYWHERE).cold().starved(ENOSPC),
        Step::BlobStored => on(EVERYWHERE).cold(),
        Step::StoreIndex => on(SERVICES).cold().starved(ENOSPC),
        Step::Evicted => on(AWS).work(Work::Large),

        Step::OpenInput => short(DIRECTORY, EMFILE),
        // Receipts are off, because a host with receipts already writes an object when it starts.
        Step::CreateOutput => on(DIRECTORY).receipts(false).starved(ENOSPC).under_way(),
        Step::RenameOutput => on(DIRECTORY).receipts(false).starved(ENOMEM).under_way(),
        Step::GetObject => short(SERVICES, ENETUNREACH),
        Step::PutObject => short(SERVICES, ENETUNREACH),

        Step::NoteMove => short(DIRECTORY, ENOSPC),
        Step::LeaseNoted | Step::LeaseRenamed | Step::StartNoted => on(DIRECTORY).locks(),
        Step::FailureNoted | Step::MoveNoted | Step::MoveRenamed => {
            on(DIRECTORY).work(Work::OneFails).locks()
        }
        // A host takes back the start of an execution when it has lost the lease, or when no thread
        // becomes free. The unit test in `queue/file/tests/crashes.rs` kills it at that moment.
        Step::DisownNoted => on(&[]),
        Step::Claimed | Step::Forgotten | Step::Discarded => on(DIRECTORY),
        Step::SweepForgotten => Plan { after: Some(Step::Claimed), ..on(DIRECTORY) },
        Step::SendWritten | Step::SendNoted | Step::SendRenamed => on(DIRECTORY),

        Step::SqsReceive => short(AWS, ENETUNREACH),
        Step::SqsReceived => on(AWS),
        Step::SqsDelete => short(AWS, ENETUNREACH),
        Step::SqsDeleted => on(AWS),
        Step::SqsChange => short(AWS, ENETUNREACH).work(Work::OneIsLong),
        Step::SqsChanged => on(AWS).work(Work::OneIsLong),
        Step::SqsSend => short(AWS, ENETUNREACH).work(Work::OneFails),
        Step::SqsSent => on(AWS).work(Work::OneFails),

        Step::PubSubPull => short(GOOGLE, ENETUNREACH),
        Step::PubSubPulled => on(GOOGLE),
        Step::PubSubAcknowledge => short(GOOGLE, ENETUNREACH),
        Step::PubSubAcknowledged => on(GOOGLE),
        Step::PubSubModify => short(GOOGLE, ENETUNREACH),
        Step::PubSubModified => on(GOOGLE),
        Step::PubSubPublish => short(GOOGLE, ENETUNREACH).work(Work::OneFails),
        Step::PubSubPublished => on(GOOGLE).work(Work::OneFails),
    }
}
