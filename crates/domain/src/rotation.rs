//! Rotation policies (behaviour section 7): when a key gets a new version, and how long that one is good for.

use crate::time::IntDate;
use std::fmt;

/// Least time from a version to the one that follows it, and of a new version's life.
pub const MIN_DAYS: u64 = 28;
/// A century: longer than any key is good for.
const MAX_DAYS: u64 = 36_525;
const SECONDS_PER_DAY: i64 = 86_400;

/// An ISO 8601 duration of whole days: `P18M`, `P90D`, `P1Y6M`. Months and years are the calendar's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Period {
    years: u32,
    months: u32,
    weeks: u32,
    days: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedPeriod {
    #[error("not a duration in years, months, weeks and days as ISO 8601 writes it, such as P90D or P1Y6M")]
    Syntax,
    #[error("longer than a hundred years")]
    TooLong,
}

impl Period {
    pub fn parse(text: &str) -> Result<Self, MalformedPeriod> {
        let mut rest = text.strip_prefix('P').ok_or(MalformedPeriod::Syntax)?;
        if rest.is_empty() {
            return Err(MalformedPeriod::Syntax);
        }
        let mut parts = [0_u32; 4];
        for (part, unit) in parts.iter_mut().zip(['Y', 'M', 'W', 'D']) {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            if let Some(after) = after.strip_prefix(unit) {
                // Six digits are far beyond the limit below.
                if !(1..=6).contains(&digits) {
                    return Err(MalformedPeriod::Syntax);
                }
                *part = number.parse().map_err(|_| MalformedPeriod::Syntax)?;
                rest = after;
            }
        }
        let [years, months, weeks, days] = parts;
        let period = Self { years, months, weeks, days };
        match period.about_days() {
            _ if !rest.is_empty() => Err(MalformedPeriod::Syntax),
            more if more > MAX_DAYS => Err(MalformedPeriod::TooLong),
            _ => Ok(period),
        }
    }

    /// With a month of 30 days and a year of 365, as a policy's minima count it.
    fn about_days(self) -> u64 {
        let Self { years, months, weeks, days } = self;
        u64::from(years) * 365 + u64::from(months) * 30 + u64::from(weeks) * 7 + u64::from(days)
    }

    /// This long after `moment`. Where the month has no such day, its last one; then the days are added.
    pub fn after(self, moment: IntDate) -> IntDate {
        self.moved(moment, 1)
    }

    /// This long before `moment`, likewise.
    pub fn before(self, moment: IntDate) -> IntDate {
        self.moved(moment, -1)
    }

    fn moved(self, moment: IntDate, sign: i64) -> IntDate {
        let seconds = moment.unix_seconds();
        let (day, time) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        let (year, month, day_of_month) = civil(day);
        let months = year * 12 + (month - 1) + sign * (i64::from(self.years) * 12 + i64::from(self.months));
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let first = days(year, month, 1);
        let length = days(year + month / 12, month % 12 + 1, 1) - first;
        let day = first + (day_of_month.min(length) - 1);
        let day = day + sign * (i64::from(self.weeks) * 7 + i64::from(self.days));
        IntDate::from_unix_seconds(day.saturating_mul(SECONDS_PER_DAY).saturating_add(time))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P")?;
        let parts = [(self.years, 'Y'), (self.months, 'M'), (self.weeks, 'W'), (self.days, 'D')];
        if parts.iter().all(|(number, _)| *number == 0) {
            return f.write_str("0D");
        }
        parts
            .iter()
            .filter(|(number, _)| *number > 0)
            .try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar. Counted in eras of 400 years, which all have the same
/// number of days, from the first of March, so that the leap day is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468
}

/// The inverse of [`days`]: year, month, day.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// What is done when its trigger is due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LifetimeAction {
    Rotate,
    /// Kept and shown; a Managed HSM has nobody to notify.
    Notify,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    AfterCreate(Period),
    /// Never due for a version that does not expire.
    BeforeExpiry(Period),
}

/// One policy for all versions of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RotationPolicy {
    actions: Vec<(LifetimeAction, Trigger)>,
    expiry: Option<Period>,
    pub created: IntDate,
    pub updated: IntDate,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RotationRefused {
    #[error("lifetimeActions has an action twice")]
    ActionTwice,
    #[error("attributes.expiryTime is required beside lifetimeActions")]
    NoExpiry,
    #[error("attributes.expiryTime must be at least {MIN_DAYS} days")]
    ExpiryTooShort,
    #[error("timeAfterCreate must be at least {MIN_DAYS} days")]
    TooSoon,
    #[error(
        "timeAfterCreate must be shorter than attributes.expiryTime: the version would expire before the next one is made"
    )]
    TooLate,
    #[error("timeBeforeExpiry must leave at least {MIN_DAYS} days of attributes.expiryTime")]
    TooMuchBeforeExpiry,
    #[error("the key has no rotation policy; set one before it is rotated")]
    NoPolicy,
}

impl RotationPolicy {
    /// What an owner asks for, checked. A month counts for 30 days here, a year for 365.
    pub fn new(
        actions: Vec<(LifetimeAction, Trigger)>,
        expiry: Option<Period>,
        created: IntDate,
        updated: IntDate,
    ) -> Result<Self, RotationRefused> {
        let twice = |action| actions.iter().filter(|(one, _)| *one == action).count() > 1;
        if twice(LifetimeAction::Rotate) || twice(LifetimeAction::Notify) {
            return Err(RotationRefused::ActionTwice);
        }
        let life = expiry.map(Period::about_days);
        if life.is_some_and(|days| days < MIN_DAYS) {
            return Err(RotationRefused::ExpiryTooShort);
        }
        for (_, trigger) in &actions {
            let life = life.ok_or(RotationRefused::NoExpiry)?;
            match trigger {
                Trigger::AfterCreate(period) if period.about_days() < MIN_DAYS => {
                    return Err(RotationRefused::TooSoon);
                }
                Trigger::AfterCreate(period) if period.about_days() >= life => {
                    return Err(RotationRefused::TooLate);
                }
                Trigger::BeforeExpiry(period) if period.about_days() + MIN_DAYS > life => {
                    return Err(RotationRefused::TooMuchBeforeExpiry);
                }
                Trigger::AfterCreate(_) | Trigger::BeforeExpiry(_) => {}
            }
        }
        Ok(Self { actions, expiry, created, updated })
    }

    pub fn actions(&self) -> &[(LifetimeAction, Trigger)] {
        &self.actions
    }

    pub fn expiry(&self) -> Option<Period> {
        self.expiry
    }

    /// Whether it says nothing, which is how an owner takes a policy away.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.expiry.is_none()
    }

    /// `exp` of a version that is made at `now`.
    pub fn expires(&self, now: IntDate) -> Option<IntDate> {
        self.expiry.map(|period| period.after(now))
    }

    /// When a version made at `created`, good until `expires`, is followed by the next one. `None`: by itself, never.
    pub fn rotation_due(&self, created: IntDate, expires: Option<IntDate>) -> Option<IntDate> {
        let (_, trigger) = self.actions.iter().find(|(action, _)| *action == LifetimeAction::Rotate)?;
        match trigger {
            Trigger::AfterCreate(period) => Some(period.after(created)),
            // Whatever an owner set `exp` to: at least the least time apart, so that no key gets its hundred versions at once.
            Trigger::BeforeExpiry(period) => {
                let least = IntDate::from_unix_seconds(
                    created
                        .unix_seconds()
                        .saturating_add(i64::try_from(MIN_DAYS).unwrap_or(0) * SECONDS_PER_DAY),
                );
                Some(period.before(expires?).max(least))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(text: &str) -> Period {
        Period::parse(text).unwrap()
    }

    fn date(year: i64, month: i64, day: i64) -> IntDate {
        IntDate::from_unix_seconds(days(year, month, day) * SECONDS_PER_DAY + 12_345)
    }

    #[test]
    fn each_day_of_four_centuries_has_a_date_and_that_date_the_day() {
        assert_eq!((days(1970, 1, 1), days(2000, 3, 1), days(2026, 11, 26)), (0, 11_017, 20_783));
        let mut before = (1599, 12, 31);
        for day in days(1600, 1, 1)..days(2001, 1, 1) {
            let (year, month, of_month) = civil(day);
            assert_eq!(days(year, month, of_month), day);
            let next_month = if before.1 == 12 { (before.0 + 1, 1, 1) } else { (before.0, before.1 + 1, 1) };
            let follows = (year, month, of_month) == (before.0, before.1, before.2 + 1);
            assert!(follows || ((year, month, of_month) == next_month && before.2 >= 28), "{before:?}");
            before = (year, month, of_month);
        }
        let leap = |year| days(year + 1, 1, 1) - days(year, 1, 1);
        assert_eq!([1900, 2000, 2023, 2024, 2100].map(leap), [365, 366, 365, 366, 365]);
    }

    #[test]
    fn months_and_years_are_the_calendars() {
        for (from, text, to) in [
            (date(2026, 1, 31), "P1M", date(2026, 2, 28)),
            (date(2024, 1, 31), "P1M", date(2024, 2, 29)),
            (date(2024, 2, 29), "P1Y", date(2025, 2, 28)),
            (date(2024, 2, 29), "P4Y", date(2028, 2, 29)),
            (date(2026, 8, 31), "P18M", date(2028, 2, 29)),
            (date(2026, 12, 31), "P2M", date(2027, 2, 28)),
            (date(2026, 12, 1), "P1M", date(2027, 1, 1)),
            (date(2026, 1, 31), "P1M1D", date(2026, 3, 1)),
            (date(2026, 3, 1), "P28D", date(2026, 3, 29)),
            (date(2026, 3, 1), "P2W", date(2026, 3, 15)),
        ] {
            assert_eq!(period(text).after(from), to, "{text}");
        }
        assert_eq!(period("P1M").before(date(2026, 3, 31)), date(2026, 2, 28));
        assert_eq!(period("P2Y1D").before(date(2026, 1, 1)), date(2023, 12, 31));
        assert_eq!(period("P1M").before(date(2026, 1, 15)), date(2025, 12, 15));
    }

    #[test]
    fn periods_are_read_strictly_and_written_as_they_were() {
        for text in ["P28D", "P18M", "P2Y", "P1Y6M", "P1Y2M3W4D", "P0D"] {
            assert_eq!(period(text).to_string(), text);
        }
        assert_eq!(period("P0Y6M").to_string(), "P6M");
        for text in [
            "",
            "P",
            "28D",
            "P28",
            "PT5H",
            "P1DT1H",
            "P1D1M",
            "P-1D",
            "P1.5D",
            "p28D",
            "P 1D",
            "PD",
            "P1234567D",
        ] {
            assert_eq!(Period::parse(text), Err(MalformedPeriod::Syntax), "{text}");
        }
        for text in ["P101Y", "P999999D", "P100Y26D"] {
            assert_eq!(Period::parse(text), Err(MalformedPeriod::TooLong), "{text}");
        }
    }

    fn policy(
        actions: &[(LifetimeAction, Trigger)],
        expiry: Option<&str>,
    ) -> Result<RotationPolicy, RotationRefused> {
        let now = IntDate::from_unix_seconds(0);
        RotationPolicy::new(actions.to_vec(), expiry.map(period), now, now)
    }

    fn rotate_after(text: &str) -> (LifetimeAction, Trigger) {
        (LifetimeAction::Rotate, Trigger::AfterCreate(period(text)))
    }

    fn rotate_before(text: &str) -> (LifetimeAction, Trigger) {
        (LifetimeAction::Rotate, Trigger::BeforeExpiry(period(text)))
    }

    #[test]
    fn a_policy_keeps_to_the_minima() {
        assert!(policy(&[rotate_after("P28D")], Some("P29D")).is_ok());
        assert!(policy(&[rotate_after("P1M")], Some("P2M")).is_ok());
        assert!(policy(&[rotate_before("P28D")], Some("P56D")).is_ok());
        assert!(policy(&[], Some("P28D")).is_ok());
        assert!(policy(&[], None).unwrap().is_empty());
        let refused = |actions: &[_], expiry| policy(actions, expiry).unwrap_err();
        assert_eq!(refused(&[rotate_after("P27D")], Some("P1Y")), RotationRefused::TooSoon);
        assert_eq!(refused(&[rotate_after("P1Y")], Some("P1Y")), RotationRefused::TooLate);
        assert_eq!(refused(&[rotate_before("P29D")], Some("P56D")), RotationRefused::TooMuchBeforeExpiry);
        assert_eq!(refused(&[], Some("P27D")), RotationRefused::ExpiryTooShort);
        assert_eq!(refused(&[rotate_after("P28D")], None), RotationRefused::NoExpiry);
        let twice = [rotate_after("P28D"), rotate_after("P29D")];
        assert_eq!(refused(&twice, Some("P1Y")), RotationRefused::ActionTwice);
    }

    #[test]
    fn a_rotation_is_due_by_its_trigger_and_never_for_a_version_without_end() {
        let made = date(2026, 1, 31);
        let after = policy(&[rotate_after("P1M")], Some("P1Y")).unwrap();
        assert_eq!(after.rotation_due(made, None), Some(date(2026, 2, 28)));
        let before = policy(&[rotate_before("P28D")], Some("P1Y")).unwrap();
        assert_eq!(before.rotation_due(made, None), None);
        assert_eq!(before.rotation_due(made, Some(date(2027, 1, 29))), Some(date(2027, 1, 1)));
        // Expired, or about to be: not before its 28 days are over.
        assert_eq!(before.rotation_due(made, Some(made)), Some(date(2026, 2, 28)));
        let notify = (LifetimeAction::Notify, Trigger::AfterCreate(period("P28D")));
        assert_eq!(policy(&[notify], Some("P1Y")).unwrap().rotation_due(made, None), None);
    }
}
