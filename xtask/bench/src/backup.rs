//! A full backup and a restore of few keys and of many: how long each takes, how large the backup is, and what memory the
//! server has meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Access, Pool, json_of};
use crate::{Failure, Options, machine};

const VERSIONS: usize = 10;
/// By which `--only` finds it.
pub const NAME: &str = "backup and restore";
/// How often a job is asked whether it has ended, and the server's memory looked at.
const LOOK_AFTER: Duration = Duration::from_millis(5);

pub struct Backup {
    pub what: &'static str,
    pub keys: usize,
    pub versions: usize,
    pub took: Duration,
    /// Of the backup.
    pub bytes: u64,
    /// Resident before it began, the most that was seen meanwhile, and afterwards.
    pub before: u64,
    pub peak: u64,
    pub after: u64,
}

/// A pool that grows to each of `sizes`, half of it EC keys and half AES, and is backed up to a folder and restored at each.
pub async fn measure(options: &Options, sizes: &[usize]) -> Result<Vec<Backup>, Failure> {
    let directory = options.data.join("backup");
    let folder = directory.join("folder");
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let mut made = 0;
    let mut rows = Vec::new();
    let pool = Pool::start_backing_up_to(&options.server, &directory, &folder).await?;
    for keys in sizes {
        eprintln!("bench: a backup of {keys} keys with {VERSIONS} versions");
        fill(&*pool.access().await?, made..*keys).await?;
        made = *keys;
        let access = pool.access().await?;
        let location =
            json!({"storageResourceUri": format!("file://{}", folder.display()), "useManagedIdentity": true});
        let (mut backup, ended) = job(&pool, &access, "POST", "/backup", &location).await?;
        let uri = ended["azureStorageBlobContainerUri"].as_str().unwrap_or_default();
        let name = uri.rsplit('/').next().unwrap_or_default();
        let bytes = bytes_in(&folder.join(name))?;
        let source = json!({"sasTokenParameters": location, "folderToRestore": name});
        let (mut restore, _) = job(&pool, &access, "PUT", "/restore", &source).await?;
        for (row, what) in [(&mut backup, "backup"), (&mut restore, "restore")] {
            (row.what, row.keys, row.versions, row.bytes) = (what, *keys, keys * VERSIONS, bytes);
        }
        rows.extend([backup, restore]);
    }
    drop(pool);
    std::fs::remove_dir_all(directory)?;
    Ok(rows)
}

/// Begins a job and waits for its end.
async fn job(
    pool: &Pool,
    access: &Access,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<(Backup, Value), Failure> {
    let mut connection = access.connect().await?;
    let resident = || machine::resident_bytes_of(pool.process()).unwrap_or(0);
    let (before, began) = (resident(), Instant::now());
    let mut peak = before;
    let begun = json_of(&mut connection, &access.request(method, path, &body.to_string())).await?;
    let id = begun["jobId"].as_str().ok_or_else(|| Failure::new("a job without a name"))?.to_owned();
    let status = access.request("GET", &format!("{path}/{id}/pending"), "");
    let ended = loop {
        let job = json_of(&mut connection, &status).await?;
        peak = peak.max(resident());
        match job["status"].as_str() {
            Some("InProgress") => tokio::time::sleep(LOOK_AFTER).await,
            Some("Succeeded") => break job,
            _ => return Err(Failure::new(format!("{path} failed: {}", job["error"]["message"]))),
        }
    };
    let took = began.elapsed();
    let row = Backup { what: "", keys: 0, versions: 0, took, bytes: 0, before, peak, after: resident() };
    Ok((row, ended))
}

fn bytes_in(folder: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Half of them EC, half AES, with all their versions.
async fn fill(access: &Access, numbers: std::ops::Range<usize>) -> Result<(), Failure> {
    let request = |number| {
        let kind = match number % 2 {
            0 => json!({"kty": "EC-HSM", "crv": "P-256"}),
            _ => json!({"kty": "oct-HSM", "key_size": 256}),
        };
        access.request("POST", &format!("/keys/kept-{number}/create"), &kind.to_string())
    };
    let requests = numbers.flat_map(|number| std::iter::repeat_n(request(number), VERSIONS));
    access.send_all(requests.collect()).await
}
