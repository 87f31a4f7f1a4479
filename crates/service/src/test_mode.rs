//! Use cases of test mode, and what it alters. In a pool of class production nothing here does anything.
//!
//! The time of keys may be ahead of the machine's clock: when they are made, may be used, are rotated and purged. Tokens,
//! the audit log and certificates stay on the machine's clock, so that a log stays true and nobody has to log in anew.

use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use domain::access::{RoleTable, Scope, action};
use domain::pool::PoolClass;
use domain::test_mode::{MAX_WAIT_SECONDS, TestMode, TestModeChange};
use domain::time::{IntDate, Time};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storage::{Record, RecordId, Stamped};

/// Role tables remembered, at most. Where more changes are made within the longest delay, the oldest count at once.
const MAX_REMEMBERED: usize = 256;

/// Test mode as it stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TestModeView {
    pub mode: TestMode,
    /// What time it is for keys.
    pub key_time: IntDate,
}

/// What is simulated needs some memory.
#[derive(Default)]
pub(crate) struct Simulation {
    requests: AtomicU64,
    /// Role tables, oldest first, with the monotonic time from which each was in force.
    tables: Mutex<VecDeque<(Duration, Arc<RoleTable>)>>,
}

impl Simulation {
    /// Remembers that `table` is in force from `now` on.
    fn note(&self, now: Duration, table: Arc<RoleTable>) {
        let mut tables = self.tables.lock();
        if tables.back().is_some_and(|(_, last)| Arc::ptr_eq(last, &table)) {
            return;
        }
        tables.push_back((now, table));
        let longest = Duration::from_secs(u64::from(MAX_WAIT_SECONDS));
        let outlived = |next: &(Duration, Arc<RoleTable>)| next.0 + longest < now;
        while tables.len() > MAX_REMEMBERED || tables.get(1).is_some_and(outlived) {
            tables.pop_front();
        }
    }

    /// The table that was in force `delay` ago, or the oldest that is remembered.
    fn before(&self, now: Duration, delay: Duration) -> Option<Arc<RoleTable>> {
        let tables = self.tables.lock();
        let arrived = tables.iter().rev().find(|(since, _)| *since + delay <= now);
        arrived.or(tables.front()).map(|(_, table)| table.clone())
    }
}

impl Pool {
    pub async fn read_test_mode(self: &Arc<Self>, mut ticket: Ticket) -> Recorded<TestModeView> {
        ticket.asks::<action::SettingRead>(&Scope::Root);
        let read = ticket
            .authorize::<action::SettingRead>(Scope::Root)
            .and_then(|_| self.check_test_class())
            .map(|()| self.test_mode_view(self.test_mode()));
        ticket.record(read).await
    }

    /// Changes test mode. Where time goes on, what is due by then is done before this is answered.
    pub async fn update_test_mode(
        self: &Arc<Self>,
        mut ticket: Ticket,
        change: TestModeChange,
    ) -> Recorded<TestModeView> {
        ticket.asks::<action::SettingWrite>(&Scope::Root);
        let checked = ticket
            .authorize::<action::SettingWrite>(Scope::Root)
            .and_then(|_| self.check_test_class())
            .and_then(|()| Ok(self.test_mode().changed(&change)?));
        match checked {
            Ok(wanted) => ticket.details(format!("test mode: {wanted}")),
            Err(error) => return ticket.record(Err(error)).await,
        }
        let decide = || {
            let held = self.index().test_mode();
            let mode = held.as_ref().map_or_else(TestMode::default, |held| held.value).changed(&change)?;
            Ok(Change {
                expectations: vec![(RecordId::TestMode, held.map(|held| held.stamp))],
                puts: vec![Record::TestMode(mode)],
                deletes: vec![],
                value: mode,
            })
        };
        let recorded = self.record_change(ticket, decide).await;
        if recorded.is_success() && change.advance_seconds > 0 {
            // Tried again by the schedule, as ever.
            if let Err(error) = self.do_what_is_due().await {
                tracing::error!(%error, "what is due by the new time was not done yet");
            }
        }
        recorded.map(|mode| self.test_mode_view(mode))
    }

    /// What is altered in this pool; nothing in class production, whatever its store says.
    pub fn test_mode(&self) -> TestMode {
        match self.genesis().class {
            PoolClass::Test => {
                self.index().test_mode().map_or_else(TestMode::default, |held: Stamped<_>| held.value)
            }
            PoolClass::Production => TestMode::default(),
        }
    }

    /// What time it is for keys: the machine's, but where test mode is ahead of it.
    pub(crate) fn key_time(&self) -> Time {
        let offset = self.test_mode().clock_offset_seconds();
        let milliseconds = i64::try_from(offset.saturating_mul(1000)).unwrap_or(i64::MAX);
        Time::from_unix_milliseconds(self.now().unix_milliseconds().saturating_add(milliseconds))
    }

    /// Counts a request.
    ///
    /// # Errors
    /// `Throttled` where test mode wants this one refused.
    pub fn simulate_load(&self) -> Result<(), Error> {
        let Some(throttle) = self.test_mode().throttle() else { return Ok(()) };
        let number = self.simulation().requests.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(u64::from(throttle.every)) {
            let retry_after_seconds = throttle.retry_after_seconds;
            return Err(Error::Throttled { every: throttle.every, retry_after_seconds });
        }
        Ok(())
    }

    /// The roles by which requests are judged: those of this moment, but where test mode lets them arrive later.
    pub(crate) fn roles_in_force(&self) -> Arc<RoleTable> {
        match self.test_mode().role_delay_seconds() {
            0 => self.roles(),
            seconds => {
                let delay = Duration::from_secs(u64::from(seconds));
                self.simulation().before(self.monotonic(), delay).unwrap_or_else(|| self.roles())
            }
        }
    }

    /// To be called when the pool opens and after each commit.
    pub(crate) fn note_roles(&self) {
        match self.genesis().class {
            PoolClass::Test => self.simulation().note(self.monotonic(), self.roles()),
            PoolClass::Production => {}
        }
    }

    async fn do_what_is_due(self: &Arc<Self>) -> Result<(), Error> {
        self.purge_due_keys().await?;
        self.rotate_due_keys().await?;
        Ok(())
    }

    fn check_test_class(&self) -> Result<(), Error> {
        match self.genesis().class {
            PoolClass::Test => Ok(()),
            class @ PoolClass::Production => Err(Error::TestClassOnly(class)),
        }
    }

    fn test_mode_view(&self, mode: TestMode) -> TestModeView {
        TestModeView { mode, key_time: self.key_time().int_date() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_arrives_after_its_delay_and_old_ones_are_forgotten() {
        let simulation = Simulation::default();
        let tables: Vec<Arc<RoleTable>> = (0..3).map(|_| Arc::default()).collect();
        let at = Duration::from_secs;
        let is = |now, delay, expected: usize| {
            let table = simulation.before(at(now), at(delay)).unwrap();
            assert!(Arc::ptr_eq(&table, &tables[expected]), "at {now} with {delay}");
        };
        simulation.note(at(100), tables[0].clone());
        is(100, 30, 0);
        simulation.note(at(200), tables[1].clone());
        simulation.note(at(210), tables[1].clone());
        is(229, 30, 0);
        is(230, 30, 1);
        is(200, 0, 1);
        simulation.note(at(10_000), tables[2].clone());
        assert_eq!(simulation.tables.lock().len(), 2, "the first was in force too long ago to matter");
        is(10_000, 3_600, 1);
        for second in 0..1_000 {
            simulation.note(at(20_000 + second), Arc::default());
        }
        assert!(simulation.tables.lock().len() <= MAX_REMEMBERED);
    }
}
