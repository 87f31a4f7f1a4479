//! Key types, sizes, curves and the algorithms that go with each: the table of behaviour section 3.2.

use std::fmt;

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RsaSize {
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

impl RsaSize {
    pub const ALL: [RsaSize; 3] = [RsaSize::Rsa2048, RsaSize::Rsa3072, RsaSize::Rsa4096];

    pub const fn bits(self) -> u32 {
        match self {
            RsaSize::Rsa2048 => 2048,
            RsaSize::Rsa3072 => 3072,
            RsaSize::Rsa4096 => 4096,
        }
    }

    pub const fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    pub fn from_bits(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bits() == bits)
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Curve {
    P256,
    /// secp256k1. Clients write `P-256K` and, in some versions, `SECP256K1`.
    P256K,
    P384,
    P521,
}

impl Curve {
    pub const ALL: [Curve; 4] = [Curve::P256, Curve::P256K, Curve::P384, Curve::P521];

    pub const fn as_str(self) -> &'static str {
        match self {
            Curve::P256 => "P-256",
            Curve::P256K => "P-256K",
            Curve::P384 => "P-384",
            Curve::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate, of the private scalar, and of each half of a signature.
    pub const fn coordinate_bytes(self) -> usize {
        match self {
            Curve::P256 | Curve::P256K => 32,
            Curve::P384 => 48,
            Curve::P521 => 66,
        }
    }

    const fn code(self) -> u32 {
        match self {
            Curve::P256 => 256,
            Curve::P256K => 257,
            Curve::P384 => 384,
            Curve::P521 => 521,
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        if text == "SECP256K1" {
            return Some(Curve::P256K);
        }
        Self::ALL.into_iter().find(|curve| curve.as_str() == text)
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum OctSize {
    Oct128,
    Oct192,
    Oct256,
}

impl OctSize {
    pub const ALL: [OctSize; 3] = [OctSize::Oct128, OctSize::Oct192, OctSize::Oct256];

    pub const fn bits(self) -> u32 {
        match self {
            OctSize::Oct128 => 128,
            OctSize::Oct192 => 192,
            OctSize::Oct256 => 256,
        }
    }

    pub const fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    pub fn from_bits(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bits() == bits)
    }
}

/// What a key is: its type with its size or curve.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum KeySpec {
    Rsa(RsaSize),
    Ec(Curve),
    Oct(OctSize),
}

impl KeySpec {
    /// `kty` on the wire. A pool holds protected keys only, so each carries the `-HSM` ending.
    pub const fn key_type(self) -> &'static str {
        match self {
            KeySpec::Rsa(_) => "RSA-HSM",
            KeySpec::Ec(_) => "EC-HSM",
            KeySpec::Oct(_) => "oct-HSM",
        }
    }
}

impl KeySpec {
    /// Type and size as records and statements hold them: 1 RSA, 2 EC, 3 oct; bits, for EC 256, 257 (P-256K), 384, 521.
    pub const fn code(self) -> (u8, u32) {
        match self {
            KeySpec::Rsa(size) => (1, size.bits()),
            KeySpec::Ec(curve) => (2, curve.code()),
            KeySpec::Oct(size) => (3, size.bits()),
        }
    }

    /// The inverse of [`KeySpec::code`].
    pub fn from_code(key_type: u8, size: u32) -> Option<Self> {
        match key_type {
            1 => RsaSize::from_bits(size).map(KeySpec::Rsa),
            2 => Curve::ALL.into_iter().find(|curve| curve.code() == size).map(KeySpec::Ec),
            3 => OctSize::from_bits(size).map(KeySpec::Oct),
            _ => None,
        }
    }
}

impl fmt::Display for KeySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySpec::Rsa(size) => write!(f, "RSA-HSM {}", size.bits()),
            KeySpec::Ec(curve) => write!(f, "EC-HSM {}", curve.as_str()),
            KeySpec::Oct(size) => write!(f, "oct-HSM {}", size.bits()),
        }
    }
}

/// Signature and MAC algorithms (JWA names, RFC 7518; `RSNULL` pads the caller's bytes as they stand).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SignatureAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    RsNull,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es256K,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
}

impl SignatureAlgorithm {
    pub const ALL: [SignatureAlgorithm; 14] = [
        SignatureAlgorithm::Rs256,
        SignatureAlgorithm::Rs384,
        SignatureAlgorithm::Rs512,
        SignatureAlgorithm::RsNull,
        SignatureAlgorithm::Ps256,
        SignatureAlgorithm::Ps384,
        SignatureAlgorithm::Ps512,
        SignatureAlgorithm::Es256,
        SignatureAlgorithm::Es256K,
        SignatureAlgorithm::Es384,
        SignatureAlgorithm::Es512,
        SignatureAlgorithm::Hs256,
        SignatureAlgorithm::Hs384,
        SignatureAlgorithm::Hs512,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            SignatureAlgorithm::Rs256 => "RS256",
            SignatureAlgorithm::Rs384 => "RS384",
            SignatureAlgorithm::Rs512 => "RS512",
            SignatureAlgorithm::RsNull => "RSNULL",
            SignatureAlgorithm::Ps256 => "PS256",
            SignatureAlgorithm::Ps384 => "PS384",
            SignatureAlgorithm::Ps512 => "PS512",
            SignatureAlgorithm::Es256 => "ES256",
            SignatureAlgorithm::Es256K => "ES256K",
            SignatureAlgorithm::Es384 => "ES384",
            SignatureAlgorithm::Es512 => "ES512",
            SignatureAlgorithm::Hs256 => "HS256",
            SignatureAlgorithm::Hs384 => "HS384",
            SignatureAlgorithm::Hs512 => "HS512",
        }
    }

    /// Bytes of digest that the algorithm takes; `None` for `RSNULL`, which takes any input that fits.
    pub const fn digest_bytes(self) -> Option<usize> {
        match self {
            SignatureAlgorithm::Rs256
            | SignatureAlgorithm::Ps256
            | SignatureAlgorithm::Es256
            | SignatureAlgorithm::Es256K
            | SignatureAlgorithm::Hs256 => Some(32),
            SignatureAlgorithm::Rs384
            | SignatureAlgorithm::Ps384
            | SignatureAlgorithm::Es384
            | SignatureAlgorithm::Hs384 => Some(48),
            SignatureAlgorithm::Rs512
            | SignatureAlgorithm::Ps512
            | SignatureAlgorithm::Es512
            | SignatureAlgorithm::Hs512 => Some(64),
            SignatureAlgorithm::RsNull => None,
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        // Early clients wrote ECDSA256 for the signature over P-256K.
        if text == "ECDSA256" {
            return Some(SignatureAlgorithm::Es256K);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text)
    }

    /// Whether `algorithm` needs an RSA key.
    pub const fn fits_rsa(self) -> bool {
        self.fits(KeySpec::Rsa(RsaSize::Rsa2048))
    }

    pub const fn fits(self, spec: KeySpec) -> bool {
        match self {
            SignatureAlgorithm::Rs256
            | SignatureAlgorithm::Rs384
            | SignatureAlgorithm::Rs512
            | SignatureAlgorithm::RsNull
            | SignatureAlgorithm::Ps256
            | SignatureAlgorithm::Ps384
            | SignatureAlgorithm::Ps512 => matches!(spec, KeySpec::Rsa(_)),
            SignatureAlgorithm::Es256 => matches!(spec, KeySpec::Ec(Curve::P256)),
            SignatureAlgorithm::Es256K => matches!(spec, KeySpec::Ec(Curve::P256K)),
            SignatureAlgorithm::Es384 => matches!(spec, KeySpec::Ec(Curve::P384)),
            SignatureAlgorithm::Es512 => matches!(spec, KeySpec::Ec(Curve::P521)),
            SignatureAlgorithm::Hs256 | SignatureAlgorithm::Hs384 | SignatureAlgorithm::Hs512 => {
                matches!(spec, KeySpec::Oct(_))
            }
        }
    }
}

/// Algorithms of encrypt, decrypt, wrapKey and unwrapKey.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum EncryptionAlgorithm {
    /// RSAES-PKCS1-v1_5 (RFC 8017 section 7.2).
    Rsa15,
    /// RSAES-OAEP with SHA-1 and MGF1-SHA-1.
    RsaOaep,
    /// RSAES-OAEP with SHA-256 and MGF1-SHA-256.
    RsaOaep256,
    /// AES-GCM (SP 800-38D), 96-bit IV made by the pool, 128-bit tag.
    AesGcm(OctSize),
    /// AES-CBC (SP 800-38A) without padding: whole blocks only.
    AesCbc(OctSize),
    /// AES-CBC with PKCS#7 padding.
    AesCbcPad(OctSize),
    /// AES key wrap (RFC 3394).
    AesKw(OctSize),
}

impl EncryptionAlgorithm {
    pub const ALL: [EncryptionAlgorithm; 15] = [
        EncryptionAlgorithm::Rsa15,
        EncryptionAlgorithm::RsaOaep,
        EncryptionAlgorithm::RsaOaep256,
        EncryptionAlgorithm::AesGcm(OctSize::Oct128),
        EncryptionAlgorithm::AesGcm(OctSize::Oct192),
        EncryptionAlgorithm::AesGcm(OctSize::Oct256),
        EncryptionAlgorithm::AesCbc(OctSize::Oct128),
        EncryptionAlgorithm::AesCbc(OctSize::Oct192),
        EncryptionAlgorithm::AesCbc(OctSize::Oct256),
        EncryptionAlgorithm::AesCbcPad(OctSize::Oct128),
        EncryptionAlgorithm::AesCbcPad(OctSize::Oct192),
        EncryptionAlgorithm::AesCbcPad(OctSize::Oct256),
        EncryptionAlgorithm::AesKw(OctSize::Oct128),
        EncryptionAlgorithm::AesKw(OctSize::Oct192),
        EncryptionAlgorithm::AesKw(OctSize::Oct256),
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            EncryptionAlgorithm::Rsa15 => "RSA1_5",
            EncryptionAlgorithm::RsaOaep => "RSA-OAEP",
            EncryptionAlgorithm::RsaOaep256 => "RSA-OAEP-256",
            EncryptionAlgorithm::AesGcm(OctSize::Oct128) => "A128GCM",
            EncryptionAlgorithm::AesGcm(OctSize::Oct192) => "A192GCM",
            EncryptionAlgorithm::AesGcm(OctSize::Oct256) => "A256GCM",
            EncryptionAlgorithm::AesCbc(OctSize::Oct128) => "A128CBC",
            EncryptionAlgorithm::AesCbc(OctSize::Oct192) => "A192CBC",
            EncryptionAlgorithm::AesCbc(OctSize::Oct256) => "A256CBC",
            EncryptionAlgorithm::AesCbcPad(OctSize::Oct128) => "A128CBCPAD",
            EncryptionAlgorithm::AesCbcPad(OctSize::Oct192) => "A192CBCPAD",
            EncryptionAlgorithm::AesCbcPad(OctSize::Oct256) => "A256CBCPAD",
            EncryptionAlgorithm::AesKw(OctSize::Oct128) => "A128KW",
            EncryptionAlgorithm::AesKw(OctSize::Oct192) => "A192KW",
            EncryptionAlgorithm::AesKw(OctSize::Oct256) => "A256KW",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text)
    }

    pub const fn is_rsa(self) -> bool {
        matches!(
            self,
            EncryptionAlgorithm::Rsa15 | EncryptionAlgorithm::RsaOaep | EncryptionAlgorithm::RsaOaep256
        )
    }

    pub const fn is_cbc(self) -> bool {
        matches!(self, EncryptionAlgorithm::AesCbc(_) | EncryptionAlgorithm::AesCbcPad(_))
    }

    /// Whether `algorithm` may serve encrypt and decrypt with a key of `spec`.
    pub fn encrypts_with(self, spec: KeySpec) -> bool {
        match self {
            EncryptionAlgorithm::Rsa15 | EncryptionAlgorithm::RsaOaep | EncryptionAlgorithm::RsaOaep256 => {
                matches!(spec, KeySpec::Rsa(_))
            }
            EncryptionAlgorithm::AesGcm(size)
            | EncryptionAlgorithm::AesCbc(size)
            | EncryptionAlgorithm::AesCbcPad(size) => spec == KeySpec::Oct(size),
            EncryptionAlgorithm::AesKw(_) => false,
        }
    }

    /// Whether `algorithm` may serve wrapKey and unwrapKey with a key of `spec`.
    pub fn wraps_with(self, spec: KeySpec) -> bool {
        match self {
            EncryptionAlgorithm::Rsa15 | EncryptionAlgorithm::RsaOaep | EncryptionAlgorithm::RsaOaep256 => {
                matches!(spec, KeySpec::Rsa(_))
            }
            EncryptionAlgorithm::AesKw(size) => spec == KeySpec::Oct(size),
            EncryptionAlgorithm::AesGcm(_)
            | EncryptionAlgorithm::AesCbc(_)
            | EncryptionAlgorithm::AesCbcPad(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_specs() -> Vec<KeySpec> {
        let rsa = RsaSize::ALL.map(KeySpec::Rsa);
        let ec = Curve::ALL.map(KeySpec::Ec);
        let oct = OctSize::ALL.map(KeySpec::Oct);
        rsa.into_iter().chain(ec).chain(oct).collect()
    }

    #[test]
    fn names_round_trip() {
        for algorithm in SignatureAlgorithm::ALL {
            assert_eq!(SignatureAlgorithm::parse(algorithm.as_str()), Some(algorithm));
        }
        for algorithm in EncryptionAlgorithm::ALL {
            assert_eq!(EncryptionAlgorithm::parse(algorithm.as_str()), Some(algorithm));
        }
        for curve in Curve::ALL {
            assert_eq!(Curve::parse(curve.as_str()), Some(curve));
        }
        assert_eq!(Curve::parse("SECP256K1"), Some(Curve::P256K));
    }

    /// The table of behaviour section 3.2, written out once more so that an edit to the code shows here.
    #[test]
    fn each_key_takes_the_documented_algorithms_only() {
        let expected = |spec: KeySpec| -> (Vec<&str>, Vec<&str>, Vec<&str>) {
            let rsa = vec!["RSA1_5", "RSA-OAEP", "RSA-OAEP-256"];
            let hmac = vec!["HS256", "HS384", "HS512"];
            match spec {
                KeySpec::Rsa(_) => {
                    (vec!["RS256", "RS384", "RS512", "RSNULL", "PS256", "PS384", "PS512"], rsa.clone(), rsa)
                }
                KeySpec::Ec(Curve::P256) => (vec!["ES256"], vec![], vec![]),
                KeySpec::Ec(Curve::P256K) => (vec!["ES256K"], vec![], vec![]),
                KeySpec::Ec(Curve::P384) => (vec!["ES384"], vec![], vec![]),
                KeySpec::Ec(Curve::P521) => (vec!["ES512"], vec![], vec![]),
                KeySpec::Oct(OctSize::Oct128) => {
                    (hmac, vec!["A128GCM", "A128CBC", "A128CBCPAD"], vec!["A128KW"])
                }
                KeySpec::Oct(OctSize::Oct192) => {
                    (hmac, vec!["A192GCM", "A192CBC", "A192CBCPAD"], vec!["A192KW"])
                }
                KeySpec::Oct(OctSize::Oct256) => {
                    (hmac, vec!["A256GCM", "A256CBC", "A256CBCPAD"], vec!["A256KW"])
                }
            }
        };
        for spec in all_specs() {
            let signs = SignatureAlgorithm::ALL.iter().filter(|a| a.fits(spec)).map(|a| a.as_str()).collect();
            let encrypts = EncryptionAlgorithm::ALL
                .iter()
                .filter(|a| a.encrypts_with(spec))
                .map(|a| a.as_str())
                .collect();
            let wraps =
                EncryptionAlgorithm::ALL.iter().filter(|a| a.wraps_with(spec)).map(|a| a.as_str()).collect();
            assert_eq!((signs, encrypts, wraps), expected(spec), "{spec}");
        }
    }
}
