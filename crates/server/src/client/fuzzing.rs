//! What a server answers to the commands that are its clients, and files that others wrote, for fuzz targets alone.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a finding

use super::connection::{Answer, Origin};
use super::document::{Document, parse_kid};
use super::login::Challenge;
use super::verdict::{self, Expectations, Trust};
use super::{Refused, apply, public_key, release};
use crypto::certificate::OwnerPublicKey;
use crypto::digest::sha256;
use domain::principal::TenantId;
use domain::time::IntDate;
use http::{HeaderMap, HeaderValue, StatusCode};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use std::sync::LazyLock;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

const POOL: &str = "https://demo.managedhsm.example:8443";

/// What a 401 asks for. The token is for the pool's own resource, in one's own tenant.
pub fn client_challenge(bytes: &[u8]) {
    let Some(challenge) = std::str::from_utf8(bytes).ok().and_then(Challenge::parse) else { return };
    let (pool, tenant) = (POOL.parse::<Origin>().unwrap(), TenantId::parse("T").unwrap());
    match challenge.check(&pool, &tenant) {
        Ok(()) => {
            let resource: Origin = challenge.resource.parse().unwrap();
            assert!(pool.host().ends_with(&format!(".{}", resource.host())), "{resource}");
            assert!(challenge.tenant.eq_ignore_ascii_case("t"));
        }
        Err(error) => check_shown(&error.to_string()),
    }
}

/// Where a list goes on: at the same server, or nowhere.
pub fn client_link(bytes: &[u8]) {
    let Ok(link) = std::str::from_utf8(bytes) else { return };
    if let Ok(origin) = link.parse::<Origin>() {
        assert_eq!(origin.to_string().parse::<Origin>().as_ref(), Ok(&origin));
    }
    let pool: Origin = POOL.parse().unwrap();
    let Some(path) = pool.own_path(link) else { return };
    assert!(path.starts_with('/'), "{path}");
    let (start, port) = POOL.rsplit_once(':').unwrap();
    let (link_start, rest) = link.split_at(start.len());
    assert!(link_start.eq_ignore_ascii_case(start), "{link}");
    let rest = rest.strip_prefix(':').unwrap().trim_start_matches('0').strip_prefix(port).unwrap();
    assert!(rest.is_empty() || rest.starts_with(['/', '?', '#']), "{link}");
    assert_eq!(pool.own_path(&format!("{POOL}{path}")), Some(path));
}

/// The body of an answer that refuses. What is shown of it cannot move a terminal's cursor, nor turn its text around.
pub fn client_refusal(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for name in ["x-ms-request-id", "retry-after"] {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.insert(name, value);
        }
    }
    let body = Zeroizing::new(bytes.to_vec());
    let refused = Refused::read(&Answer { status: StatusCode::CONFLICT, headers, body });
    check_shown(&refused.to_string());
    refused.hints().iter().for_each(|hint| check_shown(hint));
}

fn check_shown(text: &str) {
    let moves = |character: char| {
        character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.chars().any(moves), "{text:?}");
}

/// A key as a server shows it. In PEM it is the same key to another reader, and its policy is sent back as it was.
pub fn client_key(bytes: &[u8]) {
    let Ok(bundle) = serde_json::from_slice::<Value>(bytes) else { return };
    if let Ok(Some(policy)) = release::held_policy(&bundle) {
        let sent = serde_json::json!({ "release_policy": release::policy_body(&policy) });
        assert_eq!(release::held_policy(&sent).unwrap(), Some(policy));
    }
    let key = &bundle["key"];
    let Ok(pem) = public_key::pem(key) else { return };
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (rest, info) = SubjectPublicKeyInfo::from_der(&der).unwrap();
    assert!(rest.is_empty());
    let number = |member: &str| super::input::decode(member, key[member].as_str().unwrap()).unwrap().to_vec();
    match key["kty"].as_str().unwrap() {
        "RSA" | "RSA-HSM" => {
            let PublicKey::RSA(read) = info.parsed().unwrap() else { panic!("another type: {pem}") };
            assert_eq!(without_zeros(read.modulus), without_zeros(&number("n")));
            assert_eq!(without_zeros(read.exponent), without_zeros(&number("e")));
        }
        _ => assert_eq!(info.subject_public_key.data[1..], [number("x"), number("y")].concat()),
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[start..]
}

/// What `encrypt` and `wrap` wrote, or somebody else.
pub fn encrypted_document(bytes: &[u8]) {
    let Ok(document) = Document::parse(bytes) else { return };
    assert!(document.algorithm().is_ok());
    assert_eq!(Document::parse(&document.to_json().unwrap()).unwrap(), document);
    if let Some((name, version)) = parse_kid(&document.kid) {
        assert!(document.version_of(&name).unwrap() == version);
        let end = format!("/keys/{name}/{version}").to_ascii_lowercase();
        assert!(document.kid.to_ascii_lowercase().ends_with(&end), "{}", document.kid);
    }
}

/// A statement of attestation with its certificates. Of all files only those with the known statements pass.
pub fn attestation_file(bytes: &[u8]) {
    const PRIVATE: &[u8] = include_bytes!("../../../crypto/tests/golden/key-attestation-v1-private.cbor");
    const OWNER: &str = include_str!("../../../crypto/tests/golden/key-attestation-v1-owner.pem");
    const NOW: IntDate = IntDate::from_unix_seconds(1_800_000_200);
    static TRUSTS: LazyLock<[Trust; 2]> = LazyLock::new(|| {
        let owner = OwnerPublicKey::from_pem(OWNER).unwrap();
        [Trust::Fingerprint(sha256(&[&owner.point])), Trust::Owner(owner)]
    });
    let Ok(document) = verdict::Document::parse(bytes) else { return };
    for trust in TRUSTS.iter() {
        let verdicts = verdict::verify(&document, trust, &Expectations::default(), NOW);
        let passes = !verdicts.is_empty() && !verdicts.iter().any(verdict::Verdict::is_failure);
        assert!(!passes || document.private == PRIVATE);
        let certified = verdicts.iter().find(|verdict| verdict.claim == "private statement");
        assert!(!passes || certified.is_some_and(|verdict| verdict.outcome == verdict::Outcome::Pass));
    }
}

/// What a pool is to be made, and the mistakes in it, each with its line.
pub fn apply_file(bytes: &[u8]) {
    const POLICY: &str = r#"{"anyOf":[{"authority":"https://a","allOf":[{"claim":"b","equals":true}]}]}"#;
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = || apply::file::read(text, &|_| Ok(POLICY.to_owned()));
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    match read() {
        Ok(wanted) => assert_eq!(format!("{wanted:?}"), format!("{:?}", read().unwrap())),
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                let line =
                    mistake.strip_prefix("line ").and_then(|rest| rest.split_once(": ")?.0.parse().ok());
                assert!(line.is_some_and(|line: usize| (1..=lines).contains(&line)), "{mistake}");
            }
        }
    }
}
