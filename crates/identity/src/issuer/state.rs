//! What the issuer keeps between starts: its clients and its signing key. Format: `docs/formats/issuer-state.md`.
//!
//! Bytes to values and back. Where the bytes live, and that nobody else reads them, is the owner's business.

use super::signing_key::{SigningKey, SigningKeyError};
use super::{ClientRegistration, secret_digest};
use domain::guid::Guid;
use domain::principal::{ObjectId, TenantId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The one version of the format so far.
pub const ISSUER_STATE_VERSION: u32 = 1;
/// Largest state that is read, in bytes.
pub const MAX_ISSUER_STATE_BYTES: usize = 1024 * 1024;
/// Longest display name, in bytes.
const MAX_DISPLAY_NAME_BYTES: usize = 256;

/// The issuer's lasting state. No `Debug`: it holds the signing key.
pub struct IssuerState {
    pub tenant: TenantId,
    pub clients: Vec<ClientRegistration>,
    /// PKCS#8 PEM, as [`SigningKey::to_pkcs8_pem`] writes it.
    pub signing_key_pem: Zeroizing<String>,
}

/// Why a state was not read. No message repeats any of its content.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssuerStateError {
    #[error("issuer state is {length} bytes long, over the limit of {MAX_ISSUER_STATE_BYTES}")]
    TooLong { length: usize },
    #[error("issuer state has version {found}: this release reads version {ISSUER_STATE_VERSION}")]
    Version { found: u32 },
    #[error("issuer state is malformed at line {line}, column {column}")]
    Malformed { line: usize, column: usize },
    #[error("issuer state holds client {client_id} twice")]
    DuplicateClient { client_id: Guid },
    #[error("issuer state holds an unusable signing key")]
    SigningKey(#[from] SigningKeyError),
    #[error("issuer state could not be written")]
    NotWritten,
}

impl IssuerState {
    /// A state with a new signing key and no clients.
    pub fn generate(tenant: TenantId) -> Result<Self, SigningKeyError> {
        let signing_key_pem = SigningKey::generate()?.to_pkcs8_pem()?;
        Ok(Self { tenant, clients: Vec::new(), signing_key_pem })
    }

    /// Adds a client, or replaces the one with its id.
    pub fn register(&mut self, client_id: Guid, object_id: ObjectId, display_name: &str, secret: &str) {
        self.clients.retain(|client| client.client_id != client_id);
        let secret_sha256 = secret_digest(secret);
        self.clients.push(ClientRegistration {
            client_id,
            object_id,
            display_name: display_name.to_owned(),
            secret_sha256,
        });
    }

    pub fn signing_key(&self) -> Result<SigningKey, SigningKeyError> {
        SigningKey::from_pkcs8_pem(&self.signing_key_pem)
    }

    /// Reads any version that ever was (so far: 1). Unknown members are refused, and so is a key that cannot sign.
    pub fn parse(json: &[u8]) -> Result<Self, IssuerStateError> {
        if json.len() > MAX_ISSUER_STATE_BYTES {
            return Err(IssuerStateError::TooLong { length: json.len() });
        }
        // serde's own message would repeat the value that it did not like.
        let malformed = |error: serde_json::Error| IssuerStateError::Malformed {
            line: error.line(),
            column: error.column(),
        };
        let Version { version } = serde_json::from_slice(json).map_err(malformed)?;
        if version != ISSUER_STATE_VERSION {
            return Err(IssuerStateError::Version { found: version });
        }
        let stored: StoredState = serde_json::from_slice(json).map_err(malformed)?;
        let mut state =
            Self { tenant: stored.tenant, clients: Vec::new(), signing_key_pem: stored.signing_key_pem };
        for StoredClient { client_id, object_id, display_name, secret_sha256 } in stored.clients {
            if state.clients.iter().any(|client| client.client_id == client_id) {
                return Err(IssuerStateError::DuplicateClient { client_id });
            }
            state.clients.push(ClientRegistration { client_id, object_id, display_name, secret_sha256 });
        }
        state.signing_key()?;
        Ok(state)
    }

    /// Writes version 1. Equal states give equal bytes.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, IssuerStateError> {
        let stored = StoredState {
            version: ISSUER_STATE_VERSION,
            tenant: self.tenant.clone(),
            clients: self.clients.iter().map(StoredClient::from).collect(),
            signing_key_pem: self.signing_key_pem.clone(),
        };
        // Room for everything, so that no part of the key is left behind by growing.
        let room = 2 * self.signing_key_pem.len() + 1024 * (1 + self.clients.len());
        let mut json = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer_pretty(&mut *json, &stored).map_err(|_| IssuerStateError::NotWritten)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Read first: decides who reads the rest.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredState {
    version: u32,
    #[serde(with = "tenant_text")]
    tenant: TenantId,
    clients: Vec<StoredClient>,
    #[serde(with = "secret_text")]
    signing_key_pem: Zeroizing<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredClient {
    #[serde(with = "guid_text")]
    client_id: Guid,
    #[serde(with = "guid_text")]
    object_id: Guid,
    #[serde(deserialize_with = "display_name")]
    display_name: String,
    #[serde(with = "digest_text")]
    secret_sha256: [u8; 32],
}

impl From<&ClientRegistration> for StoredClient {
    fn from(client: &ClientRegistration) -> Self {
        Self {
            client_id: client.client_id,
            object_id: client.object_id,
            display_name: client.display_name.clone(),
            secret_sha256: client.secret_sha256,
        }
    }
}

fn display_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.len() > MAX_DISPLAY_NAME_BYTES {
        return Err(serde::de::Error::custom("display name is too long"));
    }
    Ok(name)
}

mod tenant_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(tenant: &TenantId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(tenant.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantId, D::Error> {
        TenantId::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

mod guid_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(guid: &Guid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(guid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Guid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

mod digest_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(digest: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(digest))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let mut digest = [0; 32];
        hex::decode_to_slice(String::deserialize(deserializer)?, &mut digest)
            .map_err(serde::de::Error::custom)?;
        Ok(digest)
    }
}

mod secret_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        secret: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}
