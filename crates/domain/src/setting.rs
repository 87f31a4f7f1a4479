//! Settings of a pool that an administrator may change while it runs.

use crate::json::shown;
use crate::release::{Authority, MalformedAuthority};
use std::collections::BTreeSet;

/// Authorities that a pool may trust.
pub const MAX_RELEASE_AUTHORITIES: usize = 64;

/// One setting. The service's only one is a boolean.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Setting {
    /// Whether the control plane may make and list keys for a user (behaviour section 12).
    KeyManagementThroughArm,
    /// Ours: whether `RSA1_5` decrypts and unwraps. Whether such a decryption succeeds is all that an attacker needs
    /// to find the plaintext (Bleichenbacher 1998), whatever the implementation, so a pool without old clients
    /// should turn it off.
    Rsa15Decryption,
    /// Ours: whether AES encrypts and decrypts in CBC mode. With an initialisation vector of the caller's that is the bare
    /// block cipher: whoever may call it can do all that GCM and key wrap with the same key do, but for the right.
    Cbc,
    /// Ours: the attestation authorities that release policies may name, separated by commas or blanks. A policy is
    /// written by whoever makes a key; whose word about an environment counts is not theirs to say.
    ReleaseAuthorities,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SettingValue {
    Boolean(bool),
    Text(String),
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SettingRefused {
    #[error("value of {0} must be \"true\" or \"false\"")]
    NotBoolean(&'static str),
    #[error("value of {0} must be a string")]
    NotText(&'static str),
    #[error("{0} is no authority: {1}")]
    Authority(String, MalformedAuthority),
    #[error("value has more than {MAX_RELEASE_AUTHORITIES} authorities")]
    TooManyAuthorities,
}

impl Setting {
    pub const ALL: [Setting; 4] = [
        Setting::KeyManagementThroughArm,
        Setting::Rsa15Decryption,
        Setting::Cbc,
        Setting::ReleaseAuthorities,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Setting::KeyManagementThroughArm => "AllowKeyManagementOperationsThroughARM",
            Setting::Rsa15Decryption => "HoldfastAllowRsa15Decryption",
            Setting::Cbc => "HoldfastAllowCbc",
            Setting::ReleaseAuthorities => "HoldfastReleaseAuthorities",
        }
    }

    pub const fn default_value(self) -> SettingValue {
        match self {
            Setting::KeyManagementThroughArm => SettingValue::Boolean(false),
            Setting::Rsa15Decryption | Setting::Cbc => SettingValue::Boolean(true),
            Setting::ReleaseAuthorities => SettingValue::Text(String::new()),
        }
    }

    /// `value` as it is kept, if it is one that this setting takes.
    pub fn check(self, value: SettingValue) -> Result<SettingValue, SettingRefused> {
        match (self, value) {
            (Setting::KeyManagementThroughArm | Setting::Rsa15Decryption | Setting::Cbc, value) => {
                let boolean = match value {
                    SettingValue::Boolean(value) => Some(value),
                    SettingValue::Text(text) if text.eq_ignore_ascii_case("true") => Some(true),
                    SettingValue::Text(text) if text.eq_ignore_ascii_case("false") => Some(false),
                    SettingValue::Text(_) => None,
                };
                boolean.map(SettingValue::Boolean).ok_or(SettingRefused::NotBoolean(self.name()))
            }
            (Setting::ReleaseAuthorities, SettingValue::Text(text)) => {
                let names: Vec<String> =
                    release_authorities(&text)?.iter().map(|authority| authority.to_string()).collect();
                Ok(SettingValue::Text(names.join(", ")))
            }
            (Setting::ReleaseAuthorities, SettingValue::Boolean(_)) => {
                Err(SettingRefused::NotText(self.name()))
            }
        }
    }

    /// Without regard to case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name().eq_ignore_ascii_case(name))
    }
}

/// What [`Setting::ReleaseAuthorities`] lists.
pub fn release_authorities(text: &str) -> Result<BTreeSet<Authority>, SettingRefused> {
    let names = text.split([',', ' ']).filter(|name| !name.is_empty());
    let parse = |name| Authority::parse(name).map_err(|error| SettingRefused::Authority(shown(name), error));
    let authorities: BTreeSet<Authority> = names.map(parse).collect::<Result<_, _>>()?;
    if authorities.len() > MAX_RELEASE_AUTHORITIES {
        return Err(SettingRefused::TooManyAuthorities);
    }
    Ok(authorities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_of_its_settings_type() {
        let text = |text: &str| SettingValue::Text(text.into());
        let boolean = Setting::Rsa15Decryption;
        assert_eq!(boolean.check(text("False")), Ok(SettingValue::Boolean(false)));
        assert_eq!(boolean.check(SettingValue::Boolean(true)), Ok(SettingValue::Boolean(true)));
        assert!(boolean.check(text("")).is_err());
        let list = Setting::ReleaseAuthorities;
        let kept = list.check(text("https://b/, https://a:1/x https://b"));
        assert_eq!(kept, Ok(text("https://a:1/x, https://b")));
        assert_eq!(list.check(text("")), Ok(text("")));
        assert!(list.check(SettingValue::Boolean(true)).is_err());
        assert!(
            list.check(text("http://a")).unwrap_err().to_string().starts_with("`http://a` is no authority")
        );
        let many: Vec<String> = (0..65).map(|number| format!("https://a{number}")).collect();
        assert_eq!(list.check(text(&many.join(","))), Err(SettingRefused::TooManyAuthorities));
        for setting in Setting::ALL {
            assert_eq!(setting.check(setting.default_value()), Ok(setting.default_value()));
        }
    }
}
