//! Quick operations beside slow ones, on one core: what each reaches of what it reaches alone.

use serde_json::json;

use crate::load::{self, Load, Request, Target};
use crate::server::Access;
use crate::{Failure, Options};

/// Each of the loads; few connections, so that latency is the server's and not the queue's.
const CONNECTIONS: usize = 4;

pub struct Mixed {
    pub name: &'static str,
    pub alone: Load,
    pub together: Load,
}

/// AES-GCM beside RSA-4096 signatures and the making of RSA-4096 keys.
pub async fn measure(options: &Options, access: &Access) -> Result<Vec<Mixed>, Failure> {
    let mut connection = access.connect().await?;
    let oct = json!({"kty": "oct-HSM", "key_size": 256});
    let rsa = json!({"kty": "RSA-HSM", "key_size": 4096});
    let path = access.create(&mut connection, "mixed-oct", &oct).await?;
    let body = json!({"alg": "A256GCM", "value": "pQ".repeat(500)}).to_string();
    let encrypt = Request::same(access.request("POST", &format!("{path}/encrypt"), &body));
    let path = access.create(&mut connection, "mixed-rsa", &rsa).await?;
    let body = json!({"alg": "PS256", "value": "WlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlo"}).to_string();
    let sign = Request::same(access.request("POST", &format!("{path}/sign"), &body));
    let create = Request::same(access.request("POST", "/keys/mixed-made/create", &rsa.to_string()));
    let target =
        |name, request, most_connections| Target { most_connections, ..access.target(name, None, request) };
    let targets = [
        target("A256GCM encrypt, 1 KiB", encrypt, CONNECTIONS),
        target("RSA-4096 sign, PS256", sign, CONNECTIONS),
        target("create RSA-4096", create, 1),
    ];
    eprintln!("bench: mixed load");
    let mut alone = Vec::new();
    for target in &targets {
        alone.push(load::run(target, CONNECTIONS, options.seconds).await?);
    }
    let beside: Vec<(&Target, usize)> = targets.iter().map(|target| (target, CONNECTIONS)).collect();
    let together = load::run_beside(&beside, options.seconds * 2).await?;
    let names = targets.iter().map(|target| target.name);
    Ok(names
        .zip(alone.into_iter().zip(together))
        .map(|(name, (alone, together))| Mixed { name, alone, together })
        .collect())
}
