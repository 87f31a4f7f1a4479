//! Compact JWE (RFC 7516) as far as security domain files use it: A256CBC-HS512, with a key that is known (`dir`) or
//! wrapped to a certificate (`RSA-OAEP-256`). Nothing else is read, so that no header can choose something weaker.

use crate::RandomSource;
use crate::keys::{KeyHolder, KeyTransport, TransportFailed};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use crypto::SecretBytes;
use crypto::content::{CONTENT_KEY_BYTES, ContentKey, INITIALISATION_VECTOR_BYTES, TAG_BYTES};
use crypto::transport::TransportCertificate;
use serde::{Deserialize, Serialize};

/// Characters of a JWE that is read at all.
pub const MAX_CHARACTERS: usize = 32 * 1024;
const ENCRYPTION: &str = "A256CBC-HS512";
const DIRECT: &str = "dir";
const RSA_OAEP_256: &str = "RSA-OAEP-256";
/// What clients write where a key identifier means nothing.
const NO_KEY_ID: &str = "not used";

/// In the order in which clients write it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Algorithm {
    Direct,
    RsaOaep256,
}

/// A JWE, read and not yet opened.
#[derive(Clone, Debug)]
pub struct Jwe {
    algorithm: Algorithm,
    /// As received: this text is authenticated, not its meaning.
    header: String,
    wrapped_key: Vec<u8>,
    iv: [u8; INITIALISATION_VECTOR_BYTES],
    ciphertext: Vec<u8>,
    tag: [u8; TAG_BYTES],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a compact JWE with A256CBC-HS512 and dir or RSA-OAEP-256")]
pub struct MalformedJwe;

/// Whatever the reason: key, algorithm, header or content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the JWE does not open with this key")]
pub struct NotOpened;

/// A JWE under a known key.
pub fn encrypt_direct(
    key: &ContentKey,
    key_id: &str,
    plaintext: &SecretBytes,
    random: RandomSource<'_>,
) -> String {
    compact(DIRECT, key_id, &[], key, plaintext, random)
}

/// A JWE under a fresh key that is wrapped to `certificate`.
pub fn encrypt_to(
    certificate: &TransportCertificate,
    plaintext: &SecretBytes,
    transport: &dyn KeyTransport,
    random: RandomSource<'_>,
) -> Result<String, TransportFailed> {
    let key = fresh_key(random);
    let wrapped = transport.wrap(certificate, key.danger_expose())?;
    Ok(compact(RSA_OAEP_256, NO_KEY_ID, &wrapped, &key, plaintext, random))
}

impl Jwe {
    pub fn parse(text: &str) -> Result<Self, MalformedJwe> {
        if text.len() > MAX_CHARACTERS {
            return Err(MalformedJwe);
        }
        let parts: Vec<&str> = text.splitn(6, '.').collect();
        let [header, wrapped_key, iv, ciphertext, tag] = parts[..] else { return Err(MalformedJwe) };
        let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| MalformedJwe);
        let read: Header = serde_json::from_slice(&decode(header)?).map_err(|_| MalformedJwe)?;
        let wrapped_key = decode(wrapped_key)?;
        let algorithm = match (read.alg.as_str(), wrapped_key.is_empty()) {
            (DIRECT, true) => Algorithm::Direct,
            (RSA_OAEP_256, false) => Algorithm::RsaOaep256,
            _ => return Err(MalformedJwe),
        };
        if read.enc != ENCRYPTION {
            return Err(MalformedJwe);
        }
        Ok(Self {
            algorithm,
            header: header.to_owned(),
            wrapped_key,
            iv: decode(iv)?.try_into().map_err(|_| MalformedJwe)?,
            ciphertext: decode(ciphertext)?,
            tag: decode(tag)?.try_into().map_err(|_| MalformedJwe)?,
        })
    }

    pub fn open_direct(&self, key: &ContentKey) -> Result<SecretBytes, NotOpened> {
        match self.algorithm {
            Algorithm::Direct => self.decrypt(key),
            Algorithm::RsaOaep256 => Err(NotOpened),
        }
    }

    pub fn open_with(
        &self,
        holder: &dyn KeyHolder,
        random: RandomSource<'_>,
    ) -> Result<SecretBytes, NotOpened> {
        match self.algorithm {
            Algorithm::RsaOaep256 => {
                // A key that does not unwrap goes the way of a wrong key (RFC 7516 section 11.5): whoever sends guesses
                // does not see at which step they failed.
                let unwrapped = holder.unwrap(&self.wrapped_key).ok().and_then(ContentKey::new);
                self.decrypt(&unwrapped.unwrap_or_else(|| fresh_key(random)))
            }
            Algorithm::Direct => Err(NotOpened),
        }
    }

    fn decrypt(&self, key: &ContentKey) -> Result<SecretBytes, NotOpened> {
        key.decrypt(&self.iv, self.header.as_bytes(), &self.ciphertext, &self.tag).ok_or(NotOpened)
    }
}

fn fresh_key(random: RandomSource<'_>) -> ContentKey {
    let mut key = vec![0; CONTENT_KEY_BYTES];
    random(&mut key);
    ContentKey::new(SecretBytes::new(key)).expect("the length is that of a key")
}

fn compact(
    algorithm: &str,
    key_id: &str,
    wrapped_key: &[u8],
    key: &ContentKey,
    plaintext: &SecretBytes,
    random: RandomSource<'_>,
) -> String {
    let header =
        Header { alg: algorithm.to_owned(), enc: ENCRYPTION.to_owned(), kid: Some(key_id.to_owned()) };
    let header = serde_json::to_vec(&header).expect("three texts can be written");
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let header = encode(&header);
    let mut iv = [0; INITIALISATION_VECTOR_BYTES];
    random(&mut iv);
    let (ciphertext, tag) = key.encrypt(&iv, header.as_bytes(), plaintext);
    [header, encode(wrapped_key), encode(&iv), encode(&ciphertext), encode(&tag)].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Thumbprint;
    use crypto::digest::random;
    use proptest::prelude::*;

    const VECTOR: &str = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIiwia2lkIjoiU0QuVGVzdC4xIn0..oKGio6SlpqeoqaqrrK2urw.otU9-zLqt71s9b8pEn8ehycDVMdo2U4-4rozVANtAW0.lBeCSeH43XvHjPGHWsu4KMMymqP4kI2OKWmxjj9geBk";

    fn key() -> ContentKey {
        ContentKey::derive(&SecretBytes::new((0..32).collect()), "SD.Test.1")
    }

    /// Stands for a token: unwraps by undoing a mask.
    struct Mask(Result<(), TransportFailed>);

    impl KeyHolder for Mask {
        fn thumbprint(&self) -> Thumbprint {
            Thumbprint([0; 32])
        }

        fn unwrap(&self, wrapped: &[u8]) -> Result<SecretBytes, TransportFailed> {
            self.0.map(|()| SecretBytes::new(wrapped.iter().map(|byte| byte ^ 0x55).collect()))
        }
    }

    fn to_mask(text: &[u8], key_bytes: usize) -> String {
        let key: Vec<u8> = (0..64).collect();
        let wrapped: Vec<u8> = key.iter().map(|byte| byte ^ 0x55).take(key_bytes).collect();
        let key = ContentKey::new(SecretBytes::new(key)).unwrap();
        compact(RSA_OAEP_256, NO_KEY_ID, &wrapped, &key, &SecretBytes::new(text.to_vec()), &random)
    }

    /// The worked vector of the protocol, checked with the client's code.
    #[test]
    fn the_worked_vector_is_made_and_opened() {
        let iv = |bytes: &mut [u8]| (0xa0..).zip(bytes).for_each(|(value, byte)| *byte = value);
        let plaintext = SecretBytes::new(b"hello security domain".to_vec());
        assert_eq!(encrypt_direct(&key(), "SD.Test.1", &plaintext, &iv), VECTOR);
        let opened = Jwe::parse(VECTOR).unwrap().open_direct(&key()).unwrap();
        assert_eq!(opened.danger_expose(), plaintext.danger_expose());
    }

    #[test]
    fn each_changed_character_is_refused() {
        for (index, character) in VECTOR.char_indices() {
            for other in ['A', 'B', '.', '=', '-'] {
                if other != character {
                    let mut text = VECTOR.to_owned();
                    text.replace_range(index..=index, &other.to_string());
                    let opened = Jwe::parse(&text).ok().and_then(|jwe| jwe.open_direct(&key()).ok());
                    assert!(opened.is_none(), "{other} at {index}");
                }
            }
        }
    }

    #[test]
    fn no_header_chooses_anything_else() {
        let rest = VECTOR.split_once('.').unwrap().1;
        let with_header = |header: &str| format!("{}.{rest}", BASE64_URL_SAFE_NO_PAD.encode(header));
        assert!(Jwe::parse(&with_header(r#"{"enc":"A256CBC-HS512", "alg":"dir"}"#)).is_ok());
        for header in [
            r#"{"alg":"none","enc":"A256CBC-HS512"}"#,
            r#"{"alg":"RSA-OAEP-256","enc":"A256CBC-HS512"}"#,
            r#"{"alg":"RSA-OAEP","enc":"A256CBC-HS512"}"#,
            r#"{"alg":"RSA1_5","enc":"A256CBC-HS512"}"#,
            r#"{"alg":"dir","enc":"A128CBC-HS256"}"#,
            r#"{"alg":"dir","enc":"A256GCM"}"#,
            r#"{"alg":"dir","alg":"dir","enc":"A256CBC-HS512"}"#,
            r#"{"alg":"dir","enc":"A256CBC-HS512","zip":"DEF"}"#,
            r#"{"alg":"dir","enc":"A256CBC-HS512","crit":["x"]}"#,
            r#"{"alg":"dir"}"#,
            "",
        ] {
            assert!(Jwe::parse(&with_header(header)).is_err(), "{header}");
        }
        let short_tag = &VECTOR[..VECTOR.len() - 22];
        assert!(Jwe::parse(short_tag).is_err());
    }

    #[test]
    fn a_wrapped_key_opens_with_its_holder_alone() {
        let jwe = Jwe::parse(&to_mask(b"share", 64)).unwrap();
        assert_eq!(jwe.open_with(&Mask(Ok(())), &random).unwrap().danger_expose(), b"share");
        assert!(jwe.open_with(&Mask(Err(TransportFailed)), &random).is_err());
        assert!(jwe.open_direct(&key()).is_err());
        for key_bytes in [1, 32, 63] {
            let jwe = Jwe::parse(&to_mask(b"share", key_bytes)).unwrap();
            assert!(jwe.open_with(&Mask(Ok(())), &random).is_err(), "{key_bytes}");
        }
        assert!(Jwe::parse(VECTOR).unwrap().open_with(&Mask(Ok(())), &random).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[A-Za-z0-9_.=-]{0,200}", other in "\\PC{0,100}") {
            let _ = Jwe::parse(&text);
            prop_assert!(Jwe::parse(&other).is_err());
        }
    }
}
