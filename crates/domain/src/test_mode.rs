//! What a pool of class test does otherwise on demand, so that its clients can be tried: time that passes at a word,
//! refusals as of a busy service, rights that take a while to arrive. A pool of class production has none of it.

use std::fmt;

const SECONDS_PER_YEAR: u64 = 31_557_600;
/// How far ahead of the machine's clock the time of keys may be.
pub const MAX_CLOCK_OFFSET_SECONDS: u64 = 100 * SECONDS_PER_YEAR;
/// The longest that a refusal asks to wait, and that a change of roles takes to arrive.
pub const MAX_WAIT_SECONDS: u32 = 3_600;

/// Nothing of it, by default.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TestMode {
    clock_offset_seconds: u64,
    throttle: Option<Throttle>,
    role_delay_seconds: u32,
}

/// Each `every`th request is refused, and told to come again later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Throttle {
    pub every: u32,
    pub retry_after_seconds: u32,
}

/// What is not named stays as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TestModeChange {
    /// Time goes on. It never goes back: keys would be younger than their versions.
    pub advance_seconds: u64,
    pub throttle: Option<Option<Throttle>>,
    pub role_delay_seconds: Option<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TestModeRefused {
    #[error("the time of keys may be at most 100 years ahead of the machine's clock")]
    ClockTooFar,
    #[error("throttle.every must be at least 1")]
    EveryNone,
    #[error("throttle.retryAfterSeconds must be 1 to {MAX_WAIT_SECONDS}")]
    RetryAfter,
    #[error("roleDelaySeconds must be at most {MAX_WAIT_SECONDS}")]
    RoleDelay,
}

impl TestMode {
    /// As it was stored, or is wanted.
    pub fn new(
        clock_offset_seconds: u64,
        throttle: Option<Throttle>,
        role_delay_seconds: u32,
    ) -> Result<Self, TestModeRefused> {
        if clock_offset_seconds > MAX_CLOCK_OFFSET_SECONDS {
            return Err(TestModeRefused::ClockTooFar);
        }
        match throttle {
            Some(Throttle { every: 0, .. }) => return Err(TestModeRefused::EveryNone),
            Some(Throttle { retry_after_seconds, .. })
                if !(1..=MAX_WAIT_SECONDS).contains(&retry_after_seconds) =>
            {
                return Err(TestModeRefused::RetryAfter);
            }
            Some(_) | None => {}
        }
        if role_delay_seconds > MAX_WAIT_SECONDS {
            return Err(TestModeRefused::RoleDelay);
        }
        Ok(Self { clock_offset_seconds, throttle, role_delay_seconds })
    }

    pub fn changed(&self, change: &TestModeChange) -> Result<Self, TestModeRefused> {
        Self::new(
            self.clock_offset_seconds.saturating_add(change.advance_seconds),
            change.throttle.unwrap_or(self.throttle),
            change.role_delay_seconds.unwrap_or(self.role_delay_seconds),
        )
    }

    /// How far the time of keys is ahead of the machine's clock.
    pub const fn clock_offset_seconds(&self) -> u64 {
        self.clock_offset_seconds
    }

    pub const fn throttle(&self) -> Option<Throttle> {
        self.throttle
    }

    /// How long a change of roles takes until it counts.
    pub const fn role_delay_seconds(&self) -> u32 {
        self.role_delay_seconds
    }

    /// Whether anything is otherwise than in production.
    pub fn alters(&self) -> bool {
        *self != Self::default()
    }
}

/// `clock=+7776000s; throttle=1/10; role-delay=30s`: what is altered.
impl fmt::Display for TestMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = Some(self.clock_offset_seconds).filter(|seconds| *seconds > 0);
        let parts = [
            clock.map(|seconds| format!("clock=+{seconds}s")),
            self.throttle.map(|throttle| format!("throttle=1/{}", throttle.every)),
            Some(self.role_delay_seconds)
                .filter(|seconds| *seconds > 0)
                .map(|seconds| format!("role-delay={seconds}s")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "off" } else { "" })?;
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THROTTLE: Throttle = Throttle { every: 10, retry_after_seconds: 2 };

    #[test]
    fn what_is_not_named_stays_and_time_adds_up() {
        let first = TestModeChange {
            advance_seconds: 5,
            throttle: Some(Some(THROTTLE)),
            role_delay_seconds: Some(30),
        };
        let mode = TestMode::default().changed(&first).unwrap();
        assert_eq!(mode.to_string(), "clock=+5s; throttle=1/10; role-delay=30s");
        let mode = mode.changed(&TestModeChange { advance_seconds: 7, ..TestModeChange::default() }).unwrap();
        assert_eq!(
            (mode.clock_offset_seconds(), mode.throttle(), mode.role_delay_seconds()),
            (12, Some(THROTTLE), 30)
        );
        let off =
            TestModeChange { throttle: Some(None), role_delay_seconds: Some(0), ..TestModeChange::default() };
        assert_eq!(mode.changed(&off).unwrap().to_string(), "clock=+12s");
        assert!(!TestMode::default().alters() && mode.alters());
        assert_eq!(TestMode::default().to_string(), "off");
    }

    #[test]
    fn limits_hold() {
        let far = TestModeChange { advance_seconds: u64::MAX, ..TestModeChange::default() };
        let mode = TestMode::new(1, None, 0).unwrap();
        assert_eq!(mode.changed(&far), Err(TestModeRefused::ClockTooFar));
        for (every, retry_after_seconds, refused) in [
            (0, 1, TestModeRefused::EveryNone),
            (1, 0, TestModeRefused::RetryAfter),
            (1, 3_601, TestModeRefused::RetryAfter),
        ] {
            assert_eq!(TestMode::new(0, Some(Throttle { every, retry_after_seconds }), 0), Err(refused));
        }
        assert_eq!(TestMode::new(0, None, 3_601), Err(TestModeRefused::RoleDelay));
    }
}
