//! Small conversions that verifier and issuer share.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::time::Time;
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use time::macros::format_description;

/// Longest piece of foreign text that a message repeats, in characters.
const SHOWN_CHARACTERS: usize = 120;

/// 9999-12-31T23:59:59Z: the last second that the calendar forms can write.
pub(crate) const LAST_SECOND: i64 = 253_402_300_799;

/// Decodes base64url without padding. Non-zero trailing bits are refused, so that each value has one spelling.
pub(crate) fn base64url_decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Foreign text made fit for an error message or a log line: printable ASCII, bounded, in quotes.
pub(crate) fn shown(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars().take(SHOWN_CHARACTERS) {
        let printable = (character.is_ascii_graphic() && character != '"') || character == ' ';
        quoted.push(if printable { character } else { '?' });
    }
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        quoted.push_str("...");
    }
    quoted.push('"');
    quoted
}

/// The decoded value of the first parameter of this name in a query, `+` being a space.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    let decoded = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().ok().map(|text| text.into_owned())
    };
    query.split('&').find_map(|pair| {
        let (own, value) = pair.split_once('=')?;
        if decoded(own)?.eq_ignore_ascii_case(name) { decoded(value) } else { None }
    })
}

/// `2026-08-21T10:00:00Z`
pub(crate) fn rfc3339(time: Time) -> String {
    calendar(time)
        .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z"))
        .unwrap_or_default()
}

/// `2026-08-21 10:00:00Z`, as the service that the issuer stands in for writes its error timestamps.
pub(crate) fn error_timestamp(time: Time) -> String {
    calendar(time)
        .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z"))
        .unwrap_or_default()
}

fn calendar(time: Time) -> OffsetDateTime {
    let seconds = time.int_date().unix_seconds().clamp(0, LAST_SECOND);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_shown_bounded_and_printable() {
        assert_eq!(shown("a b\"\n\u{202e}é"), "\"a b????\"");
        let long = "x".repeat(10_000);
        assert_eq!(shown(&long).len(), SHOWN_CHARACTERS + 5);
    }

    #[test]
    fn times_outside_the_calendar_are_clamped() {
        assert_eq!(rfc3339(Time::from_unix_milliseconds(1_787_306_400_999)), "2026-08-21T10:00:00Z");
        assert_eq!(error_timestamp(Time::from_unix_milliseconds(1_787_306_400_000)), "2026-08-21 10:00:00Z");
        assert_eq!(rfc3339(Time::from_unix_milliseconds(i64::MAX)), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(Time::from_unix_milliseconds(i64::MIN)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn base64url_has_one_spelling() {
        assert_eq!(base64url_decode("AA"), Some(vec![0]));
        for other in ["AB", "AA==", "AA=", "A A", "AA\n", "+/", "A"] {
            assert_eq!(base64url_decode(other), None, "{other:?}");
        }
    }
}
