//! A closed loop: each connection sends its next request when it has the answer to the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::{Connection, Endpoint};
use crate::raw::Primitive;
use crate::{Failure, machine};

/// Not counted: connections open, caches fill, the CPU finds its speed.
const WARM_UP: Duration = Duration::from_millis(300);

/// One row of the table: a request, and who answers it.
#[derive(Clone)]
pub struct Target {
    pub name: &'static str,
    pub primitive: Option<Primitive>,
    pub endpoint: Endpoint,
    pub request: Request,
    /// The process that answers.
    pub process: u32,
    /// Fewer than the run's connections, where more would only wait in a queue.
    pub most_connections: usize,
}

/// What each connection sends again and again.
#[derive(Clone)]
pub enum Request {
    Same(Arc<Vec<u8>>),
    /// Each time another one: made from how many there were before.
    Numbered(Arc<AtomicU64>, Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>),
}

impl Request {
    pub fn same(request: Vec<u8>) -> Self {
        Self::Same(Arc::new(request))
    }

    pub fn numbered(make: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Numbered(Arc::default(), Arc::new(make))
    }

    fn next(&self) -> Arc<Vec<u8>> {
        match self {
            Self::Same(request) => request.clone(),
            Self::Numbered(before, make) => Arc::new(make(before.fetch_add(1, Ordering::Relaxed))),
        }
    }
}

/// What one round measured.
#[derive(Clone, Debug)]
pub struct Load {
    /// Answers in a second.
    pub rate: f64,
    /// Of every request, in microseconds, ascending.
    pub latencies: Vec<u32>,
    /// CPU time of the server for one request.
    pub server_cpu: Duration,
    /// Part of its core that the client used, 0 to 1. Near 1 the client is what was measured.
    pub client_share: f64,
}

impl Load {
    /// The smallest latency that `percent` of them do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.latencies, percent)
    }
}

/// The smallest value that `percent` of `sorted` do not exceed.
pub fn percentile(sorted: &[u32], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    Duration::from_micros(sorted.get(rank).copied().unwrap_or(0).into())
}

pub async fn run(target: &Target, connections: usize, duration: Duration) -> Result<Load, Failure> {
    let mut loads = run_beside(&[(target, connections)], duration).await?;
    loads.pop().ok_or_else(|| Failure::new("nothing to measure"))
}

/// Several loads on one server at a time. The CPU time of the server is shared out evenly, and means nothing but where
/// there is one.
pub async fn run_beside(targets: &[(&Target, usize)], duration: Duration) -> Result<Vec<Load>, Failure> {
    let mut open = Vec::new();
    for (number, (target, connections)) in targets.iter().enumerate() {
        for _ in 0..(*connections).min(target.most_connections) {
            open.push((number, Connection::open(&target.endpoint).await?));
        }
    }
    let counted = Instant::now() + WARM_UP;
    let end = counted + duration;
    let mut workers = JoinSet::new();
    for (number, connection) in open {
        let request = targets[number].0.request.clone();
        workers.spawn(async move { (number, worker(connection, request, counted, end).await) });
    }
    let process = targets.first().map_or(0, |(target, _)| target.process);
    let measured = {
        tokio::time::sleep_until(counted.into()).await;
        let before = (Instant::now(), machine::own_cpu_time(), machine::cpu_time_of(process));
        tokio::time::sleep_until(end.into()).await;
        let after = (Instant::now(), machine::own_cpu_time(), machine::cpu_time_of(process));
        (after.0 - before.0, after.1 - before.1, after.2.zip(before.2).map(|(after, before)| after - before))
    };
    let mut latencies = vec![Vec::new(); targets.len()];
    while let Some(worker) = workers.join_next().await {
        let (number, of_one) = worker?;
        let name = targets[number].0.name;
        latencies[number].extend(of_one.map_err(|failure| Failure::new(format!("{name}: {failure}")))?);
    }
    let (elapsed, own, server) = measured;
    let all = u32::try_from(latencies.iter().map(Vec::len).sum::<usize>()).unwrap_or(u32::MAX);
    let loads = latencies.into_iter().map(|mut latencies| {
        latencies.sort_unstable();
        Load {
            rate: latencies.len() as f64 / duration.as_secs_f64(),
            latencies,
            server_cpu: server.unwrap_or_default() / all.max(1),
            client_share: own.as_secs_f64() / elapsed.as_secs_f64(),
        }
    });
    Ok(loads.collect())
}

/// Latencies in microseconds of the requests that were answered between `counted` and `end`.
async fn worker(
    mut connection: Connection,
    request: Request,
    counted: Instant,
    end: Instant,
) -> Result<Vec<u32>, Failure> {
    let mut latencies = Vec::with_capacity(100_000);
    loop {
        let next = request.next();
        let sent = Instant::now();
        let answer = connection.exchange(&next).await?;
        if !(200..300).contains(&answer.status) {
            let body = String::from_utf8_lossy(answer.body);
            return Err(Failure::new(format!("answer {}: {body}", answer.status)));
        }
        let now = Instant::now();
        if now >= end {
            return Ok(latencies);
        }
        if now >= counted {
            latencies.push(u32::try_from((now - sent).as_micros()).unwrap_or(u32::MAX));
        }
    }
}
