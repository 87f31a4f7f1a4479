//! Every way a token can be refused, one case each, and what stays true when it is not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, too, fail by panicking")]

mod common;

use common::*;
use domain::guid::Guid;
use identity::key_set::KeySet;
use identity::token::{CACHED_AT_MOST_SECONDS, MAX_TOKEN_BYTES, REFETCH_INTERVAL_SECONDS};
use identity::{TokenError, TokenVerifier};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

#[test]
fn each_algorithm_gives_the_caller() {
    for signer in [Signer::Rs256, Signer::Ps256, Signer::Es256] {
        let caller = verifier().verify(&signer.token(&claims()), at(NOW)).unwrap();
        assert_eq!(caller.object_id.to_string(), OBJECT);
        assert_eq!(caller.tenant.as_str(), TENANT);
        assert_eq!(caller.application_id.as_deref(), Some("an-application"));
        assert_eq!(caller.user_principal_name, None);
        assert!(caller.groups.is_empty());
    }
}

/// Tokens made by another implementation.
#[test]
fn foreign_tokens_verify() {
    let golden: Value = serde_json::from_str(include_str!("golden/foreign-tokens.json")).unwrap();
    let keys = KeySet::parse(golden["key_set"].to_string().as_bytes()).unwrap();
    let verifier = TokenVerifier::new(config(), keys);
    let tokens = golden["tokens"].as_object().unwrap();
    assert_eq!(tokens.len(), 3);
    for (algorithm, token) in tokens {
        let caller = verifier.verify(token.as_str().unwrap(), at(1_700_000_000)).unwrap();
        assert_eq!(caller.object_id.to_string(), OBJECT, "{algorithm}");
    }
}

#[test]
fn audit_names_come_from_either_claim() {
    let mut claims = claims();
    claims["appid"] = Value::Null;
    claims["azp"] = json!("by-azp");
    claims["preferred_username"] = json!("ann@example.org");
    let caller = verifier().verify(&Signer::Es256.token(&claims), at(NOW)).unwrap();
    assert_eq!(caller.application_id.as_deref(), Some("by-azp"));
    assert_eq!(caller.user_principal_name.as_deref(), Some("ann@example.org"));
    claims["upn"] = json!("upn@example.org");
    let caller = verifier().verify(&Signer::Es256.token(&claims), at(NOW)).unwrap();
    assert_eq!(caller.user_principal_name.as_deref(), Some("upn@example.org"));
}

#[test]
fn a_caller_knows_when_its_token_was_issued_and_what_is_undated_counts_as_old() {
    let issued_at = |issued: Value, not_before: Value| {
        let mut claims = claims();
        claims["iat"] = issued;
        claims["nbf"] = not_before;
        let caller = verifier().verify(&Signer::Es256.token(&claims), at(NOW)).unwrap();
        caller.issued_at.unix_seconds()
    };
    assert_eq!(issued_at(json!(ISSUED), json!(ISSUED - 60)), ISSUED);
    assert_eq!(issued_at(json!(ISSUED as f64 + 0.9), Value::Null), ISSUED);
    assert_eq!(issued_at(Value::Null, json!(ISSUED - 60)), ISSUED - 60);
    assert_eq!(issued_at(Value::Null, Value::Null), 0);
}

#[test]
fn groups_count_only_when_all_of_them_are_listed() {
    let groups = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims();
        claims["groups"] = json!([GROUP, "/keycloak/path"]);
        change(&mut claims);
        verifier().verify(&Signer::Es256.token(&claims), at(NOW)).unwrap().groups.clone()
    };
    let listed: Vec<Guid> = vec![GROUP.parse().unwrap()];
    assert_eq!(groups(&|_| {}), listed);
    assert_eq!(groups(&|claims| claims["_claim_names"] = json!({"roles": "src1"})), listed);
    assert_eq!(groups(&|claims| claims["groups"] = json!(vec![GROUP; 200])).len(), 200);
    assert!(groups(&|claims| claims["groups"] = json!(vec![GROUP; 201])).is_empty());
    assert!(groups(&|claims| claims["hasgroups"] = json!(true)).is_empty());
    assert!(groups(&|claims| claims["hasgroups"] = json!(false)).is_empty(), "the mark alone counts");
    assert_eq!(groups(&|claims| claims["_claim_names"] = Value::Null), listed);
    assert!(groups(&|claims| claims["_claim_names"] = json!({"groups": null})).is_empty());
    assert!(groups(&|claims| claims["groups"] = json!([GROUP.replace('-', ""), ""])).is_empty());
    assert!(groups(&|claims| claims["_claim_names"] = json!({"groups": "src1"})).is_empty());
}

#[test]
fn audiences_are_accepted_with_and_without_port_and_final_slash() {
    for audience in [
        json!("https://managedhsm.example"),
        json!("https://managedhsm.example/"),
        json!("https://managedhsm.example:8443"),
        json!("https://managedhsm.example:8443/"),
        json!("https://managedhsm.azure.net/"),
        json!(["something else", "https://managedhsm.example:8443"]),
    ] {
        let token = Signer::Es256.token(&with("aud", audience.clone()));
        assert!(verifier().verify(&token, at(NOW)).is_ok(), "{audience}");
    }
}

#[test]
fn each_bad_claim_is_refused_with_its_own_message() {
    let long = "x".repeat(257);
    let cases: Vec<(&str, Value, &str)> = vec![
        ("iss", Value::Null, "token has no claim iss"),
        ("iss", json!(1), "token claim iss is malformed: expected a string"),
        (
            "iss",
            json!("https://issuer.example/v2.0/"),
            "token issuer \"https://issuer.example/v2.0/\" is not accepted: expected https://issuer.example/v2.0",
        ),
        ("aud", Value::Null, "token has no claim aud"),
        ("aud", json!({}), "token claim aud is malformed: expected a string or an array of strings"),
        ("aud", json!(["a", 1]), "token claim aud is malformed: expected a string or an array of strings"),
        (
            "aud",
            json!("https://vault.azure.net"),
            "token audience \"https://vault.azure.net\" is not accepted: expected one of \
             https://managedhsm.example[:port], https://managedhsm.azure.net",
        ),
        (
            "aud",
            json!([]),
            "token audience \"\" is not accepted: expected one of https://managedhsm.example[:port], \
             https://managedhsm.azure.net",
        ),
        ("tid", Value::Null, "token has no claim tid"),
        (
            "tid",
            json!(OBJECT),
            "token tenant \"22222222-2222-4222-8222-222222222222\" is not accepted: expected \
             11111111-1111-4111-8111-111111111111",
        ),
        (
            "tid",
            json!("a b"),
            "token tenant \"a b\" is not accepted: expected 11111111-1111-4111-8111-111111111111",
        ),
        ("exp", Value::Null, "token has no claim exp"),
        (
            "exp",
            json!("1787306400"),
            "token claim exp is malformed: expected seconds since 1970, up to year 9999",
        ),
        ("exp", json!(-1), "token claim exp is malformed: expected seconds since 1970, up to year 9999"),
        ("exp", json!(1e300), "token claim exp is malformed: expected seconds since 1970, up to year 9999"),
        (
            "exp",
            json!(u64::MAX),
            "token claim exp is malformed: expected seconds since 1970, up to year 9999",
        ),
        ("exp", json!(NOW), "token expired at 2026-08-21T10:00:00Z, 0 seconds ago"),
        ("exp", json!(NOW - 61), "token expired at 2026-08-21T09:58:59Z, 61 seconds ago"),
        ("nbf", json!(NOW + 301), "token is not valid before 2026-08-21T10:05:01Z, 301 seconds from now"),
        ("nbf", json!([]), "token claim nbf is malformed: expected seconds since 1970, up to year 9999"),
        (
            "iat",
            json!(NOW + 301),
            "token was issued in the future, at 2026-08-21T10:05:01Z, 301 seconds from now",
        ),
        ("iat", json!(true), "token claim iat is malformed: expected seconds since 1970, up to year 9999"),
        ("oid", Value::Null, "token has no claim oid"),
        ("oid", json!("me"), "token claim oid is malformed: expected a GUID"),
        ("oid", json!(7), "token claim oid is malformed: expected a string"),
        ("appid", json!(7), "token claim appid is malformed: expected a string"),
        ("azp", json!(long), "token claim azp is malformed: expected at most 256 bytes"),
        ("upn", json!([]), "token claim upn is malformed: expected a string"),
        ("preferred_username", json!({}), "token claim preferred_username is malformed: expected a string"),
        ("groups", json!("g"), "token claim groups is malformed: expected an array of strings"),
        ("groups", json!([1]), "token claim groups is malformed: expected an array of strings"),
        ("_claim_names", json!(1), "token claim _claim_names is malformed: expected an object"),
    ];
    for (claim, value, message) in cases {
        let refused =
            verifier().verify(&Signer::Es256.token(&with(claim, value.clone())), at(NOW)).unwrap_err();
        assert_eq!(refused.to_string(), message, "{claim} = {value}");
    }
}

#[test]
fn each_bad_header_is_refused_with_its_own_message() {
    for (header, message) in [
        (
            json!({"kid": "rsa"}),
            "header of the token is not a JSON object whose members have the right type and occur once (column 13)",
        ),
        (
            json!({"alg": "none", "kid": "rsa"}),
            "token algorithm \"none\" is not accepted: expected RS256, PS256 or ES256",
        ),
        (
            json!({"alg": "None", "kid": "rsa"}),
            "token algorithm \"None\" is not accepted: expected RS256, PS256 or ES256",
        ),
        (
            json!({"alg": "HS256", "kid": "rsa"}),
            "token algorithm \"HS256\" is not accepted: expected RS256, PS256 or ES256",
        ),
        (
            json!({"alg": "rs256", "kid": "rsa"}),
            "token algorithm \"rs256\" is not accepted: expected RS256, PS256 or ES256",
        ),
        (
            json!({"alg": "RS384", "kid": "rsa"}),
            "token algorithm \"RS384\" is not accepted: expected RS256, PS256 or ES256",
        ),
        (
            json!({"alg": "ES256", "kid": "rsa"}),
            "token algorithm ES256 does not fit its key, which is for RS256 or PS256",
        ),
        (
            json!({"alg": "RS256", "kid": "ec"}),
            "token algorithm RS256 does not fit its key, which is for ES256",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa-ps"}),
            "token algorithm RS256 does not fit its key, which is for PS256",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"]}),
            "token uses critical header extensions, which are not supported",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa", "crit": null}),
            "token uses critical header extensions, which are not supported",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa", "typ": "logout+jwt"}),
            "token type \"logout+jwt\" is not accepted: expected JWT or at+jwt",
        ),
        (json!({"alg": "RS256"}), "token names no key: expected kid or x5t in its header"),
        (
            json!({"alg": "RS256", "kid": "other"}),
            "token is signed with key \"other\", which is not among the issuer's keys",
        ),
        // `x5t` stands in for an absent `kid`, never for a wrong one.
        (
            json!({"alg": "RS256", "kid": "other", "x5t": "dGh1bWI"}),
            "token is signed with key \"other\", which is not among the issuer's keys",
        ),
        (
            json!({"alg": "RS256", "kid": "RSA"}),
            "token is signed with key \"RSA\", which is not among the issuer's keys",
        ),
        (
            json!({"alg": "RS256", "x5t": "b3RoZXI"}),
            "token is signed with key \"b3RoZXI\", which is not among the issuer's keys",
        ),
    ] {
        // Signed with the RSA key as RS256, whatever the header says.
        let refused =
            verifier().verify(&Signer::Rs256.token_with_header(&header, &claims()), at(NOW)).unwrap_err();
        assert_eq!(refused.to_string(), message, "{header}");
    }
}

#[test]
fn accepted_headers() {
    for header in [
        json!({"alg": "RS256", "kid": "rsa"}),
        json!({"alg": "RS256", "kid": "rsa", "typ": "JWT", "x5t": "b3RoZXI", "jku": "https://evil.example", "nonce": 1}),
        json!({"alg": "RS256", "kid": "rsa", "typ": "at+jwt"}),
        json!({"alg": "RS256", "x5t": "dGh1bWI"}),
        json!({"alg": "RS256", "x5t": "dGh1bWI="}),
    ] {
        let token = Signer::Rs256.token_with_header(&header, &claims());
        assert!(verifier().verify(&token, at(NOW)).is_ok(), "{header}");
    }
}

/// The classic confusions: a MAC keyed with public bytes, no signature, a signature in another encoding or scheme.
#[test]
fn algorithm_confusion_gains_nothing() {
    let none = format!("{}.{}.", part(&json!({"alg": "none", "kid": "rsa"})), part(&claims()));
    assert!(matches!(refusal(&none), TokenError::UnsupportedAlgorithm { .. }));

    let empty = format!("{}.{}.", part(&json!({"alg": "RS256", "kid": "rsa"})), part(&claims()));
    assert_eq!(refusal(&empty), TokenError::BadSignature);

    // Whatever spelling of a public key serves as the secret.
    for (kid, secret) in [
        ("rsa", rsa_public_key_der()),
        ("rsa", rsa_jwk("rsa").to_string().into_bytes()),
        ("rsa", rsa_jwk("rsa")["n"].as_str().unwrap().as_bytes().to_vec()),
        ("ec", ec_jwk("ec").to_string().into_bytes()),
        ("rsa", Vec::new()),
    ] {
        let signed = format!("{}.{}", part(&json!({"alg": "HS256", "kid": kid})), part(&claims()));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
        let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
        assert!(matches!(
            refusal(&format!("{signed}.{}", base64url(tag))),
            TokenError::UnsupportedAlgorithm { .. }
        ));
    }

    // A good signature under the name of a key of another type.
    for (signer, header) in [
        (Signer::Es256, json!({"alg": "ES256", "kid": "rsa"})),
        (Signer::Es256, json!({"alg": "ES256", "x5t": "dGh1bWI"})),
        (Signer::Rs256, json!({"alg": "RS256", "kid": "ec"})),
        (Signer::Ps256, json!({"alg": "PS256", "kid": "ec"})),
        (Signer::Rs256, json!({"alg": "RS256", "kid": "rsa-ps"})),
    ] {
        let refused = refusal(&signer.token_with_header(&header, &claims()));
        assert!(matches!(refused, TokenError::AlgorithmMismatch { .. }), "{header}: {refused}");
    }
    // A good signature under the name of another key of its type is as bad as none.
    let header = json!({"alg": "RS256", "kid": "foreign"});
    let keys = KeySet::parse(json!({"keys": [foreign_rsa_jwk()]}).to_string().as_bytes()).unwrap();
    let refused = TokenVerifier::new(config(), keys)
        .verify(&Signer::Rs256.token_with_header(&header, &claims()), at(NOW))
        .unwrap_err();
    assert_eq!(refused, TokenError::BadSignature);

    // Right key, right type, other scheme than the header names.
    let header = json!({"alg": "PS256", "kid": "rsa"});
    assert_eq!(refusal(&Signer::Rs256.token_with_header(&header, &claims())), TokenError::BadSignature);
    let header = json!({"alg": "RS256", "kid": "rsa"});
    assert_eq!(refusal(&Signer::Ps256.token_with_header(&header, &claims())), TokenError::BadSignature);

    // ES256 is 64 bytes of r and s, not DER.
    let header = json!({"alg": "ES256", "kid": "ec"});
    assert_eq!(refusal(&Signer::Es256Der.token_with_header(&header, &claims())), TokenError::BadSignature);
}

#[test]
fn what_is_not_a_compact_jws_is_refused() {
    let token = Signer::Es256.token(&claims());
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let twice = base64url(r#"{"alg":"ES256","kid":"ec","alg":"ES256"}"#);
    let array = base64url(r#"["ES256","ec",null,null]"#);
    for (token, message) in [
        (String::new(), "token is not a signed JWT: expected 3 parts separated by dots, found 1"),
        (
            format!("{header}.{payload}"),
            "token is not a signed JWT: expected 3 parts separated by dots, found 2",
        ),
        (
            format!("{token}.{payload}.x"),
            "token is not a signed JWT: expected 3 parts separated by dots, found 5",
        ),
        (
            format!(".{payload}.{signature}"),
            "header of the token is not a JSON object whose members have the right type and occur once (column 1)",
        ),
        (format!("{header}=.{payload}.{signature}"), "header of the token is not base64url without padding"),
        (format!(" {token}"), "header of the token is not base64url without padding"),
        (format!("{token}="), "signature of the token is not base64url without padding"),
        (format!("{token}\n"), "signature of the token is not base64url without padding"),
        (
            format!("{twice}.{payload}.{signature}"),
            "header of the token is not a JSON object whose members have the right type and occur once (column 31)",
        ),
        (
            format!("{array}.{payload}.{signature}"),
            "header of the token is not a JSON object whose members have the right type and occur once (column 1)",
        ),
        ("x".repeat(MAX_TOKEN_BYTES + 1), "token is 16385 bytes long, over the limit of 16384"),
    ] {
        assert_eq!(refusal(&token).to_string(), message, "{token:.80}");
    }
    let payload_not_json = Signer::Es256.sign(&format!("{header}.{}", base64url("[]")));
    assert!(matches!(refusal(&payload_not_json), TokenError::NotJson { part: "payload", column: 1 }));
    let claim_twice = format!("{},\"exp\":9999999999}}", claims().to_string().trim_end_matches('}'));
    let claim_twice = Signer::Es256.sign(&format!("{header}.{}", base64url(claim_twice)));
    assert!(matches!(refusal(&claim_twice), TokenError::NotJson { part: "payload", .. }));
    let mut not_text = claims().to_string().into_bytes();
    not_text.truncate(not_text.len() - 1);
    not_text.extend(b",\"other\":\"\xff\"}");
    let not_text = Signer::Es256.sign(&format!("{header}.{}", base64url(not_text)));
    assert!(matches!(refusal(&not_text), TokenError::NotJson { part: "payload", .. }));
}

#[test]
fn a_token_of_another_issuer_is_told_so_and_causes_no_fetch() {
    let header = json!({"alg": "RS256", "kid": "other"});
    let token = Signer::Rs256.token_with_header(&header, &with("iss", json!("https://other.example")));
    let verifier = verifier();
    let refused = verifier.verify(&token, at(NOW)).unwrap_err();
    assert!(matches!(refused, TokenError::WrongIssuer { .. }), "{refused}");
    assert!(!verifier.wants_refetch(&refused, at(NOW)));
}

#[test]
fn times_may_have_fractions() {
    let mut claims = claims();
    claims["iat"] = json!(NOW as f64 - 0.5);
    claims["nbf"] = json!(NOW as f64 - 0.25);
    claims["exp"] = json!(NOW as f64 + 0.75);
    let token = Signer::Es256.token(&claims);
    let verifier = verifier();
    assert!(verifier.verify(&token, milliseconds(NOW * 1000 + 749)).is_ok());
    assert!(matches!(
        verifier.verify(&token, milliseconds(NOW * 1000 + 750)),
        Err(TokenError::Expired { .. })
    ));
}

#[test]
fn leeway_is_300_seconds_on_nbf_and_iat_and_none_on_exp() {
    let mut claims = claims();
    claims["iat"] = json!(NOW + 300);
    claims["nbf"] = json!(NOW + 300);
    let token = Signer::Es256.token(&claims);
    assert!(verifier().verify(&token, at(NOW)).is_ok());
    assert!(matches!(
        verifier().verify(&token, milliseconds(NOW * 1000 - 1)),
        Err(TokenError::NotYetValid { .. })
    ));
    // `iat` and `nbf` are optional.
    claims["iat"] = Value::Null;
    claims["nbf"] = Value::Null;
    assert!(verifier().verify(&Signer::Es256.token(&claims), at(NOW)).is_ok());
}

#[test]
fn a_remembered_token_is_the_same_caller_and_still_expires() {
    let verifier = verifier();
    let token = Signer::Es256.token(&claims());
    let first = verifier.verify(&token, at(NOW)).unwrap();
    let again = verifier.verify(&token, at(NOW + 1)).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert!(verifier.verify(&token, at(EXPIRES - 1)).is_ok());
    assert!(matches!(verifier.verify(&token, at(EXPIRES)), Err(TokenError::Expired { .. })));
    assert!(matches!(verifier.verify(&token, at(EXPIRES)), Err(TokenError::Expired { .. })));
}

#[test]
fn a_remembered_token_is_verified_again_after_an_hour_and_after_the_clock_went_back() {
    let verifier = verifier();
    let token = Signer::Es256.token(&with("exp", json!(NOW + 100_000)));
    let first = verifier.verify(&token, at(NOW)).unwrap();
    let before = verifier.verify(&token, milliseconds((NOW + CACHED_AT_MOST_SECONDS) * 1000 - 1)).unwrap();
    assert!(Arc::ptr_eq(&first, &before));
    let after = verifier.verify(&token, at(NOW + CACHED_AT_MOST_SECONDS)).unwrap();
    assert!(!Arc::ptr_eq(&first, &after));
    let earlier = verifier.verify(&token, at(NOW)).unwrap();
    assert!(!Arc::ptr_eq(&after, &earlier));
}

#[test]
fn a_revoked_principal_is_refused_even_from_the_cache() {
    let verifier = verifier();
    let token = Signer::Es256.token(&claims());
    let object: Guid = OBJECT.parse().unwrap();
    verifier.verify(&token, at(NOW)).unwrap();

    verifier.revoke_before(GROUP.parse().unwrap(), at(NOW + 1));
    verifier.revoke_before(object, at(ISSUED));
    assert!(
        verifier.verify(&token, at(NOW)).is_ok(),
        "issued at that very moment, by a principal of its own"
    );

    verifier.revoke_before(object, at(ISSUED + 1));
    verifier.revoke_before(object, at(ISSUED - 1000));
    for _ in 0..2 {
        let refused = verifier.verify(&token, at(NOW)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "tokens of principal {OBJECT} issued before 2026-08-21T09:55:01Z were revoked: sign in again"
            )
        );
    }
    assert!(verifier.verify(&Signer::Es256.token(&with("iat", json!(ISSUED + 1))), at(NOW)).is_ok());
    let undated = verifier.verify(&Signer::Es256.token(&with("iat", Value::Null)), at(NOW));
    assert!(matches!(undated, Err(TokenError::Revoked { .. })));
}

#[test]
fn a_new_key_set_ends_what_the_old_one_verified() {
    let verifier = verifier();
    let by_rsa = Signer::Rs256.token(&claims());
    let by_ec = Signer::Es256.token(&claims());
    let rsa = verifier.verify(&by_rsa, at(NOW)).unwrap();
    verifier.verify(&by_ec, at(NOW)).unwrap();

    verifier.replace_keys(key_set());
    assert!(Arc::ptr_eq(&rsa, &verifier.verify(&by_rsa, at(NOW)).unwrap()), "an equal set empties nothing");

    verifier.replace_keys(KeySet::parse(json!({"keys": [rsa_jwk("rsa")]}).to_string().as_bytes()).unwrap());
    assert!(!Arc::ptr_eq(&rsa, &verifier.verify(&by_rsa, at(NOW)).unwrap()));
    assert!(matches!(verifier.verify(&by_ec, at(NOW)), Err(TokenError::UnknownKey { .. })));
}

#[test]
fn a_revocation_survives_a_new_key_set() {
    let verifier = verifier();
    verifier.revoke_before(OBJECT.parse().unwrap(), at(NOW));
    verifier.replace_keys(KeySet::parse(json!({"keys": [rsa_jwk("rsa")]}).to_string().as_bytes()).unwrap());
    let refused = verifier.verify(&Signer::Rs256.token(&claims()), at(NOW));
    assert!(matches!(refused, Err(TokenError::Revoked { .. })));
}

#[test]
fn an_unknown_key_asks_for_a_fetch_at_most_once_a_minute() {
    let verifier = verifier();
    let unknown = TokenError::UnknownKey { key: "k".to_owned() };
    assert!(!verifier.wants_refetch(&TokenError::BadSignature, at(NOW)));
    assert!(verifier.wants_refetch(&unknown, at(NOW)));
    assert!(!verifier.wants_refetch(&unknown, at(NOW)));
    assert!(!verifier.wants_refetch(&unknown, milliseconds((NOW + REFETCH_INTERVAL_SECONDS) * 1000 - 1)));
    assert!(verifier.wants_refetch(&unknown, at(NOW + REFETCH_INTERVAL_SECONDS)));
    assert!(verifier.wants_refetch(&unknown, at(NOW)), "a clock set back does not stop fetching");
}

#[test]
fn the_cache_is_bounded() {
    let mut config = config();
    config.cached_tokens = 4;
    let verifier = TokenVerifier::new(config, key_set());
    let remembered = (0..100).map(|uti| {
        let caller = verifier.verify(&Signer::Es256.token(&with("uti", json!(uti))), at(NOW)).unwrap();
        Arc::downgrade(&caller)
    });
    let remembered: Vec<_> = remembered.collect();
    let kept = remembered.iter().filter(|caller| caller.upgrade().is_some()).count();
    assert!((1..=4).contains(&kept), "{kept} of 100 are kept");
}

#[test]
fn messages_repeat_no_more_than_a_bounded_claim() {
    let long = "a".repeat(4000);
    let token = Signer::Es256.token(&with("aud", json!(long)));
    assert!(refusal(&token).to_string().len() < 400);
    let forged = format!("{}A", &token[..token.len() - 1]);
    for piece in token.split('.').filter(|piece| piece.len() > 20) {
        assert!(!refusal(&forged).to_string().contains(&piece[..20]));
    }
}

/// Each position of a valid token, with several other characters; the last position of each part with all of them,
/// since there two spellings could mean the same bytes.
#[test]
fn any_single_changed_character_is_refused() {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.+/ \n";
    // Payload lengths of all remainders modulo 3, so that all tails occur.
    for padding in ["", "x", "xx"] {
        let token = Signer::Es256.token(&with("pad", json!(padding)));
        let verifier = verifier();
        verifier.verify(&token, at(NOW)).unwrap();
        for position in 0..token.len() {
            let ends_part = token.as_bytes().get(position + 1).is_none_or(|&next| next == b'.');
            for (index, &replacement) in ALPHABET.iter().enumerate() {
                let original = token.as_bytes()[position];
                if replacement == original || (!ends_part && index % 17 != position % 17) {
                    continue;
                }
                let mut changed = token.clone().into_bytes();
                changed[position] = replacement;
                let changed = String::from_utf8(changed).unwrap();
                assert!(verifier.verify(&changed, at(NOW)).is_err(), "position {position}: {changed}");
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_verifies_nor_panics(text in "\\PC{0,400}", now in any::<i64>()) {
        prop_assert!(verifier().verify(&text, milliseconds(now)).is_err());
    }

    #[test]
    fn arbitrary_parts_never_verify_nor_panic(
        header in "[ -~]{0,60}", payload in "[ -~]{0,200}", signature in prop::collection::vec(any::<u8>(), 0..600)
    ) {
        let token = format!("{}.{}.{}", base64url(header), base64url(payload), base64url(signature));
        prop_assert!(verifier().verify(&token, at(NOW)).is_err());
    }

    #[test]
    fn arbitrary_signed_claims_never_panic(name in claim_name(), value in json_value(), now in any::<i64>()) {
        let token = Signer::Es256.token(&with(name, value));
        let _ = verifier().verify(&token, milliseconds(now)).map_err(|refused| refused.to_string());
    }

    #[test]
    fn arbitrary_key_sets_never_panic(value in json_value(), name in "(kty|use|alg|kid|n|e|x|y|crv|key_ops)") {
        let mut keys = [rsa_jwk("rsa"), ec_jwk("ec"), json!({"keys": value.clone()})];
        keys[0][name.as_str()] = value.clone();
        keys[1][name.as_str()] = value;
        let _ = KeySet::parse(json!({"keys": keys}).to_string().as_bytes());
        let _ = KeySet::parse(keys[2].to_string().as_bytes());
    }
}

/// RFC 7515 appendix A.2.
fn foreign_rsa_jwk() -> Value {
    json!({"kty": "RSA", "kid": "foreign", "e": "AQAB",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-\
            yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-\
            KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_\
            h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"})
}

fn refusal(token: &str) -> TokenError {
    verifier().verify(token, at(NOW)).unwrap_err()
}

fn claim_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "iss",
        "aud",
        "exp",
        "nbf",
        "iat",
        "tid",
        "oid",
        "appid",
        "azp",
        "upn",
        "preferred_username",
        "groups",
        "hasgroups",
        "_claim_names",
    ])
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,80}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}
