//! An attestation authority for pools of class test: it vouches for whatever it is asked to.
//!
//! Nobody proves anything to it. A policy that names it protects nothing; it is there so that software for confidential
//! machines can be tried without one. Its key is made when it is first needed and lives as long as the process.

use super::{SigningKey, SigningKeyError, random};
use crate::text::base64url;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::time::Time;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::{Arc, OnceLock};

/// Where it is below its origin.
pub const PATH: &str = "/attestation";
const LIFETIME_SECONDS: i64 = 8 * 3600;
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A key and its certificate, DER.
pub type CertifiedKey = (SigningKey, Vec<u8>);

pub struct TestAuthority {
    key: OnceLock<Option<CertifiedKey>>,
    make_key: fn() -> Option<CertifiedKey>,
    /// `https://host:port/attestation`.
    url: String,
    clock: fn() -> Time,
}

/// What is to be vouched for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Evidence {
    /// `sevsnpvm`, `tdxvm` or `sgx`.
    #[serde(rename = "type")]
    kind: String,
    /// JSON Web Keys of the environment.
    #[serde(default)]
    keys: Vec<Value>,
    /// In the place of the usual ones, or beside them.
    #[serde(default)]
    claims: Map<String, Value>,
}

impl TestAuthority {
    pub fn new(url: String, clock: fn() -> Time, make_key: fn() -> Option<CertifiedKey>) -> Self {
        Self { key: OnceLock::new(), make_key, url, clock }
    }

    fn key(&self) -> Result<&CertifiedKey, SigningKeyError> {
        self.key.get_or_init(self.make_key).as_ref().ok_or(SigningKeyError::Generation)
    }

    pub fn router(self) -> Router {
        Router::new()
            .route("/attestation/.well-known/openid-configuration", get(metadata))
            .route("/attestation/certs", get(keys))
            .route("/attestation/tokens", post(token))
            .with_state(Arc::new(self))
    }

    fn token(&self, evidence: Evidence) -> Result<Result<String, SigningKeyError>, String> {
        let now = (self.clock)().int_date().unix_seconds();
        let mut claims = claims_of(&evidence.kind).ok_or("type must be sevsnpvm, tdxvm or sgx")?;
        // Without a name of its own, one of the same second for the same environment would be the same token, and a pool
        // takes a token from one principal alone.
        let Ok(id) = random::<16>() else { return Ok(Err(SigningKeyError::Signing)) };
        claims.extend([
            ("jti".to_owned(), base64url(id).into()),
            ("iat".to_owned(), now.into()),
            ("nbf".to_owned(), now.into()),
            ("exp".to_owned(), (now + LIFETIME_SECONDS).into()),
            ("x-ms-ver".to_owned(), "1.0".into()),
            ("x-ms-attestation-type".to_owned(), evidence.kind.into()),
            ("x-ms-runtime".to_owned(), json!({ "keys": evidence.keys })),
        ]);
        claims.extend(evidence.claims);
        claims.insert("iss".to_owned(), self.url.clone().into());
        Ok(self.key().and_then(|(key, _)| key.sign(&claims)))
    }
}

/// The claims that the service's own authority makes for an environment of this type, as of one that is in order.
fn claims_of(kind: &str) -> Option<Map<String, Value>> {
    let claims = match kind {
        "sevsnpvm" => json!({
            "x-ms-compliance-status": "azure-compliant-uvm",
            "x-ms-sevsnpvm-authorkeydigest": ZEROS,
            "x-ms-sevsnpvm-bootloader-svn": 3,
            "x-ms-sevsnpvm-familyId": "01000000000000000000000000000000",
            "x-ms-sevsnpvm-guestsvn": 2,
            "x-ms-sevsnpvm-hostdata": ZEROS,
            "x-ms-sevsnpvm-idkeydigest": ZEROS,
            "x-ms-sevsnpvm-imageId": "02000000000000000000000000000000",
            "x-ms-sevsnpvm-is-debuggable": false,
            "x-ms-sevsnpvm-launchmeasurement": ZEROS,
            "x-ms-sevsnpvm-microcode-svn": 115,
            "x-ms-sevsnpvm-migration-allowed": false,
            "x-ms-sevsnpvm-reportdata": ZEROS,
            "x-ms-sevsnpvm-reportid": ZEROS,
            "x-ms-sevsnpvm-smt-allowed": true,
            "x-ms-sevsnpvm-snpfw-svn": 8,
            "x-ms-sevsnpvm-tee-svn": 0,
            "x-ms-sevsnpvm-vmpl": 0,
        }),
        "tdxvm" => json!({
            "attester_tcb_status": "UpToDate",
            "dbgstat": "disabled",
            "intuse": "generic",
            "tdx_mrconfigid": ZEROS,
            "tdx_mrowner": ZEROS,
            "tdx_mrseam": ZEROS,
            "tdx_mrtd": ZEROS,
            "tdx_report_data": ZEROS,
            "tdx_rtmr0": ZEROS,
            "tdx_rtmr1": ZEROS,
            "tdx_rtmr2": ZEROS,
            "tdx_rtmr3": ZEROS,
            "tdx_seamsvn": 3,
            "tdx_td_attributes_debug": false,
            "tdx_td_attributes_septve_disable": false,
            "tdx_tee_tcb_svn": "03000000000000000000000000000000",
        }),
        "sgx" => json!({
            "x-ms-sgx-is-debuggable": false,
            "x-ms-sgx-mrenclave": ZEROS,
            "x-ms-sgx-mrsigner": ZEROS,
            "x-ms-sgx-product-id": 1,
            "x-ms-sgx-report-data": ZEROS,
            "x-ms-sgx-svn": 1,
        }),
        _ => return None,
    };
    claims.as_object().cloned()
}

async fn metadata(State(authority): State<Arc<TestAuthority>>) -> Json<Value> {
    Json(json!({
        "issuer": authority.url,
        "jwks_uri": format!("{}/certs", authority.url),
        "response_types_supported": ["token", "none"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
}

async fn keys(State(authority): State<Arc<TestAuthority>>) -> Response {
    match authority.key() {
        Ok((key, certificate)) => {
            let x5c = [STANDARD.encode(certificate)];
            let key = json!({ "kty": "RSA", "use": "sig", "kid": key.key_id(), "x5c": x5c });
            Json(json!({ "keys": [key] })).into_response()
        }
        Err(error) => failed(error),
    }
}

async fn token(State(authority): State<Arc<TestAuthority>>, body: String) -> Response {
    let refused =
        |reason: String| (StatusCode::BAD_REQUEST, Json(json!({ "error": reason }))).into_response();
    let evidence = match serde_json::from_str(&body) {
        Ok(evidence) => evidence,
        Err(error) => return refused(error.to_string()),
    };
    match authority.token(evidence) {
        Ok(Ok(token)) => Json(json!({ "token": token })).into_response(),
        Ok(Err(error)) => failed(error),
        Err(reason) => refused(reason),
    }
}

fn failed(error: SigningKeyError) -> Response {
    tracing::error!(%error, "the attestation authority cannot sign");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attestation::Assertion;
    use domain::json::Json as Document;
    use domain::release::Policy;

    #[test]
    fn each_type_has_the_claims_that_policies_ask_for() {
        let clock = || Time::from_unix_milliseconds(1_800_000_000_000);
        let make_key = || Some((SigningKey::generate().unwrap(), vec![]));
        let authority = TestAuthority::new("https://a/attestation".into(), clock, make_key);
        for (kind, condition) in [
            ("sevsnpvm", r#"{"claim":"x-ms-sevsnpvm-is-debuggable","equals":false}"#),
            ("tdxvm", r#"{"claim":"tdx_td_attributes_debug","equals":false}"#),
            ("sgx", r#"{"claim":"x-ms-sgx-svn","greaterOrEquals":1}"#),
        ] {
            let evidence = json!({ "type": kind, "claims": { "own": 7, "iss": "https://other" } });
            let token = authority.token(serde_json::from_value(evidence).unwrap()).unwrap().unwrap();
            let assertion = Assertion::parse(&token).ok().unwrap();
            assert_eq!(assertion.issuer(), "https://a/attestation", "its name is its own");
            let own = r#"{"claim":"own","equals":7}"#;
            let document = format!(
                r#"{{"anyOf":[{{"authority":"https://a/attestation","allOf":[{condition},{own}]}}]}}"#
            );
            let payload = token.split('.').nth(1).unwrap();
            let claims = Document::parse(&crate::text::base64url_decode(payload).unwrap()).unwrap();
            assert_eq!(Policy::parse(&document).unwrap().check("https://a/attestation", &claims), Ok(()));
        }
        let evidence = || serde_json::from_value(json!({ "type": "sgx" })).unwrap();
        let [one, other] =
            [evidence(), evidence()].map(|evidence| authority.token(evidence).unwrap().unwrap());
        assert_ne!(one, other, "of the same moment");
        let unknown = serde_json::from_value(json!({ "type": "vbs" })).unwrap();
        assert!(authority.token(unknown).is_err());
    }
}
