//! What a single-key backup holds (`docs/formats/key-backup.md`): the key and its versions as they are stored.

use crate::codec::{self, InvocationsV1, KeyV1, VersionV1};
use crate::record::{InvocationsRecord, KeyRecord, UnreadableRecord, VersionRecord};
use crypto::SecretBytes;
use domain::key::Key;
use minicbor::{Decode, Encode};

#[derive(Encode, Decode)]
struct KeyBackupV1 {
    #[n(0)]
    key: KeyV1,
    #[n(1)]
    versions: Vec<VersionV1>,
    #[n(2)]
    invocations: Option<InvocationsV1>,
}

/// A live key with all its versions, oldest first; their material is bound to the pool that made the backup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyBackup {
    key: Key,
    versions: Vec<VersionRecord>,
    /// So that a restored key does not encrypt more often than one that was never away.
    invocations: Option<InvocationsRecord>,
}

impl KeyBackup {
    /// # Errors
    /// `Malformed` where the key is deleted, or `versions` are not those that it names, in its order, or `invocations` are
    /// another key's.
    pub fn new(
        key: Key,
        versions: Vec<VersionRecord>,
        invocations: Option<InvocationsRecord>,
    ) -> Result<Self, UnreadableRecord> {
        let named = versions.iter().map(|record| record.version.version);
        let its_own = versions.iter().all(|record| record.version.name == key.name);
        let counted = invocations.as_ref().is_none_or(|record| {
            record.name == key.name && record.leased.keys().all(|version| key.versions().contains(version))
        });
        if key.is_deleted() || !counted || !its_own || !named.eq(key.versions().iter().copied()) {
            return Err(UnreadableRecord::Malformed);
        }
        Ok(Self { key, versions, invocations })
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    pub fn versions(&self) -> &[VersionRecord] {
        &self.versions
    }

    pub fn invocations(&self) -> Option<&InvocationsRecord> {
        self.invocations.as_ref()
    }

    pub fn encode(&self) -> SecretBytes {
        codec::to_bytes(&KeyBackupV1 {
            key: codec::key_to_wire(&KeyRecord { key: self.key.clone() }),
            versions: self.versions.iter().map(codec::version_to_wire).collect(),
            invocations: self.invocations.as_ref().map(codec::invocations_to_wire),
        })
    }

    pub fn decode(bytes: &SecretBytes) -> Result<Self, UnreadableRecord> {
        let wire: KeyBackupV1 = codec::from_bytes(bytes)?;
        let versions = wire.versions.into_iter().map(codec::version_from_wire).collect::<Result<_, _>>()?;
        let invocations = wire.invocations.map(codec::invocations_from_wire).transpose()?;
        Self::new(codec::key_from_wire(wire.key)?.key, versions, invocations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use crypto::MaskedMaterial;
    use crypto::key_backup::MAX_BACKUP_BYTES;
    use domain::algorithm::{Curve, KeySpec, OctSize, RsaSize};
    use domain::key::{
        Attributes, KeyOperations, MAX_TAG_CHARACTERS, MAX_TAGS, Origin, PublicKey, Tags, Version,
    };
    use domain::name::KeyVersion;
    use domain::time::IntDate;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn version(number: u8, spec: KeySpec, public: PublicKey, material: usize, tags: Tags) -> VersionRecord {
        VersionRecord {
            version: Version {
                name: "Payroll-2026".parse().unwrap(),
                version: KeyVersion([number; 16]),
                spec,
                public,
                operations: KeyOperations::default_for(spec),
                attributes: Attributes {
                    enabled: number.is_multiple_of(2),
                    not_before: None,
                    expires: Some(IntDate::from_unix_seconds(1_900_000_000)),
                    created: IntDate::from_unix_seconds(1_800_000_000),
                    updated: IntDate::from_unix_seconds(1_800_000_001),
                    exportable: false,
                },
                tags,
                origin: Origin::Unknown,
                release: None,
            },
            material: MaskedMaterial(vec![0xaa; material]),
        }
    }

    fn backup(versions: Vec<VersionRecord>) -> KeyBackup {
        let ids = versions.iter().map(|record| record.version.version).collect();
        let key = Key::from_stored("Payroll-2026".parse().unwrap(), ids, None).unwrap();
        let leased = BTreeMap::from([(key.current(), 65_536)]);
        let invocations = InvocationsRecord { name: key.name.clone(), leased };
        KeyBackup::new(key, versions, Some(invocations)).unwrap()
    }

    fn sample() -> KeyBackup {
        let tags = Tags::new(BTreeMap::from([("team".into(), "pay".into())])).unwrap();
        let curve = Curve::P256;
        backup(vec![
            version(
                1,
                KeySpec::Ec(curve),
                PublicKey::Ec { curve, x: vec![8; 32], y: vec![9; 32] },
                5,
                Tags::default(),
            ),
            version(2, KeySpec::Oct(OctSize::Oct256), PublicKey::Oct, 5, tags),
        ])
    }

    #[test]
    fn content_matches_its_golden_file_both_ways() {
        let path = format!("{}/tests/golden/key-backup-content.cbor", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(&path).exists() {
            std::fs::write(&path, sample().encode().danger_expose()).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        assert_eq!(sample().encode().danger_expose(), golden);
        assert_eq!(KeyBackup::decode(&SecretBytes::new(golden)), Ok(sample()));
    }

    #[test]
    fn a_key_and_versions_that_do_not_belong_together_are_refused() {
        let KeyBackup { key, versions, invocations } = sample();
        let deleted = key.delete(IntDate::from_unix_seconds(1)).unwrap();
        let mut reversed = versions.clone();
        reversed.reverse();
        let mut of_another = versions.clone();
        of_another[0].version.name = "other".parse().unwrap();
        for (key, versions) in [
            (deleted, versions.clone()),
            (key.clone(), reversed),
            (key.clone(), of_another),
            (key.clone(), versions[..1].to_vec()),
            (key.with_version(KeyVersion([3; 16]), 100).unwrap(), versions.clone()),
        ] {
            assert_eq!(KeyBackup::new(key, versions, None), Err(UnreadableRecord::Malformed));
        }
        let mut of_no_version = invocations.unwrap();
        of_no_version.leased.insert(KeyVersion([9; 16]), 1);
        let counted = KeyBackup::new(key, versions, Some(of_no_version));
        assert_eq!(counted, Err(UnreadableRecord::Malformed));
        let bytes = [sample().encode().danger_expose(), &[0]].concat();
        assert_eq!(KeyBackup::decode(&SecretBytes::new(bytes)), Err(UnreadableRecord::Malformed));
    }

    /// A hundred versions of RSA-4096, whose masked PKCS#8 has at most 2420 bytes, with as many tags, as long as can be.
    #[test]
    fn a_key_of_a_hundred_versions_fits_the_limit() {
        let long = |number: usize| format!("{}{number:02}", "t".repeat(MAX_TAG_CHARACTERS - 2));
        let tags = Tags::new((0..MAX_TAGS).map(|number| (long(number), long(number))).collect()).unwrap();
        let public = PublicKey::Rsa { modulus: vec![0xff; 512], exponent: vec![1, 0, 1] };
        let rsa = KeySpec::Rsa(RsaSize::Rsa4096);
        let all = (0..100).map(|number| version(number, rsa, public.clone(), 2420, tags.clone())).collect();
        let bytes = backup(all).encode().len();
        assert!(bytes > 1_000_000 && bytes + 1000 < MAX_BACKUP_BYTES, "{bytes}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz::key_backup(&bytes);
            fuzz::key_backup_content(&bytes);
        }

        #[test]
        fn damaged_content_never_panics(position in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = sample().encode().danger_expose().to_vec();
            let position = position.index(bytes.len());
            bytes[position] = value;
            fuzz::key_backup_content(&bytes);
        }
    }
}
