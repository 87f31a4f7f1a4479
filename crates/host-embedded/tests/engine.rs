//! The engine suite on a real file and on the simulated disk.

use std::sync::Arc;

use host_embedded::{EngineOptions, RedbEngine};
use testkit::{SimDisk, engine_suite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_file_passes_the_engine_suite() {
    let directory = tempfile::tempdir().unwrap();
    let number = std::cell::Cell::new(0);
    engine_suite(|| {
        number.set(number.get() + 1);
        RedbEngine::open(directory.path().join(number.get().to_string()), EngineOptions::default()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_simulated_disk_passes_the_engine_suite() {
    engine_suite(|| RedbEngine::open_in(Arc::new(SimDisk::new()), EngineOptions::default()).unwrap()).await;
}
