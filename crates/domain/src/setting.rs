//! Settings of a pool that an administrator may change while it runs.

/// One setting. All are booleans, as the service's only one is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Setting {
    /// Whether the control plane may make and list keys for a user (behaviour section 12).
    KeyManagementThroughArm,
    /// Ours: whether `RSA1_5` decrypts and unwraps. Whether such a decryption succeeds is all that an attacker needs
    /// to find the plaintext (Bleichenbacher 1998), whatever the implementation, so a pool without old clients
    /// should turn it off.
    Rsa15Decryption,
}

impl Setting {
    pub const ALL: [Setting; 2] = [Setting::KeyManagementThroughArm, Setting::Rsa15Decryption];

    pub const fn name(self) -> &'static str {
        match self {
            Setting::KeyManagementThroughArm => "AllowKeyManagementOperationsThroughARM",
            Setting::Rsa15Decryption => "HoldfastAllowRsa15Decryption",
        }
    }

    pub const fn default_value(self) -> bool {
        match self {
            Setting::KeyManagementThroughArm => false,
            Setting::Rsa15Decryption => true,
        }
    }

    /// Without regard to case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name().eq_ignore_ascii_case(name))
    }
}
