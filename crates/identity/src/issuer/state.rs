//! What the issuer keeps between starts: its clients and its signing key. Format: `docs/formats/issuer-state.md`.
//!
//! Bytes to values and back. Where the bytes live, and that nobody else reads them, is the owner's business.

use super::signing_key::{PublicSigningKey, SigningKey, SigningKeyError, SigningKeys};
use super::{
    ClientCertificate, ClientRegistration, FederatedCredential, MAX_FEDERATED_CREDENTIALS, secret_digest,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::guid::Guid;
use domain::principal::{ObjectId, TenantId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The version that is written. Version 1 is read as well.
pub const ISSUER_STATE_VERSION: u32 = 2;
/// Largest state that is read, in bytes.
pub const MAX_ISSUER_STATE_BYTES: usize = 1024 * 1024;
/// Most certificates of one client.
pub const MAX_CERTIFICATES: usize = 20;
/// Longest display name, in bytes.
const MAX_DISPLAY_NAME_BYTES: usize = 256;

/// The issuer's lasting state. No `Debug`: it holds the signing key.
pub struct IssuerState {
    pub tenant: TenantId,
    pub clients: Vec<ClientRegistration>,
    /// PKCS#8 PEM, as [`SigningKey::to_pkcs8_pem`] writes it.
    pub signing_key_pem: Zeroizing<String>,
    /// Likewise: the key that will sign after the next rotation, if it is already made.
    pub next_signing_key_pem: Option<Zeroizing<String>>,
    /// The key that signed before the last rotation.
    pub previous_key: Option<PublicSigningKey>,
}

/// Why a state was not read. No message repeats any of its content.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssuerStateError {
    #[error("issuer state is {length} bytes long, over the limit of {MAX_ISSUER_STATE_BYTES}")]
    TooLong { length: usize },
    #[error("issuer state has version {found}: this release reads versions 1 and {ISSUER_STATE_VERSION}")]
    Version { found: u32 },
    #[error("issuer state is malformed at line {line}, column {column}")]
    Malformed { line: usize, column: usize },
    #[error("issuer state holds client {client_id} twice")]
    DuplicateClient { client_id: Guid },
    #[error("issuer state holds an unusable or one too many credential of client {client_id}")]
    Credential { client_id: Guid },
    #[error("issuer state holds an unusable signing key")]
    SigningKey(#[from] SigningKeyError),
    #[error("issuer state could not be written")]
    NotWritten,
}

impl IssuerState {
    /// A state with a new signing key and no clients.
    pub fn generate(tenant: TenantId) -> Result<Self, SigningKeyError> {
        let signing_key_pem = SigningKey::generate()?.to_pkcs8_pem()?;
        Ok(Self {
            tenant,
            clients: Vec::new(),
            signing_key_pem,
            next_signing_key_pem: None,
            previous_key: None,
        })
    }

    /// Adds a client, or changes the one with its id, whose certificates and federated credentials stay.
    pub fn register(
        &mut self,
        client_id: Guid,
        object_id: ObjectId,
        display_name: &str,
        secret: &str,
    ) -> &mut ClientRegistration {
        let position = self.clients.iter().position(|client| client.client_id == client_id);
        let position = position.unwrap_or_else(|| {
            self.clients.push(ClientRegistration {
                client_id,
                object_id,
                display_name: String::new(),
                secret_sha256: None,
                certificates: Vec::new(),
                federated: Vec::new(),
            });
            self.clients.len() - 1
        });
        let client = &mut self.clients[position];
        client.object_id = object_id;
        display_name.clone_into(&mut client.display_name);
        client.secret_sha256 = Some(secret_digest(secret));
        client
    }

    pub fn signing_key(&self) -> Result<SigningKey, SigningKeyError> {
        SigningKey::from_pkcs8_pem(&self.signing_key_pem)
    }

    /// The keys for [`Issuer::new`](super::Issuer::new).
    pub fn signing_keys(&self) -> Result<SigningKeys, SigningKeyError> {
        let next =
            self.next_signing_key_pem.as_deref().map(|pem| SigningKey::from_pkcs8_pem(pem)).transpose()?;
        Ok(SigningKeys {
            current: self.signing_key()?,
            next: next.map(|key| key.public().clone()),
            previous: self.previous_key.clone(),
        })
    }

    /// Makes the key that will sign after the next rotation, if there is none, so that it is listed from now on.
    pub fn prepare_rotation(&mut self) -> Result<(), SigningKeyError> {
        if self.next_signing_key_pem.is_none() {
            self.next_signing_key_pem = Some(SigningKey::generate()?.to_pkcs8_pem()?);
        }
        Ok(())
    }

    /// The next key signs from now on, one made now where there is none. The one that signed is listed until the rotation
    /// after this; its private half is gone.
    pub fn rotate(&mut self) -> Result<(), SigningKeyError> {
        self.prepare_rotation()?;
        let previous = self.signing_key()?.public().clone();
        if let Some(next) = self.next_signing_key_pem.take() {
            self.signing_key_pem = next;
            self.previous_key = Some(previous);
        }
        Ok(())
    }

    /// Reads any version that ever was. Unknown members are refused, and so is a key that cannot sign.
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
        let stored: StoredState = match version {
            1 => serde_json::from_slice::<StoredStateV1>(json).map_err(malformed)?.into(),
            ISSUER_STATE_VERSION => serde_json::from_slice(json).map_err(malformed)?,
            found => return Err(IssuerStateError::Version { found }),
        };
        let mut state = Self {
            tenant: stored.tenant,
            clients: Vec::new(),
            signing_key_pem: stored.signing_key_pem,
            next_signing_key_pem: stored.next_signing_key_pem,
            previous_key: stored.previous_key.map(StoredPublicKey::read).transpose()?,
        };
        for client in stored.clients {
            let client_id = client.client_id;
            if state.clients.iter().any(|other| other.client_id == client_id) {
                return Err(IssuerStateError::DuplicateClient { client_id });
            }
            state.clients.push(client.read().ok_or(IssuerStateError::Credential { client_id })?);
        }
        state.signing_keys()?;
        Ok(state)
    }

    /// Writes the newest version. Equal states give equal bytes.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, IssuerStateError> {
        let stored = StoredState {
            version: ISSUER_STATE_VERSION,
            tenant: self.tenant.clone(),
            clients: self.clients.iter().map(StoredClient::from).collect(),
            signing_key_pem: self.signing_key_pem.clone(),
            next_signing_key_pem: self.next_signing_key_pem.clone(),
            previous_key: self.previous_key.as_ref().map(StoredPublicKey::from),
        };
        // Room for everything, so that no part of a key is left behind by growing. What is escaped is at most doubled,
        // but for control characters, which are in no PEM.
        let keys = self.signing_key_pem.len() + self.next_signing_key_pem.as_ref().map_or(0, |pem| pem.len());
        let room = 2 * keys + 4096 + stored.clients.iter().map(StoredClient::room).sum::<usize>();
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
    #[serde(with = "optional_secret_text")]
    next_signing_key_pem: Option<Zeroizing<String>>,
    #[serde(deserialize_with = "Option::deserialize")]
    previous_key: Option<StoredPublicKey>,
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
    #[serde(with = "optional_digest_text")]
    secret_sha256: Option<[u8; 32]>,
    /// DER in base64.
    certificates: Vec<String>,
    federated: Vec<StoredFederatedCredential>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredFederatedCredential {
    issuer: String,
    subject: String,
    audience: String,
    key_set: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredPublicKey {
    n: String,
    e: String,
}

impl StoredClient {
    /// `None` where a credential cannot be used: to go on without it would change who may come in.
    fn read(self) -> Option<ClientRegistration> {
        if self.certificates.len() > MAX_CERTIFICATES || self.federated.len() > MAX_FEDERATED_CREDENTIALS {
            return None;
        }
        let certificate = |text: String| ClientCertificate::from_der(&STANDARD.decode(text).ok()?).ok();
        let federated = |stored: StoredFederatedCredential| {
            let StoredFederatedCredential { issuer, subject, audience, key_set } = stored;
            FederatedCredential::new(issuer, subject, audience, key_set).ok()
        };
        Some(ClientRegistration {
            client_id: self.client_id,
            object_id: self.object_id,
            display_name: self.display_name,
            secret_sha256: self.secret_sha256,
            certificates: self.certificates.into_iter().map(certificate).collect::<Option<_>>()?,
            federated: self.federated.into_iter().map(federated).collect::<Option<_>>()?,
        })
    }

    /// About as many bytes as it takes in JSON.
    fn room(&self) -> usize {
        let federated = |stored: &StoredFederatedCredential| {
            2 * (stored.issuer.len() + stored.subject.len() + stored.audience.len() + stored.key_set.len())
                + 256
        };
        let certificates = self.certificates.iter().map(|text| text.len() + 16).sum::<usize>();
        1024 + certificates + self.federated.iter().map(federated).sum::<usize>()
    }
}

impl From<&ClientRegistration> for StoredClient {
    fn from(client: &ClientRegistration) -> Self {
        let federated = |credential: &FederatedCredential| StoredFederatedCredential {
            issuer: credential.issuer.clone(),
            subject: credential.subject.clone(),
            audience: credential.audience.clone(),
            key_set: credential.key_set_json().to_owned(),
        };
        Self {
            client_id: client.client_id,
            object_id: client.object_id,
            display_name: client.display_name.clone(),
            secret_sha256: client.secret_sha256,
            certificates: client.certificates.iter().map(|held| STANDARD.encode(held.der())).collect(),
            federated: client.federated.iter().map(federated).collect(),
        }
    }
}

impl StoredPublicKey {
    fn read(self) -> Result<PublicSigningKey, SigningKeyError> {
        PublicSigningKey::new(self.n, self.e)
    }
}

impl From<&PublicSigningKey> for StoredPublicKey {
    fn from(key: &PublicSigningKey) -> Self {
        Self { n: key.modulus().to_owned(), e: key.exponent().to_owned() }
    }
}

/// Version 1 knew client secrets alone, and one signing key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredStateV1 {
    version: u32,
    #[serde(with = "tenant_text")]
    tenant: TenantId,
    clients: Vec<StoredClientV1>,
    #[serde(with = "secret_text")]
    signing_key_pem: Zeroizing<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredClientV1 {
    #[serde(with = "guid_text")]
    client_id: Guid,
    #[serde(with = "guid_text")]
    object_id: Guid,
    #[serde(deserialize_with = "display_name")]
    display_name: String,
    #[serde(with = "digest_text")]
    secret_sha256: [u8; 32],
}

impl From<StoredStateV1> for StoredState {
    fn from(stored: StoredStateV1) -> Self {
        let client = |client: StoredClientV1| StoredClient {
            client_id: client.client_id,
            object_id: client.object_id,
            display_name: client.display_name,
            secret_sha256: Some(client.secret_sha256),
            certificates: Vec::new(),
            federated: Vec::new(),
        };
        Self {
            version: stored.version,
            tenant: stored.tenant,
            clients: stored.clients.into_iter().map(client).collect(),
            signing_key_pem: stored.signing_key_pem,
            next_signing_key_pem: None,
            previous_key: None,
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

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        read(&String::deserialize(deserializer)?)
    }

    pub(super) fn read<E: serde::de::Error>(text: &str) -> Result<[u8; 32], E> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(E::custom)?;
        Ok(digest)
    }
}

mod optional_digest_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        digest: &Option<[u8; 32]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        digest.map(hex::encode).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| digest_text::read(&text)).transpose()
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

mod optional_secret_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        secret: &Option<Zeroizing<String>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        secret.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Zeroizing<String>>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
    }
}
