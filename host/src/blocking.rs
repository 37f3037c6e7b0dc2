//! Blocking work away from the threads that drive tasks.

/// The size in bytes up to which a file is read or written on the caller's thread. A larger file
/// is worth the hand-over to a blocking thread.
pub(crate) const SMALL: u64 = 256 * 1024;

/// Runs `work` on a thread that may block. The work continues when the caller is dropped.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down, and drops whoever waits for the result.
            Err(_) => std::future::pending().await,
        },
    }
}
