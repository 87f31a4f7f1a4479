//! Keys on their way out of the partition, opened as whoever they are for does: with an RSA key of their own and AES key wrap.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepAlgorithm,
    OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crypto::domain_secrets::PartitionWrappingKey;
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::{Generated, MaskedMaterial, MaterialBinding, Partition, PartitionError, SecretBytes};
use crypto_software::{ClientKey, SoftwarePartition};
use domain::algorithm::{Curve, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use std::sync::LazyLock;

static PARTITION: LazyLock<SoftwarePartition> =
    LazyLock::new(|| SoftwarePartition::new(PartitionWrappingKey::from_bytes([3; 32])));
static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| Environment::new(KeySize::Rsa2048));

/// Who the keys are for.
struct Environment {
    private: OaepPrivateDecryptingKey,
    public: ReleaseKey,
}

impl Environment {
    fn new(size: KeySize) -> Self {
        let private = PrivateDecryptingKey::generate(size).unwrap();
        let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let key = ClientKey::from_pkcs8(&SecretBytes::copy(der.as_ref())).unwrap();
        let public = ReleaseKey::new(&member(&key, "n"), &member(&key, "e")).unwrap();
        Self { private: OaepPrivateDecryptingKey::new(private).unwrap(), public }
    }

    fn open(&self, wrapped: &[u8], hash: &'static OaepAlgorithm) -> Option<Vec<u8>> {
        let (outer, inner) = wrapped.split_at_checked(self.public.size().bytes())?;
        let mut key = vec![0; outer.len()];
        let key = self.private.decrypt(hash, outer, &mut key, None).ok()?;
        let mut material = vec![0; inner.len() + 8];
        let unwrapping = AesKek::new(&AES_256, key).ok()?;
        unwrapping.unwrap_with_padding(inner, &mut material).ok().map(|material| material.to_vec())
    }
}

/// A member of the key's JSON Web Key.
fn member(key: &ClientKey, name: &str) -> Vec<u8> {
    let jwk = key.danger_json_web_key();
    let jwk = std::str::from_utf8(jwk.danger_expose()).unwrap();
    let (_, value) = jwk.split_once(&format!("\"{name}\":\"")).unwrap();
    URL_SAFE_NO_PAD.decode(value.split('"').next().unwrap()).unwrap()
}

fn hash(wrap: KeyWrap) -> &'static OaepAlgorithm {
    match wrap {
        KeyWrap::Sha1 => &OAEP_SHA1_MGF1SHA1,
        KeyWrap::Sha256 => &OAEP_SHA256_MGF1SHA256,
        KeyWrap::Sha384 => &OAEP_SHA384_MGF1SHA384,
    }
}

fn binding() -> MaterialBinding {
    MaterialBinding(b"a version".to_vec())
}

fn specs() -> impl Iterator<Item = KeySpec> {
    let rsa = RsaSize::ALL.map(KeySpec::Rsa);
    rsa.into_iter().chain(Curve::ALL.map(KeySpec::Ec)).chain(OctSize::ALL.map(KeySpec::Oct))
}

fn generate(spec: KeySpec) -> Generated {
    PARTITION.generate(spec, None, &binding()).unwrap()
}

fn release(spec: KeySpec, masked: &MaskedMaterial, to: &ReleaseKey, wrap: KeyWrap) -> Vec<u8> {
    PARTITION.release(spec, masked, &binding(), to, wrap).unwrap()
}

/// `material`, as it left, is the key that the partition holds as `held`, by its public half and by what it signs.
fn check_is_the_key(spec: KeySpec, held: &Generated, material: Vec<u8>) {
    let secret = SecretBytes::new(material);
    let key = match spec {
        KeySpec::Rsa(_) | KeySpec::Ec(_) => ClientKey::from_pkcs8(&secret).unwrap(),
        KeySpec::Oct(_) => ClientKey::symmetric(secret).unwrap(),
    };
    let same_public = match &held.public {
        PublicKey::Rsa { modulus, exponent } => {
            let numbers = ReleaseKey::new(&member(&key, "n"), &member(&key, "e")).unwrap();
            (numbers.modulus(), numbers.exponent()) == (modulus.as_slice(), exponent.as_slice())
        }
        PublicKey::Ec { x, y, .. } => (member(&key, "x"), member(&key, "y")) == (x.clone(), y.clone()),
        PublicKey::Oct => true,
    };
    let algorithm = SignatureAlgorithm::ALL
        .into_iter()
        .find(|algorithm| algorithm.fits(spec) && algorithm.digest_bytes().is_some())
        .unwrap();
    let digest = vec![0xd1; algorithm.digest_bytes().unwrap()];
    let own = PARTITION.load(spec, &held.masked, &binding()).unwrap();
    // Taken in again, as its new owner would use it.
    let encoding = match spec {
        KeySpec::Oct(_) => SecretBytes::new(member(&key, "k")),
        KeySpec::Rsa(_) => SecretBytes::copy(key.danger_encoding().danger_expose()),
        KeySpec::Ec(_) => {
            SecretBytes::new([member(&key, "d"), vec![4], member(&key, "x"), member(&key, "y")].concat())
        }
    };
    let again = PARTITION.import_material(spec, &encoding, &binding()).unwrap();
    let again = PARTITION.load(spec, &again.masked, &binding()).unwrap();
    let signature = again.sign(algorithm, &digest).unwrap();
    assert!(key.spec() == spec && same_public, "{spec}: another key");
    assert_eq!(own.verify(algorithm, &digest, &signature), Ok(true), "{spec}");
}

#[test]
fn each_type_leaves_in_each_way_as_the_key_that_it_is() {
    for spec in specs() {
        let held = generate(spec);
        for wrap in KeyWrap::ALL {
            let wrapped = release(spec, &held.masked, &ENVIRONMENT.public, wrap);
            let material = ENVIRONMENT.open(&wrapped, hash(wrap)).unwrap();
            if let KeySpec::Oct(size) = spec {
                assert_eq!(material.len(), size.bytes());
            }
            check_is_the_key(spec, &held, material);
            // Another hash than was asked for opens nothing.
            for other in KeyWrap::ALL.into_iter().filter(|other| *other != wrap) {
                assert_eq!(ENVIRONMENT.open(&wrapped, hash(other)), None, "{spec}");
            }
        }
    }
}

#[test]
fn environments_have_keys_of_each_size_and_open_their_own_alone() {
    let spec = KeySpec::Ec(Curve::P384);
    let held = generate(spec);
    for size in [KeySize::Rsa2048, KeySize::Rsa3072, KeySize::Rsa4096] {
        let environment = Environment::new(size);
        for wrap in KeyWrap::ALL {
            let wrapped = release(spec, &held.masked, &environment.public, wrap);
            check_is_the_key(spec, &held, environment.open(&wrapped, hash(wrap)).unwrap());
            assert_eq!(ENVIRONMENT.open(&wrapped, hash(wrap)), None);
        }
    }
}

/// Each time under a key of its own, so that nobody learns from two releases whether they are of one key.
#[test]
fn two_releases_have_nothing_in_common_and_a_damaged_one_does_not_open() {
    let spec = KeySpec::Oct(OctSize::Oct256);
    let held = generate(spec);
    let [first, second] = [0, 1].map(|_| release(spec, &held.masked, &ENVIRONMENT.public, KeyWrap::Sha256));
    let outer = ENVIRONMENT.public.size().bytes();
    assert!(first[..outer] != second[..outer] && first[outer..] != second[outer..]);
    let open = |wrapped: &[u8]| ENVIRONMENT.open(wrapped, hash(KeyWrap::Sha256));
    assert!(open(&first).is_some() && open(&first) == open(&second));
    assert_eq!(open(&[&first[..outer], &second[outer..]].concat()), None);
    for position in (0..first.len()).step_by(5) {
        let mut damaged = first.clone();
        damaged[position] ^= 1;
        assert_eq!(open(&damaged), None, "at {position}");
    }
    assert_eq!(open(&first[..first.len() - 8]), None);
}

#[test]
fn material_of_another_record_type_or_partition_does_not_leave() {
    let spec = KeySpec::Oct(OctSize::Oct256);
    let held = generate(spec);
    let to = &ENVIRONMENT.public;
    let elsewhere = MaterialBinding(b"another version".to_vec());
    let stranger = SoftwarePartition::new(PartitionWrappingKey::from_bytes([4; 32]));
    let mut bent = held.masked.0.clone();
    *bent.last_mut().unwrap() ^= 1;
    for refused in [
        PARTITION.release(spec, &held.masked, &elsewhere, to, KeyWrap::Sha1),
        PARTITION.release(KeySpec::Oct(OctSize::Oct128), &held.masked, &binding(), to, KeyWrap::Sha1),
        PARTITION.release(KeySpec::Ec(Curve::P256), &held.masked, &binding(), to, KeyWrap::Sha1),
        stranger.release(spec, &held.masked, &binding(), to, KeyWrap::Sha1),
        PARTITION.release(spec, &MaskedMaterial(bent), &binding(), to, KeyWrap::Sha1),
        PARTITION.release(spec, &MaskedMaterial(vec![]), &binding(), to, KeyWrap::Sha1),
    ] {
        assert_eq!(refused, Err(PartitionError::ForeignMaterial));
    }
}

/// The target comes in an assertion: what nobody could encrypt to is refused, whatever numbers it has.
#[test]
fn a_target_that_is_no_key_gets_nothing_and_breaks_nothing() {
    let spec = KeySpec::Oct(OctSize::Oct256);
    let held = generate(spec);
    let modulus = ENVIRONMENT.public.modulus();
    let mut odd = vec![0; 256];
    (odd[0], odd[255]) = (0x80, 1);
    for (modulus, exponent) in [
        (modulus, &[0xff, 0xff, 0xff, 0xff, 0xff][..]),
        (modulus, &[3][..]),
        (&[0xff; 256][..], &[1, 0, 1][..]),
        (&odd, &[1, 0, 1]),
    ] {
        let to = ReleaseKey::new(modulus, exponent).unwrap();
        for wrap in KeyWrap::ALL {
            match PARTITION.release(spec, &held.masked, &binding(), &to, wrap) {
                // A number that is of the form of a modulus may be one; its maker alone knows.
                Ok(wrapped) => assert_eq!(ENVIRONMENT.open(&wrapped, hash(wrap)), None),
                Err(PartitionError::InvalidMaterial(message)) => {
                    assert_eq!(message, "it is no RSA key that anybody can encrypt to");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
