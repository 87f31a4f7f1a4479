//! The same server with few keys and with many: how long it takes to start, what it holds, and whether it slows down.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::{self, Request};
use crate::server::{Access, Pool, SYNCED};
use crate::{Failure, Options, machine};

pub struct Scale {
    pub keys: usize,
    /// From the start of the process to its first answer.
    pub ready: Duration,
    pub resident_bytes: u64,
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// A pool that grows to each of `sizes`, and is started anew at each.
pub async fn measure(options: &Options, sizes: &[usize]) -> Result<Vec<Scale>, Failure> {
    let directory = options.data.join("scale");
    let mut pool = Pool::start(&options.server, &directory, SYNCED).await?;
    let mut made = 0;
    let mut scales = Vec::new();
    for keys in sizes {
        eprintln!("bench: a pool of {keys} keys");
        fill(&*pool.access().await?, made..*keys).await?;
        made = *keys;
        let port = pool.port();
        pool.stop()?;
        let began = Instant::now();
        pool = Pool::start_again(&options.server, &directory, port).await?;
        let ready = began.elapsed();
        let access = pool.access().await?;
        // One after the other over all of them, so that each is parsed before it is counted twice.
        let names = *keys as u64;
        let request = {
            let requests: Vec<Vec<u8>> = (0..names.min(5_000))
                .map(|number| access.request("GET", &path(number * (names / names.min(5_000))), ""))
                .collect();
            Request::numbered(move |number| requests[(number % requests.len() as u64) as usize].clone())
        };
        let target = access.target("get one of many keys", None, request);
        let load = load::run(&target, options.connections, options.seconds).await?;
        scales.push(Scale {
            keys: *keys,
            ready,
            resident_bytes: machine::resident_bytes_of(pool.process()).unwrap_or(0),
            rate: load.rate,
            p50: load.percentile(50),
            p99: load.percentile(99),
        });
    }
    drop(pool);
    std::fs::remove_dir_all(directory)?;
    Ok(scales)
}

fn path(number: u64) -> String {
    format!("/keys/many-{number}")
}

async fn fill(access: &Access, numbers: std::ops::Range<usize>) -> Result<(), Failure> {
    let body = json!({"kty": "EC-HSM", "crv": "P-256"}).to_string();
    let request = |number| access.request("POST", &format!("{}/create", path(number as u64)), &body);
    access.send_all(numbers.map(request).collect()).await
}
