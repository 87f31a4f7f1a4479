//! Points in time as people write and read them: ISO 8601, UTC.

use domain::time::IntDate;
use std::str::FromStr;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};

/// A point in time, or how long from now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    At(IntDate),
    In(Duration),
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "expected a date such as 2027-01-31 or 2027-01-31T12:00:00Z, or a time from now such as +90d (h, d, w)"
)]
pub struct MalformedMoment;

impl Moment {
    /// `None` where the calendar ends.
    pub fn int_date(self, now: OffsetDateTime) -> Option<IntDate> {
        match self {
            Moment::At(date) => Some(date),
            Moment::In(length) => Some(IntDate::from_unix_seconds(now.checked_add(length)?.unix_timestamp())),
        }
    }
}

impl FromStr for Moment {
    type Err = MalformedMoment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(length) = text.strip_prefix('+') {
            return parse_length(length).map(Moment::In).ok_or(MalformedMoment);
        }
        let day = format_description!("[year]-[month]-[day]");
        let seconds = match Date::parse(text, day) {
            Ok(date) => date.midnight().assume_utc().unix_timestamp(),
            Err(_) => OffsetDateTime::parse(text, &Rfc3339).map_err(|_| MalformedMoment)?.unix_timestamp(),
        };
        Ok(Moment::At(IntDate::from_unix_seconds(seconds)))
    }
}

/// `12h`, `90d`, `2w`.
pub fn parse_length(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let hours = match unit {
        'h' => 1,
        'd' => 24,
        'w' => 7 * 24,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    let count: u32 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    Some(Duration::hours(i64::from(count) * hours))
}

/// `2027-01-31T12:00:00Z`; the number itself where the calendar has no such day.
pub fn show(seconds: i64) -> String {
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok();
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_lengths_and_nothing_else() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        for (text, seconds) in [
            ("1970-01-02", 86_400),
            ("1970-01-01T00:00:01Z", 1),
            ("1970-01-01T02:00:01+02:00", 1),
            ("+1h", 1_003_600),
            ("+90d", 1_000_000 + 90 * 86_400),
            ("+2w", 1_000_000 + 14 * 86_400),
            ("+0d", 1_000_000),
        ] {
            let moment: Moment = text.parse().unwrap();
            assert_eq!(moment.int_date(now), Some(IntDate::from_unix_seconds(seconds)), "{text}");
        }
        for text in
            ["", "+", "+d", "+9", "+9y", "+-9d", "+99999999999d", "90d", "tomorrow", "1970-13-01", "0", "+9é"]
        {
            assert_eq!(text.parse::<Moment>(), Err(MalformedMoment), "{text}");
        }
        assert_eq!(Moment::In(Duration::MAX).int_date(now), None);
    }

    #[test]
    fn shows_utc() {
        assert_eq!(show(0), "1970-01-01T00:00:00Z");
        assert_eq!(show(1_800_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(show(i64::MAX), i64::MAX.to_string());
    }
}
