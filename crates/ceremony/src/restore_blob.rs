//! The restore blob, which brings a security domain into a pool that waits for one: `docs/formats/restore-blob.md`.

use crate::RandomSource;
use crate::domain_file::WrappedKeyWire;
use crate::encrypted_data::{
    ContentToSeal, EncryptedData, EncryptedDataWire, MASTER_KEY_BYTES, OpenedDomain, fresh_master_key,
};
use crate::jwe::{self, Jwe};
use crate::keys::{KeyHolder, KeyTransport, Thumbprint, TransportFailed};
use crate::strict_json;
use crypto::transport::TransportCertificate;
use serde::{Deserialize, Serialize};

/// Bytes of a blob that are read at all.
pub const MAX_BLOB_BYTES: usize = 128 * 1024;

#[derive(Serialize, Deserialize)]
struct BlobWire {
    #[serde(rename = "EncData")]
    encrypted_data: EncryptedDataWire,
    #[serde(rename = "WrappedKey")]
    wrapped_key: WrappedKeyWire,
}

/// Of the blob's frame, which its sender made and knows: the words may be answered.
#[derive(Debug, thiserror::Error)]
#[error("not a restore blob of Holdfast: {0}")]
pub struct UnreadableBlob(String);

/// One error for key, content and meaning: what failed is not for whoever sent the blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the restore blob does not open with this pool's exchange key")]
pub struct BlobNotOpened;

/// A restore blob, read and not yet opened.
#[derive(Clone, Debug)]
pub struct RestoreBlob {
    recipient: Thumbprint,
    master: Jwe,
    data: EncryptedData,
}

/// A blob for the pool that has the private key of `exchange`, under a fresh master key.
pub fn build(
    domain: &OpenedDomain,
    exchange: &TransportCertificate,
    transport: &dyn KeyTransport,
    random: RandomSource<'_>,
) -> Result<String, TransportFailed> {
    let master = fresh_master_key(random);
    let wrapped_key = WrappedKeyWire {
        enc_key: jwe::encrypt_to(exchange, &master, transport, random)?,
        x5t_256: Thumbprint::of(exchange).to_string(),
    };
    let content = ContentToSeal {
        secrets: &domain.secrets,
        description: &domain.description,
        holders: &domain.holders,
        required: domain.required,
    };
    let blob = BlobWire { encrypted_data: content.seal(&master, random), wrapped_key };
    Ok(serde_json::to_string(&blob).expect("texts can be written"))
}

impl RestoreBlob {
    pub fn parse(text: &str) -> Result<Self, UnreadableBlob> {
        let blob: BlobWire =
            strict_json::read(text, MAX_BLOB_BYTES).map_err(|error| UnreadableBlob(error.to_string()))?;
        let wrapped = &blob.wrapped_key;
        let unreadable = |what: &str| UnreadableBlob(what.to_owned());
        Ok(Self {
            recipient: wrapped.x5t_256.parse().map_err(|_| unreadable("x5t_256 is no thumbprint"))?,
            master: Jwe::parse(&wrapped.enc_key).map_err(|_| unreadable("enc_key is no JWE"))?,
            data: blob.encrypted_data.read().map_err(|error| UnreadableBlob(error.to_string()))?,
        })
    }

    /// The certificate that the blob was made for. A pool compares it with that of its exchange key, which is public.
    pub fn recipient(&self) -> Thumbprint {
        self.recipient
    }

    pub fn open(&self, key: &dyn KeyHolder, random: RandomSource<'_>) -> Result<OpenedDomain, BlobNotOpened> {
        if self.recipient != key.thumbprint() {
            return Err(BlobNotOpened);
        }
        let master = self.master.open_with(key, random).map_err(|_| BlobNotOpened)?;
        if master.len() != MASTER_KEY_BYTES {
            return Err(BlobNotOpened);
        }
        self.data.open(&master).map_err(|_| BlobNotOpened)
    }
}
