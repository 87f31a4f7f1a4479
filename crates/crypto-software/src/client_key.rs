//! A private or symmetric key in its owner's hands, before it goes to a pool: read from whatever a tool wrote, checked like
//! any import, and written in the two forms in which a pool takes it.
//!
//! A pool checks it again. What is checked here is refused before anything was sent, and on a machine that has the key
//! already.

use crate::errors::invalid_material;
use crate::{SoftwareKey, import, pkcs8, private};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crypto::import::PrivateParts;
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::KeySpec;

/// Consistent in itself. No `Debug`, no `Clone`.
///
/// ```compile_fail
/// fn show(key: &crypto_software::ClientKey) -> String { format!("{key:?}") }
/// ```
pub struct ClientKey {
    spec: KeySpec,
    parts: PrivateParts,
    /// PKCS#8, or the bytes of a symmetric key: what is wrapped.
    encoding: SecretBytes,
}

impl ClientKey {
    /// # Errors
    /// `InvalidMaterial` with what is wrong, here and below.
    pub fn from_pkcs8(der: &SecretBytes) -> Result<Self, PartitionError> {
        private(|| Self::checked(pkcs8::private_parts(der.danger_expose())?))
    }

    /// `RSAPrivateKey` (RFC 8017 appendix A.1.2).
    pub fn from_pkcs1(der: &SecretBytes) -> Result<Self, PartitionError> {
        private(|| Self::checked(pkcs8::pkcs1_parts(der.danger_expose())?))
    }

    /// `ECPrivateKey` (RFC 5915).
    pub fn from_sec1(der: &SecretBytes) -> Result<Self, PartitionError> {
        private(|| Self::checked(pkcs8::sec1_parts(der.danger_expose())?))
    }

    pub fn symmetric(key: SecretBytes) -> Result<Self, PartitionError> {
        private(|| Self::checked(PrivateParts::Oct(key)))
    }

    fn checked(parts: PrivateParts) -> Result<Self, PartitionError> {
        let spec = parts.spec()?;
        let material = import::material(spec, &parts)?;
        SoftwareKey::parse(spec, material.danger_expose())?
            .check_pairwise_consistency()
            .map_err(|_| invalid_material("the key does not sign what its public half verifies".into()))?;
        let encoding = match &parts {
            // The encodings of material and of a wrapped key are the same.
            PrivateParts::Rsa(_) | PrivateParts::Oct(_) => material,
            PrivateParts::Ec(parts) => pkcs8::of_ec(parts),
        };
        Ok(Self { spec, parts, encoding })
    }

    pub fn spec(&self) -> KeySpec {
        self.spec
    }

    /// What goes into the second layer of a wrapped key.
    pub fn danger_encoding(&self) -> &SecretBytes {
        &self.encoding
    }

    /// A JSON Web Key with its private members, of a kind that a pool imports.
    pub fn danger_json_web_key(&self) -> SecretBytes {
        let mut members = vec![("kty", Member::Word(self.spec.key_type()))];
        match &self.parts {
            PrivateParts::Oct(key) => members.push(("k", Member::Bytes(key.danger_expose()))),
            PrivateParts::Ec(parts) => members.extend([
                ("crv", Member::Word(parts.curve.as_str())),
                ("x", Member::Bytes(&parts.x)),
                ("y", Member::Bytes(&parts.y)),
                ("d", Member::Bytes(parts.d.danger_expose())),
            ]),
            PrivateParts::Rsa(parts) => {
                let [d, p, q] =
                    [&parts.d, &parts.p, &parts.q].map(|part| Member::Bytes(part.danger_expose()));
                members.extend([("n", Member::Bytes(&parts.n)), ("e", Member::Bytes(&parts.e))]);
                members.extend([("d", d), ("p", p), ("q", q)]);
                for (name, part) in [("dp", &parts.dp), ("dq", &parts.dq), ("qi", &parts.qi)] {
                    members.extend(part.as_ref().map(|part| (name, Member::Bytes(part.danger_expose()))));
                }
            }
        }
        let longest =
            members.iter().map(|(name, member)| name.len() + member.longest() + 8).sum::<usize>() + 2;
        let mut text = SecretBytes::zeroed(longest);
        let mut place = Place { text: text.danger_expose_mut(), written: 0 };
        for (index, (name, member)) in members.iter().enumerate() {
            place.write(if index == 0 { b"{\"" } else { b",\"" });
            place.write(name.as_bytes());
            place.write(b"\":\"");
            match member {
                Member::Word(word) => place.write(word.as_bytes()),
                Member::Bytes(bytes) => place.write_base64url(bytes),
            }
            place.write(b"\"");
        }
        place.write(b"}");
        let written = place.written;
        text.truncate(written);
        text
    }
}

enum Member<'a> {
    /// None needs an escape.
    Word(&'static str),
    Bytes(&'a [u8]),
}

impl Member<'_> {
    fn longest(&self) -> usize {
        match self {
            Member::Word(word) => word.len(),
            Member::Bytes(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }
}

/// Writes in place, with room for all: nothing is copied on the way.
struct Place<'a> {
    text: &'a mut [u8],
    written: usize,
}

impl Place<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.text[self.written..self.written + bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len();
    }

    fn write_base64url(&mut self, bytes: &[u8]) {
        let place = &mut self.text[self.written..];
        self.written += URL_SAFE_NO_PAD.encode_slice(bytes, place).expect("there is room for all members");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::import::EcParts;
    use domain::algorithm::{Curve, RsaSize};

    fn text(secret: &SecretBytes) -> String {
        String::from_utf8(secret.danger_expose().to_vec()).unwrap()
    }

    /// PKCS#8 of every curve, written here and read back.
    #[test]
    fn ec_keys_keep_their_numbers_in_both_forms() {
        for curve in [Curve::P256, Curve::P256K, Curve::P384, Curve::P521] {
            let material = crate::ec::generate(curve).unwrap();
            let bytes = curve.coordinate_bytes();
            let (d, point) = material.danger_expose().split_at(bytes);
            let (x, y) = point[1..].split_at(bytes);
            let parts = EcParts { curve, x: x.to_vec(), y: y.to_vec(), d: SecretBytes::copy(d) };
            let key = ClientKey::checked(PrivateParts::Ec(parts)).unwrap();
            assert_eq!(key.spec(), KeySpec::Ec(curve));
            let again = ClientKey::from_pkcs8(key.danger_encoding()).unwrap();
            assert_eq!(again.danger_encoding().danger_expose(), key.danger_encoding().danger_expose());
            let jwk = text(&again.danger_json_web_key());
            let encoded = |number| URL_SAFE_NO_PAD.encode(number);
            assert_eq!(
                jwk,
                format!(
                    r#"{{"kty":"EC-HSM","crv":"{}","x":"{}","y":"{}","d":"{}"}}"#,
                    curve.as_str(),
                    encoded(x),
                    encoded(y),
                    encoded(d)
                )
            );
        }
    }

    #[test]
    fn rsa_and_symmetric_keys_keep_their_numbers() {
        let pkcs8 = crate::rsa::generate_for_tests();
        let key = ClientKey::from_pkcs8(pkcs8).unwrap();
        assert_eq!(key.spec(), KeySpec::Rsa(RsaSize::Rsa2048));
        assert_eq!(key.danger_encoding().danger_expose(), pkcs8.danger_expose());
        let jwk = text(&key.danger_json_web_key());
        assert!(jwk.starts_with(r#"{"kty":"RSA-HSM","n":""#) && jwk.ends_with("\"}"), "{}", jwk.len());
        assert_eq!(jwk.matches("\":\"").count(), 9);
        let key = ClientKey::symmetric(SecretBytes::new(vec![0xff; 16])).unwrap();
        assert_eq!(text(&key.danger_json_web_key()), r#"{"kty":"oct-HSM","k":"_____________________w"}"#);
        assert_eq!(key.danger_encoding().danger_expose(), [0xff; 16]);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let refused = |key: Result<ClientKey, PartitionError>| key.err().unwrap().to_string();
        let nothing = SecretBytes::new(Vec::new());
        assert!(refused(ClientKey::from_pkcs8(&nothing)).contains("PKCS#8"));
        assert!(refused(ClientKey::from_pkcs1(&nothing)).contains("PKCS#1"));
        assert!(refused(ClientKey::from_sec1(&nothing)).contains("names its curve"));
        assert!(refused(ClientKey::symmetric(SecretBytes::new(vec![0; 20]))).contains("16, 24 or 32"));
        let mut damaged = SecretBytes::copy(crate::rsa::generate_for_tests().danger_expose());
        let last = damaged.len() - 1;
        damaged.danger_expose_mut()[last] ^= 1;
        assert!(refused(ClientKey::from_pkcs8(&damaged)).contains("qi"));
    }
}
