//! Runs blocking work on other threads than the async runtime's.

/// The largest file, in bytes, that is read or written on the caller's thread. For a larger file,
/// the switch to a blocking thread pays off.
pub(crate) const SMALL: u64 = 256 * 1024;

/// Runs `work` on a blocking thread. The work continues if the returned future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and drops the waiting future.
            Err(_) => std::future::pending().await,
        },
    }
}
