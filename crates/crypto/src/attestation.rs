//! Key attestation: what a pool says of a version of a key, signed by a key of this incarnation that the owner key
//! certified (`docs/formats/key-attestation.md`).
//!
//! A statement is the pool's word on its sealed record. It is not evidence of the hardware that the pool runs on, and
//! for symmetric keys it has nothing that was derived from the key: whoever may read a key could test guesses with it.

use crate::certificate::{InstanceClaims, InstanceKey, InstancePublicKey, OwnerKey, OwnerPublicKey};
use crate::digest::sha256;
use crate::partition::MaskedMaterial;
use domain::algorithm::KeySpec;
use domain::guid::Guid;
use domain::key::{KeyOperations, Origin, PublicKey, Version};
use domain::name::{KeyName, KeyVersion};
use domain::pool::PoolClass;
use domain::time::IntDate;
use minicbor::{Decode, Encode};

/// `attributes.attestation.version` on the wire.
pub const VERSION: &str = "holdfast-1";
const FORMAT_VERSION: u8 = 1;
const LABEL: &[u8] = b"holdfast key attestation v1\0";
const MATERIAL_LABEL: &[u8] = b"holdfast key attestation material v1\0";
const CERTIFICATE_LABEL: &str = "CERTIFICATE";
/// Bytes of a statement: the public part of RSA-4096 is half a KiB.
const MAX_STATEMENT_BYTES: usize = 4096;
const MAX_PEM_BYTES: usize = 16 * 1024;

/// Which of a key's two statements this is. They say the same, and neither can stand in the other's place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    Private,
    Public,
}

/// What a pool says of a version of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyStatement {
    pub pool: Guid,
    pub security_domain: Guid,
    pub class: PoolClass,
    /// SHA-256 of the owner key's point.
    pub owner_fingerprint: [u8; 32],
    /// SHA-256 of the signed genesis record.
    pub genesis_hash: [u8; 32],
    pub node: Guid,
    pub incarnation: Guid,
    /// When it was said.
    pub at: IntDate,
    pub name: KeyName,
    pub version: KeyVersion,
    pub spec: KeySpec,
    pub public: PublicKey,
    pub operations: KeyOperations,
    pub created: IntDate,
    pub origin: Origin,
    pub exportable: bool,
    /// SHA-256 of the release policy; `None` without one.
    pub release_policy: Option<[u8; 32]>,
    /// Hash of the masked material: the same in two statements of one pool while the stored key is the same.
    pub material: [u8; 32],
}

/// The members of an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyAttestation {
    /// PEM: the attestation key's certificate, then the owner's own.
    pub certificates: String,
    pub private: Vec<u8>,
    /// `None` for symmetric keys.
    pub public: Option<Vec<u8>>,
}

/// Signs statements, in the name of one incarnation.
pub struct Attestor {
    key: InstanceKey,
    claims: InstanceClaims,
    security_domain: Guid,
    owner_fingerprint: [u8; 32],
    certificates: String,
}

impl Attestor {
    /// Makes a key and has it certified. `claims.purpose` must be attestation, or no verifier takes what it signs.
    pub fn new(owner: &OwnerKey, claims: InstanceClaims, security_domain: Guid) -> Self {
        let key = InstanceKey::generate();
        let certificates =
            [owner.certify(&claims, &key), owner.self_certify(claims.not_before, claims.not_after)]
                .map(|der| pem_block(CERTIFICATE_LABEL, der))
                .concat();
        let owner_fingerprint = sha256(&[&owner.public_key().point]);
        Self { key, claims, security_domain, owner_fingerprint, certificates }
    }

    /// What there is to say.
    pub fn statement(
        &self,
        version: &Version,
        material: &MaskedMaterial,
        release_policy: Option<[u8; 32]>,
        at: IntDate,
    ) -> KeyStatement {
        KeyStatement {
            pool: self.claims.pool,
            security_domain: self.security_domain,
            class: self.claims.class,
            owner_fingerprint: self.owner_fingerprint,
            genesis_hash: self.claims.genesis_hash,
            node: self.claims.node,
            incarnation: self.claims.incarnation,
            at,
            name: version.name.clone(),
            version: version.version,
            spec: version.spec,
            public: version.public.clone(),
            operations: version.operations,
            created: version.attributes.created,
            origin: version.origin,
            exportable: version.attributes.exportable,
            release_policy,
            material: sha256(&[MATERIAL_LABEL, &material.0]),
        }
    }

    /// Says it. The signatures are other ones each time.
    pub fn attest(&self, statement: &KeyStatement) -> KeyAttestation {
        let is_symmetric = matches!(statement.spec, KeySpec::Oct(_));
        KeyAttestation {
            certificates: self.certificates.clone(),
            private: self.sign(statement, Part::Private),
            public: (!is_symmetric).then(|| self.sign(statement, Part::Public)),
        }
    }

    fn sign(&self, statement: &KeyStatement, part: Part) -> Vec<u8> {
        let content = to_bytes(&statement.to_wire(part));
        let signature = self.key.sign(&[LABEL, &content].concat());
        to_bytes(&SignedV1 { format: FORMAT_VERSION, content, signature: signature.to_vec() })
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AttestationRefused {
    #[error("this is not a statement of key attestation")]
    NotAStatement,
    #[error("the statement is of format version {0}, which this release does not read")]
    UnknownFormat(u8),
    #[error("what the statement says breaks a rule of its format")]
    Malformed,
    #[error(
        "this is not the certificate of an attestation key in PEM, followed by its owner's or by nothing"
    )]
    Certificates,
}

/// A statement as it came: what it says counts for nothing before its signature is checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedStatement {
    pub part: Part,
    pub statement: KeyStatement,
    content: Vec<u8>,
    signature: Vec<u8>,
}

impl SignedStatement {
    pub fn parse(bytes: &[u8]) -> Result<Self, AttestationRefused> {
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(AttestationRefused::NotAStatement);
        }
        let mut decoder = minicbor::Decoder::new(bytes);
        let length = decoder.array().map_err(|_| AttestationRefused::NotAStatement)?;
        let format = decoder.u8().map_err(|_| AttestationRefused::NotAStatement)?;
        if format != FORMAT_VERSION {
            return Err(AttestationRefused::UnknownFormat(format));
        }
        if length != Some(3) {
            return Err(AttestationRefused::NotAStatement);
        }
        let signed: SignedV1 = one_spelling(bytes).ok_or(AttestationRefused::NotAStatement)?;
        let content: ContentV1 = one_spelling(&signed.content).ok_or(AttestationRefused::Malformed)?;
        let (part, statement) = KeyStatement::from_wire(content).ok_or(AttestationRefused::Malformed)?;
        Ok(Self { part, statement, content: signed.content, signature: signed.signature })
    }

    pub fn is_signed_by(&self, key: &InstancePublicKey) -> bool {
        key.verify(&[LABEL, &self.content].concat(), &self.signature)
    }
}

/// The certificates of an answer, not judged yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttestationChain {
    /// DER.
    pub instance: Vec<u8>,
    /// Whose the statement claims to be. Whether that owner is the right one is for the verifier to know.
    pub owner: Option<OwnerPublicKey>,
}

impl AttestationChain {
    pub fn parse(text: &str) -> Result<Self, AttestationRefused> {
        let refused = AttestationRefused::Certificates;
        if text.len() > MAX_PEM_BYTES {
            return Err(refused);
        }
        let blocks = pem::parse_many(text).map_err(|_| refused)?;
        if blocks.iter().any(|block| block.tag() != CERTIFICATE_LABEL) {
            return Err(refused);
        }
        match blocks.as_slice() {
            [instance] => Ok(Self { instance: instance.contents().to_vec(), owner: None }),
            [instance, owner] => {
                let owner = OwnerPublicKey::from_certificate(owner.contents()).map_err(|_| refused)?;
                Ok(Self { instance: instance.contents().to_vec(), owner: Some(owner) })
            }
            _ => Err(refused),
        }
    }
}

fn pem_block(label: &str, der: Vec<u8>) -> String {
    pem::encode_config(
        &pem::Pem::new(label, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

#[derive(Encode, Decode)]
struct SignedV1 {
    #[n(0)]
    format: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    content: Vec<u8>,
    #[cbor(n(2), with = "minicbor::bytes")]
    signature: Vec<u8>,
}

#[derive(Encode, Decode)]
struct ContentV1 {
    /// 1 private, 2 public.
    #[n(0)]
    part: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    pool: [u8; 16],
    #[cbor(n(2), with = "minicbor::bytes")]
    security_domain: [u8; 16],
    #[n(3)]
    production: bool,
    #[cbor(n(4), with = "minicbor::bytes")]
    owner_fingerprint: [u8; 32],
    #[cbor(n(5), with = "minicbor::bytes")]
    genesis_hash: [u8; 32],
    #[cbor(n(6), with = "minicbor::bytes")]
    node: [u8; 16],
    #[cbor(n(7), with = "minicbor::bytes")]
    incarnation: [u8; 16],
    #[n(8)]
    at: i64,
    #[n(9)]
    name: String,
    #[cbor(n(10), with = "minicbor::bytes")]
    version: [u8; 16],
    #[n(11)]
    key_type: u8,
    #[n(12)]
    size: u32,
    #[cbor(n(13), with = "minicbor::bytes")]
    public_1: Vec<u8>,
    #[cbor(n(14), with = "minicbor::bytes")]
    public_2: Vec<u8>,
    #[n(15)]
    operations: u16,
    #[n(16)]
    created: i64,
    #[n(17)]
    origin: u8,
    #[n(18)]
    exportable: bool,
    #[cbor(n(19), with = "minicbor::bytes")]
    release_policy: Option<[u8; 32]>,
    #[cbor(n(20), with = "minicbor::bytes")]
    material: [u8; 32],
}

impl KeyStatement {
    fn to_wire(&self, part: Part) -> ContentV1 {
        let (key_type, size) = self.spec.code();
        let (public_1, public_2) = self.public.parts();
        ContentV1 {
            part: match part {
                Part::Private => 1,
                Part::Public => 2,
            },
            pool: self.pool.0,
            security_domain: self.security_domain.0,
            production: self.class == PoolClass::Production,
            owner_fingerprint: self.owner_fingerprint,
            genesis_hash: self.genesis_hash,
            node: self.node.0,
            incarnation: self.incarnation.0,
            at: self.at.unix_seconds(),
            name: self.name.to_string(),
            version: self.version.0,
            key_type,
            size,
            public_1: public_1.to_vec(),
            public_2: public_2.to_vec(),
            operations: self.operations.bits(),
            created: self.created.unix_seconds(),
            origin: self.origin.code(),
            exportable: self.exportable,
            release_policy: self.release_policy,
            material: self.material,
        }
    }

    fn from_wire(wire: ContentV1) -> Option<(Part, Self)> {
        let part = match wire.part {
            1 => Part::Private,
            2 => Part::Public,
            _ => return None,
        };
        let spec = KeySpec::from_code(wire.key_type, wire.size)?;
        let statement = Self {
            pool: Guid(wire.pool),
            security_domain: Guid(wire.security_domain),
            class: if wire.production { PoolClass::Production } else { PoolClass::Test },
            owner_fingerprint: wire.owner_fingerprint,
            genesis_hash: wire.genesis_hash,
            node: Guid(wire.node),
            incarnation: Guid(wire.incarnation),
            at: IntDate::from_unix_seconds(wire.at),
            name: wire.name.parse().ok()?,
            version: KeyVersion(wire.version),
            spec,
            public: PublicKey::from_parts(spec, wire.public_1, wire.public_2)?,
            operations: KeyOperations::from_bits(wire.operations)?,
            created: IntDate::from_unix_seconds(wire.created),
            origin: Origin::from_code(wire.origin)?,
            exportable: wire.exportable,
            release_policy: wire.release_policy,
            material: wire.material,
        };
        Some((part, statement))
    }
}

fn to_bytes(value: &impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("a vector takes whatever is written")
}

/// What `bytes` hold, if that would be written as exactly these bytes.
fn one_spelling<'b, T: Encode<()> + Decode<'b, ()>>(bytes: &'b [u8]) -> Option<T> {
    let value: T = minicbor::decode(bytes).ok()?;
    (to_bytes(&value) == bytes).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Purpose;
    use domain::algorithm::{Curve, OctSize, RsaSize};
    use domain::key::{Attributes, Tags};
    use proptest::prelude::*;

    const AT: IntDate = IntDate::from_unix_seconds(1_800_000_100);

    fn claims() -> InstanceClaims {
        InstanceClaims {
            pool: Guid([1; 16]),
            node: Guid([2; 16]),
            incarnation: Guid([3; 16]),
            purpose: Purpose::Attestation,
            class: PoolClass::Test,
            genesis_hash: [4; 32],
            not_before: IntDate::from_unix_seconds(1_800_000_000),
            not_after: IntDate::from_unix_seconds(1_834_560_000),
        }
    }

    fn version(spec: KeySpec, public: PublicKey) -> Version {
        Version {
            name: "Payroll-2026".parse().unwrap(),
            version: KeyVersion([0x11; 16]),
            spec,
            public,
            operations: KeyOperations::default_for(spec),
            attributes: Attributes {
                enabled: true,
                not_before: None,
                expires: None,
                created: IntDate::from_unix_seconds(1_800_000_050),
                updated: IntDate::from_unix_seconds(1_800_000_060),
                exportable: false,
            },
            tags: Tags::default(),
            release: None,
            origin: Origin::Generated,
        }
    }

    fn samples() -> [Version; 3] {
        let rsa = PublicKey::Rsa { modulus: vec![0xc1; 256], exponent: vec![1, 0, 1] };
        let ec = PublicKey::Ec { curve: Curve::P256K, x: vec![8; 32], y: vec![9; 32] };
        [
            version(KeySpec::Rsa(RsaSize::Rsa2048), rsa),
            version(KeySpec::Ec(Curve::P256K), ec),
            version(KeySpec::Oct(OctSize::Oct256), PublicKey::Oct),
        ]
    }

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    /// ECDSA signatures are random: what is golden was made once.
    #[test]
    fn the_golden_attestation_verifies_for_ever() {
        let directory = format!("{}/tests/golden", env!("CARGO_MANIFEST_DIR"));
        let certificates = format!("{directory}/key-attestation-v1.pem");
        let [_, ec, _] = samples();
        if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some()
            && !std::path::Path::new(&certificates).exists()
        {
            let owner = OwnerKey::generate();
            let attestor = Attestor::new(&owner, claims(), Guid([5; 16]));
            let statement = attestor.statement(&ec, &MaskedMaterial(vec![6; 60]), Some([7; 32]), AT);
            let made = attestor.attest(&statement);
            std::fs::write(&certificates, made.certificates).unwrap();
            std::fs::write(format!("{directory}/key-attestation-v1-private.cbor"), made.private).unwrap();
            std::fs::write(format!("{directory}/key-attestation-v1-public.cbor"), made.public.unwrap())
                .unwrap();
            std::fs::write(format!("{directory}/key-attestation-v1-owner.pem"), owner.public_key().to_pem())
                .unwrap();
        }
        let owner = OwnerPublicKey::from_pem(&text(golden("key-attestation-v1-owner.pem"))).unwrap();
        let chain = AttestationChain::parse(&text(golden("key-attestation-v1.pem"))).unwrap();
        assert_eq!(chain.owner.as_ref(), Some(&owner));
        let (read, key) = owner.verify_certificate(&chain.instance).unwrap();
        assert_eq!(read, claims());
        for (file, part) in [("private", Part::Private), ("public", Part::Public)] {
            let signed = SignedStatement::parse(&golden(&format!("key-attestation-v1-{file}.cbor"))).unwrap();
            assert!(signed.is_signed_by(&key));
            assert_eq!(signed.part, part);
            let statement = &signed.statement;
            assert_eq!((statement.pool, statement.security_domain), (Guid([1; 16]), Guid([5; 16])));
            assert_eq!(statement.owner_fingerprint, sha256(&[&owner.point]));
            assert_eq!((statement.spec, &statement.public), (ec.spec, &ec.public));
            assert_eq!((statement.at, statement.origin), (AT, Origin::Generated));
            assert_eq!(statement.release_policy, Some([7; 32]));
            assert_eq!(statement.material, sha256(&[MATERIAL_LABEL, &[6; 60]]));
        }
    }

    #[test]
    fn every_kind_of_key_is_attested_and_a_symmetric_one_shows_nothing() {
        let owner = OwnerKey::generate();
        let attestor = Attestor::new(&owner, claims(), Guid([5; 16]));
        for version in samples() {
            let made = attestor.attest(&attestor.statement(&version, &MaskedMaterial(vec![6; 60]), None, AT));
            let chain = AttestationChain::parse(&made.certificates).unwrap();
            let (_, key) = owner.public_key().verify_certificate(&chain.instance).unwrap();
            let private = SignedStatement::parse(&made.private).unwrap();
            assert!(private.is_signed_by(&key), "{}", version.spec);
            assert_eq!(private.statement.public, version.public);
            let public = made.public.map(|bytes| SignedStatement::parse(&bytes).unwrap());
            assert_eq!(public.is_none(), matches!(version.spec, KeySpec::Oct(_)));
            assert!(public.is_none_or(|public| public.statement == private.statement));
        }
    }

    #[test]
    fn each_flipped_bit_of_a_statement_is_refused() {
        let chain = AttestationChain::parse(&text(golden("key-attestation-v1.pem"))).unwrap();
        let (_, key) = chain.owner.unwrap().verify_certificate(&chain.instance).unwrap();
        let bytes = golden("key-attestation-v1-private.cbor");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = SignedStatement::parse(&damaged);
            assert!(read.is_err() || !read.unwrap().is_signed_by(&key), "bit {bit}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(SignedStatement::parse(&longer), Err(AttestationRefused::NotAStatement));
        assert_eq!(SignedStatement::parse(&[0x83, 2]), Err(AttestationRefused::UnknownFormat(2)));
    }

    /// A checkpoint's key signs checkpoints: the label keeps its signatures apart, the purpose its certificate.
    #[test]
    fn what_was_signed_for_something_else_is_no_statement() {
        let key = InstanceKey::generate();
        let signed = SignedStatement::parse(&golden("key-attestation-v1-private.cbor")).unwrap();
        let forged = SignedStatement { signature: key.sign(&signed.content).to_vec(), ..signed };
        assert!(!forged.is_signed_by(&key.public_key()));
    }

    #[test]
    fn what_is_not_the_chain_is_refused() {
        let good = text(golden("key-attestation-v1.pem"));
        let refused = Err(AttestationRefused::Certificates);
        for bad in
            ["", "text", &good.replace("CERTIFICATE", "PUBLIC KEY"), &good.repeat(2), &"x".repeat(20_000)]
        {
            assert_eq!(AttestationChain::parse(bad), refused, "{bad:.60}");
        }
        // The owner's place holds no other certificate.
        let first = good.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        assert_eq!(AttestationChain::parse(&first.repeat(2)), refused);
        assert_eq!(AttestationChain::parse(first).map(|chain| chain.owner), Ok(None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
            let _ = SignedStatement::parse(&bytes);
            let _ = AttestationChain::parse(&text);
        }
    }
}
