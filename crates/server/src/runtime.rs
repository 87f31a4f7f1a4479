//! The threads that answer clients.

use tokio::runtime::{Builder, Runtime};

/// Threads that get the processor as soon as there is something for them, also from those that compute for long.
///
/// # Errors
/// The operating system starts no threads.
pub fn quick_runtime() -> std::io::Result<Runtime> {
    // Of this thread and those that it starts, the log's and the engine's among them. Without it they wait a little longer.
    if let Err(error) = scheduling::quick() {
        tracing::info!(%error, "requests may wait for keys that are made and RSA signatures");
    }
    Builder::new_multi_thread().enable_all().build()
}
