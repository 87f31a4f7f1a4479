//! The partition through its public interface: keys made, loaded, used; limits; arbitrary input.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use crypto::domain_secrets::PartitionWrappingKey;
use crypto::{
    Ciphertext, Decrypt, Encrypt, LoadedKey, MaskedMaterial, MaterialBinding, Partition, PartitionError,
    SecretBytes,
};
use crypto_software::{MAX_INPUT_BYTES, SoftwarePartition};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};

static PARTITION: LazyLock<SoftwarePartition> =
    LazyLock::new(|| SoftwarePartition::new(PartitionWrappingKey::from_bytes([3; 32])));

/// One key of each type and size, made once: generation of RSA keys is slow.
static KEYS: LazyLock<Vec<Arc<dyn LoadedKey>>> = LazyLock::new(|| {
    let rsa = RsaSize::ALL.map(KeySpec::Rsa);
    let ec = Curve::ALL.map(KeySpec::Ec);
    let oct = OctSize::ALL.map(KeySpec::Oct);
    rsa.into_iter().chain(ec).chain(oct).map(new_key).collect()
});

fn binding() -> MaterialBinding {
    MaterialBinding(b"a version".to_vec())
}

fn new_key(spec: KeySpec) -> Arc<dyn LoadedKey> {
    let generated = PARTITION.generate(spec, None, &binding()).unwrap();
    PARTITION.load(spec, &generated.masked, &binding()).unwrap()
}

fn key(spec: KeySpec) -> &'static dyn LoadedKey {
    KEYS.iter().find(|key| key.spec() == spec).unwrap().as_ref()
}

fn rsa() -> &'static dyn LoadedKey {
    key(KeySpec::Rsa(RsaSize::Rsa2048))
}

fn aes() -> &'static dyn LoadedKey {
    key(KeySpec::Oct(OctSize::Oct256))
}

fn plain(plaintext: &[u8]) -> Encrypt<'_> {
    Encrypt { plaintext, iv: None, additional_data: None }
}

fn sealed(ciphertext: &Ciphertext) -> Decrypt<'_> {
    Decrypt {
        ciphertext: &ciphertext.bytes,
        iv: ciphertext.iv.as_deref(),
        additional_data: None,
        tag: ciphertext.tag.as_deref(),
    }
}

fn digest_for(algorithm: SignatureAlgorithm) -> Vec<u8> {
    vec![0xd1; algorithm.digest_bytes().unwrap_or(51)]
}

fn is_length<T>(outcome: Result<T, PartitionError>) -> bool {
    matches!(outcome, Err(PartitionError::InputLength(_)))
}

#[test]
fn each_key_serves_the_algorithms_of_its_type_and_no_others() {
    for key in KEYS.iter() {
        let spec = key.spec();
        for algorithm in SignatureAlgorithm::ALL {
            let digest = digest_for(algorithm);
            let signature = key.sign(algorithm, &digest);
            if algorithm.fits(spec) {
                let signature = signature.unwrap();
                assert_eq!(key.verify(algorithm, &digest, &signature), Ok(true), "{algorithm:?} {spec}");
                for position in 0..signature.len() {
                    let mut damaged = signature.clone();
                    damaged[position] ^= 0x10;
                    assert_eq!(key.verify(algorithm, &digest, &damaged), Ok(false), "{algorithm:?} {spec}");
                }
                let longer = [signature.as_slice(), &[0]].concat();
                assert_eq!(key.verify(algorithm, &digest, &longer), Ok(false));
                assert_eq!(key.verify(algorithm, &digest, &signature[1..]), Ok(false));
                assert_eq!(key.verify(algorithm, &digest, &[]), Ok(false));
            } else {
                let refused = PartitionError::AlgorithmMismatch { algorithm: algorithm.as_str(), spec };
                assert_eq!(signature, Err(refused.clone()));
                assert_eq!(key.verify(algorithm, &digest, &[]), Err(refused));
            }
        }
        for algorithm in EncryptionAlgorithm::ALL {
            let encrypted = key.encrypt(algorithm, &plain(&[7; 32]));
            if algorithm.encrypts_with(spec) || algorithm.wraps_with(spec) {
                let decrypted = key.decrypt(algorithm, &sealed(&encrypted.unwrap())).unwrap();
                assert_eq!(decrypted.danger_expose(), [7; 32], "{algorithm:?} {spec}");
            } else {
                let refused = PartitionError::AlgorithmMismatch { algorithm: algorithm.as_str(), spec };
                assert_eq!(encrypted, Err(refused.clone()));
                let nothing = Decrypt { ciphertext: &[], iv: None, additional_data: None, tag: None };
                assert_eq!(key.decrypt(algorithm, &nothing).err(), Some(refused));
            }
        }
    }
}

#[test]
fn digests_of_another_length_are_refused() {
    for key in KEYS.iter() {
        for algorithm in SignatureAlgorithm::ALL.into_iter().filter(|algorithm| algorithm.fits(key.spec())) {
            let Some(expected) = algorithm.digest_bytes() else { continue };
            for actual in [0, expected - 1, expected + 1] {
                let refused =
                    PartitionError::DigestLength { algorithm: algorithm.as_str(), expected, actual };
                assert_eq!(key.sign(algorithm, &vec![1; actual]), Err(refused.clone()));
                assert_eq!(key.verify(algorithm, &vec![1; actual], &[1; 64]), Err(refused));
            }
        }
    }
}

#[test]
fn public_numbers_have_the_lengths_that_the_wire_shows() {
    let slow = [KeySpec::Rsa(RsaSize::Rsa3072), KeySpec::Rsa(RsaSize::Rsa4096)];
    for spec in KEYS.iter().map(|key| key.spec()).filter(|spec| !slow.contains(spec)) {
        match (PARTITION.generate(spec, None, &binding()).unwrap().public, spec) {
            (PublicKey::Rsa { modulus, exponent }, KeySpec::Rsa(size)) => {
                assert_eq!((modulus.len(), exponent), (size.bytes(), vec![1, 0, 1]));
                assert!(modulus[0] >= 0x80);
            }
            (PublicKey::Ec { curve, x, y }, KeySpec::Ec(of)) => {
                assert_eq!((curve, x.len(), y.len()), (of, of.coordinate_bytes(), of.coordinate_bytes()));
            }
            (PublicKey::Oct, KeySpec::Oct(_)) => {}
            (public, spec) => panic!("{public:?} of a key of type {spec}"),
        }
    }
}

#[test]
fn other_public_exponents_work_or_are_refused_by_name() {
    let spec = KeySpec::Rsa(RsaSize::Rsa2048);
    for exponent in [3, 17, 65_539] {
        let generated = PARTITION.generate(spec, Some(exponent), &binding()).unwrap();
        let PublicKey::Rsa { exponent: written, .. } = generated.public else { panic!("not RSA") };
        assert_eq!(written.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)), exponent);
        let key = PARTITION.load(spec, &generated.masked, &binding()).unwrap();
        let signature = key.sign(SignatureAlgorithm::Rs256, &[1; 32]).unwrap();
        assert_eq!(key.verify(SignatureAlgorithm::Rs256, &[1; 32], &signature), Ok(true));
        let ciphertext = key.encrypt(EncryptionAlgorithm::RsaOaep256, &plain(b"secret")).unwrap();
        let decrypted = key.decrypt(EncryptionAlgorithm::RsaOaep256, &sealed(&ciphertext)).unwrap();
        assert_eq!(decrypted.danger_expose(), b"secret");
    }
    for exponent in [0, 1, 2, 65_536, 1 << 32, u64::MAX] {
        let refused = PARTITION.generate(spec, Some(exponent), &binding()).err();
        assert!(matches!(refused, Some(PartitionError::InvalidMaterial(_))), "{exponent}");
    }
    for spec in [KeySpec::Ec(Curve::P256), KeySpec::Oct(OctSize::Oct256)] {
        let refused = PARTITION.generate(spec, Some(65_537), &binding()).err();
        assert!(matches!(refused, Some(PartitionError::InvalidMaterial(_))), "{spec}");
    }
}

#[test]
fn material_loads_only_as_what_it_was_made_for() {
    let spec = KeySpec::Ec(Curve::P256);
    let generated = PARTITION.generate(spec, None, &binding()).unwrap();
    let load = |spec, masked: &MaskedMaterial, binding: &MaterialBinding| {
        PARTITION.load(spec, masked, binding).err()
    };
    assert_eq!(load(spec, &generated.masked, &binding()), None);
    let foreign = Some(PartitionError::ForeignMaterial);
    assert_eq!(load(spec, &generated.masked, &MaterialBinding(b"another".to_vec())), foreign);
    assert_eq!(load(KeySpec::Ec(Curve::P256K), &generated.masked, &binding()), foreign);
    let other = SoftwarePartition::new(PartitionWrappingKey::from_bytes([4; 32]));
    assert_eq!(other.load(spec, &generated.masked, &binding()).err(), foreign);
    for bit in 0..generated.masked.0.len() * 8 {
        let mut damaged = generated.masked.clone();
        damaged.0[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(load(spec, &damaged, &binding()), foreign, "bit {bit}");
    }
}

#[test]
fn malformed_material_is_refused() {
    let rsa = include_bytes!("../known-answers/rsa-2048.der").as_slice();
    let import = |spec, material: &[u8]| {
        PARTITION.import_material(spec, &SecretBytes::new(material.to_vec()), &binding()).err()
    };
    let refused = |outcome| matches!(outcome, Some(PartitionError::InvalidMaterial(_)));
    let rsa_2048 = KeySpec::Rsa(RsaSize::Rsa2048);
    assert_eq!(import(rsa_2048, rsa), None);
    assert!(refused(import(KeySpec::Rsa(RsaSize::Rsa3072), rsa)));
    assert!(refused(import(rsa_2048, &[rsa, &[0]].concat())), "bytes behind the key");
    assert!(refused(import(rsa_2048, &[])));
    for length in (0..rsa.len()).step_by(7) {
        assert!(refused(import(rsa_2048, &rsa[..length])), "length {length}");
    }
    // Far enough behind the algorithm's name: the numbers themselves. None of them may differ unnoticed.
    for position in (40..rsa.len()).step_by(11) {
        let mut damaged = rsa.to_vec();
        damaged[position] ^= 0x04;
        assert!(refused(import(rsa_2048, &damaged)), "position {position}");
    }
    for curve in Curve::ALL {
        let (spec, bytes) = (KeySpec::Ec(curve), curve.coordinate_bytes());
        for material in [vec![0; 3 * bytes + 1], vec![0xff; 3 * bytes + 1], vec![4; 3 * bytes + 1], vec![]] {
            assert!(refused(import(spec, &material)), "{spec}");
        }
    }
    for size in OctSize::ALL {
        assert_eq!(import(KeySpec::Oct(size), &vec![1; size.bytes()]), None);
        assert!(refused(import(KeySpec::Oct(size), &vec![1; size.bytes() + 1])));
        assert!(refused(import(KeySpec::Oct(size), &[])));
    }
}

#[test]
fn rsa_takes_what_its_padding_leaves_room_for() {
    for size in RsaSize::ALL {
        let key = key(KeySpec::Rsa(size));
        for (algorithm, overhead) in [
            (EncryptionAlgorithm::Rsa15, 11),
            (EncryptionAlgorithm::RsaOaep, 42),
            (EncryptionAlgorithm::RsaOaep256, 66),
        ] {
            let most = vec![5; size.bytes() - overhead];
            let ciphertext = key.encrypt(algorithm, &plain(&most)).unwrap();
            assert_eq!(ciphertext.bytes.len(), size.bytes());
            assert_eq!(key.decrypt(algorithm, &sealed(&ciphertext)).unwrap().danger_expose(), most);
            assert!(is_length(key.encrypt(algorithm, &plain(&[most, vec![5]].concat()))));
            assert!(key.encrypt(algorithm, &plain(&[])).is_ok());
            for bytes in [0, 1, size.bytes() - 1, size.bytes() + 1] {
                let ciphertext = vec![1; bytes];
                let input = Decrypt { ciphertext: &ciphertext, iv: None, additional_data: None, tag: None };
                assert!(is_length(key.decrypt(algorithm, &input)), "{bytes} bytes");
            }
        }
        assert!(is_length(key.sign(SignatureAlgorithm::RsNull, &[])));
        assert!(key.sign(SignatureAlgorithm::RsNull, &vec![1; size.bytes() - 11]).is_ok());
        assert!(is_length(key.sign(SignatureAlgorithm::RsNull, &vec![1; size.bytes() - 10])));
    }
}

/// Additional data that RSA would drop, a tag that key wrap would ignore: a caller must not believe in them. CBC alone
/// passes over additional data, as clients of the service rely on it.
#[test]
fn what_an_algorithm_does_not_use_is_refused() {
    for (key, algorithm, iv, additional_data) in [
        (rsa(), EncryptionAlgorithm::RsaOaep, None, Some(b"a".as_slice())),
        (rsa(), EncryptionAlgorithm::RsaOaep, Some([0; 16].as_slice()), None),
        (aes(), EncryptionAlgorithm::AesGcm(OctSize::Oct256), Some(&[0; 12]), None),
        (aes(), EncryptionAlgorithm::AesKw(OctSize::Oct256), None, Some(b"a")),
        (aes(), EncryptionAlgorithm::AesKw(OctSize::Oct256), Some(&[0; 8]), None),
    ] {
        let input = Encrypt { plaintext: &[1; 32], iv, additional_data };
        assert!(is_length(key.encrypt(algorithm, &input)), "{algorithm:?}");
    }
    let tag = Some([0; 16].as_slice());
    for algorithm in [
        EncryptionAlgorithm::AesCbc(OctSize::Oct256),
        EncryptionAlgorithm::AesCbcPad(OctSize::Oct256),
        EncryptionAlgorithm::AesKw(OctSize::Oct256),
    ] {
        let input = Decrypt { ciphertext: &[1; 32], iv: Some(&[0; 16]), additional_data: None, tag };
        assert!(is_length(aes().decrypt(algorithm, &input)), "{algorithm:?}");
    }
}

#[test]
fn symmetric_limits_are_exact() {
    let gcm = EncryptionAlgorithm::AesGcm(OctSize::Oct256);
    let cbc = EncryptionAlgorithm::AesCbc(OctSize::Oct256);
    let cbc_pad = EncryptionAlgorithm::AesCbcPad(OctSize::Oct256);
    let kw = EncryptionAlgorithm::AesKw(OctSize::Oct256);
    let most = vec![6; MAX_INPUT_BYTES];
    let more = vec![6; MAX_INPUT_BYTES + 16];
    for algorithm in [gcm, cbc, cbc_pad, kw] {
        let ciphertext = aes().encrypt(algorithm, &plain(&most)).unwrap();
        assert_eq!(aes().decrypt(algorithm, &sealed(&ciphertext)).unwrap().danger_expose(), most);
        assert!(is_length(aes().encrypt(algorithm, &plain(&more))));
        let longer = Ciphertext { bytes: vec![6; MAX_INPUT_BYTES + 32], ..ciphertext };
        assert!(is_length(aes().decrypt(algorithm, &sealed(&longer))));
    }
    let zeros = [0; 17];
    let input = |iv: Option<usize>, tag: Option<usize>| Decrypt {
        ciphertext: &[1; 32],
        iv: iv.map(|bytes| &zeros[..bytes]),
        additional_data: None,
        tag: tag.map(|bytes| &zeros[..bytes]),
    };
    for (iv, tag) in [
        (None, Some(16)),
        (Some(0), Some(16)),
        (Some(11), Some(16)),
        (Some(13), Some(16)),
        (Some(16), Some(16)),
        (Some(12), None),
        (Some(12), Some(0)),
        (Some(12), Some(15)),
        (Some(12), Some(17)),
    ] {
        assert!(is_length(aes().decrypt(gcm, &input(iv, tag))), "iv {iv:?}, tag {tag:?}");
    }
    for algorithm in [cbc, cbc_pad] {
        for iv in [None, Some(0), Some(15), Some(17)] {
            assert!(is_length(aes().decrypt(algorithm, &input(iv, None))), "iv {iv:?}");
        }
        for bytes in [0, 1, 15, 17] {
            let ciphertext = vec![1; bytes];
            let input =
                Decrypt { ciphertext: &ciphertext, iv: Some(&[0; 16]), additional_data: None, tag: None };
            assert!(is_length(aes().decrypt(algorithm, &input)), "{bytes} bytes");
        }
    }
    for bytes in [0, 1, 15, 17] {
        let plaintext = vec![1; bytes];
        match aes().encrypt(cbc, &plain(&plaintext)) {
            refused @ Err(_) => assert!(bytes == 0 && is_length(refused), "{bytes} bytes"),
            Ok(sealed_zeros) => {
                let filled = [plaintext.as_slice(), &vec![0; bytes.next_multiple_of(16) - bytes]].concat();
                let opened = aes().decrypt(cbc, &sealed(&sealed_zeros)).unwrap();
                assert_eq!(opened.danger_expose(), filled);
            }
        }
        let padded = aes().encrypt(cbc_pad, &plain(&vec![1; bytes])).unwrap();
        assert_eq!(padded.bytes.len(), bytes / 16 * 16 + 16);
        assert_eq!(aes().decrypt(cbc_pad, &sealed(&padded)).unwrap().danger_expose(), vec![1; bytes]);
    }
    for bytes in [0, 8, 15, 17, 31] {
        assert!(is_length(aes().encrypt(kw, &plain(&vec![1; bytes]))), "{bytes} bytes");
    }
    for bytes in [0, 8, 16, 25] {
        let ciphertext = vec![1; bytes];
        let input = Decrypt { ciphertext: &ciphertext, iv: None, additional_data: None, tag: None };
        assert!(is_length(aes().decrypt(kw, &input)), "{bytes} bytes");
    }
}

/// Padding, tag, key and damage: one answer, in words too.
#[test]
fn every_failed_decryption_looks_alike() {
    let failed = Some(PartitionError::DecryptionFailed);
    for key in KEYS.iter() {
        let spec = key.spec();
        let stranger = match spec {
            // The other keys take part as strangers to RSA; making three more would cost seconds.
            KeySpec::Rsa(_) => None,
            KeySpec::Ec(_) | KeySpec::Oct(_) => Some(new_key(spec)),
        };
        for algorithm in EncryptionAlgorithm::ALL {
            let unauthenticated = matches!(algorithm, EncryptionAlgorithm::AesCbc(_));
            let padded_only = matches!(algorithm, EncryptionAlgorithm::AesCbcPad(_));
            if unauthenticated || !(algorithm.encrypts_with(spec) || algorithm.wraps_with(spec)) {
                continue;
            }
            let ciphertext = key.encrypt(algorithm, &plain(&[9; 32])).unwrap();
            // A private operation each: not at every byte.
            let step = if matches!(spec, KeySpec::Rsa(_)) { 13 } else { 1 };
            for position in (0..ciphertext.bytes.len()).step_by(step) {
                let mut damaged = ciphertext.clone();
                damaged.bytes[position] ^= 0x80;
                match key.decrypt(algorithm, &sealed(&damaged)) {
                    // Padding shows damage only where it is hit, and PKCS#1 v1.5 may pass it by chance.
                    Ok(other) => {
                        assert!(padded_only || algorithm == EncryptionAlgorithm::Rsa15, "{algorithm:?}");
                        assert_ne!(other.danger_expose(), [9; 32]);
                    }
                    Err(refused) => assert_eq!(Some(refused), failed, "{algorithm:?} {position}"),
                }
            }
            if let (Some(stranger), false) = (&stranger, padded_only) {
                assert_eq!(stranger.decrypt(algorithm, &sealed(&ciphertext)).err(), failed, "{algorithm:?}");
            }
            if let Some(tag) = &ciphertext.tag {
                for bit in 0..tag.len() * 8 {
                    let mut tag = tag.clone();
                    tag[bit / 8] ^= 1 << (bit % 8);
                    let input = Decrypt { tag: Some(&tag), ..sealed(&ciphertext) };
                    assert_eq!(key.decrypt(algorithm, &input).err(), failed, "tag bit {bit}");
                }
                let input = Decrypt { additional_data: Some(b"x"), ..sealed(&ciphertext) };
                assert_eq!(key.decrypt(algorithm, &input).err(), failed);
            }
        }
    }
}

#[test]
fn ivs_are_never_the_same_twice() {
    for algorithm in
        [EncryptionAlgorithm::AesGcm(OctSize::Oct256), EncryptionAlgorithm::AesCbc(OctSize::Oct256)]
    {
        let mut ivs = std::collections::HashSet::new();
        for _ in 0..1_000 {
            assert!(ivs.insert(aes().encrypt(algorithm, &plain(&[0; 16])).unwrap().iv.unwrap()));
        }
    }
}

#[test]
fn a_loaded_key_serves_many_threads() {
    let algorithms = [SignatureAlgorithm::Ps256, SignatureAlgorithm::Rs512, SignatureAlgorithm::RsNull];
    let fresh = new_key(KeySpec::Rsa(RsaSize::Rsa2048));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for algorithm in algorithms {
                    let digest = digest_for(algorithm);
                    let signature = fresh.sign(algorithm, &digest).unwrap();
                    assert_eq!(fresh.verify(algorithm, &digest, &signature), Ok(true));
                }
                let ciphertext = fresh.encrypt(EncryptionAlgorithm::RsaOaep, &plain(b"m")).unwrap();
                assert!(fresh.decrypt(EncryptionAlgorithm::RsaOaep, &sealed(&ciphertext)).is_ok());
            });
        }
    });
}

#[test]
fn the_self_test_passes() {
    assert_eq!(PARTITION.self_test(), Ok(()));
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    let lengths = prop_oneof![
        0..70usize,
        Just(255usize),
        Just(256usize),
        Just(257usize),
        Just(384usize),
        Just(512usize),
        0..600usize
    ];
    lengths.prop_flat_map(|length| proptest::collection::vec(any::<u8>(), length))
}

fn maybe_bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        Just(None),
        proptest::collection::vec(any::<u8>(), 12).prop_map(Some),
        proptest::collection::vec(any::<u8>(), 16).prop_map(Some),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Some)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_input_never_panics(
        index in 0..10usize,
        (first, second) in (some_bytes(), some_bytes()),
        (iv, additional, tag) in (maybe_bytes(), maybe_bytes(), maybe_bytes()),
    ) {
        let key = &KEYS[index];
        for algorithm in SignatureAlgorithm::ALL {
            prop_assert_ne!(key.verify(algorithm, &first, &second), Ok(true));
            let _ = key.sign(algorithm, &first);
        }
        for algorithm in EncryptionAlgorithm::ALL {
            let _ = key.encrypt(
                algorithm,
                &Encrypt { plaintext: &first, iv: iv.as_deref(), additional_data: additional.as_deref() },
            );
            let _ = key.decrypt(
                algorithm,
                &Decrypt {
                    ciphertext: &second,
                    iv: iv.as_deref(),
                    additional_data: additional.as_deref(),
                    tag: tag.as_deref(),
                },
            );
        }
    }

    #[test]
    fn arbitrary_material_never_panics(index in 0..10usize, material in some_bytes()) {
        let spec = KEYS[index].spec();
        let _ = PARTITION.load(spec, &MaskedMaterial(material.clone()), &binding());
        let _ = PARTITION.import_material(spec, &SecretBytes::new(material), &binding());
    }
}

#[test]
fn rebound_material_is_the_same_key_at_its_new_place_alone() {
    let there = MaterialBinding(b"another pool".to_vec());
    let foreign = Err(PartitionError::ForeignMaterial);
    for spec in [KeySpec::Ec(Curve::P256), KeySpec::Oct(OctSize::Oct256)] {
        let made = PARTITION.generate(spec, None, &binding()).unwrap();
        let rebound = PARTITION.rebind(spec, &made.masked, &binding(), &there).unwrap();
        let key = PARTITION.load(spec, &rebound, &there).unwrap();
        let original = PARTITION.load(spec, &made.masked, &binding()).unwrap();
        let algorithm = SignatureAlgorithm::ALL.into_iter().find(|algorithm| algorithm.fits(spec)).unwrap();
        let digest = digest_for(algorithm);
        let signature = key.sign(algorithm, &digest).unwrap();
        assert_eq!(original.verify(algorithm, &digest, &signature), Ok(true), "{spec}");

        assert_eq!(PARTITION.load(spec, &rebound, &binding()).err(), Some(PartitionError::ForeignMaterial));
        assert_eq!(PARTITION.rebind(spec, &made.masked, &there, &there), foreign);
        let other = KeySpec::Ec(Curve::P384);
        assert_eq!(PARTITION.rebind(other, &made.masked, &binding(), &there), foreign);
        let stranger = SoftwarePartition::new(PartitionWrappingKey::from_bytes([4; 32]));
        assert_eq!(stranger.rebind(spec, &made.masked, &binding(), &there), foreign);
    }
}
