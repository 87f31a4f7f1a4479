//! Threads for what would hold up everybody else: RSA private operations and key generation.
//!
//! Each class has threads of its own at a lower priority, and a bounded queue that principals share; a job of one class
//! never sits on another's thread, as a signature behind a key generation once waited for more than a second. Everything
//! else runs where the request runs.

use crate::error::Error;
use crate::shares::{Full, Payer, Shares};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What a job costs, and so where it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CostClass {
    /// 0.3 to 1.5 ms.
    RsaPrivate,
    /// 0.1 to 5 s.
    KeyGeneration,
}

/// Does the work, and returns what hands the result to whoever waits.
type Job = Box<dyn FnOnce() -> Deliver + Send>;
type Deliver = Box<dyn FnOnce() + Send>;

/// What a thread without jobs does: once it has had none for a while, again and again until there is no more to do.
pub(crate) struct Idle {
    pub after: Duration,
    /// Whether there may be more to do.
    pub work: Box<dyn Fn() -> bool + Send>,
}

pub(crate) struct Workers {
    rsa_private: Arc<Queue>,
    key_generation: Arc<Queue>,
}

struct Queue {
    what: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: Shares<Job>,
    /// There is idle work again.
    prompted: bool,
    closed: bool,
}

enum Next {
    /// And how many wait behind it.
    Job(Job, usize),
    Idle,
    Prompted,
    Closed,
}

/// Waiting RSA operations: about 0.3 s of work for one core at RSA-2048.
const RSA_QUEUE: usize = 1024;
/// Waiting key generations.
const GENERATION_QUEUE: usize = 64;
const RSA_NICE: i32 = 5;
/// A result is held back for those behind it only where at least so many wait: with fewer, whoever gets its answer would
/// be missed when it should ask again.
const MANY_WAITING: usize = 4;
/// How long the first result of an RSA operation may be held, so that some go out together: a wake-up of the runtime for
/// each costs more than a tenth of a signature, and whoever had many before it has waited longer than this.
const RSA_HELD: Duration = Duration::from_millis(1);
/// Not the idle class: generation must go on, slowly, under load.
const GENERATION_NICE: i32 = 10;

impl Workers {
    /// On the runtime of those who will wait. `idle` is for the thread that makes keys.
    pub fn start(cores: usize, idle: Idle) -> Self {
        let rsa_private = Queue::new("RSA private operations", RSA_QUEUE);
        for number in 0..cores {
            rsa_private.start(format!("rsa-{number}"), RSA_NICE, RSA_HELD, None);
        }
        let key_generation = Queue::new("key generation", GENERATION_QUEUE);
        key_generation.start("keygen-0".into(), GENERATION_NICE, Duration::ZERO, Some(idle));
        Self { rsa_private, key_generation }
    }

    /// Runs `job` on a thread of `class`; [`Error::Busy`] at once when its queue, or the share of `payer`, is full.
    pub async fn run<T: Send + 'static>(
        &self,
        class: CostClass,
        payer: Payer,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let queue = match class {
            CostClass::RsaPrivate => &self.rsa_private,
            CostClass::KeyGeneration => &self.key_generation,
        };
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            let result = job();
            // A caller that left is no reason to fail.
            Box::new(move || drop(answer.send(result)))
        });
        queue.push(payer, job).map_err(|Full| Error::Busy(queue.what))?;
        answered.await.map_err(|_| Error::Busy(queue.what))
    }
}

impl Workers {
    /// Says that there is idle work again for the thread that makes keys, although no job passed through it.
    pub fn prompt_idle_work(&self) {
        self.key_generation.state.lock().prompted = true;
        self.key_generation.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for queue in [&self.rsa_private, &self.key_generation] {
            queue.state.lock().closed = true;
            queue.changed.notify_all();
        }
    }
}

impl Queue {
    fn new(what: &'static str, capacity: usize) -> Arc<Self> {
        let state = State { jobs: Shares::new(capacity), prompted: false, closed: false };
        Arc::new(Self { what, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn push(&self, payer: Payer, job: Job) -> Result<(), Full> {
        self.state.lock().jobs.push(payer, job)?;
        self.changed.notify_one();
        Ok(())
    }

    fn start(self: &Arc<Self>, name: String, nice: i32, longest_held: Duration, idle: Option<Idle>) {
        let (queue, runtime) = (self.clone(), Handle::current());
        std::thread::Builder::new()
            .name(name)
            .spawn(move || queue.work(nice, longest_held, idle, runtime))
            .expect("the operating system starts threads at start-up");
    }

    /// The next job. What waits when the queue is closed is not done: nobody is left to hear of it.
    fn next(&self, patience: Option<Duration>) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Next::Closed;
            }
            if let Some(job) = state.jobs.pop() {
                return Next::Job(job, state.jobs.waiting());
            }
            if std::mem::take(&mut state.prompted) {
                return Next::Prompted;
            }
            match patience {
                None => self.changed.wait(&mut state),
                Some(patience) => {
                    if self.changed.wait_for(&mut state, patience).timed_out() {
                        return Next::Idle;
                    }
                }
            }
        }
    }

    fn work(&self, nice: i32, longest_held: Duration, idle: Option<Idle>, runtime: Handle) {
        // Without it the class merely runs at full priority.
        if let Err(error) = scheduling::slow(nice) {
            tracing::warn!(%error, "cannot lower the priority of a worker thread");
        }
        let after = idle.as_ref().map(|idle| idle.after);
        let mut patience = after;
        let mut held = Held { results: Vec::new(), since: None, longest: longest_held, runtime };
        loop {
            match self.next(patience) {
                Next::Job(job, behind) => {
                    held.results.extend(guarded(job));
                    held.deliver_unless(behind >= MANY_WAITING);
                    patience = after;
                }
                Next::Prompted => patience = after,
                // Between any two of them a job may come first.
                Next::Idle => {
                    let more = idle.as_ref().and_then(|idle| guarded(|| (idle.work)())).unwrap_or(false);
                    patience = more.then_some(Duration::ZERO);
                }
                Next::Closed => return,
            }
        }
    }
}

/// Results that wait for others to go out with.
struct Held {
    results: Vec<Deliver>,
    /// When the first of them was there.
    since: Option<Instant>,
    longest: Duration,
    /// Of those who wait.
    runtime: Handle,
}

impl Held {
    /// Delivers all, unless there are `more` to come and the first has not been held for long.
    fn deliver_unless(&mut self, more: bool) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if more && since.elapsed() < self.longest {
            return;
        }
        self.since = None;
        let results = std::mem::take(&mut self.results);
        if results.len() > 1 {
            // Delivered from here, each would wake a thread that takes the processor at once, and sleeps again before the
            // next is delivered.
            self.runtime.spawn(async move { results.into_iter().for_each(|deliver| deliver()) });
        } else {
            results.into_iter().for_each(|deliver| deliver());
        }
    }
}

/// A panic in one job must not take the thread, and with it the class.
fn guarded<T>(job: impl FnOnce() -> T) -> Option<T> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).ok();
    if done.is_none() {
        tracing::error!("a worker's job panicked");
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::guid::Guid;
    use std::sync::mpsc;

    fn without_idle_work() -> Idle {
        Idle { after: Duration::from_secs(3600), work: Box::new(|| false) }
    }

    /// Nothing here takes as long.
    const A_DAY: Duration = Duration::from_secs(86_400);

    fn payer(number: u8) -> Payer {
        Some(Guid([number; 16]))
    }

    #[tokio::test]
    async fn a_result_is_held_while_more_come_and_not_for_long() {
        let (sender, delivered) = mpsc::channel();
        let result = |number: u8| -> Deliver {
            let sender = sender.clone();
            Box::new(move || sender.send(number).expect("the test listens"))
        };
        let longest = RSA_HELD;
        let runtime = Handle::current();
        let since = Some(Instant::now() + A_DAY);
        let mut held = Held { results: vec![result(1)], since, longest, runtime: runtime.clone() };
        held.deliver_unless(true);
        assert_eq!(delivered.try_iter().count(), 0);
        held.results.push(result(2));
        held.deliver_unless(false);
        assert_eq!(delivered.try_iter().count(), 0, "each would wake the runtime, which is to wake once");
        tokio::task::yield_now().await;
        assert_eq!(delivered.try_iter().collect::<Vec<_>>(), [1, 2]);

        let long_ago = Instant::now().checked_sub(longest);
        let mut held = Held { results: vec![result(3)], since: long_ago, longest, runtime };
        held.deliver_unless(true);
        assert_eq!(delivered.try_iter().collect::<Vec<_>>(), [3]);
        assert!(held.since.is_none(), "the next one starts a time of its own");
    }

    /// The next one takes seconds.
    #[tokio::test]
    async fn a_generated_key_is_not_held_for_those_behind_it() {
        let workers = Workers::start(1, without_idle_work());
        let ((all_wait, begin), (next_ends, end)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
        let run = |job: Box<dyn FnOnce() + Send>| workers.run(CostClass::KeyGeneration, None, job);
        // The thread is at the first of them while the others come.
        let mut waiting = vec![Box::pin(run(Box::new(move || begin.recv().unwrap())))];
        assert!(poll_once(&mut waiting[0]).is_none());
        let mut made = Box::pin(run(Box::new(|| {})));
        assert!(poll_once(&mut made).is_none());
        let mut next = Box::pin(run(Box::new(move || end.recv().unwrap())));
        assert!(poll_once(&mut next).is_none());
        waiting.extend((0..=MANY_WAITING).map(|_| Box::pin(run(Box::new(|| {})))));
        assert!(waiting[1..].iter_mut().all(|one| poll_once(one).is_none()));
        all_wait.send(()).unwrap();
        made.await.unwrap();
        next_ends.send(()).unwrap();
        next.await.unwrap();
        for one in waiting {
            one.await.unwrap();
        }
    }

    /// One principal has all that it may wait; another one's job is still taken, and is done second.
    #[tokio::test]
    async fn a_principal_that_asks_too_much_is_refused_and_others_are_not() {
        let workers = Workers::start(1, without_idle_work());
        let (release, gate) = mpsc::channel::<()>();
        let (begun, running) = oneshot::channel();
        let (order, done) = mpsc::channel();
        let blocked = workers.run(CostClass::KeyGeneration, payer(1), move || {
            let _ = begun.send(());
            gate.recv()
        });
        let job = |number: u8| {
            let order = order.clone();
            workers.run(CostClass::KeyGeneration, payer(number), move || order.send(number))
        };
        let rest = async {
            running.await.unwrap();
            // Nothing leaves the queue while the one thread is held.
            let mut waiting = Vec::new();
            loop {
                let mut one = Box::pin(job(1));
                match poll_once(&mut one) {
                    None => waiting.push(one),
                    Some(refused) => {
                        assert!(matches!(refused, Err(Error::Busy("key generation"))));
                        break;
                    }
                }
            }
            assert_eq!(waiting.len(), GENERATION_QUEUE / 2);
            let mut other = Box::pin(job(2));
            assert!(poll_once(&mut other).is_none());
            release.send(()).unwrap();
            other.await.unwrap().unwrap();
            for one in waiting {
                one.await.unwrap().unwrap();
            }
        };
        let (first, ()) = tokio::join!(blocked, rest);
        first.unwrap().unwrap();
        let order: Vec<u8> = done.try_iter().collect();
        assert_eq!((order[..2].to_vec(), order.len()), (vec![1, 2], GENERATION_QUEUE / 2 + 1));
    }

    #[tokio::test]
    async fn a_thread_without_jobs_does_its_idle_work_until_it_is_done_and_again_after_a_job() {
        let (sender, done) = mpsc::channel();
        let left = Mutex::new(3);
        let work = move || {
            let mut left = left.lock();
            *left -= 1;
            // Nobody listens once the test is over.
            let _ = sender.send(*left);
            *left % 3 != 0
        };
        let workers = Workers::start(1, Idle { after: Duration::ZERO, work: Box::new(work) });
        let next = || done.recv().unwrap();
        assert_eq!([next(), next(), next()], [2, 1, 0]);
        assert_eq!(workers.run(CostClass::KeyGeneration, None, || 7).await.unwrap(), 7);
        assert_eq!([next(), next(), next()], [-1, -2, -3]);
        workers.prompt_idle_work();
        assert_eq!(next(), -4);
    }

    #[tokio::test]
    async fn a_panic_takes_its_own_job_alone() {
        let workers = Workers::start(1, without_idle_work());
        let failed = workers.run(CostClass::RsaPrivate, None, || panic!("a fault")).await;
        let failed: Result<(), Error> = failed;
        assert!(matches!(failed, Err(Error::Busy(_))));
        assert_eq!(workers.run(CostClass::RsaPrivate, None, || 1).await.unwrap(), 1);
    }

    /// One poll: `None` while it waits.
    fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
