//! What a pool does of its own accord, when it is due: the purge of keys whose retention has passed, and the rotation that
//! a key's policy asks for.
//!
//! Somebody calls [`Schedule::tick`] now and then. Purges cannot be undone, so the schedule does not trust a clock that
//! jumps: whoever can set the machine's time could otherwise destroy every deleted key at once, or use up the versions
//! that a key may have.

use crate::error::Error;
use crate::pool::Pool;
use audit::event::{Event, EventResult};
use domain::time::Time;
use std::sync::Arc;
use std::time::Duration;

/// How far wall time may move against monotonic time before the schedule stops.
const MAX_JUMP_MILLISECONDS: i64 = 60 * 60 * 1000;

pub struct Schedule {
    /// Wall and monotonic time when the schedule began.
    began: (Time, Duration),
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
    pub fn new(pool: &Pool) -> Self {
        Self { began: (pool.now(), pool.monotonic()), stopped: false }
    }

    pub async fn tick(&mut self, pool: &Arc<Pool>) -> Result<Tick, Error> {
        if self.stopped {
            return Ok(Tick::Stopped);
        }
        let jump = self.jump_milliseconds(pool);
        if jump.unsigned_abs() > MAX_JUMP_MILLISECONDS.unsigned_abs() {
            self.stopped = true;
            let detail = format!(
                "wall time has moved {} s against monotonic time since the start: nothing is purged or rotated until a restart",
                jump / 1000
            );
            tracing::error!("{detail}");
            let event = Event {
                operation: "ClockJumpAlarm".into(),
                result: EventResult::Success,
                detail,
                ..pool.blank_event()
            };
            let recorded = pool.audit().append(pool.seal_event(&event)).await;
            return match recorded {
                Ok(_) => Ok(Tick::Stopped),
                Err(error) => Err(Error::AuditUnavailable(error.to_string())),
            };
        }
        if pool.is_restoring() {
            return Ok(Tick::Done { purged: 0, rotated: 0 });
        }
        let purged = pool.purge_due_keys().await?;
        let rotated = pool.rotate_due_keys().await?;
        Ok(Tick::Done { purged, rotated })
    }

    fn jump_milliseconds(&self, pool: &Pool) -> i64 {
        let (wall, monotonic) = self.began;
        let by_wall = pool.now().unix_milliseconds() - wall.unix_milliseconds();
        let by_monotonic = pool.monotonic().saturating_sub(monotonic).as_millis();
        by_wall - i64::try_from(by_monotonic).unwrap_or(i64::MAX)
    }
}
