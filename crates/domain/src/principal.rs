//! Who is calling: what authentication established, and nothing about rights.

use crate::guid::Guid;
use crate::time::IntDate;
use std::fmt;

/// A tenant of the issuer: a GUID as text, or a name such as `adfs`. At most 64 characters `0-9 a-z A-Z . -`;
/// compared in lower case.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TenantId(String);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a tenant: expected 1 to 64 characters of 0-9 a-z A-Z . -")]
pub struct MalformedTenantId;

impl TenantId {
    pub fn parse(text: &str) -> Result<Self, MalformedTenantId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
            return Err(MalformedTenantId);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The object id of a user, group, service principal or managed identity within the pool's tenant.
pub type ObjectId = Guid;

/// An authenticated caller. The pool has one issuer and one tenant, so the object id alone names the principal.
///
/// Only `identity` makes one, from a verified token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// `tid` of the token; equal to the pool's tenant.
    pub tenant: TenantId,
    /// `oid` of the token.
    pub object_id: ObjectId,
    /// `groups` of the token; empty when the token says that it has too many to list.
    pub groups: Vec<ObjectId>,
    /// `iat` of the token; its `nbf` where it has no `iat`, and 0 where it has neither: what cannot show that it is new
    /// counts as old.
    pub issued_at: IntDate,
    /// `appid` or `azp` of the token, for the audit log.
    pub application_id: Option<String>,
    /// `upn` or `preferred_username` of the token, for the audit log.
    pub user_principal_name: Option<String>,
}

impl Caller {
    /// Whether `principal` names this caller or a group that it is in.
    pub fn is(&self, principal: ObjectId) -> bool {
        self.object_id == principal || self.groups.contains(&principal)
    }
}
