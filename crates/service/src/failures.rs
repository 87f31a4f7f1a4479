//! How often something may fail with one key before it is refused for a while.

use domain::name::{KeyName, KeyVersion};
use domain::time::Time;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

const WINDOW_MILLISECONDS: i64 = 60 * 60 * 1000;
/// Windows kept before those that are over are thrown out.
const SWEEP_AT: usize = 1024;

type Place = (KeyName, KeyVersion);

/// Counts failures per key version in windows of an hour. In memory: a restart forgets, and is itself an event.
pub(crate) struct FailureLimiter {
    limit: u32,
    windows: Mutex<HashMap<Place, Window>>,
}

#[derive(Clone, Copy)]
struct Window {
    start: Time,
    failures: u32,
    /// Attempts that have begun and not ended: each may become a failure.
    under_way: u32,
}

/// Why an attempt may not begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    /// The limit is reached.
    Limit { retry_after_seconds: u32 },
    /// It would be reached if all that is under way failed.
    TooManyAtOnce,
}

/// An attempt under way. Dropped without having failed, it succeeded or was never made.
pub(crate) struct Attempt {
    limiter: Arc<FailureLimiter>,
    place: Place,
}

impl FailureLimiter {
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, windows: Mutex::default() })
    }

    pub fn begin(self: &Arc<Self>, place: &Place, now: Time) -> Result<Attempt, Refused> {
        let mut windows = self.windows.lock();
        if windows.len() >= SWEEP_AT && !windows.contains_key(place) {
            windows.retain(|_, window| window.under_way > 0 || !window.is_over(now));
        }
        let window = windows.entry(place.clone()).or_insert(Window { start: now, failures: 0, under_way: 0 });
        if window.is_over(now) {
            window.start = now;
            window.failures = 0;
        }
        if window.failures >= self.limit {
            let end = window.start.unix_milliseconds() + WINDOW_MILLISECONDS;
            let seconds = (end - now.unix_milliseconds()).max(0) / 1000 + 1;
            let retry_after_seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            return Err(Refused::Limit { retry_after_seconds });
        }
        if window.failures + window.under_way >= self.limit {
            return Err(Refused::TooManyAtOnce);
        }
        window.under_way += 1;
        Ok(Attempt { limiter: self.clone(), place: place.clone() })
    }
}

impl Attempt {
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Counts the failure; whether it was the one that reached the limit.
    pub fn failed(self) -> bool {
        let mut windows = self.limiter.windows.lock();
        let Some(window) = windows.get_mut(&self.place) else { return false };
        window.failures += 1;
        window.failures == self.limiter.limit
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(window) = self.limiter.windows.lock().get_mut(&self.place) {
            window.under_way -= 1;
        }
    }
}

impl Window {
    /// A clock that went back opens no new window.
    fn is_over(&self, now: Time) -> bool {
        now.unix_milliseconds() - self.start.unix_milliseconds() >= WINDOW_MILLISECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(minutes: i64) -> Time {
        Time::from_unix_milliseconds(minutes * 60_000)
    }

    fn place() -> Place {
        ("k".parse().unwrap(), KeyVersion([1; 16]))
    }

    fn fail(limiter: &Arc<FailureLimiter>, now: Time) -> bool {
        limiter.begin(&place(), now).unwrap().failed()
    }

    #[test]
    fn the_limit_holds_for_an_hour_and_is_told_once() {
        let limiter = FailureLimiter::new(3);
        let told: Vec<bool> = (0..3).map(|minute| fail(&limiter, at(minute))).collect();
        assert_eq!(told, [false, false, true]);
        let refused = limiter.begin(&place(), at(30)).err();
        assert_eq!(refused, Some(Refused::Limit { retry_after_seconds: 1801 }));
        assert!(limiter.begin(&("other".parse().unwrap(), KeyVersion([1; 16])), at(30)).is_ok());
        assert!(limiter.begin(&place(), at(60)).is_ok());
    }

    #[test]
    fn successes_do_not_count_and_attempts_at_once_do() {
        let limiter = FailureLimiter::new(2);
        for _ in 0..10 {
            drop(limiter.begin(&place(), at(0)).unwrap());
        }
        let _one = limiter.begin(&place(), at(0)).unwrap();
        let two = limiter.begin(&place(), at(0)).unwrap();
        assert_eq!(limiter.begin(&place(), at(0)).err(), Some(Refused::TooManyAtOnce));
        drop(two);
        assert!(limiter.begin(&place(), at(0)).is_ok());
    }
}
