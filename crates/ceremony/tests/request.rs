//! Requests for a security domain: each refusal has its words.

#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use ceremony::{DownloadRequest, fuzz};
use common::{certificate, holder_set};
use crypto::digest::sha256;
use proptest::prelude::*;
use serde_json::{Value, json};

/// As the Azure CLI writes it.
fn jwk(holder: usize) -> Value {
    let certificate = certificate(holder);
    let url = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    json!({
        "x5c": [BASE64_STANDARD.encode(certificate.der())],
        "x5t": url(&certificate.sha1_thumbprint()),
        "x5t#S256": url(&certificate.thumbprint()),
        "key_ops": ["verify", "encrypt", "wrapKey"],
        "kty": "RSA",
        "alg": "RSA-OAEP-256",
        "n": url(certificate.modulus()),
        "e": "AQAB",
    })
}

fn body() -> Value {
    json!({"certificates": [jwk(1), jwk(2), jwk(3)], "required": 2})
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut body = body();
    change(&mut body);
    DownloadRequest::parse(&body.to_string()).unwrap_err().to_string()
}

#[test]
fn a_request_of_the_azure_cli_is_read() {
    let request = DownloadRequest::parse(&body().to_string()).unwrap();
    assert_eq!(request.holders.thumbprints(), holder_set(&[1, 2, 3], 2).thumbprints());
    assert_eq!(request.holders.quorum().required(), 2);
    let mut least = body();
    least.as_object_mut().unwrap().remove("required");
    for certificate in least["certificates"].as_array_mut().unwrap() {
        let x5c = certificate["x5c"].clone();
        *certificate = json!({"x5c": x5c, "kid": "k", "use": "enc"});
    }
    assert_eq!(DownloadRequest::parse(&least.to_string()).unwrap().holders.quorum().required(), 2);
}

/// Terraform's provider: the thumbprint is of the text in `x5c`, and padded; no `n`, `e` or `x5t`.
#[test]
fn a_thumbprint_is_taken_from_the_certificate_and_from_nowhere_else() {
    let mut body = body();
    for certificate in body["certificates"].as_array_mut().unwrap() {
        let x5c = certificate["x5c"].clone();
        let of_text = BASE64_URL_SAFE.encode(sha256(&[x5c[0].as_str().unwrap().as_bytes()]));
        *certificate = json!({"alg": "RSA-OAEP-256", "kty": "RSA", "x5c": x5c, "x5t#S256": of_text});
    }
    let request = DownloadRequest::parse(&body.to_string()).unwrap();
    assert_eq!(request.holders.thumbprints(), holder_set(&[1, 2, 3], 2).thumbprints());
}

#[test]
fn each_refusal_says_what_was_wrong() {
    let other = jwk(4);
    let in_second =
        |member: &'static str, value: Value| refused(|body| body["certificates"][1][member] = value);
    let small = include_bytes!("../../crypto/tests/certificates/rsa-1024.der");
    let elliptic = include_bytes!("../../crypto/tests/golden/instance-certificate-v1.der");
    for (said, expected) in [
        (refused(|body| body["required"] = json!(1)), "a quorum of 1"),
        (refused(|body| body["required"] = json!(11)), "a quorum of 11"),
        (refused(|body| body["required"] = json!(4)), "a quorum of 4 cannot be had from 3 certificates"),
        (refused(|body| body["required"] = json!(-2)), "cannot be read"),
        (refused(|body| body["certificates"] = json!([jwk(1), jwk(2)])), "2 certificates"),
        (refused(|body| body["certificates"] = json!(vec![jwk(1); 11])), "11 certificates"),
        (
            refused(|body| body["certificates"][2] = body["certificates"][0].clone()),
            "certificates 1 and 3 are for the same key",
        ),
        (in_second("n", other["n"].clone()), "certificate 2: n is not that of"),
        (in_second("e", json!("Aw")), "certificate 2: e is not that of"),
        (in_second("kty", json!("EC")), "certificate 2: kty"),
        (in_second("alg", json!("RSA1_5")), "certificate 2: alg"),
        (in_second("x5c", json!([])), "certificate 2: x5c must be one certificate"),
        (in_second("x5c", json!(["AA", "AA"])), "certificate 2: x5c must be one certificate"),
        (in_second("x5c", json!(["?"])), "standard base64"),
        (in_second("x5c", json!([BASE64_STANDARD.encode(b"nonsense")])), "certificate 2: not an X.509"),
        (in_second("x5c", json!([BASE64_STANDARD.encode(small)])), "the RSA key is 1024 bits"),
        (in_second("x5c", json!([BASE64_STANDARD.encode(elliptic)])), "not for an RSA key"),
    ] {
        assert!(said.contains(expected), "{said}");
    }
    let twice = body().to_string().replace(r#""required":2"#, r#""required":2,"required":3"#);
    assert!(DownloadRequest::parse(&twice).unwrap_err().to_string().contains("twice"));
}

proptest! {
    #[test]
    fn damaged_requests_never_panic(at in 0.0..1.0_f64, bytes in proptest::collection::vec(any::<u8>(), 0..20), cut in 0_usize..40) {
        let mut text = body().to_string().into_bytes();
        let at = (text.len() as f64 * at) as usize;
        let end = (at + cut).min(text.len());
        text.splice(at..end, bytes);
        fuzz::download_request(&text);
    }
}
