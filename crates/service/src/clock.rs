//! Time and randomness, as arguments of everything below.

use domain::guid::Guid;
use domain::time::Time;
use rustix::time::{ClockId, clock_gettime};
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

/// The library's DRBG, seeded by the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        crypto::digest::random(bytes);
    }
}
