//! What a pool does of its own accord, when it is due: the purge of keys whose retention has passed, and the rotation that
//! a key's policy asks for.
//!
//! Somebody calls [`Schedule::tick`] now and then. Purges cannot be undone, so the schedule does not trust a clock that
//! jumps: whoever can set the machine's time could otherwise destroy every deleted key at once, or use up the versions
//! that a key may have. Nor does it trust one that is wrong from the start: a pool of class production purges nothing on its
//! first day, in which its clients' tokens would not be good and somebody, or NTP, puts the clock right.

use crate::clock::LEEWAY;
use crate::error::Error;
use crate::pool::Pool;
use domain::pool::PoolClass;
use std::sync::Arc;
use std::time::Duration;

/// How long a pool of class production has to run before it purges.
const WATCHED: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Default)]
pub struct Schedule {
    stopped: bool,
}

/// What a tick did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tick {
    Done {
        purged: usize,
        rotated: usize,
    },
    /// The clock has jumped. Only a restart, and so somebody who looks, gets the schedule going again.
    Stopped,
}

impl Schedule {
    pub async fn tick(&mut self, pool: &Arc<Pool>) -> Result<Tick, Error> {
        pool.mark_log().await;
        if self.stopped {
            return Ok(Tick::Stopped);
        }
        let jump = pool.clock().jump();
        if u128::from(jump.unsigned_abs()) > LEEWAY.as_millis() {
            self.stopped = true;
            let detail = format!(
                "wall time has moved {} s against monotonic time since the start: nothing is purged or rotated until a restart",
                jump / 1000
            );
            pool.record_clock_alarm(detail).await?;
            return Ok(Tick::Stopped);
        }
        if pool.is_restoring() {
            return Ok(Tick::Done { purged: 0, rotated: 0 });
        }
        let trusted = pool.genesis().class == PoolClass::Test || pool.clock().since_opened() >= WATCHED;
        let purged = if trusted { pool.purge_due_keys().await? } else { 0 };
        let rotated = pool.rotate_due_keys().await?;
        Ok(Tick::Done { purged, rotated })
    }
}
