//! The steps of a task's life at which a test can fault a host.
//!
//! The integration tests include this file, so it uses nothing else of the crate.

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident,)+) => {
        /// A step. `FAILPOINTS` uses these names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// All steps.
            pub const ALL: &[Self] = &[$(Self::$step),+];
        }
    };
}

steps! {
    // A task, on every queue: `task.rs` and below.
    /// A message is leased.
    Leased,
    /// The message is decoded.
    Decoded,
    /// The host has looked for the task's receipt.
    ReceiptRead,
    /// The inputs are fetched.
    InputsFetched,
    /// The component is loaded.
    ComponentReady,
    /// `plan` is called next. Its start is recorded.
    Plan,
    /// `plan` has returned. Its end is not recorded.
    Planned,
    /// The start of the execution is recorded.
    Started,
    /// `prepare` is called next.
    Prepare,
    /// `execute` is called next.
    Execute,
    /// `finalize` is called next.
    Finalize,
    /// `finalize` has returned.
    Finalized,
    /// The lease is confirmed, and outputs are put next.
    Confirmed,
    /// The first of several outputs is in the bucket.
    FirstOutputPut,
    /// Some outputs are in the bucket, and others are not.
    MiddleOutputPut,
    /// All outputs are in the bucket.
    LastOutputPut,
    /// The receipt is in the bucket.
    ReceiptPut,
    /// The report is sent.
    ReportSent,
    /// The message of a finished task is deleted.
    Acknowledged,
    /// The message of a task that failed is released.
    Released,
    /// A lease is renewed.
    Renewed,

    // Components and the cache.
    /// The compiler is started next.
    Compile,
    /// The component is compiled, and its code is not stored yet.
    Compiled,
    /// Compiled code is written next.
    StoreCode,
    /// Compiled code is stored.
    CodeStored,
    /// A download creates its file next.
    Download,
    /// A download is complete, and is renamed next.
    StoreBlob,
    /// A blob is in the cache.
    BlobStored,
    /// The digest of an object is added to the index next.
    StoreIndex,
    /// A blob was evicted.
    Evicted,

    // A directory bucket.
    /// An input is opened next.
    OpenInput,
    /// The file of an output is created next.
    CreateOutput,
    /// The file of an output is written, and is renamed next.
    RenameOutput,

    // A cloud bucket.
    /// An object is requested next.
    GetObject,
    /// An object is sent next.
    PutObject,

    // A directory queue.
    /// Lines are appended to a movement file next.
    NoteMove,
    /// A lease is noted, and its message is not renamed yet.
    LeaseNoted,
    /// A message is renamed for a lease.
    LeaseRenamed,
    /// The start of an execution is noted.
    StartNoted,
    /// The failure of an execution is noted, and its message is not renamed yet.
    FailureNoted,
    /// The end of an execution under a lost lease is noted.
    DisownNoted,
    /// The new name of a leased message is noted, and the message is not renamed yet.
    MoveNoted,
    /// A leased message is renamed.
    MoveRenamed,
    /// A finished message is out of the queue, and its other files still exist.
    Claimed,
    /// The movement file of a finished message is removed, and the message still exists.
    Forgotten,
    /// All files of a finished message are removed, and it is not counted yet.
    Discarded,
    /// The movement file of a message that a killed host left is removed; the message still exists.
    SweepForgotten,
    /// The file of a new message is written.
    SendWritten,
    /// A new message has its movement file.
    SendNoted,
    /// A new message is in the queue.
    SendRenamed,

    // SQS.
    /// Messages are requested next.
    SqsReceive,
    /// Messages were received.
    SqsReceived,
    /// Messages are deleted next.
    SqsDelete,
    /// Messages were deleted.
    SqsDeleted,
    /// Visibility timeouts are changed next.
    SqsChange,
    /// Visibility timeouts were changed.
    SqsChanged,
    /// Messages are sent next.
    SqsSend,
    /// Messages were sent.
    SqsSent,

    // Pub/Sub.
    /// Messages are requested next.
    PubSubPull,
    /// Messages were received.
    PubSubPulled,
    /// Messages are acknowledged next.
    PubSubAcknowledge,
    /// Messages were acknowledged.
    PubSubAcknowledged,
    /// Acknowledgement deadlines are changed next.
    PubSubModify,
    /// Acknowledgement deadlines were changed.
    PubSubModified,
    /// Messages are published next.
    PubSubPublish,
    /// Messages were published.
    PubSubPublished,
}
