//! Masking: how key material leaves a partition (`docs/formats/masked-material.md`).
//!
//! `version u8 = 1 | salt 24 bytes | ciphertext | tag 16 bytes`: AES-256-GCM under a key derived from the partition
//! wrapping key for this one message. Associated data: the label, the code of the key's type, and what the material is
//! bound to. The material itself is opaque here; each partition has an encoding of its own.

use crate::domain_secrets::PartitionWrappingKey;
use crate::single_use::{self, SALT_BYTES};
use crate::{MaskedMaterial, MaterialBinding, PartitionError, SecretBytes};
use domain::algorithm::{Curve, KeySpec, OctSize, RsaSize};

const FORMAT_VERSION: u8 = 1;
const LABEL: &[u8] = b"holdfast masked material v1";

/// Masks `material` of a key of `spec`, for an implementation of `Partition` only.
pub fn seal(
    key: &PartitionWrappingKey,
    spec: KeySpec,
    binding: &MaterialBinding,
    material: &[u8],
) -> MaskedMaterial {
    seal_with_salt(key, spec, binding, material, single_use::fresh_salt())
}

/// Unmasks.
///
/// # Errors
/// `ForeignMaterial` for whatever was not masked under this key for this `spec` and `binding`, without saying why.
pub fn open(
    key: &PartitionWrappingKey,
    spec: KeySpec,
    binding: &MaterialBinding,
    masked: &MaskedMaterial,
) -> Result<SecretBytes, PartitionError> {
    match masked.0.split_first() {
        Some((&FORMAT_VERSION, sealed)) => {
            single_use::open(key.0.danger_expose(), LABEL, &associated_data(spec, binding), sealed)
                .ok_or(PartitionError::ForeignMaterial)
        }
        Some(_) | None => Err(PartitionError::ForeignMaterial),
    }
}

fn seal_with_salt(
    key: &PartitionWrappingKey,
    spec: KeySpec,
    binding: &MaterialBinding,
    material: &[u8],
    salt: [u8; SALT_BYTES],
) -> MaskedMaterial {
    let mut masked = vec![FORMAT_VERSION];
    let associated = associated_data(spec, binding);
    single_use::seal(key.0.danger_expose(), LABEL, &salt, &associated, material, &mut masked);
    MaskedMaterial(masked)
}

fn associated_data(spec: KeySpec, binding: &MaterialBinding) -> Vec<u8> {
    [LABEL, &[spec_code(spec)], &binding.0].concat()
}

/// Part of the format: a code is never given a second meaning.
fn spec_code(spec: KeySpec) -> u8 {
    match spec {
        KeySpec::Rsa(RsaSize::Rsa2048) => 0x11,
        KeySpec::Rsa(RsaSize::Rsa3072) => 0x12,
        KeySpec::Rsa(RsaSize::Rsa4096) => 0x13,
        KeySpec::Ec(Curve::P256) => 0x21,
        KeySpec::Ec(Curve::P256K) => 0x22,
        KeySpec::Ec(Curve::P384) => 0x23,
        KeySpec::Ec(Curve::P521) => 0x24,
        KeySpec::Oct(OctSize::Oct128) => 0x31,
        KeySpec::Oct(OctSize::Oct192) => 0x32,
        KeySpec::Oct(OctSize::Oct256) => 0x33,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: KeySpec = KeySpec::Oct(OctSize::Oct128);

    fn all_specs() -> Vec<KeySpec> {
        let rsa = RsaSize::ALL.map(KeySpec::Rsa);
        let ec = Curve::ALL.map(KeySpec::Ec);
        let oct = OctSize::ALL.map(KeySpec::Oct);
        rsa.into_iter().chain(ec).chain(oct).collect()
    }

    fn key() -> PartitionWrappingKey {
        PartitionWrappingKey::from_bytes([8; 32])
    }

    fn binding() -> MaterialBinding {
        MaterialBinding(b"a pool, a name, a version".to_vec())
    }

    fn masked() -> MaskedMaterial {
        seal_with_salt(&key(), SPEC, &binding(), &[7; 16], [6; SALT_BYTES])
    }

    #[test]
    fn masked_material_matches_its_golden_file() {
        let golden = MaskedMaterial(include_bytes!("../tests/golden/masked-material-v1.bin").to_vec());
        assert_eq!(masked(), golden);
        assert_eq!(open(&key(), SPEC, &binding(), &golden).unwrap().danger_expose(), [7; 16]);
    }

    #[test]
    fn masked_material_opens_only_for_its_own_key_type_binding_and_partition() {
        let foreign = Some(PartitionError::ForeignMaterial);
        for spec in all_specs().into_iter().filter(|spec| *spec != SPEC) {
            assert_eq!(open(&key(), spec, &binding(), &masked()).err(), foreign, "{spec}");
        }
        for length in 0..binding().0.len() {
            let other = MaterialBinding(binding().0[..length].to_vec());
            assert_eq!(open(&key(), SPEC, &other, &masked()).err(), foreign);
        }
        let other = PartitionWrappingKey::from_bytes([9; 32]);
        assert_eq!(open(&other, SPEC, &binding(), &masked()).err(), foreign);
    }

    #[test]
    fn each_flipped_bit_and_each_shorter_length_is_refused() {
        let masked = masked();
        for bit in 0..masked.0.len() * 8 {
            let mut damaged = masked.clone();
            damaged.0[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key(), SPEC, &binding(), &damaged).is_err(), "bit {bit}");
        }
        for length in 0..masked.0.len() {
            let shorter = MaskedMaterial(masked.0[..length].to_vec());
            assert!(open(&key(), SPEC, &binding(), &shorter).is_err(), "length {length}");
        }
    }

    #[test]
    fn each_key_type_has_a_code_of_its_own() {
        let mut codes: Vec<u8> = all_specs().into_iter().map(spec_code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all_specs().len());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_open(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), ours in any::<bool>()) {
            if ours {
                bytes.insert(0, FORMAT_VERSION);
            }
            prop_assert!(open(&key(), SPEC, &binding(), &MaskedMaterial(bytes)).is_err());
        }

        #[test]
        fn what_was_masked_comes_back(material in proptest::collection::vec(any::<u8>(), 0..300)) {
            let masked = seal(&key(), SPEC, &binding(), &material);
            let opened = open(&key(), SPEC, &binding(), &masked).unwrap();
            prop_assert_eq!(opened.danger_expose(), material);
        }
    }
}
