//! Threads for what would hold up everybody else: RSA private operations and key generation.
//!
//! Each class has threads of its own at a lower priority, and a bounded queue; a job of one class never sits on
//! another's thread, as a signature behind a key generation once waited for more than a second. Everything else runs
//! where the request runs.

use crate::error::Error;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// What a job costs, and so where it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CostClass {
    /// 0.3 to 1.5 ms.
    RsaPrivate,
    /// 0.1 to 5 s.
    KeyGeneration,
}

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Workers {
    rsa_private: SyncSender<Job>,
    key_generation: SyncSender<Job>,
}

/// Waiting RSA operations: about 0.3 s of work for one core at RSA-2048.
const RSA_QUEUE: usize = 1024;
/// Waiting key generations.
const GENERATION_QUEUE: usize = 64;
const RSA_NICE: i32 = 5;
/// Not the idle class: generation must go on, slowly, under load.
const GENERATION_NICE: i32 = 10;

impl Workers {
    pub fn start(cores: usize) -> Self {
        Self {
            rsa_private: start("rsa", cores, RSA_QUEUE, RSA_NICE),
            key_generation: start("keygen", 1, GENERATION_QUEUE, GENERATION_NICE),
        }
    }

    /// Runs `job` on a thread of `class`; [`Error::Busy`] at once when its queue is full.
    pub async fn run<T: Send + 'static>(
        &self,
        class: CostClass,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (queue, what) = match class {
            CostClass::RsaPrivate => (&self.rsa_private, "RSA private operations"),
            CostClass::KeyGeneration => (&self.key_generation, "key generation"),
        };
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // A caller that left is no reason to fail.
            let _ = answer.send(job());
        });
        match queue.try_send(job) {
            Ok(()) => answered.await.map_err(|_| Error::Busy(what)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Error::Busy(what)),
        }
    }
}

fn start(name: &str, threads: usize, queue: usize, nice: i32) -> SyncSender<Job> {
    let (sender, receiver) = sync_channel::<Job>(queue);
    let receiver = Arc::new(Mutex::new(receiver));
    for number in 0..threads {
        let receiver = receiver.clone();
        std::thread::Builder::new()
            .name(format!("{name}-{number}"))
            .spawn(move || work(&receiver, nice))
            .expect("the operating system starts threads at start-up");
    }
    sender
}

fn work(receiver: &Mutex<Receiver<Job>>, nice: i32) {
    // On Linux this is the priority of the calling thread alone. Without it the class merely runs at full priority.
    if let Err(error) = rustix::process::nice(nice) {
        tracing::warn!(%error, "cannot lower the priority of a worker thread");
    }
    loop {
        let job = receiver.lock().recv();
        let Ok(job) = job else { return };
        // A panic in one job must not take the thread, and with it the class.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a worker's job panicked");
        }
    }
}
