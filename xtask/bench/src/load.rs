//! A closed loop: each connection sends its next request when it has the answer to the last.

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
    pub request: Vec<u8>,
    /// The process that answers.
    pub process: u32,
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

pub async fn run(target: &Target, connections: usize, duration: Duration) -> Result<Load, Failure> {
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(Connection::open(&target.endpoint).await?);
    }
    let counted = Instant::now() + WARM_UP;
    let end = counted + duration;
    let mut workers = JoinSet::new();
    for connection in open {
        let request = target.request.clone();
        workers.spawn(worker(connection, request, counted, end));
    }
    let measured = {
        tokio::time::sleep_until(counted.into()).await;
        let before = (Instant::now(), machine::own_cpu_time(), machine::cpu_time_of(target.process));
        tokio::time::sleep_until(end.into()).await;
        let after = (Instant::now(), machine::own_cpu_time(), machine::cpu_time_of(target.process));
        (after.0 - before.0, after.1 - before.1, after.2.zip(before.2).map(|(after, before)| after - before))
    };
    let mut latencies = Vec::new();
    while let Some(worker) = workers.join_next().await {
        latencies.extend(worker??);
    }
    latencies.sort_unstable();
    let (elapsed, own, server) = measured;
    let answers = u32::try_from(latencies.len()).unwrap_or(u32::MAX);
    if answers == 0 {
        return Err(Failure::new(format!("{}: no answer in {duration:?}", target.name)));
    }
    Ok(Load {
        rate: f64::from(answers) / duration.as_secs_f64(),
        latencies,
        server_cpu: server.unwrap_or_default() / answers,
        client_share: own.as_secs_f64() / elapsed.as_secs_f64(),
    })
}

/// Latencies in microseconds of the requests that were answered between `counted` and `end`.
async fn worker(
    mut connection: Connection,
    request: Vec<u8>,
    counted: Instant,
    end: Instant,
) -> Result<Vec<u32>, Failure> {
    let mut latencies = Vec::with_capacity(100_000);
    loop {
        let sent = Instant::now();
        let answer = connection.exchange(&request).await?;
        if answer.status != 200 {
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
