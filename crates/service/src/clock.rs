//! Time and randomness, as arguments of everything below.

use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::Time;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync {
    fn now(&self) -> Time;

    /// Time since some moment in the past, suspended or not, that nobody can set.
    fn monotonic(&self) -> Duration;
}

pub trait Random: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);

    fn guid(&self) -> Guid {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        Guid::from_random(bytes)
    }
}

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time::from_unix_milliseconds(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// `CLOCK_BOOTTIME`: unlike `CLOCK_MONOTONIC` it goes on while a laptop sleeps.
    fn monotonic(&self) -> Duration {
        let since_boot = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(since_boot.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(since_boot.tv_nsec).unwrap_or_default())
    }
}

/// How far wall time may move against monotonic time, and fall behind what the pool's own log says.
pub(crate) const LEEWAY: Duration = Duration::from_secs(60 * 60);

/// A clock that, for a pool of class production, cannot be set back: it does not fall behind what has passed since the pool
/// opened by more than [`LEEWAY`]. Whoever sets it back would revive expired tokens and keys.
pub(crate) struct SteadyClock {
    clock: Arc<dyn Clock>,
    class: PoolClass,
    opened: (Time, Duration),
}

impl SteadyClock {
    pub fn new(clock: Arc<dyn Clock>, class: PoolClass) -> Self {
        let opened = (clock.now(), clock.monotonic());
        Self { clock, class, opened }
    }

    pub fn now(&self) -> Time {
        let now = self.clock.now();
        match self.class {
            // On a laptop, a clock that is put right after the start is no attack.
            PoolClass::Test => now,
            PoolClass::Production => {
                let passed = milliseconds(self.since_opened()) - milliseconds(LEEWAY);
                now.max(Time::from_unix_milliseconds(
                    self.opened.0.unix_milliseconds().saturating_add(passed),
                ))
            }
        }
    }

    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    pub fn since_opened(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.opened.1)
    }

    /// By how many milliseconds the clock has been set since the pool opened, back where negative.
    pub fn jump(&self) -> i64 {
        let by_wall = self.clock.now().unix_milliseconds() - self.opened.0.unix_milliseconds();
        by_wall - milliseconds(self.since_opened())
    }

    /// How far the clock is behind `other`, if by more than [`LEEWAY`].
    pub fn behind(&self, other: Time) -> Option<Duration> {
        let behind = other.unix_milliseconds().saturating_sub(self.clock.now().unix_milliseconds());
        u64::try_from(behind).ok().map(Duration::from_millis).filter(|behind| *behind > LEEWAY)
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The library's DRBG, seeded by the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        crypto::digest::random(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Wall time and time since boot, in milliseconds.
    struct Hands(Mutex<(i64, u64)>);

    impl Clock for Hands {
        fn now(&self) -> Time {
            Time::from_unix_milliseconds(self.0.lock().0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.lock().1)
        }
    }

    const HOUR: i64 = 60 * 60 * 1000;
    const OPENED: i64 = 1_800_000_000_000;

    fn after(class: PoolClass, wall: i64, passed: i64) -> i64 {
        let hands = Arc::new(Hands(Mutex::new((OPENED, 5))));
        let clock = SteadyClock::new(hands.clone(), class);
        *hands.0.lock() = (OPENED + wall, 5 + passed.unsigned_abs());
        clock.now().unix_milliseconds() - OPENED
    }

    #[test]
    fn a_production_pools_clock_follows_small_corrections_and_is_not_set_back() {
        let production = |wall, passed| after(PoolClass::Production, wall, passed);
        assert_eq!(production(9 * HOUR, 9 * HOUR), 9 * HOUR);
        assert_eq!(production(8 * HOUR, 9 * HOUR), 8 * HOUR);
        assert_eq!(production(8 * HOUR - 1, 9 * HOUR), 8 * HOUR);
        assert_eq!(production(-1000 * HOUR, 9 * HOUR), 8 * HOUR);
        assert_eq!(production(1000 * HOUR, 9 * HOUR), 1000 * HOUR);
        assert_eq!(after(PoolClass::Test, -1000 * HOUR, 9 * HOUR), -1000 * HOUR);
    }
}
