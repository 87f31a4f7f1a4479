//! What a security domain file says of its domain, in the clear and once more inside, where nobody can change it.

use crypto::certificate::OwnerPublicKey;
use crypto::digest::sha256;
use domain::guid::Guid;
use domain::name::PoolName;
use domain::pool::{Genesis, PoolClass};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

use crate::holders::Quorum;
use crate::keys::Thumbprint;

/// The format that is written and read.
pub const FORMAT: u32 = 1;

/// Which domain this is. Whoever opened a file can rely on it; whoever only parsed one has what its last holder wrote.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DomainDescription {
    pub pool: Guid,
    pub pool_name: PoolName,
    pub security_domain: Guid,
    pub class: PoolClass,
    /// SHA-256 of the signed genesis record: what an owner compares before trusting a pool.
    pub genesis_hash: [u8; 32],
    /// SHA-256 of the owner key's point.
    pub owner_fingerprint: [u8; 32],
}

impl DomainDescription {
    pub fn new(genesis: &Genesis, genesis_hash: [u8; 32], owner: &OwnerPublicKey) -> Self {
        Self {
            pool: genesis.pool,
            pool_name: genesis.name.clone(),
            security_domain: genesis.security_domain,
            class: genesis.class,
            genesis_hash,
            owner_fingerprint: fingerprint(owner),
        }
    }

    pub fn is_for(&self, owner: &OwnerPublicKey) -> bool {
        self.owner_fingerprint == fingerprint(owner)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnreadableDescription {
    #[error("the security domain is of format {0}, which this version does not know")]
    UnknownFormat(u32),
    #[error("the description of the security domain is malformed: {0}")]
    Malformed(&'static str),
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct DescriptionWire {
    format: u32,
    pool: String,
    pool_name: String,
    security_domain: String,
    class: String,
    genesis_sha256: String,
    owner_sha256: String,
}

/// The description inside, with what else of the file must not be changed unseen.
#[derive(Serialize, Deserialize)]
pub(crate) struct SealedDescriptionWire {
    pub(crate) domain: DescriptionWire,
    pub(crate) holders: Vec<String>,
    pub(crate) required: u8,
}

impl DescriptionWire {
    pub(crate) fn new(description: &DomainDescription) -> Self {
        Self {
            format: FORMAT,
            pool: description.pool.to_string(),
            pool_name: description.pool_name.to_string(),
            security_domain: description.security_domain.to_string(),
            class: description.class.as_str().to_owned(),
            genesis_sha256: hex::encode(description.genesis_hash),
            owner_sha256: hex::encode(description.owner_fingerprint),
        }
    }

    pub(crate) fn read(&self) -> Result<DomainDescription, UnreadableDescription> {
        let malformed = UnreadableDescription::Malformed;
        if self.format != FORMAT {
            return Err(UnreadableDescription::UnknownFormat(self.format));
        }
        Ok(DomainDescription {
            pool: self.pool.parse().map_err(|_| malformed("pool"))?,
            pool_name: self.pool_name.parse().map_err(|_| malformed("pool_name"))?,
            security_domain: self.security_domain.parse().map_err(|_| malformed("security_domain"))?,
            class: match self.class.as_str() {
                "production" => PoolClass::Production,
                "test" => PoolClass::Test,
                _ => return Err(malformed("class")),
            },
            genesis_hash: digest(&self.genesis_sha256).ok_or(malformed("genesis_sha256"))?,
            owner_fingerprint: digest(&self.owner_sha256).ok_or(malformed("owner_sha256"))?,
        })
    }
}

impl SealedDescriptionWire {
    /// As many as a domain can have, and each once: by them a pool tells whether its domain was handed out.
    pub(crate) fn read_holders(&self) -> Result<Vec<Thumbprint>, UnreadableDescription> {
        let malformed = UnreadableDescription::Malformed("holders");
        Quorum::new(self.required, self.holders.len() as u64).map_err(|_| malformed)?;
        let holders = self.holders.iter().map(|holder| holder.parse());
        let holders: Vec<Thumbprint> = holders.collect::<Result<_, _>>().map_err(|_| malformed)?;
        let different: BTreeSet<&Thumbprint> = holders.iter().collect();
        if different.len() == holders.len() { Ok(holders) } else { Err(malformed) }
    }
}

fn fingerprint(owner: &OwnerPublicKey) -> [u8; 32] {
    sha256(&[&owner.point])
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).ok()?;
    Some(digest)
}
