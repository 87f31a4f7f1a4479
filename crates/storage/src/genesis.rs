//! The genesis record as bytes: CBOR of format version 1, signed by the owner key. `docs/formats/genesis.md`.

use crate::codec::{from_bytes, to_bytes};
use crypto::SecretBytes;
use crypto::certificate::{OwnerKey, OwnerPublicKey};
use crypto::digest::sha256;
use domain::guid::Guid;
use domain::pool::{AuditDurability, Genesis, IssuerPin, KeySource, PoolClass, RetentionDays};
use domain::principal::TenantId;
use minicbor::{Decode, Encode};

/// Before the signature is made or checked, so that it can never be taken for a signature over anything else.
const SIGNATURE_DOMAIN: &[u8] = b"holdfast genesis v1\0";

#[derive(Encode, Decode)]
struct SignedV1 {
    #[n(0)]
    format: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    genesis: Vec<u8>,
    #[cbor(n(2), with = "minicbor::bytes")]
    signature: Vec<u8>,
}

#[derive(Encode, Decode)]
struct GenesisV1 {
    #[cbor(n(0), with = "minicbor::bytes")]
    pool: [u8; 16],
    #[n(1)]
    name: String,
    #[cbor(n(2), with = "minicbor::bytes")]
    security_domain: [u8; 16],
    #[n(3)]
    production: bool,
    #[n(4)]
    tenant: String,
    #[n(5)]
    issuers: Vec<String>,
    #[n(6)]
    authority: String,
    #[cbor(n(7), with = "minicbor::bytes")]
    key_set: Vec<u8>,
    #[n(8)]
    audiences: Vec<String>,
    /// 16 bytes each.
    #[cbor(n(9), with = "minicbor::bytes")]
    initial_administrators: Vec<u8>,
    /// Empty, or 16 bytes.
    #[cbor(n(10), with = "minicbor::bytes")]
    break_glass_group: Vec<u8>,
    #[n(11)]
    retention_days: u32,
    #[n(12)]
    purge_protection: bool,
    #[n(13)]
    audit_synced: bool,
    #[n(14)]
    allow_domain_redownload: bool,
    /// Absent in records of earlier releases, and where there is none.
    #[n(15)]
    key_source: Option<KeySourceV1>,
}

#[derive(Encode, Decode)]
struct KeySourceV1 {
    #[n(0)]
    url: String,
    #[cbor(n(1), with = "minicbor::bytes")]
    roots: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnreadableGenesis {
    #[error("not a genesis record of format version 1")]
    Malformed,
    #[error("the genesis record is not signed by the owner key of this security domain")]
    WrongSignature,
}

/// A genesis record with the owner key's signature.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedGenesis {
    genesis: Genesis,
    bytes: Vec<u8>,
}

impl SignedGenesis {
    pub fn sign(genesis: Genesis, owner: &OwnerKey) -> Self {
        let content = write_content(&genesis);
        let signature = owner.sign_genesis(&signed_message(&content));
        let bytes = to_bytes(&SignedV1 { format: 1, genesis: content, signature }).danger_expose().to_vec();
        Self { genesis, bytes }
    }

    pub fn read(bytes: &[u8], owner: &OwnerPublicKey) -> Result<Self, UnreadableGenesis> {
        let malformed = UnreadableGenesis::Malformed;
        let secret = SecretBytes::new(bytes.to_vec());
        let signed: SignedV1 = from_bytes(&secret).map_err(|_| malformed)?;
        if signed.format != 1 {
            return Err(malformed);
        }
        if !owner.verify_genesis(&signed_message(&signed.genesis), &signed.signature) {
            return Err(UnreadableGenesis::WrongSignature);
        }
        let genesis = read_content(&signed.genesis).ok_or(malformed)?;
        Ok(Self { genesis, bytes: bytes.to_vec() })
    }

    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the signed record: in the security domain file and in every instance certificate.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&[&self.bytes])
    }
}

pub(crate) fn write_content(genesis: &Genesis) -> Vec<u8> {
    to_bytes(&to_wire(genesis)).danger_expose().to_vec()
}

pub(crate) fn read_content(bytes: &[u8]) -> Option<Genesis> {
    from_wire(from_bytes(&SecretBytes::new(bytes.to_vec())).ok()?)
}

fn signed_message(content: &[u8]) -> Vec<u8> {
    [SIGNATURE_DOMAIN, content].concat()
}

fn to_wire(genesis: &Genesis) -> GenesisV1 {
    GenesisV1 {
        pool: genesis.pool.0,
        name: genesis.name.to_string(),
        security_domain: genesis.security_domain.0,
        production: match genesis.class {
            PoolClass::Production => true,
            PoolClass::Test => false,
        },
        tenant: genesis.tenant.to_string(),
        issuers: genesis.issuer.issuers.clone(),
        authority: genesis.issuer.authority.clone(),
        key_set: genesis.issuer.key_set.clone(),
        audiences: genesis.issuer.audiences.clone(),
        initial_administrators: genesis.initial_administrators.iter().flat_map(|id| id.0).collect(),
        break_glass_group: genesis.break_glass_group.iter().flat_map(|id| id.0).collect(),
        retention_days: genesis.retention.days().into(),
        purge_protection: genesis.purge_protection,
        audit_synced: match genesis.audit_durability {
            AuditDurability::Synced => true,
            AuditDurability::Written => false,
        },
        allow_domain_redownload: genesis.allow_domain_redownload,
        key_source: genesis
            .issuer
            .key_source
            .as_ref()
            .map(|source| KeySourceV1 { url: source.url.clone(), roots: source.roots.clone() }),
    }
}

fn from_wire(wire: GenesisV1) -> Option<Genesis> {
    let guids = |bytes: &[u8]| {
        let (guids, rest) = bytes.as_chunks::<16>();
        rest.is_empty().then(|| guids.iter().copied().map(Guid).collect::<Vec<_>>())
    };
    let break_glass_group = match guids(&wire.break_glass_group)?.as_slice() {
        [] => None,
        [group] => Some(*group),
        _ => return None,
    };
    let genesis = Genesis {
        pool: Guid(wire.pool),
        name: wire.name.parse().ok()?,
        security_domain: Guid(wire.security_domain),
        class: if wire.production { PoolClass::Production } else { PoolClass::Test },
        tenant: TenantId::parse(&wire.tenant).ok()?,
        issuer: IssuerPin {
            issuers: wire.issuers,
            authority: wire.authority,
            key_set: wire.key_set,
            audiences: wire.audiences,
            key_source: wire.key_source.map(|source| KeySource { url: source.url, roots: source.roots }),
        },
        initial_administrators: guids(&wire.initial_administrators)?,
        break_glass_group,
        retention: RetentionDays::new(wire.retention_days).ok()?,
        purge_protection: wire.purge_protection,
        audit_durability: if wire.audit_synced { AuditDurability::Synced } else { AuditDurability::Written },
        allow_domain_redownload: wire.allow_domain_redownload,
    };
    genesis.check().is_ok().then_some(genesis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::domain_secrets::DomainSecrets;
    use proptest::prelude::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/genesis-v1.cbor");
    /// With the field that came later.
    const GOLDEN_KEY_SOURCE: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/genesis-v1-key-source.cbor");

    /// The secrets of crypto's golden file.
    fn secrets() -> DomainSecrets {
        let golden = include_bytes!("../../crypto/tests/golden/domain-secrets-v1.bin");
        DomainSecrets::import(&SecretBytes::new(golden.to_vec())).unwrap()
    }

    fn sample() -> Genesis {
        Genesis {
            pool: Guid([1; 16]),
            name: "payroll".parse().unwrap(),
            security_domain: Guid([2; 16]),
            class: PoolClass::Production,
            tenant: TenantId::parse("11111111-2222-3333-4444-555555555555").unwrap(),
            issuer: IssuerPin {
                issuers: vec!["https://login.example/t/v2.0".into()],
                authority: "https://login.example/t".into(),
                key_set: br#"{"keys":[]}"#.to_vec(),
                audiences: vec!["https://managedhsm.example".into()],
                key_source: None,
            },
            initial_administrators: vec![Guid([3; 16]), Guid([4; 16])],
            break_glass_group: Some(Guid([5; 16])),
            retention: RetentionDays::new(7).unwrap(),
            purge_protection: true,
            audit_durability: AuditDurability::Synced,
            allow_domain_redownload: false,
        }
    }

    fn sample_with_key_source() -> Genesis {
        let mut genesis = sample();
        genesis.issuer.key_source = Some(KeySource {
            url: "https://login.example/t/keys".into(),
            roots: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_vec(),
        });
        genesis
    }

    /// ECDSA signatures are random, so the golden files are read and their content made again, but not their signature.
    #[test]
    fn the_golden_files_verify_for_ever() {
        let owner = secrets().owner_key().public_key();
        for (path, sample) in [(GOLDEN, sample()), (GOLDEN_KEY_SOURCE, sample_with_key_source())] {
            if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(path).exists() {
                let signed = SignedGenesis::sign(sample.clone(), secrets().owner_key());
                std::fs::write(path, signed.bytes()).unwrap();
            }
            let golden = std::fs::read(path).unwrap();
            let signed = SignedGenesis::read(&golden, &owner).unwrap();
            assert_eq!(*signed.genesis(), sample);
            let made = SignedGenesis::sign(sample, secrets().owner_key());
            let content_bytes = golden.len() - 96;
            assert_eq!(made.bytes()[..content_bytes], golden[..content_bytes]);
            assert_eq!(signed.hash(), sha256(&[&golden]));
        }
    }

    #[test]
    fn each_flipped_bit_is_refused() {
        let owner = secrets().owner_key().public_key();
        let golden = std::fs::read(GOLDEN_KEY_SOURCE).unwrap();
        for bit in 0..golden.len() * 8 {
            let mut damaged = golden.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedGenesis::read(&damaged, &owner).is_err(), "bit {bit}");
        }
        for length in 0..golden.len() {
            assert!(SignedGenesis::read(&golden[..length], &owner).is_err(), "length {length}");
        }
        let longer = [golden.as_slice(), &[0]].concat();
        assert_eq!(SignedGenesis::read(&longer, &owner), Err(UnreadableGenesis::Malformed));
    }

    #[test]
    fn another_owner_and_parts_that_disagree_are_refused() {
        let golden = std::fs::read(GOLDEN).unwrap();
        let other = DomainSecrets::generate().owner_key().public_key();
        assert_eq!(SignedGenesis::read(&golden, &other), Err(UnreadableGenesis::WrongSignature));

        let owner = secrets().owner_key().public_key();
        let with_source = |url: &str, roots: &[u8]| {
            let mut genesis = sample();
            genesis.issuer.key_source = Some(KeySource { url: url.into(), roots: roots.to_vec() });
            genesis
        };
        let refused = [
            Genesis { initial_administrators: vec![], ..sample() },
            Genesis { audit_durability: AuditDurability::Written, ..sample() },
            Genesis {
                issuer: IssuerPin {
                    audiences: vec![domain::pool::PUBLIC_AUDIENCE.into()],
                    ..sample().issuer
                },
                ..sample()
            },
            with_source("http://login.example/t/keys", b"root"),
            with_source("https://login.example/t/keys", b""),
        ];
        for genesis in refused {
            let signed = SignedGenesis::sign(genesis, secrets().owner_key());
            assert_eq!(SignedGenesis::read(signed.bytes(), &owner), Err(UnreadableGenesis::Malformed));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(SignedGenesis::read(&bytes, &secrets().owner_key().public_key()).is_err());
        }

        /// What is signed need not be well-formed.
        #[test]
        fn signed_nonsense_never_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let secrets = secrets();
            let signature = secrets.owner_key().sign_genesis(&signed_message(&content));
            let bytes = to_bytes(&SignedV1 { format: 1, genesis: content, signature });
            let read = SignedGenesis::read(bytes.danger_expose(), &secrets.owner_key().public_key());
            prop_assert_eq!(read, Err(UnreadableGenesis::Malformed));
        }
    }
}
