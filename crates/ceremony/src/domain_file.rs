//! The security domain file: `docs/formats/security-domain.md`.

use crate::RandomSource;
use crate::description::{DescriptionWire, DomainDescription, UnreadableDescription};
use crate::encrypted_data::{
    ContentToSeal, DataRefused, EncryptedData, EncryptedDataWire, OpenedDomain, fresh_master_key,
};
use crate::holders::{HolderSet, HoldersRefused, Quorum};
use crate::jwe::{self, Jwe};
use crate::keys::{KeyHolder, KeyTransport, Thumbprint};
use crate::shares::{self, Share, ShareError};
use crate::strict_json;
use crypto::domain_secrets::DomainSecrets;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Bytes of a file that are read at all; ten holders with keys of 8192 bits take a fifth of it.
pub const MAX_FILE_BYTES: usize = 256 * 1024;
/// The service's: version 1 had its shares elsewhere.
const FRAME_VERSION: u64 = 2;
const SHAMIR: &str = "shamir_share";

#[derive(Serialize, Deserialize)]
struct FileWire {
    #[serde(rename = "EncData")]
    encrypted_data: EncryptedDataWire,
    #[serde(rename = "SharedKeys")]
    shared_keys: SharedKeysWire,
    /// Of the frame. PowerShell takes no file without it; our own first ones have none.
    version: Option<u64>,
    /// Ours; clients ignore it.
    holdfast: DescriptionWire,
}

#[derive(Serialize, Deserialize)]
struct SharedKeysWire {
    enc_shares: Vec<WrappedKeyWire>,
    key_algorithm: String,
    required: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct WrappedKeyWire {
    pub(crate) enc_key: String,
    pub(crate) x5t_256: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WriteError {
    #[error("the share of certificate {holder} cannot be wrapped")]
    Wrap { holder: Thumbprint },
    #[error("the description is not of these secrets")]
    ForeignDescription,
}

#[derive(Debug, thiserror::Error)]
pub enum UnreadableFile {
    #[error("not a security domain file of Holdfast: {0}")]
    Malformed(String),
    #[error(transparent)]
    Description(#[from] UnreadableDescription),
    #[error(transparent)]
    Holders(#[from] HoldersRefused),
}

/// Whoever reads this has the keys: nothing is hidden from them.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    #[error("{given} of the holders' keys, of which {required} are needed")]
    TooFewKeys { given: usize, required: u8 },
    #[error("certificate {holder} is not among the holders of this file")]
    NotAHolder { holder: Thumbprint },
    #[error("the key of certificate {holder} was given twice")]
    SameKey { holder: Thumbprint },
    #[error("the share of certificate {holder} does not open with its key")]
    ShareNotOpened { holder: Thumbprint },
    #[error("the shares do not give a key: {0}")]
    Shares(#[from] ShareError),
    #[error("the content does not open: the file was changed, or its parts are of different files")]
    NotAuthentic,
    #[error(
        "the file was changed: what it says of its domain, holders or quorum is not what was sealed inside"
    )]
    Changed,
}

/// A security domain file, read and not yet opened: nothing in it is authentic before it is.
#[derive(Clone, Debug)]
pub struct DomainFile {
    description: DomainDescription,
    quorum: Quorum,
    shares: Vec<(Thumbprint, Jwe)>,
    data: EncryptedData,
}

/// A file under a fresh master key, shared among `holders`. Files written before stay what they are.
pub fn write(
    description: &DomainDescription,
    secrets: &DomainSecrets,
    holders: &HolderSet,
    transport: &dyn KeyTransport,
    random: RandomSource<'_>,
) -> Result<String, WriteError> {
    if !description.is_for(&secrets.owner_key().public_key()) {
        return Err(WriteError::ForeignDescription);
    }
    let master = fresh_master_key(random);
    let shares = shares::split(&master, holders.quorum(), random).expect("a master key can be shared");
    let enc_shares = holders.certificates().iter().zip(&shares).map(|(certificate, share)| {
        let holder = Thumbprint::of(certificate);
        let enc_key = jwe::encrypt_to(certificate, &share.to_bytes(), transport, random)
            .map_err(|_| WriteError::Wrap { holder })?;
        Ok(WrappedKeyWire { enc_key, x5t_256: holder.to_string() })
    });
    let shared_keys = SharedKeysWire {
        enc_shares: enc_shares.collect::<Result<_, _>>()?,
        key_algorithm: SHAMIR.to_owned(),
        required: holders.quorum().required().into(),
    };
    let required = holders.quorum().required();
    let content = ContentToSeal { secrets, description, holders: &holders.thumbprints(), required };
    let file = FileWire {
        encrypted_data: content.seal(&master, random),
        shared_keys,
        version: Some(FRAME_VERSION),
        holdfast: DescriptionWire::new(description),
    };
    Ok(serde_json::to_string(&file).expect("texts and numbers can be written"))
}

impl DomainFile {
    pub fn parse(text: &str) -> Result<Self, UnreadableFile> {
        let malformed = |what: String| UnreadableFile::Malformed(what);
        let file: FileWire =
            strict_json::read(text, MAX_FILE_BYTES).map_err(|error| malformed(error.to_string()))?;
        if file.version.is_some_and(|version| version != FRAME_VERSION) {
            return Err(malformed(format!("version is not {FRAME_VERSION}")));
        }
        let description = file.holdfast.read()?;
        let keys = &file.shared_keys;
        if keys.key_algorithm != SHAMIR {
            return Err(malformed(format!("key_algorithm is not {SHAMIR}")));
        }
        let quorum = Quorum::new(keys.required, keys.enc_shares.len() as u64)?;
        let mut shares: Vec<(Thumbprint, Jwe)> = Vec::with_capacity(keys.enc_shares.len());
        for share in &keys.enc_shares {
            let holder = share.x5t_256.parse().map_err(|_| malformed("x5t_256 is no thumbprint".into()))?;
            if shares.iter().any(|(other, _)| *other == holder) {
                return Err(malformed(format!("two shares for certificate {holder}")));
            }
            let jwe = Jwe::parse(&share.enc_key).map_err(|error| malformed(format!("enc_key: {error}")))?;
            shares.push((holder, jwe));
        }
        let data = file.encrypted_data.read().map_err(|error| malformed(error.to_string()))?;
        Ok(Self { description, quorum, shares, data })
    }

    /// As the file says in the clear.
    pub fn description(&self) -> &DomainDescription {
        &self.description
    }

    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    pub fn holders(&self) -> impl Iterator<Item = Thumbprint> {
        self.shares.iter().map(|(holder, _)| *holder)
    }

    /// The domain, by at least a quorum of its holders. All keys that are given must be good.
    pub fn open(
        &self,
        holders: &[&dyn KeyHolder],
        random: RandomSource<'_>,
    ) -> Result<OpenedDomain, OpenError> {
        let required = self.quorum.required();
        if holders.len() < usize::from(required) {
            return Err(OpenError::TooFewKeys { given: holders.len(), required });
        }
        let mut shares = Vec::with_capacity(holders.len());
        for (index, key) in holders.iter().enumerate() {
            let holder = key.thumbprint();
            if holders[..index].iter().any(|other| other.thumbprint() == holder) {
                return Err(OpenError::SameKey { holder });
            }
            shares.push(self.share(*key, random)?);
        }
        let master = shares::combine(&shares, required)?;
        let opened = self.data.open(&master).map_err(|error| match error {
            DataRefused::Unknown | DataRefused::NotAuthentic => OpenError::NotAuthentic,
        })?;
        // The order of shares means nothing.
        let said: BTreeSet<Thumbprint> = self.holders().collect();
        let sealed: BTreeSet<Thumbprint> = opened.holders.iter().copied().collect();
        if opened.description != self.description || opened.required != required || sealed != said {
            return Err(OpenError::Changed);
        }
        Ok(opened)
    }

    /// Whether these keys open the domain; nothing of it is kept.
    pub fn verify(&self, holders: &[&dyn KeyHolder], random: RandomSource<'_>) -> Result<(), OpenError> {
        self.open(holders, random).map(drop)
    }

    fn share(&self, key: &dyn KeyHolder, random: RandomSource<'_>) -> Result<Share, OpenError> {
        let holder = key.thumbprint();
        let (_, jwe) =
            self.shares.iter().find(|(named, _)| *named == holder).ok_or(OpenError::NotAHolder { holder })?;
        let share = jwe.open_with(key, random).map_err(|_| OpenError::ShareNotOpened { holder })?;
        Ok(Share::parse(&share)?)
    }
}

impl OpenedDomain {
    /// A file for other holders, or another quorum. The old file goes on to open with the old keys.
    pub fn rekey(
        &self,
        holders: &HolderSet,
        transport: &dyn KeyTransport,
        random: RandomSource<'_>,
    ) -> Result<String, WriteError> {
        write(&self.description, &self.secrets, holders, transport, random)
    }
}
