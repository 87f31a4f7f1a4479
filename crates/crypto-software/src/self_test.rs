//! Known-answer tests, run before a core serves: each algorithm of the partition through the code that customers' keys
//! take, against answers of another implementation. Takes a few milliseconds.

use crate::SoftwareKey;
use crate::known_answers as known;
use crate::oct::OctKey;
use aws_lc_rs::digest;
use crypto::domain_secrets::PartitionWrappingKey;
use crypto::{Decrypt, Encrypt, LoadedKey, MaskedMaterial, MaterialBinding, SelfTestFailed, masking};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use subtle::ConstantTimeEq;

const MASKED_MATERIAL: &str = "masked material";

/// Sees each result under its name before it is judged. Does nothing but in tests, which show there that a wrong
/// result fails.
pub(crate) type Hook<'a> = &'a mut dyn FnMut(&'static str, &mut Vec<u8>);

/// Runs all tests; the first failure ends the run.
pub(crate) fn run(hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    hashes(hook)?;
    masked_material(hook)?;
    symmetric(hook)?;
    rsa(hook)?;
    elliptic_curves(hook)
}

fn hashes(hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    let hash = |algorithm| Some(digest::digest(algorithm, &known::MESSAGE).as_ref().to_vec());
    expect("SHA-256", hash(&digest::SHA256), &known::SHA_256, hook)?;
    expect("SHA-384", hash(&digest::SHA384), &known::SHA_384, hook)?;
    expect("SHA-512", hash(&digest::SHA512), &known::SHA_512, hook)
}

/// SP 800-108 key derivation and what is sealed with it, as masked material (`known-answers/make.py`).
fn masked_material(hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    let wrapping = PartitionWrappingKey::from_bytes([8; 32]);
    let binding = MaterialBinding(b"a pool, a name, a version".to_vec());
    let open = |masked: &[u8]| {
        masking::open(&wrapping, KeySpec::Oct(OctSize::Oct128), &binding, &MaskedMaterial(masked.to_vec()))
            .ok()
    };
    let material = open(&known::MASKED).map(|material| material.danger_expose().to_vec());
    expect(MASKED_MATERIAL, material, &[7; 16], hook)?;
    let mut damaged = known::MASKED;
    damaged[known::MASKED.len() - 1] ^= 1;
    refuse(MASKED_MATERIAL, open(&damaged).is_some())
}

fn symmetric(hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    let key = key("HMAC", KeySpec::Oct(OctSize::Oct256), &known::SECRET)?;
    for (algorithm, digest, answer) in [
        (SignatureAlgorithm::Hs256, known::SHA_256.as_slice(), known::HS_256.as_slice()),
        (SignatureAlgorithm::Hs384, &known::SHA_384, &known::HS_384),
        (SignatureAlgorithm::Hs512, &known::SHA_512, &known::HS_512),
    ] {
        expect(algorithm.as_str(), key.sign(algorithm, digest).ok(), answer, hook)?;
    }
    for (size, gcm_answer, cbc_answer, kw_answer) in [
        (OctSize::Oct128, known::GCM_128, known::CBC_128, known::KW_128),
        (OctSize::Oct192, known::GCM_192, known::CBC_192, known::KW_192),
        (OctSize::Oct256, known::GCM_256, known::CBC_256, known::KW_256),
    ] {
        let bytes = &known::SECRET[..size.bytes()];
        gcm(size, bytes, &gcm_answer, hook)?;
        let iv: [u8; 16] = std::array::from_fn(|index| index as u8);
        both_ways(EncryptionAlgorithm::AesCbc(size), size, Some(&iv), &cbc_answer, hook)?;
        both_ways(EncryptionAlgorithm::AesKw(size), size, None, &kw_answer, hook)?;
    }
    Ok(())
}

fn gcm(size: OctSize, bytes: &[u8], answer: &[u8], hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    let name = EncryptionAlgorithm::AesGcm(size).as_str();
    let iv: [u8; 12] = std::array::from_fn(|index| index as u8);
    let key = OctKey::parse(size, bytes).map_err(|_| SelfTestFailed(name))?;
    let sealed =
        key.gcm_seal(iv, b"additional", &known::MESSAGE).ok().map(|(bytes, tag)| [bytes, tag].concat());
    expect(name, sealed, answer, hook)?;
    let (ciphertext, tag) = answer.split_at(known::MESSAGE.len());
    let input = Decrypt { ciphertext, iv: Some(&iv), additional_data: Some(b"additional"), tag: Some(tag) };
    let opened = key.decrypt(EncryptionAlgorithm::AesGcm(size), &input).ok();
    expect(name, opened.map(|plaintext| plaintext.danger_expose().to_vec()), &known::MESSAGE, hook)?;
    let damaged = Decrypt { additional_data: Some(b"additionaL"), ..input };
    refuse(name, key.decrypt(EncryptionAlgorithm::AesGcm(size), &damaged).is_ok())
}

fn both_ways(
    algorithm: EncryptionAlgorithm,
    size: OctSize,
    iv: Option<&[u8]>,
    answer: &[u8],
    hook: Hook<'_>,
) -> Result<(), SelfTestFailed> {
    let name = algorithm.as_str();
    let blocks: [u8; 32] = std::array::from_fn(|index| 0x40 + index as u8);
    let key = key(name, KeySpec::Oct(size), &known::SECRET[..size.bytes()])?;
    let encrypted = key.encrypt(algorithm, &Encrypt { plaintext: &blocks, iv, additional_data: None });
    expect(name, encrypted.ok().map(|ciphertext| ciphertext.bytes), answer, hook)?;
    let decrypted =
        key.decrypt(algorithm, &Decrypt { ciphertext: answer, iv, additional_data: None, tag: None });
    expect(name, decrypted.ok().map(|plaintext| plaintext.danger_expose().to_vec()), &blocks, hook)
}

fn rsa(hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    let material = include_bytes!("../known-answers/rsa-2048.der");
    let key = key("RSA", KeySpec::Rsa(RsaSize::Rsa2048), material)?;
    for (algorithm, digest, answer) in [
        (SignatureAlgorithm::Rs256, known::SHA_256.as_slice(), known::RS_256),
        (SignatureAlgorithm::Rs384, &known::SHA_384, known::RS_384),
        (SignatureAlgorithm::Rs512, &known::SHA_512, known::RS_512),
        (SignatureAlgorithm::RsNull, &known::MESSAGE, known::RSNULL),
    ] {
        expect(algorithm.as_str(), key.sign(algorithm, digest).ok(), &answer, hook)?;
        verify(&key, algorithm, digest, Some(answer.to_vec()), hook)?;
    }
    for (algorithm, digest, answer) in [
        (SignatureAlgorithm::Ps256, known::SHA_256.as_slice(), known::PS_256),
        (SignatureAlgorithm::Ps384, &known::SHA_384, known::PS_384),
        (SignatureAlgorithm::Ps512, &known::SHA_512, known::PS_512),
    ] {
        verify(&key, algorithm, digest, Some(answer.to_vec()), hook)?;
        verify(&key, algorithm, digest, key.sign(algorithm, digest).ok(), hook)?;
    }
    for (algorithm, answer) in [
        (EncryptionAlgorithm::Rsa15, known::RSA1_5),
        (EncryptionAlgorithm::RsaOaep, known::RSA_OAEP),
        (EncryptionAlgorithm::RsaOaep256, known::RSA_OAEP_256),
    ] {
        let name = algorithm.as_str();
        let input = Encrypt { plaintext: &known::MESSAGE, iv: None, additional_data: None };
        let ours = key.encrypt(algorithm, &input).map_err(|_| SelfTestFailed(name))?.bytes;
        for ciphertext in [answer.as_slice(), &ours] {
            let input = Decrypt { ciphertext, iv: None, additional_data: None, tag: None };
            let plaintext = key.decrypt(algorithm, &input).ok();
            expect(name, plaintext.map(|bytes| bytes.danger_expose().to_vec()), &known::MESSAGE, hook)?;
        }
    }
    Ok(())
}

fn elliptic_curves(hook: Hook<'_>) -> Result<(), SelfTestFailed> {
    for (curve, algorithm, digest, material, answer) in [
        (
            Curve::P256,
            SignatureAlgorithm::Es256,
            known::SHA_256.as_slice(),
            known::P256_KEY.as_slice(),
            known::P256_SIGNATURE.as_slice(),
        ),
        (
            Curve::P256K,
            SignatureAlgorithm::Es256K,
            &known::SHA_256,
            &known::P256K_KEY,
            &known::P256K_SIGNATURE,
        ),
        (Curve::P384, SignatureAlgorithm::Es384, &known::SHA_384, &known::P384_KEY, &known::P384_SIGNATURE),
        (Curve::P521, SignatureAlgorithm::Es512, &known::SHA_512, &known::P521_KEY, &known::P521_SIGNATURE),
    ] {
        let key = key(algorithm.as_str(), KeySpec::Ec(curve), material)?;
        verify(&key, algorithm, digest, Some(answer.to_vec()), hook)?;
        verify(&key, algorithm, digest, key.sign(algorithm, digest).ok(), hook)?;
    }
    Ok(())
}

fn key(name: &'static str, spec: KeySpec, material: &[u8]) -> Result<SoftwareKey, SelfTestFailed> {
    SoftwareKey::parse(spec, material).map_err(|_| SelfTestFailed(name))
}

fn expect(
    name: &'static str,
    actual: Option<Vec<u8>>,
    answer: &[u8],
    hook: Hook<'_>,
) -> Result<(), SelfTestFailed> {
    let mut actual = actual.ok_or(SelfTestFailed(name))?;
    hook(name, &mut actual);
    if actual.ct_eq(answer).into() { Ok(()) } else { Err(SelfTestFailed(name)) }
}

/// The signature verifies, and no longer does over another digest.
fn verify(
    key: &SoftwareKey,
    algorithm: SignatureAlgorithm,
    digest: &[u8],
    signature: Option<Vec<u8>>,
    hook: Hook<'_>,
) -> Result<(), SelfTestFailed> {
    let name = algorithm.as_str();
    let mut signature = signature.ok_or(SelfTestFailed(name))?;
    hook(name, &mut signature);
    if key.verify(algorithm, digest, &signature) != Ok(true) {
        return Err(SelfTestFailed(name));
    }
    let mut other = digest.to_vec();
    other[0] ^= 1;
    refuse(name, key.verify(algorithm, &other, &signature) != Ok(false))
}

fn refuse(name: &'static str, accepted: bool) -> Result<(), SelfTestFailed> {
    if accepted { Err(SelfTestFailed(name)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names() -> BTreeSet<&'static str> {
        let mut names = BTreeSet::new();
        assert_eq!(run(&mut |name, _| _ = names.insert(name)), Ok(()));
        names
    }

    #[test]
    fn every_algorithm_of_the_partition_is_tested() {
        let names = names();
        for algorithm in SignatureAlgorithm::ALL {
            assert!(names.contains(algorithm.as_str()), "{}", algorithm.as_str());
        }
        // CBC with padding is CBC, plus padding of this crate's own.
        let padded = |algorithm: &EncryptionAlgorithm| matches!(algorithm, EncryptionAlgorithm::AesCbcPad(_));
        for algorithm in EncryptionAlgorithm::ALL.into_iter().filter(|algorithm| !padded(algorithm)) {
            assert!(names.contains(algorithm.as_str()), "{}", algorithm.as_str());
        }
    }

    #[test]
    fn one_wrong_result_fails_the_test_of_that_name() {
        for wrong in names() {
            let outcome = run(&mut |name, result| {
                if name == wrong {
                    result[0] ^= 1;
                }
            });
            assert_eq!(outcome, Err(SelfTestFailed(wrong)));
        }
    }
}
