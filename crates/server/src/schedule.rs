//! Lets a pool do what is due, once a minute, until it closes.

use service::{Pool, Schedule, Tick};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const PERIOD: Duration = Duration::from_secs(60);

pub async fn run(pool: Arc<Pool>, mut closing: watch::Receiver<bool>) {
    let mut schedule = Schedule::default();
    loop {
        match schedule.tick(&pool).await {
            Ok(Tick::Done { purged: 0, rotated: 0 } | Tick::Stopped) => {}
            Ok(Tick::Done { purged, rotated }) => tracing::info!(purged, rotated, "did what was due"),
            Err(error) => {
                tracing::error!(%error, "what is due cannot be done; it is tried again in a minute")
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}
