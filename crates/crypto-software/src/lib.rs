//! The software partition: customers' keys on aws-lc, masked whenever they leave.
//!
//! It stores nothing and asks nobody: masked material in, a usable key out. It does not decide whether a key may be
//! used; that is `service`, by `domain`'s rules. Clear material exists in the [`arena`] while a [`LoadedKey`] lives, and is
//! wiped when the last reference is dropped; the stack that its use left behind is wiped after each use.

pub mod arena;
mod aws_lc;
mod client_key;
mod ec;
mod errors;
mod import;
mod known_answers;
mod oct;
#[cfg(test)]
mod padding_times;
mod pkcs8;
mod registers;
mod released_key;
mod rsa;
mod self_test;
#[cfg(test)]
mod vectors;
mod wrapped_key;

use crate::ec::EcKey;
use crate::errors::{failed_to, input_length, invalid_material, mismatch};
use crate::oct::OctKey;
use crate::rsa::RsaKey;
use crypto::domain_secrets::PartitionWrappingKey;
use crypto::import::WrappedKind;
use crypto::masking;
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::stack::wiping_stack;
use crypto::{
    Ciphertext, Decrypt, Encrypt, Generated, LoadedKey, MaskedMaterial, MaterialBinding, Partition,
    PartitionError, PrivateParts, SecretBytes, SelfTestFailed,
};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, SignatureAlgorithm};
use domain::key::PublicKey;
use std::sync::Arc;

pub use crate::client_key::ClientKey;
pub use crate::oct::MAX_INPUT_BYTES;

/// More than any operation of the library on a private or secret key puts on the stack
/// (`arena::leaks::the_stack_that_is_wiped_is_deep_enough`).
const STACK_BYTES: usize = 24 * 1024;
/// Likewise, for ECDSA: its nonces come from a generator that is seeded anew each time.
const ECDSA_STACK_BYTES: usize = 72 * 1024;

/// A partition whose keys live in this process's memory.
pub struct SoftwarePartition {
    wrapping: PartitionWrappingKey,
}

impl SoftwarePartition {
    pub fn new(wrapping: PartitionWrappingKey) -> Self {
        Self { wrapping }
    }

    /// Takes in clear material in this partition's own encoding (`docs/formats/masked-material.md`), checks it as a key
    /// of `spec`, and masks it.
    ///
    /// # Errors
    /// `InvalidMaterial` for anything that is not a well-formed, consistent key of `spec`.
    pub fn import_material(
        &self,
        spec: KeySpec,
        material: &SecretBytes,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        arena::admit_key()?;
        let material = material.danger_expose();
        let public = private(|| SoftwareKey::parse(spec, material))?.public_numbers();
        Ok(Generated { public, masked: masking::seal(&self.wrapping, spec, binding, material) })
    }

    /// A key of material that was just made or handed in: it must work before anybody gets it.
    fn new_key(
        &self,
        spec: KeySpec,
        binding: &MaterialBinding,
        material: impl FnOnce() -> Result<SecretBytes, PartitionError>,
    ) -> Result<Generated, PartitionError> {
        arena::admit_key()?;
        let (material, key) = private(|| {
            let material = material()?;
            let key = SoftwareKey::parse(spec, material.danger_expose())?;
            Ok((material, key))
        })?;
        key.check_pairwise_consistency()?;
        let masked = masking::seal(&self.wrapping, spec, binding, material.danger_expose());
        Ok(Generated { public: key.public_numbers(), masked })
    }
}

impl Partition for SoftwarePartition {
    fn generate(
        &self,
        spec: KeySpec,
        public_exponent: Option<u64>,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        if public_exponent.is_some() && !matches!(spec, KeySpec::Rsa(_)) {
            return Err(invalid_material(format!("a public exponent does not go with a key of type {spec}")));
        }
        self.new_key(spec, binding, || match spec {
            KeySpec::Rsa(size) => rsa::generate(size, public_exponent),
            KeySpec::Ec(curve) => ec::generate(curve),
            KeySpec::Oct(size) => oct::generate(size),
        })
    }

    fn import(
        &self,
        spec: KeySpec,
        parts: &PrivateParts,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.new_key(spec, binding, || import::material(spec, parts))
    }

    fn unwrap(
        &self,
        kek: &dyn LoadedKey,
        kind: WrappedKind,
        wrapped: &[u8],
    ) -> Result<PrivateParts, PartitionError> {
        arena::admit_key()?;
        private(|| wrapped_key::open(kek, kind, wrapped))
    }

    fn load(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
    ) -> Result<Arc<dyn LoadedKey>, PartitionError> {
        arena::admit_key()?;
        let material = masking::open(&self.wrapping, spec, binding, masked)?;
        Ok(Arc::new(private(|| SoftwareKey::parse(spec, material.danger_expose()))?))
    }

    fn rebind(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        from: &MaterialBinding,
        to: &MaterialBinding,
    ) -> Result<MaskedMaterial, PartitionError> {
        arena::admit_use()?;
        let material = masking::open(&self.wrapping, spec, from, masked)?;
        Ok(masking::seal(&self.wrapping, spec, to, material.danger_expose()))
    }

    fn release(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
        to: &ReleaseKey,
        wrap: KeyWrap,
    ) -> Result<Vec<u8>, PartitionError> {
        arena::admit_key()?;
        let material = masking::open(&self.wrapping, spec, binding, masked)?;
        private(|| released_key::wrap(spec, material.danger_expose(), to, wrap))
    }

    fn random(&self, out: &mut [u8]) -> Result<(), PartitionError> {
        aws_lc_rs::rand::fill(out).map_err(failed_to("make random bytes"))
    }

    fn self_test(&self) -> Result<(), SelfTestFailed> {
        self_test::run(&mut |_, _| ())
    }
}

struct SoftwareKey {
    spec: KeySpec,
    material: Material,
}

#[expect(clippy::large_enum_variant, reason = "each lives alone in an Arc")]
enum Material {
    Rsa(RsaKey),
    Ec(EcKey),
    Oct(OctKey),
}

impl SoftwareKey {
    fn parse(spec: KeySpec, material: &[u8]) -> Result<Self, PartitionError> {
        let material = match spec {
            KeySpec::Rsa(size) => Material::Rsa(RsaKey::parse(size, material)?),
            KeySpec::Ec(curve) => Material::Ec(EcKey::parse(curve, material)?),
            KeySpec::Oct(size) => Material::Oct(OctKey::parse(size, material)?),
        };
        Ok(Self { spec, material })
    }

    fn public_numbers(&self) -> PublicKey {
        match &self.material {
            Material::Rsa(key) => key.public_numbers(),
            Material::Ec(key) => key.public_numbers(),
            Material::Oct(_) => PublicKey::Oct,
        }
    }

    /// FIPS 140-3 implementation guidance 10.3.A: what the new private key signs, the public key must verify.
    fn check_pairwise_consistency(&self) -> Result<(), PartitionError> {
        let algorithm = match self.spec {
            KeySpec::Rsa(_) => SignatureAlgorithm::Ps256,
            KeySpec::Ec(Curve::P256) => SignatureAlgorithm::Es256,
            KeySpec::Ec(Curve::P256K) => SignatureAlgorithm::Es256K,
            KeySpec::Ec(Curve::P384) => SignatureAlgorithm::Es384,
            KeySpec::Ec(Curve::P521) => SignatureAlgorithm::Es512,
            KeySpec::Oct(_) => return Ok(()),
        };
        let digest = [0x5a; 64];
        let digest = &digest[..algorithm.digest_bytes().unwrap_or_default()];
        let signature = self.sign(algorithm, digest)?;
        match self.verify(algorithm, digest, &signature)? {
            true => Ok(()),
            false => Err(PartitionError::Internal("make a consistent key pair")),
        }
    }

    fn check_signature_input(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<(), PartitionError> {
        if !algorithm.fits(self.spec) {
            return Err(mismatch(algorithm.as_str(), self.spec));
        }
        match algorithm.digest_bytes() {
            Some(expected) if expected != digest.len() => Err(PartitionError::DigestLength {
                algorithm: algorithm.as_str(),
                expected,
                actual: digest.len(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn check_encryption(&self, algorithm: EncryptionAlgorithm) -> Result<(), PartitionError> {
        if algorithm.encrypts_with(self.spec) || algorithm.wraps_with(self.spec) {
            return Ok(());
        }
        Err(mismatch(algorithm.as_str(), self.spec))
    }
}

impl LoadedKey for SoftwareKey {
    fn spec(&self) -> KeySpec {
        self.spec
    }

    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, PartitionError> {
        self.check_signature_input(algorithm, digest)?;
        match &self.material {
            Material::Rsa(key) => private(|| key.sign(algorithm, digest)),
            Material::Ec(key) => wiping::<ECDSA_STACK_BYTES, _>(|| key.sign(digest)),
            Material::Oct(key) => private(|| key.mac(algorithm, digest)),
        }
    }

    fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<bool, PartitionError> {
        self.check_signature_input(algorithm, digest)?;
        match &self.material {
            Material::Rsa(key) => key.public().verify(algorithm, digest, signature),
            Material::Ec(key) => key.public().verify(digest, signature),
            Material::Oct(key) => private(|| key.verify_mac(algorithm, digest, signature)),
        }
    }

    fn encrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Encrypt<'_>,
    ) -> Result<Ciphertext, PartitionError> {
        self.check_encryption(algorithm)?;
        match &self.material {
            Material::Rsa(key) => {
                plain_rsa(algorithm, [input.iv, input.additional_data, None])?;
                let bytes = key.public().encrypt(algorithm, input.plaintext)?;
                Ok(Ciphertext { bytes, iv: None, tag: None })
            }
            Material::Ec(_) => Err(mismatch(algorithm.as_str(), self.spec)),
            Material::Oct(key) => private(|| key.encrypt(algorithm, input)),
        }
    }

    fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Decrypt<'_>,
    ) -> Result<SecretBytes, PartitionError> {
        self.check_encryption(algorithm)?;
        match &self.material {
            Material::Rsa(key) => {
                plain_rsa(algorithm, [input.iv, input.additional_data, input.tag])?;
                private(|| key.decrypt(algorithm, input.ciphertext))
            }
            Material::Ec(_) => Err(mismatch(algorithm.as_str(), self.spec)),
            Material::Oct(key) => private(|| key.decrypt(algorithm, input)),
        }
    }
}

/// Wipes what the use of a private or secret key left on the stack and in registers.
fn private<T>(use_key: impl FnOnce() -> Result<T, PartitionError>) -> Result<T, PartitionError> {
    wiping::<STACK_BYTES, T>(use_key)
}

fn wiping<const STACK: usize, T>(
    use_key: impl FnOnce() -> Result<T, PartitionError>,
) -> Result<T, PartitionError> {
    arena::admit_use()?;
    wiping_stack::<STACK, _>(use_key)
}

/// RSA takes none of what symmetric algorithms take beside the text. Ignoring it would let a caller believe in
/// additional data that nobody authenticates.
fn plain_rsa(algorithm: EncryptionAlgorithm, extras: [Option<&[u8]>; 3]) -> Result<(), PartitionError> {
    if extras.iter().all(Option::is_none) {
        return Ok(());
    }
    Err(input_length(format!("{} takes no iv, additional authenticated data or tag", algorithm.as_str())))
}
