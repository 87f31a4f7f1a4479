//! The issuer's signing keys: RSA, for RS256 only. One signs; the one before and the one after it may be listed beside
//! it, so that a rotation takes nobody by surprise.

use crate::der::rsa_components;
use crate::key_set::VerificationKey;
use crate::text::{base64url, base64url_decode, sha256};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use zeroize::Zeroizing;

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
const PEM_LINE_CHARACTERS: usize = 64;
/// Longest PEM that is read: several times that of an 8192-bit key.
const MAX_PEM_BYTES: usize = 32 * 1024;

/// A signing key with its public half. No `Debug`, `Clone` or serde on purpose.
pub struct SigningKey {
    pair: RsaKeyPair,
    public: PublicSigningKey,
}

/// The public half of a signing key, by which tokens are verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicSigningKey {
    modulus: String,
    exponent: String,
    key_id: String,
}

/// The key that signs, and those that are listed beside it. No `Debug`, like the key.
pub struct SigningKeys {
    pub current: SigningKey,
    /// Will sign after the next rotation. Listed before that, so that whoever reads the set now knows it by then.
    pub next: Option<PublicSigningKey>,
    /// Signed before the last rotation; tokens that it signed live on.
    pub previous: Option<PublicSigningKey>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SigningKeyError {
    #[error("signing key is not one PEM block `PRIVATE KEY` (PKCS#8, not encrypted)")]
    Pem,
    #[error("signing key is not an RSA key of 2048 to 8192 bits in PKCS#8")]
    Key,
    #[error("signing key could not be generated")]
    Generation,
    #[error("signing failed")]
    Signing,
}

impl SigningKey {
    /// A new RSA-2048 key. Takes a fraction of a second.
    pub fn generate() -> Result<Self, SigningKeyError> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| SigningKeyError::Generation)?;
        Self::new(pair)
    }

    /// Reads a PEM block `PRIVATE KEY` with a PKCS#8 RSA key.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, SigningKeyError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(SigningKeyError::Pem);
        }
        let body = pem.trim_ascii().strip_prefix(PEM_BEGIN).and_then(|rest| rest.strip_suffix(PEM_END));
        let body = body.ok_or(SigningKeyError::Pem)?;
        let mut base64 = Zeroizing::new(String::with_capacity(body.len()));
        base64.extend(body.chars().filter(|character| !character.is_ascii_whitespace()));
        let der = Zeroizing::new(STANDARD.decode(base64.as_bytes()).map_err(|_| SigningKeyError::Pem)?);
        Self::new(RsaKeyPair::from_pkcs8(&der).map_err(|_| SigningKeyError::Key)?)
    }

    /// The key as a PEM block `PRIVATE KEY`: whoever has it can be anyone.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, SigningKeyError> {
        let der = self.pair.as_der().map_err(|_| SigningKeyError::Key)?;
        let base64 = Zeroizing::new(STANDARD.encode(der.as_ref()));
        // Room for everything, so that no part is left behind by growing.
        let lines = base64.len() / PEM_LINE_CHARACTERS + 1;
        let mut pem =
            Zeroizing::new(String::with_capacity(base64.len() + lines + PEM_BEGIN.len() + PEM_END.len() + 2));
        pem.push_str(PEM_BEGIN);
        for (index, character) in base64.chars().enumerate() {
            if index % PEM_LINE_CHARACTERS == 0 {
                pem.push('\n');
            }
            pem.push(character);
        }
        pem.push('\n');
        pem.push_str(PEM_END);
        pem.push('\n');
        Ok(pem)
    }

    /// `kid`: see [`PublicSigningKey::key_id`].
    pub fn key_id(&self) -> &str {
        &self.public.key_id
    }

    pub fn public(&self) -> &PublicSigningKey {
        &self.public
    }

    /// A JWT with `claims`, signed with RS256.
    pub(super) fn sign<C: Serialize>(&self, claims: &C) -> Result<String, SigningKeyError> {
        let header = Header { typ: "JWT", alg: "RS256", kid: self.key_id() };
        let header = serde_json::to_vec(&header).map_err(|_| SigningKeyError::Signing)?;
        let claims = serde_json::to_vec(claims).map_err(|_| SigningKeyError::Signing)?;
        let mut token = format!("{}.{}", base64url(header), base64url(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &aws_lc_rs::rand::SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| SigningKeyError::Signing)?;
        token.push('.');
        token.push_str(&base64url(signature));
        Ok(token)
    }

    fn new(pair: RsaKeyPair) -> Result<Self, SigningKeyError> {
        let (modulus, exponent) = rsa_components(pair.public_key().as_ref()).ok_or(SigningKeyError::Key)?;
        let public = PublicSigningKey::new(base64url(modulus), base64url(exponent))?;
        Ok(Self { pair, public })
    }
}

impl PublicSigningKey {
    /// Modulus and exponent in base64url, as in a JWK.
    pub(super) fn new(modulus: String, exponent: String) -> Result<Self, SigningKeyError> {
        let decoded = |text: &str| base64url_decode(text).ok_or(SigningKeyError::Key);
        VerificationKey::rsa(&decoded(&modulus)?, &decoded(&exponent)?).map_err(|_| SigningKeyError::Key)?;
        let thumbprint_input = format!(r#"{{"e":"{exponent}","kty":"RSA","n":"{modulus}"}}"#);
        let key_id = base64url(sha256(thumbprint_input.as_bytes()));
        Ok(Self { modulus, exponent, key_id })
    }

    /// `kid`: the key's thumbprint (RFC 7638), so that equal keys have equal names and new keys new ones.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    pub(super) fn modulus(&self) -> &str {
        &self.modulus
    }

    pub(super) fn exponent(&self) -> &str {
        &self.exponent
    }
}

impl SigningKeys {
    /// Every key that is listed, the one that signs first.
    pub(super) fn listed(&self) -> impl Iterator<Item = &PublicSigningKey> {
        [Some(self.current.public()), self.next.as_ref(), self.previous.as_ref()].into_iter().flatten()
    }
}

impl From<SigningKey> for SigningKeys {
    fn from(current: SigningKey) -> Self {
        Self { current, next: None, previous: None }
    }
}

#[derive(Serialize)]
struct Header<'a> {
    typ: &'a str,
    alg: &'a str,
    kid: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pem() {
        let key = SigningKey::generate().unwrap();
        let pem = key.to_pkcs8_pem().unwrap();
        let read = SigningKey::from_pkcs8_pem(&pem).unwrap();
        assert_eq!(read.key_id(), key.key_id());
        assert_eq!(*read.to_pkcs8_pem().unwrap(), *pem);
        let windows = SigningKey::from_pkcs8_pem(&pem.replace('\n', "\r\n")).unwrap();
        assert_eq!(windows.key_id(), key.key_id());
        assert_ne!(SigningKey::generate().unwrap().key_id(), key.key_id());
    }

    #[test]
    fn what_is_no_rsa_key_is_refused() {
        let pem = SigningKey::generate().unwrap().to_pkcs8_pem().unwrap();
        let block = |body: &str| format!("{PEM_BEGIN}\n{body}\n{PEM_END}\n");
        for (text, error) in [
            (String::new(), SigningKeyError::Pem),
            (pem.replace("PRIVATE", "RSA PRIVATE"), SigningKeyError::Pem),
            (format!("{}{}", *pem, *pem), SigningKeyError::Pem),
            (block("!!!!"), SigningKeyError::Pem),
            (block("AAAA"), SigningKeyError::Key),
            (block(""), SigningKeyError::Key),
            (format!("{}{}", " ".repeat(MAX_PEM_BYTES), *pem), SigningKeyError::Pem),
        ] {
            assert_eq!(SigningKey::from_pkcs8_pem(&text).err(), Some(error), "{error}");
        }
    }
}
