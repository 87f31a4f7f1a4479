//! Names of pools, keys and key versions.

use crate::guid::hex_digits;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// Names a key within its pool: 1 to 127 characters of `0-9 a-z A-Z -`.
///
/// Written as its creator wrote it; compared without regard to case, as the service's identifiers are.
#[derive(Clone)]
pub struct KeyName(Box<str>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key name is 1 to 127 characters of 0-9, a-z, A-Z and -")]
pub struct MalformedKeyName;

impl KeyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form in which names are compared and hashed.
    pub fn canonical(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl FromStr for KeyName {
    type Err = MalformedKeyName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if text.is_empty() || text.len() > 127 || !text.bytes().all(allowed) {
            return Err(MalformedKeyName);
        }
        Ok(Self(text.into()))
    }
}

impl PartialEq for KeyName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for KeyName {}

impl Ord for KeyName {
    fn cmp(&self, other: &Self) -> Ordering {
        fn lower(name: &KeyName) -> impl Iterator<Item = u8> {
            name.0.bytes().map(|byte| byte.to_ascii_lowercase())
        }
        lower(self).cmp(lower(other))
    }
}

impl PartialOrd for KeyName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for KeyName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.0.bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
        state.write_u8(0xff);
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one version of a key: 128 random bits, 32 hexadecimal digits on the wire.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyVersion(pub [u8; 16]);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key version is 32 hexadecimal digits")]
pub struct MalformedKeyVersion;

impl FromStr for KeyVersion {
    type Err = MalformedKeyVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.as_bytes();
        if text.len() != 32 {
            return Err(MalformedKeyVersion);
        }
        let mut bytes = [0; 16];
        for (index, &character) in text.iter().enumerate() {
            let digit = (character as char).to_digit(16).ok_or(MalformedKeyVersion)? as u8;
            bytes[index / 2] |= if index % 2 == 0 { digit << 4 } else { digit };
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 32];
        for (digits, byte) in text.as_chunks_mut().0.iter_mut().zip(self.0) {
            *digits = hex_digits(byte);
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a pool: 3 to 24 characters of `0-9 a-z A-Z -`, no two hyphens in a row; kept in lower case, as it is a
/// label of the pool's host name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolName(Box<str>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a pool name is 3 to 24 characters of 0-9, a-z, A-Z and -, starting with a letter, without two hyphens in a row"
)]
pub struct MalformedPoolName;

impl PoolName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolName {
    type Err = MalformedPoolName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let well_formed = (3..=24).contains(&text.len())
            && text.bytes().all(allowed)
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && !text.ends_with('-')
            && !text.contains("--");
        if !well_formed {
            return Err(MalformedPoolName);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn key_names_are_compared_without_case_and_written_as_given() {
        let name: KeyName = "Payroll-2026".parse().unwrap();
        let other: KeyName = "pAYROLL-2026".parse().unwrap();
        assert_eq!(name, other);
        assert_eq!(name.to_string(), "Payroll-2026");
        assert_eq!(name.cmp(&other), Ordering::Equal);
        assert!(name < "payroll-2027".parse().unwrap());
        assert!(HashSet::from([name]).contains(&other));
    }

    #[test]
    fn refuses_names_outside_the_alphabet_or_length() {
        for text in ["", "a_b", "a.b", "a/b", "ключ", "a b", &"a".repeat(128)] {
            assert_eq!(text.parse::<KeyName>(), Err(MalformedKeyName), "{text}");
        }
        assert!("a".repeat(127).parse::<KeyName>().is_ok());
        for text in ["ab", "1ab", "a--b", "ab-", &"a".repeat(25)] {
            assert_eq!(text.parse::<PoolName>(), Err(MalformedPoolName), "{text}");
        }
    }

    #[test]
    fn versions_are_exactly_32_hexadecimal_digits() {
        let text = "0123456789abcdef0123456789ABCDEF";
        let version: KeyVersion = text.parse().unwrap();
        assert_eq!(version.to_string(), text.to_ascii_lowercase());
        for text in ["", "0123", "sign", &"g".repeat(32), &"0".repeat(33)] {
            assert_eq!(text.parse::<KeyVersion>(), Err(MalformedKeyVersion), "{text}");
        }
    }
}
