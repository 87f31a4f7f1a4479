//! Long load with kills: at about 70 percent of what the server can do, it is killed every minute and started again.
//!
//! What must hold: each start serves; a change that was acknowledged is there; the log goes on behind every event that an
//! answer named, and `holdfast audit verify` finds nothing wrong; memory does not grow with time.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::Connection;
use crate::load::{self, Target};
use crate::server::{Access, Pool, SYNCED};
use crate::{Failure, Options, machine};

const CONNECTIONS: usize = 16;
const SHARE: f64 = 0.7;
const KILL_EVERY: Duration = Duration::from_secs(60);
/// The whole log is read each time, so that it takes longer and longer.
const VERIFY_EVERY_MINUTES: u64 = 10;
/// What a process holds more than the first one did at the same age: of its size, and beyond that.
const GROWTH: f64 = 1.25;
const GROWTH_BYTES: u64 = 16 << 20;
/// One change for so many uses of keys.
const USES_PER_CHANGE: u64 = 50;

/// What was acknowledged, over all starts.
#[derive(Default)]
struct Acknowledged {
    answers: AtomicU64,
    changes: AtomicU64,
    /// One behind the highest index of a receipt.
    events: AtomicU64,
}

pub fn run(options: &Options) -> Result<(), Failure> {
    machine::pin_to(machine::LOAD_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(soak(options))
}

async fn soak(options: &Options) -> Result<(), Failure> {
    let directory = options.data.join("soak");
    let mut pool = Pool::start(&options.server, &directory, SYNCED).await?;
    let port = pool.port();
    let mut work = Work::prepare(&pool.access().await?).await?;
    let rate = SHARE * work.fastest().await?;
    println!(
        "soak: {rate:.0} requests/s, a kill every {} s, {} minutes",
        KILL_EVERY.as_secs(),
        options.minutes
    );
    let acknowledged = Arc::new(Acknowledged::default());
    // A pool's events from before are in the log as well; only what an answer named is looked for.
    let mut first_resident = None;
    for minute in 1..=options.minutes {
        let end = Instant::now() + KILL_EVERY;
        let (ran, killed) = tokio::join!(work.run(rate, end, &acknowledged), kill_at(pool, end));
        ran?;
        let resident = killed?;
        if minute % VERIFY_EVERY_MINUTES == 0 {
            println!("soak: {} events verified", verify(&options.server, &directory)?);
        }
        let restarted = Instant::now();
        pool = Pool::start_again(&options.server, &directory, port).await?;
        let ready = restarted.elapsed();
        work = Work::again(&pool.access().await?, work);
        let (events, held) = work.reached().await?;
        let named = acknowledged.events.load(Ordering::Relaxed);
        if events < named {
            return Err(Failure::new(format!("the log goes on with event {events}; answers named {named}")));
        }
        let changes = acknowledged.changes.load(Ordering::Relaxed);
        if held < changes {
            return Err(Failure::new(format!(
                "the last acknowledged change is {changes}; the pool has {held}"
            )));
        }
        println!(
            "soak: minute {minute}: {} answers, {changes} changes, {events} events, {} MiB, ready after {} ms",
            acknowledged.answers.load(Ordering::Relaxed),
            resident >> 20,
            ready.as_millis()
        );
        let limit = (*first_resident.get_or_insert(resident) as f64 * GROWTH) as u64 + GROWTH_BYTES;
        if resident > limit {
            return Err(Failure::new(format!("memory grew to {} MiB", resident >> 20)));
        }
    }
    pool.stop()?;
    let events = verify(&options.server, &directory)?;
    std::fs::remove_dir_all(directory)?;
    println!("soak: nothing was lost; {events} events verified");
    Ok(())
}

/// Kills it in the midst of its work; returns the memory that it held.
async fn kill_at(pool: Pool, end: Instant) -> Result<u64, Failure> {
    tokio::time::sleep_until(end.into()).await;
    let resident = machine::resident_bytes_of(pool.process()).unwrap_or(0);
    pool.kill()?;
    Ok(resident)
}

/// Events in a log in which nothing is wrong.
fn verify(program: &Path, directory: &Path) -> Result<u64, Failure> {
    let output =
        Command::new(program).args(["audit", "verify", "--data"]).arg(directory.join("data")).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!("the log does not verify: {text}{errors}")));
    }
    events_of(&text).ok_or_else(|| Failure::new(format!("audit verify does not say how many events: {text}")))
}

/// From the line `events        N in …`.
fn events_of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("events "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is sent.
struct Work {
    access: Arc<Access>,
    uses: Vec<(&'static str, String, String)>,
    /// The key whose tag counts the changes.
    counted: String,
}

impl Work {
    async fn prepare(access: &Arc<Access>) -> Result<Self, Failure> {
        let mut connection = access.connect().await?;
        let ec = access.create(&mut connection, "soak-ec", &json!({"kty": "EC-HSM", "crv": "P-256"})).await?;
        let rsa = access.create(&mut connection, "soak-rsa", &json!({"kty": "RSA-HSM"})).await?;
        let oct =
            access.create(&mut connection, "soak-oct", &json!({"kty": "oct-HSM", "key_size": 256})).await?;
        let digest = "WlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlo";
        let uses = vec![
            ("POST", format!("{ec}/sign"), json!({"alg": "ES256", "value": digest}).to_string()),
            ("POST", format!("{oct}/encrypt"), json!({"alg": "A256GCM", "value": digest}).to_string()),
            ("GET", ec.clone(), String::new()),
            ("POST", format!("{rsa}/sign"), json!({"alg": "PS256", "value": digest}).to_string()),
            ("POST", format!("{oct}/wrapkey"), json!({"alg": "A256KW", "value": digest}).to_string()),
        ];
        Ok(Self { access: access.clone(), uses, counted: ec })
    }

    /// The same work for the next start.
    fn again(access: &Arc<Access>, before: Self) -> Self {
        Self { access: access.clone(), ..before }
    }

    fn request(&self, number: u64) -> Vec<u8> {
        let (method, path, body) = &self.uses[(number % self.uses.len() as u64) as usize];
        self.access.request(method, path, body)
    }

    /// Requests in a second, as many as go.
    async fn fastest(&self) -> Result<f64, Failure> {
        let requests: Vec<Vec<u8>> = (0..self.uses.len() as u64).map(|number| self.request(number)).collect();
        let next = load::Request::numbered(move |number| {
            requests[(number % requests.len() as u64) as usize].clone()
        });
        let target: Target = self.access.target("as fast as it goes", None, next);
        Ok(load::run(&target, CONNECTIONS, Duration::from_secs(3)).await?.rate)
    }

    /// Sends `rate` requests a second until the server is gone, which it may not be before `end`.
    async fn run(&self, rate: f64, end: Instant, acknowledged: &Arc<Acknowledged>) -> Result<(), Failure> {
        let pause = Duration::from_secs_f64(CONNECTIONS as f64 / rate);
        let mut workers = JoinSet::new();
        for worker in 0..CONNECTIONS as u64 {
            let mut connection = self.access.connect().await?;
            let requests: Vec<Vec<u8>> =
                (0..self.uses.len() as u64).map(|number| self.request(number + worker)).collect();
            let (access, counted) = (self.access.clone(), self.counted.clone());
            let acknowledged = acknowledged.clone();
            let work = async move {
                let mut due = Instant::now();
                let mut sent = 0;
                loop {
                    tokio::time::sleep_until(due.into()).await;
                    // One worker alone changes, so that the highest change is the last.
                    if worker == 0 && sent % USES_PER_CHANGE == 0 {
                        let change = acknowledged.changes.load(Ordering::Relaxed) + 1;
                        let body = json!({"tags": {"change": change.to_string()}}).to_string();
                        ask(&mut connection, &access.request("PATCH", &counted, &body), &acknowledged)
                            .await?;
                        acknowledged.changes.store(change, Ordering::Relaxed);
                    } else {
                        let request = &requests[(sent % requests.len() as u64) as usize];
                        ask(&mut connection, request, &acknowledged).await?;
                    }
                    sent += 1;
                    due += pause;
                }
            };
            workers.spawn(async move {
                let ended: Result<std::convert::Infallible, Failure> = work.await;
                (ended, Instant::now())
            });
        }
        while let Some(worker) = workers.join_next().await {
            let (Err(failure), at) = worker?;
            if at < end {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// The index of the next event, and the number of the change that the pool has.
    async fn reached(&self) -> Result<(u64, u64), Failure> {
        let mut connection = self.access.connect().await?;
        let answer = connection.exchange(&self.access.request("GET", &self.counted, "")).await?;
        let event = answer.receipt_index.ok_or_else(|| Failure::new("an answer without a receipt"))?;
        let bundle: Value = serde_json::from_slice(answer.body)?;
        let change = bundle["tags"]["change"].as_str().and_then(|change| change.parse().ok());
        Ok((event, change.unwrap_or(0)))
    }
}

async fn ask(
    connection: &mut Connection,
    request: &[u8],
    acknowledged: &Acknowledged,
) -> Result<(), Failure> {
    let answer = connection.exchange(request).await?;
    if answer.status != 200 {
        let body = String::from_utf8_lossy(answer.body);
        return Err(Failure::new(format!("answer {}: {body}", answer.status)));
    }
    let events = answer.receipt_index.ok_or_else(|| Failure::new("an answer without a receipt"))? + 1;
    acknowledged.events.fetch_max(events, Ordering::Relaxed);
    acknowledged.answers.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_events_is_read() {
        assert_eq!(events_of("pool   x\nevents        12 in 3 groups\nroot  y"), Some(12));
        assert_eq!(events_of("events"), None);
        assert_eq!(events_of("events many"), None);
    }
}
