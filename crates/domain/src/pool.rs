//! What a pool is: its genesis, fixed by its owner when it is made.

use crate::guid::Guid;
use crate::name::PoolName;
use crate::principal::{ObjectId, TenantId};
use crate::time::IntDate;

/// What clients of the public cloud ask tokens for. Whoever runs any Managed HSM there can be given one.
pub const PUBLIC_AUDIENCE: &str = "https://managedhsm.azure.net";
const SECONDS_PER_DAY: i64 = 86_400;

/// Whether keys in a pool may matter. Bound into every record, certificate and backup, so that the two never mix.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PoolClass {
    Production,
    /// Virtual clock, simulated throttling, seeds, file root without a warning.
    Test,
}

impl PoolClass {
    pub const fn as_str(self) -> &'static str {
        match self {
            PoolClass::Production => "production",
            PoolClass::Test => "test",
        }
    }
}

/// When an audit event counts as recorded.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AuditDurability {
    /// After the disk has confirmed it.
    Synced,
    /// After the operating system has taken it: survives the death of the process, not of the machine. Only for
    /// class `test`.
    Written,
}

impl AuditDurability {
    pub const fn as_str(self) -> &'static str {
        match self {
            AuditDurability::Synced => "synced",
            AuditDurability::Written => "written",
        }
    }
}

/// Where the pool's callers come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IssuerPin {
    /// Accepted `iss` values.
    pub issuers: Vec<String>,
    /// The authority named in challenges: `https://host[:port]/tenant`.
    pub authority: String,
    /// The issuer's pinned JSON Web Key Set (RFC 7517), as bytes.
    pub key_set: Vec<u8>,
    /// Accepted `aud` values beside the pool's own resource.
    pub audiences: Vec<String>,
    /// Where the issuer serves its key set. `None`: the pinned one is the only one, for ever.
    pub key_source: Option<KeySource>,
}

/// Where an issuer serves its key set: asked when a token is signed with a key that the pinned set does not have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeySource {
    /// `https://host[:port]/path`.
    pub url: String,
    /// The roots that the server's certificate must chain to, and no others: certificates in PEM.
    pub roots: Vec<u8>,
}

/// Soft-delete retention in days: 7 to 90.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetentionDays(u8);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("retention is 7 to 90 days")]
pub struct RetentionOutOfRange;

impl RetentionDays {
    pub const DEFAULT: RetentionDays = RetentionDays(90);

    pub fn new(days: u32) -> Result<Self, RetentionOutOfRange> {
        match u8::try_from(days) {
            Ok(days @ 7..=90) => Ok(Self(days)),
            Ok(_) | Err(_) => Err(RetentionOutOfRange),
        }
    }

    pub const fn days(self) -> u8 {
        self.0
    }

    /// When what was deleted at `deleted_at` is purged.
    pub const fn after(self, deleted_at: IntDate) -> IntDate {
        IntDate::from_unix_seconds(deleted_at.unix_seconds().saturating_add(self.0 as i64 * SECONDS_PER_DAY))
    }
}

/// The founding record of a pool, written once by the core and signed by the owner key. No file, flag or control
/// plane overrides it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Genesis {
    pub pool: Guid,
    pub name: PoolName,
    /// Names the security domain; a new one comes only from a new ceremony.
    pub security_domain: Guid,
    pub class: PoolClass,
    pub tenant: TenantId,
    pub issuer: IssuerPin,
    /// Hold Managed HSM Administrator from the start.
    pub initial_administrators: Vec<ObjectId>,
    /// Members may assign Managed HSM Administrator without holding a role. None by default.
    pub break_glass_group: Option<ObjectId>,
    pub retention: RetentionDays,
    pub purge_protection: bool,
    pub audit_durability: AuditDurability,
    /// Whether an active pool hands out its security domain again. No by default: one stolen administrator token
    /// would otherwise defeat the quorum.
    pub allow_domain_redownload: bool,
}

impl Genesis {
    /// Whether the parts agree with one another.
    pub fn check(&self) -> Result<(), GenesisRefused> {
        if self.initial_administrators.is_empty() {
            return Err(GenesisRefused::NoAdministrator);
        }
        if self.class == PoolClass::Production && self.audit_durability == AuditDurability::Written {
            return Err(GenesisRefused::WrittenDurabilityInProduction);
        }
        if self.class == PoolClass::Production
            && self.issuer.audiences.iter().any(|audience| audience.trim_end_matches('/') == PUBLIC_AUDIENCE)
        {
            return Err(GenesisRefused::PublicAudienceInProduction);
        }
        if let Some(source) = &self.issuer.key_source
            && (!source.url.starts_with("https://") || source.roots.is_empty())
        {
            return Err(GenesisRefused::OpenKeySource);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GenesisRefused {
    #[error("a pool needs at least one initial administrator")]
    NoAdministrator,
    #[error("audit durability `written` is for class `test` only")]
    WrittenDurabilityInProduction,
    #[error(
        "a token for {PUBLIC_AUDIENCE} is good for every pool of a tenant, so a pool of class production takes none"
    )]
    PublicAudienceInProduction,
    #[error("an issuer's key set comes over https, from a server with a pinned root")]
    OpenKeySource,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_7_to_90_days() {
        for days in [0, 6, 91, 256 + 7] {
            assert_eq!(RetentionDays::new(days), Err(RetentionOutOfRange), "{days}");
        }
        assert_eq!(RetentionDays::new(7).unwrap().days(), 7);
        assert_eq!(RetentionDays::new(90).unwrap(), RetentionDays::DEFAULT);
    }
}
