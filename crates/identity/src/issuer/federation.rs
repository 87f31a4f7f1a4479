//! Workload federation: a principal that another issuer vouches for. Its tokens are client assertions here
//! (RFC 7523 section 2.2), verified against keys that were pinned for them. Nothing is fetched.

use crate::key_set::{KeySet, KeySetError};
use std::fmt;

/// Longest issuer, subject and audience, in bytes.
pub const MAX_FEDERATED_NAME_BYTES: usize = 600;
/// Most federated credentials of one principal, as many as Azure allows.
pub const MAX_FEDERATED_CREDENTIALS: usize = 20;
/// The audience that Azure's own documentation tells other issuers to name.
pub const FEDERATION_AUDIENCE: &str = "api://AzureADTokenExchange";

/// Whose tokens stand for the principal: those of `issuer` for `subject` and `audience`, compared exactly, signed with
/// a key of the pinned set.
#[derive(Clone)]
pub struct FederatedCredential {
    pub issuer: String,
    pub subject: String,
    pub audience: String,
    key_set_json: String,
    keys: KeySet,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FederatedCredentialError {
    #[error("{member} of a federated credential is empty or over {MAX_FEDERATED_NAME_BYTES} bytes")]
    Name { member: &'static str },
    #[error("key set of a federated credential is not usable")]
    KeySet(#[from] KeySetError),
}

impl FederatedCredential {
    /// `key_set`: a JSON Web Key Set, kept as it is.
    pub fn new(
        issuer: String,
        subject: String,
        audience: String,
        key_set: String,
    ) -> Result<Self, FederatedCredentialError> {
        for (member, value) in [("issuer", &issuer), ("subject", &subject), ("audience", &audience)] {
            if value.is_empty() || value.len() > MAX_FEDERATED_NAME_BYTES {
                return Err(FederatedCredentialError::Name { member });
            }
        }
        let keys = KeySet::parse(key_set.as_bytes())?;
        Ok(Self { issuer, subject, audience, key_set_json: key_set, keys })
    }

    pub fn key_set_json(&self) -> &str {
        &self.key_set_json
    }

    pub(super) fn keys(&self) -> &KeySet {
        &self.keys
    }
}

impl PartialEq for FederatedCredential {
    fn eq(&self, other: &Self) -> bool {
        (&self.issuer, &self.subject, &self.audience, &self.key_set_json)
            == (&other.issuer, &other.subject, &other.audience, &other.key_set_json)
    }
}

impl fmt::Debug for FederatedCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FederatedCredential")
            .field("issuer", &self.issuer)
            .field("subject", &self.subject)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}
