//! `EncData`, which security domain files and restore blobs have in common: the domain's secrets and its description,
//! each under a key of its own from the master key.

use crate::RandomSource;
use crate::description::{DescriptionWire, DomainDescription, SealedDescriptionWire};
use crate::jwe::{self, Jwe};
use crate::keys::Thumbprint;
use crate::strict_json;
use crypto::SecretBytes;
use crypto::content::ContentKey;
use crypto::domain_secrets::DomainSecrets;
use serde::{Deserialize, Serialize};

/// Labels of the data. They are inputs of the derivation: a datum cannot stand in for another.
const SECRETS_TAG: &str = "holdfast.domain-secrets.v1";
const DESCRIPTION_TAG: &str = "holdfast.description.v1";
const KDF: &str = "sp108_kdf";
pub(crate) const MASTER_KEY_BYTES: usize = 32;
const MAX_DESCRIPTION_BYTES: usize = 8 * 1024;

#[derive(Serialize, Deserialize)]
pub(crate) struct EncryptedDataWire {
    data: Vec<DatumWire>,
    kdf: String,
}

#[derive(Serialize, Deserialize)]
struct DatumWire {
    compact_jwe: String,
    tag: String,
}

/// What a quorum, or the exchange key of a restore blob, gives.
pub struct OpenedDomain {
    pub secrets: DomainSecrets,
    /// Authentic, and of these secrets.
    pub description: DomainDescription,
    /// Of the security domain file from which the secrets came.
    pub holders: Vec<Thumbprint>,
    pub required: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum DataRefused {
    #[error("the data of the security domain are not those of this format")]
    Unknown,
    #[error(
        "the data of the security domain do not open: they were changed, or the shares are of another domain"
    )]
    NotAuthentic,
}

/// The two data, read and not yet opened.
#[derive(Clone, Debug)]
pub(crate) struct EncryptedData {
    secrets: Jwe,
    description: Jwe,
}

/// What is to be written: borrowed, as secrets are not copied.
pub(crate) struct ContentToSeal<'a> {
    pub(crate) secrets: &'a DomainSecrets,
    pub(crate) description: &'a DomainDescription,
    pub(crate) holders: &'a [Thumbprint],
    pub(crate) required: u8,
}

pub(crate) fn fresh_master_key(random: RandomSource<'_>) -> SecretBytes {
    let mut master = vec![0; MASTER_KEY_BYTES];
    random(&mut master);
    SecretBytes::new(master)
}

impl ContentToSeal<'_> {
    pub(crate) fn seal(&self, master: &SecretBytes, random: RandomSource<'_>) -> EncryptedDataWire {
        let description = SealedDescriptionWire {
            domain: DescriptionWire::new(self.description),
            holders: self.holders.iter().map(Thumbprint::to_string).collect(),
            required: self.required,
        };
        let description = serde_json::to_vec(&description).expect("texts and numbers can be written");
        let datum = |tag: &str, plaintext: &SecretBytes| DatumWire {
            compact_jwe: jwe::encrypt_direct(&ContentKey::derive(master, tag), tag, plaintext, random),
            tag: tag.to_owned(),
        };
        let data = vec![
            datum(SECRETS_TAG, &self.secrets.danger_export()),
            datum(DESCRIPTION_TAG, &SecretBytes::new(description)),
        ];
        EncryptedDataWire { data, kdf: KDF.to_owned() }
    }
}

impl EncryptedDataWire {
    /// Exactly the two data of this format, in either order.
    pub(crate) fn read(&self) -> Result<EncryptedData, DataRefused> {
        let datum = |tag: &str| {
            let datum = self.data.iter().find(|datum| datum.tag == tag).ok_or(DataRefused::Unknown)?;
            Jwe::parse(&datum.compact_jwe).map_err(|_| DataRefused::Unknown)
        };
        if self.kdf != KDF || self.data.len() != 2 {
            return Err(DataRefused::Unknown);
        }
        Ok(EncryptedData { secrets: datum(SECRETS_TAG)?, description: datum(DESCRIPTION_TAG)? })
    }
}

impl EncryptedData {
    pub(crate) fn open(&self, master: &SecretBytes) -> Result<OpenedDomain, DataRefused> {
        let refused = DataRefused::NotAuthentic;
        let open = |jwe: &Jwe, tag| jwe.open_direct(&ContentKey::derive(master, tag)).map_err(|_| refused);
        // Both are opened before either is looked at.
        let (secrets, description) =
            (open(&self.secrets, SECRETS_TAG), open(&self.description, DESCRIPTION_TAG));
        let (secrets, description) = (secrets?, description?);
        let secrets = DomainSecrets::import(&secrets).map_err(|_| refused)?;
        let text = std::str::from_utf8(description.danger_expose()).map_err(|_| refused)?;
        let sealed: SealedDescriptionWire =
            strict_json::read(text, MAX_DESCRIPTION_BYTES).map_err(|_| refused)?;
        let description = sealed.domain.read().map_err(|_| refused)?;
        if !description.is_for(&secrets.owner_key().public_key()) {
            return Err(refused);
        }
        let holders = sealed.read_holders().map_err(|_| refused)?;
        Ok(OpenedDomain { secrets, description, holders, required: sealed.required })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Thumbprint;
    use crypto::digest::random;
    use domain::guid::Guid;
    use domain::pool::PoolClass;
    use proptest::prelude::*;

    fn master() -> SecretBytes {
        SecretBytes::new(vec![7; MASTER_KEY_BYTES])
    }

    fn secrets() -> DomainSecrets {
        let golden = include_bytes!("../../crypto/tests/golden/domain-secrets-v1.bin");
        DomainSecrets::import(&SecretBytes::new(golden.to_vec())).unwrap()
    }

    fn description(owner_fingerprint: [u8; 32]) -> DomainDescription {
        DomainDescription {
            pool: Guid([1; 16]),
            pool_name: "payroll".parse().unwrap(),
            security_domain: Guid([2; 16]),
            class: PoolClass::Test,
            genesis_hash: [3; 32],
            owner_fingerprint,
        }
    }

    fn opened(owner_fingerprint: [u8; 32]) -> Result<OpenedDomain, DataRefused> {
        opened_of(owner_fingerprint, &[1, 2, 3], 2)
    }

    fn opened_of(
        owner_fingerprint: [u8; 32],
        holders: &[u8],
        required: u8,
    ) -> Result<OpenedDomain, DataRefused> {
        let (secrets, description) = (secrets(), description(owner_fingerprint));
        let holders: Vec<_> = holders.iter().map(|holder| Thumbprint([*holder; 32])).collect();
        let content =
            ContentToSeal { secrets: &secrets, description: &description, holders: &holders, required };
        content.seal(&master(), &random).read().unwrap().open(&master())
    }

    /// Sealed by somebody who has the master key: a description must be of the secrets beside it all the same.
    #[test]
    fn authentic_data_that_do_not_belong_together_are_refused() {
        let owner = crypto::digest::sha256(&[&secrets().owner_key().public_key().point]);
        assert_eq!(opened(owner).map(|opened| opened.description).ok(), Some(description(owner)));
        assert_eq!(opened([4; 32]).err(), Some(DataRefused::NotAuthentic));
    }

    /// A pool that finds no holder takes its domain for one that it may still hand out.
    #[test]
    fn what_is_no_quorum_of_different_holders_is_refused() {
        let owner = crypto::digest::sha256(&[&secrets().owner_key().public_key().point]);
        for (holders, required) in [
            (&[][..], 2),
            (&[1, 2, 3], 0),
            (&[1, 2, 3], 1),
            (&[1, 2], 2),
            (&[1, 2, 3], 4),
            (&[1, 2, 1], 2),
            (&[7; 11], 2),
        ] {
            let refused = opened_of(owner, holders, required).err();
            assert_eq!(refused, Some(DataRefused::NotAuthentic), "{required} of {holders:?}");
        }
    }

    proptest! {
        #[test]
        fn authentic_nonsense_never_panics(
            first in proptest::collection::vec(any::<u8>(), 0..300),
            text in "\\PC{0,200}",
            good_secrets: bool,
        ) {
            let first = if good_secrets { secrets().danger_export() } else { SecretBytes::new(first) };
            let seal = |tag: &str, plaintext: &SecretBytes| {
                let key = ContentKey::derive(&master(), tag);
                Jwe::parse(&jwe::encrypt_direct(&key, tag, plaintext, &random)).unwrap()
            };
            let data = EncryptedData {
                secrets: seal(SECRETS_TAG, &first),
                description: seal(DESCRIPTION_TAG, &SecretBytes::new(text.into_bytes())),
            };
            prop_assert!(data.open(&master()).is_err());
        }
    }
}
