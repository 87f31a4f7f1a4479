//! Judges a statement of key attestation, claim by claim, without a network and without a secret.
//!
//! What a statement says counts once the chain from the trusted owner to its signature holds. Until then nothing in it is
//! compared with anything: a claim that happens to be true is not proven by a signature that is not.

use super::{public_key, usage};
use crate::CommandError;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use crypto::attestation::{AttestationChain, KeyStatement, Part, SignedStatement, VERSION};
use crypto::certificate::{InstanceClaims, InstancePublicKey, OwnerPublicKey, Purpose};
use crypto::digest::{hex, sha256};
use domain::guid::Guid;
use domain::key::{KeyOperation, KeyOperations, Origin, PublicKey};
use domain::name::{KeyName, KeyVersion};
use domain::pool::PoolClass;
use domain::time::IntDate;
use serde_json::{Value, json};

/// Clocks of a pool and a verifier may differ by this much.
const LEEWAY_SECONDS: i64 = 300;

const URL_SAFE: GeneralPurpose = lenient(&alphabet::URL_SAFE);
const STANDARD: GeneralPurpose = lenient(&alphabet::STANDARD);

const fn lenient(alphabet: &alphabet::Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

/// A statement as it was kept, and what was kept around it.
pub struct Document {
    certificates: String,
    pub(super) private: Vec<u8>,
    public: Option<Vec<u8>>,
    /// The bundle that the statement came in, if it did: what it says must be what is signed.
    bundle: Option<Value>,
}

impl Document {
    /// A key bundle with `attributes.attestation`, or that member alone: the service writes base64url, the Azure CLI
    /// base64.
    pub fn parse(bytes: &[u8]) -> Result<Self, CommandError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            usage(format!("the file is not JSON (line {}, column {})", error.line(), error.column()))
        })?;
        let (members, bundle) = match &value["attributes"]["attestation"] {
            Value::Null => (value, None),
            members => (members.clone(), Some(value)),
        };
        match &members["version"] {
            Value::String(version) if version == VERSION => {}
            Value::String(version) => {
                let version: String = version.chars().take(40).collect();
                return Err(usage(format!(
                    "the attestation is of version `{}`, and this program verifies `{VERSION}`",
                    super::output::clean(&version)
                )));
            }
            _ => return Err(usage("the file holds no key attestation".into())),
        }
        let bytes = |name: &str| -> Result<Option<Vec<u8>>, CommandError> {
            match &members[name] {
                Value::Null => Ok(None),
                Value::String(text) => URL_SAFE
                    .decode(text)
                    .or_else(|_| STANDARD.decode(text))
                    .map(Some)
                    .map_err(|_| usage(format!("{name} is not base64"))),
                _ => Err(usage(format!("{name} is not base64"))),
            }
        };
        let required =
            |name: &str| bytes(name)?.ok_or_else(|| usage(format!("the attestation has no {name}")));
        let certificates = String::from_utf8(required("certificatePemFile")?)
            .map_err(|_| usage("certificatePemFile is not PEM".into()))?;
        Ok(Self {
            certificates,
            private: required("privateKeyAttestation")?,
            public: bytes("publicKeyAttestation")?,
            bundle,
        })
    }
}

/// Whose statements are believed.
pub enum Trust {
    Owner(OwnerPublicKey),
    /// SHA-256 of the owner key's point; the key itself comes with the statement.
    Fingerprint([u8; 32]),
}

/// What the verifier knows better than the statement, or wants of it.
#[derive(Default)]
pub struct Expectations {
    pub pool: Option<Guid>,
    pub security_domain: Option<Guid>,
    pub class: Option<PoolClass>,
    pub genesis_hash: Option<[u8; 32]>,
    pub name: Option<KeyName>,
    pub version: Option<KeyVersion>,
    /// PEM.
    pub public_key: Option<String>,
    pub operations: Option<KeyOperations>,
    pub origin: Option<Origin>,
    pub not_exportable: bool,
    pub release_policy: Option<Vec<u8>>,
    pub max_age_seconds: Option<i64>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Checked against something that is not the statement's own word.
    Pass,
    Fail(String),
    /// Signed, and nothing here to compare it with.
    Claimed,
    /// The statement says nothing about it.
    NotClaimed,
    /// The chain to the owner does not hold, so that it is anybody's word.
    Unproven,
}

impl Outcome {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Pass => "PASS",
            Outcome::Fail(_) => "FAIL",
            Outcome::Claimed => "claimed",
            Outcome::NotClaimed => "not claimed",
            Outcome::Unproven => "unproven",
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    pub claim: &'static str,
    pub value: String,
    pub outcome: Outcome,
}

impl Verdict {
    pub fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Fail(_) | Outcome::Unproven)
    }

    pub fn reason(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Fail(reason) => Some(reason),
            Outcome::Pass | Outcome::Claimed | Outcome::NotClaimed | Outcome::Unproven => None,
        }
    }
}

/// A verdict for each claim, in an order that people read.
pub fn verify(document: &Document, trust: &Trust, expected: &Expectations, now: IntDate) -> Vec<Verdict> {
    let mut judge = Judge { verdicts: Vec::new(), proven: true };
    let signed = match SignedStatement::parse(&document.private) {
        Ok(signed) => signed,
        Err(error) => {
            judge.fail("statement", String::new(), error.to_string());
            return judge.verdicts;
        }
    };
    let statement = &signed.statement;
    let certified = judge.chain(document, trust, statement);
    if let Some((claims, key)) = &certified {
        judge.signatures(document, &signed, key);
        judge.certificate(claims, statement);
    }
    judge.proven = judge.proven && certified.is_some();
    judge.pool(statement, expected);
    judge.time(statement, certified.as_ref().map(|(claims, _)| claims), expected, now);
    judge.key(statement, expected, document.bundle.as_ref());
    judge.verdicts
}

struct Judge {
    verdicts: Vec<Verdict>,
    /// Whether the chain from the owner to the statement holds so far.
    proven: bool,
}

impl Judge {
    fn say(&mut self, claim: &'static str, value: String, outcome: Outcome) {
        self.verdicts.push(Verdict { claim, value, outcome });
    }

    fn fail(&mut self, claim: &'static str, value: String, reason: String) {
        self.say(claim, value, Outcome::Fail(reason));
    }

    /// A link of the chain: where it does not hold, nothing behind it is proven.
    fn link(&mut self, claim: &'static str, value: String, holds: Result<(), String>) {
        match holds {
            Ok(()) => self.say(claim, value, Outcome::Pass),
            Err(reason) => {
                self.proven = false;
                self.fail(claim, value, reason);
            }
        }
    }

    /// A claim that is compared with each of `checks`: whether it was asked for and holds, and what to say if not.
    fn claim(&mut self, claim: &'static str, value: String, checks: &[(Option<bool>, &str)]) {
        let failed = checks.iter().find(|(holds, _)| *holds == Some(false));
        let outcome = match failed {
            _ if !self.proven => Outcome::Unproven,
            Some((_, reason)) => Outcome::Fail((*reason).to_owned()),
            None if checks.iter().any(|(holds, _)| *holds == Some(true)) => Outcome::Pass,
            None => Outcome::Claimed,
        };
        self.say(claim, value, outcome);
    }

    fn chain(
        &mut self,
        document: &Document,
        trust: &Trust,
        statement: &KeyStatement,
    ) -> Option<(InstanceClaims, InstancePublicKey)> {
        let chain = match AttestationChain::parse(&document.certificates) {
            Ok(chain) => chain,
            Err(error) => {
                self.link("certificate", String::new(), Err(error.to_string()));
                return None;
            }
        };
        let owner = match (trust, chain.owner) {
            (Trust::Owner(owner), _) => owner.clone(),
            (Trust::Fingerprint(trusted), Some(owner)) if sha256(&[&owner.point]) == *trusted => owner,
            (Trust::Fingerprint(_), Some(owner)) => {
                let reason = "the certificates name another owner than the one that is trusted";
                self.link("owner", owner.fingerprint(), Err(reason.into()));
                return None;
            }
            (Trust::Fingerprint(_), None) => {
                let reason = "the owner's certificate did not come along: give --owner-key";
                self.link("owner", String::new(), Err(reason.into()));
                return None;
            }
        };
        let fingerprint = owner.fingerprint();
        let claims_it = hex(&statement.owner_fingerprint) == fingerprint;
        self.link(
            "owner",
            fingerprint,
            claims_it
                .then_some(())
                .ok_or("the statement names another owner than the one that is trusted".into()),
        );
        match owner.verify_certificate(&chain.instance) {
            Ok((claims, key)) => {
                self.link("certificate", format!("of incarnation {}", claims.incarnation), Ok(()));
                Some((claims, key))
            }
            Err(error) => {
                self.link("certificate", String::new(), Err(error.to_string()));
                None
            }
        }
    }

    fn signatures(&mut self, document: &Document, private: &SignedStatement, key: &InstancePublicKey) {
        let check = |signed: &SignedStatement, part: Part| {
            if signed.part != part {
                return Err("it stands in the other statement's place".to_owned());
            }
            signed
                .is_signed_by(key)
                .then_some(())
                .ok_or("the signature is not the certified key's".to_owned())
        };
        self.link("private statement", "signed".into(), check(private, Part::Private));
        let is_symmetric = private.statement.public == PublicKey::Oct;
        match &document.public {
            None if is_symmetric => self.say("public statement", String::new(), Outcome::NotClaimed),
            None => self.link("public statement", String::new(), Err("it is missing".into())),
            Some(bytes) => {
                let checked = SignedStatement::parse(bytes).map_err(|error| error.to_string());
                let checked = checked.and_then(|public| {
                    check(&public, Part::Public)?;
                    let same = public.statement == private.statement;
                    same.then_some(()).ok_or("it says something else than the private one".to_owned())
                });
                self.link("public statement", "signed".into(), checked);
            }
        }
    }

    /// The statement may say no more of the pool than its certificate does.
    fn certificate(&mut self, claims: &InstanceClaims, statement: &KeyStatement) {
        let purpose = claims.purpose;
        let holds = purpose == Purpose::Attestation;
        let reason = || "the certificate is for something else than attestation".to_owned();
        self.link("purpose", purpose.as_str().into(), holds.then_some(()).ok_or_else(reason));
        let of_statement =
            (statement.pool, statement.node, statement.incarnation, statement.class, statement.genesis_hash);
        let of_certificate =
            (claims.pool, claims.node, claims.incarnation, claims.class, claims.genesis_hash);
        let reason = || "the statement names another pool, node, incarnation, class or genesis".to_owned();
        let holds = (of_statement == of_certificate).then_some(()).ok_or_else(reason);
        self.link("certified for", format!("node {}", claims.node), holds);
    }

    fn pool(&mut self, statement: &KeyStatement, expected: &Expectations) {
        let other = "another one was expected";
        let pool = expected.pool.map(|pool| pool == statement.pool);
        self.claim("pool", statement.pool.to_string(), &[(pool, other)]);
        let domain = expected.security_domain.map(|domain| domain == statement.security_domain);
        self.claim("security domain", statement.security_domain.to_string(), &[(domain, other)]);
        let class = expected.class.map(|class| class == statement.class);
        self.claim("class", statement.class.as_str().into(), &[(class, other)]);
        let genesis = expected.genesis_hash.map(|hash| hash == statement.genesis_hash);
        self.claim("genesis", hex(&statement.genesis_hash), &[(genesis, other)]);
    }

    fn time(
        &mut self,
        statement: &KeyStatement,
        claims: Option<&InstanceClaims>,
        expected: &Expectations,
        now: IntDate,
    ) {
        let (at, now) = (statement.at, now.unix_seconds());
        let within = claims.map(|claims| claims.not_before <= at && at < claims.not_after);
        let age = now.saturating_sub(at.unix_seconds());
        let young = expected.max_age_seconds.map(|limit| age <= limit);
        let checks = [
            (within, "the certificate did not hold then"),
            (Some(age >= -LEEWAY_SECONDS), "that is in the future"),
            (young, "that is longer ago than --max-age"),
        ];
        self.claim("time", super::moment::show(at.unix_seconds()), &checks);
    }

    fn key(&mut self, statement: &KeyStatement, expected: &Expectations, bundle: Option<&Value>) {
        let other = "another one was expected";
        let beside = "the answer around the statement says something else";
        let bundled = |path: &str, signed: Value| {
            bundle.and_then(|bundle| bundle.pointer(path)).map(|held| *held == signed)
        };
        let kid = bundle.and_then(|bundle| bundle.pointer("/key/kid")).and_then(Value::as_str);
        let named = kid.map(super::document::parse_kid);

        let name = expected.name.as_ref().map(|name| *name == statement.name);
        let held =
            named.as_ref().map(|named| named.as_ref().is_some_and(|(name, _)| *name == statement.name));
        self.claim("key", statement.name.to_string(), &[(name, other), (held, beside)]);

        let version = expected.version.map(|version| version == statement.version);
        let held =
            named.as_ref().map(|named| named.as_ref().is_some_and(|(_, held)| *held == statement.version));
        self.claim("version", statement.version.to_string(), &[(version, other), (held, beside)]);

        let held = bundled("/key/kty", statement.spec.key_type().into());
        self.claim("type", statement.spec.to_string(), &[(held, beside)]);

        let public = jwk(&statement.public);
        match public {
            None => {
                let reason = "a symmetric key has no public part";
                let outcome = match &expected.public_key {
                    Some(_) => Outcome::Fail(reason.into()),
                    None => Outcome::NotClaimed,
                };
                self.say("public key", String::new(), outcome);
            }
            Some(jwk) => {
                let same = |pem: &String| public_key::pem(&jwk).is_ok_and(|ours| same_pem(&ours, pem));
                let given = expected.public_key.as_ref().map(same);
                let members = jwk.as_object().into_iter().flatten();
                let held = bundle.map(|bundle| {
                    members.clone().all(|(member, value)| member == "kty" || bundle["key"][member] == *value)
                });
                let (first, second) = statement.public.parts();
                let fingerprint = format!("SHA-256 of its numbers {}", hex(&sha256(&[first, second])));
                self.claim("public key", fingerprint, &[(given, other), (held, beside)]);
            }
        }

        let names: Vec<&str> = statement.operations.iter().map(KeyOperation::as_str).collect();
        let wanted = expected.operations.map(|operations| operations == statement.operations);
        let held = bundled("/key/key_ops", json!(names));
        self.claim("key_ops", names.join(","), &[(wanted, other), (held, beside)]);

        let held = bundled("/attributes/created", statement.created.unix_seconds().into());
        self.claim("created", super::moment::show(statement.created.unix_seconds()), &[(held, beside)]);

        match (statement.origin, expected.origin) {
            (Origin::Unknown, None) => self.say("origin", String::new(), Outcome::NotClaimed),
            (origin, expected) => {
                let wanted = expected.map(|expected| expected == origin);
                self.claim("origin", origin.as_str().into(), &[(wanted, other)]);
            }
        }

        let wanted = expected.not_exportable.then_some(!statement.exportable);
        let held = bundled("/attributes/exportable", statement.exportable.into());
        self.claim("exportable", statement.exportable.to_string(), &[(wanted, other), (held, beside)]);

        match (statement.release_policy, &expected.release_policy) {
            (None, None) => self.say("release policy", String::new(), Outcome::NotClaimed),
            (None, Some(_)) => {
                self.fail("release policy", String::new(), "the statement names none".into());
            }
            (Some(hash), wanted) => {
                let wanted = wanted.as_ref().map(|policy| sha256(&[policy]) == hash);
                self.claim("release policy", format!("SHA-256 {}", hex(&hash)), &[(wanted, other)]);
            }
        }
        self.claim("stored material", format!("SHA-256 {}", hex(&statement.material)), &[]);
    }
}

/// The public part as the service writes it; `None` for symmetric keys.
fn jwk(public: &PublicKey) -> Option<Value> {
    let encode = |bytes: &[u8]| super::input::encode(bytes).to_string();
    match public {
        PublicKey::Rsa { modulus, exponent } => {
            Some(json!({ "kty": "RSA", "n": encode(modulus), "e": encode(exponent) }))
        }
        PublicKey::Ec { curve, x, y } => {
            Some(json!({ "kty": "EC", "crv": curve.as_str(), "x": encode(x), "y": encode(y) }))
        }
        PublicKey::Oct => None,
    }
}

/// Whether two PEM files hold the same, however their lines are broken.
fn same_pem(one: &str, other: &str) -> bool {
    let body = |text: &str| -> Option<Vec<u8>> {
        let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----")?;
        let (body, _) = rest.split_once("-----END PUBLIC KEY-----")?;
        let digits: String = body.split_whitespace().collect();
        STANDARD.decode(digits).ok()
    };
    body(one).is_some_and(|one| body(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    macro_rules! golden {
        ($name:literal) => {
            include_bytes!(concat!("../../../crypto/tests/golden/key-attestation-v1", $name))
        };
    }

    const PRIVATE: &[u8] = golden!("-private.cbor");
    const PUBLIC: &[u8] = golden!("-public.cbor");
    const NOW: IntDate = IntDate::from_unix_seconds(1_800_000_200);

    fn file(private: &[u8], public: Option<&[u8]>) -> Vec<u8> {
        let mut members = json!({
            "version": VERSION, "certificatePemFile": STANDARD.encode(golden!(".pem")),
            "privateKeyAttestation": URL_SAFE.encode(private),
        });
        if let Some(public) = public {
            members["publicKeyAttestation"] = STANDARD.encode(public).into();
        }
        members.to_string().into_bytes()
    }

    fn owner() -> OwnerPublicKey {
        OwnerPublicKey::from_pem(std::str::from_utf8(golden!("-owner.pem")).unwrap()).unwrap()
    }

    fn failures(file: &[u8], expected: &Expectations, now: IntDate) -> Vec<&'static str> {
        let document = Document::parse(file).unwrap();
        let verdicts = verify(&document, &Trust::Owner(owner()), expected, now);
        let failed = verdicts.iter().filter(|verdict| matches!(verdict.outcome, Outcome::Fail(_)));
        failed.map(|verdict| verdict.claim).collect()
    }

    #[test]
    fn the_golden_statement_passes_in_either_base64_and_bent_ones_do_not() {
        let nothing = Expectations::default();
        assert!(failures(&file(PRIVATE, Some(PUBLIC)), &nothing, NOW).is_empty());
        assert_eq!(failures(&file(PRIVATE, None), &nothing, NOW), ["public statement"]);
        assert_eq!(
            failures(&file(PUBLIC, Some(PRIVATE)), &nothing, NOW),
            ["private statement", "public statement"]
        );
        let before = IntDate::from_unix_seconds(1_700_000_000);
        assert_eq!(failures(&file(PRIVATE, Some(PUBLIC)), &nothing, before), ["time"]);
        let policy = Expectations { release_policy: Some(b"{}".to_vec()), ..Expectations::default() };
        assert_eq!(failures(&file(PRIVATE, Some(PUBLIC)), &policy, NOW), ["release policy"]);
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..2_000, value: u8) {
            let _ = Document::parse(&bytes);
            let mut bent = file(PRIVATE, Some(PUBLIC));
            let at = at % bent.len();
            bent[at] = value;
            if let Ok(document) = Document::parse(&bent) {
                let trust = Trust::Fingerprint(sha256(&[&owner().point]));
                prop_assert!(!verify(&document, &trust, &Expectations::default(), NOW).is_empty());
            }
        }
    }
}
