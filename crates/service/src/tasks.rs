//! Work that goes on without whoever asked for it.

use std::future::Future;

/// Whether or not the caller stays: what has begun to change what the pool is, or is to be done by whoever was given it, must
/// not stop half way.
pub(crate) async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        // Nobody cancels it, so it has panicked.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
