//! 128-bit identifiers as Azure writes them: 36 characters, lower case, hyphenated.

use std::fmt;
use std::str::FromStr;

/// A GUID (RFC 9562 textual form). Reading accepts either case; writing is lower case.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Guid(pub [u8; 16]);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a GUID: expected 32 hexadecimal digits as 8-4-4-4-12")]
pub struct MalformedGuid;

impl Guid {
    pub const NIL: Guid = Guid([0; 16]);

    /// Makes a version 4 GUID from 16 random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }
}

impl FromStr for Guid {
    type Err = MalformedGuid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.as_bytes();
        if text.len() != 36 {
            return Err(MalformedGuid);
        }
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (position, &character) in text.iter().enumerate() {
            if matches!(position, 8 | 13 | 18 | 23) {
                if character != b'-' {
                    return Err(MalformedGuid);
                }
                continue;
            }
            let digit = (character as char).to_digit(16).ok_or(MalformedGuid)? as u8;
            bytes[digits / 2] |= if digits % 2 == 0 { digit << 4 } else { digit };
            digits += 1;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Guid {
    /// Of one piece: several are written for each request.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'-'; 36];
        let mut position = 0;
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                position += 1;
            }
            [text[position], text[position + 1]] = hex_digits(*byte);
            position += 2;
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// The two digits of `byte`.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_either_case_and_writes_lower_case() {
        let guid: Guid = "A290E904-7015-4bba-90c8-60543313cdb4".parse().unwrap();
        assert_eq!(guid.to_string(), "a290e904-7015-4bba-90c8-60543313cdb4");
    }

    #[test]
    fn refuses_what_is_not_a_guid() {
        for text in [
            "",
            "a290e904",
            "a290e904-7015-4bba-90c8-60543313cdbg",
            "a290e904x7015-4bba-90c8-60543313cdb4",
            "é290e904-7015-4bba-90c8-60543313cd",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(MalformedGuid), "{text}");
        }
    }
}
