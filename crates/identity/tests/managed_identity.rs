//! Managed identity through its routes, as clients ask, and as those ask who should not.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use common::{NOW, at};
use domain::principal::TenantId;
use domain::time::Time;
use identity::issuer::{
    APP_SERVICE_PATH, ClientRegistration, DEFAULT_TOKEN_LIFETIME, INSTANCE_METADATA_PATH, Issuer,
    IssuerConfig, ManagedClient, ManagedIdentity, ManagedIdentityError, STORAGE_AUDIENCE, SigningKey,
};
use identity::{Audiences, TokenVerifier, VerifierConfig};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use tower::ServiceExt as _;

const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const SYSTEM: &str = "22222222-2222-4222-8222-222222222222";
const USER: &str = "33333333-3333-4333-8333-333333333333";
const USER_OBJECT: &str = "44444444-4444-4444-8444-444444444444";
/// Registered with the issuer and not an identity of this machine.
const ADMIN: &str = "55555555-5555-4555-8555-555555555555";
const USER_RESOURCE: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/u";
const SECRET: &str = "the identity header";
const RESOURCE: &str = "https://managedhsm.localhost:8443";

static ISSUER: LazyLock<Arc<Issuer>> = LazyLock::new(|| {
    let client = |id: &str, object: &str| ClientRegistration {
        client_id: id.parse().unwrap(),
        object_id: object.parse().unwrap(),
        display_name: "test".into(),
        secret_sha256: None,
        certificates: Vec::new(),
        federated: Vec::new(),
    };
    let config = IssuerConfig {
        base_url: "https://localhost:8446".into(),
        issuer: None,
        tenant: TenantId::parse(TENANT).unwrap(),
        alias_tenant: None,
        audiences: audiences(),
        clients: vec![client(SYSTEM, SYSTEM), client(USER, USER_OBJECT), client(ADMIN, ADMIN)],
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    };
    let now = || -> Time { at(NOW) };
    Arc::new(Issuer::new(config, SigningKey::generate().unwrap(), Arc::new(now)).unwrap())
});

fn audiences() -> Audiences {
    Audiences::new(["managedhsm.localhost"], [STORAGE_AUDIENCE]).unwrap()
}

fn router() -> Router {
    let clients = vec![
        ManagedClient { client_id: SYSTEM.parse().unwrap(), resource_id: None },
        ManagedClient { client_id: USER.parse().unwrap(), resource_id: Some(USER_RESOURCE.into()) },
    ];
    Arc::new(ManagedIdentity::new(ISSUER.clone(), clients, SECRET).unwrap()).router()
}

async fn send(request: Request<Body>) -> (StatusCode, Value) {
    let response = router().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert!(!response.headers().contains_key("access-control-allow-origin"));
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn metadata(query: &str) -> axum::http::request::Builder {
    Request::get(format!("{INSTANCE_METADATA_PATH}?{query}")).header("host", "127.0.0.1:8448")
}

fn app_service(query: &str) -> axum::http::request::Builder {
    Request::get(format!("{APP_SERVICE_PATH}?{query}")).header("host", "localhost:8448")
}

fn empty(builder: axum::http::request::Builder) -> Request<Body> {
    builder.body(Body::empty()).unwrap()
}

fn metadata_query() -> String {
    format!("api-version=2018-02-01&resource={RESOURCE}")
}

fn app_service_query() -> String {
    format!("api-version=2019-08-01&resource={RESOURCE}")
}

fn verifier() -> TokenVerifier {
    let config = VerifierConfig {
        issuers: vec![ISSUER.issuer()],
        tenant: TenantId::parse(TENANT).unwrap(),
        audiences: audiences(),
        cached_tokens: 10,
    };
    TokenVerifier::new(config, ISSUER.key_set())
}

/// The object id in a token that verifies.
fn caller(answer: &Value) -> String {
    verifier().verify(answer["access_token"].as_str().unwrap(), at(NOW)).unwrap().object_id.to_string()
}

#[tokio::test]
async fn both_forms_give_the_system_assigned_identity_in_strings() {
    for request in [
        metadata(&metadata_query()).header("metadata", "true"),
        metadata(&metadata_query()).header("Metadata", "True"),
        app_service(&app_service_query()).header("x-identity-header", SECRET),
    ] {
        let (status, answer) = send(empty(request)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(caller(&answer), SYSTEM);
        assert_eq!(answer["client_id"], SYSTEM);
        assert_eq!(answer["resource"], RESOURCE);
        assert_eq!(answer["token_type"], "Bearer");
        assert_eq!(answer["expires_in"], "3599");
        assert_eq!(answer["expires_on"], (NOW + 3600).to_string());
    }
}

/// As Entra ID has them: of its first version, from an issuer that is none of a pool's.
#[tokio::test]
async fn tokens_for_storage_have_another_issuer_and_no_pool_takes_them() {
    let query = "api-version=2018-02-01&resource=https%3A%2F%2Fstorage.azure.com%2F";
    let (status, answer) = send(empty(metadata(query).header("metadata", "true"))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let token = answer["access_token"].as_str().unwrap();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["aud"], STORAGE_AUDIENCE);
    assert_eq!(claims["iss"], format!("https://sts.windows.net/{TENANT}/"));
    assert_eq!((&claims["ver"], &claims["oid"]), (&json!("1.0"), &json!(SYSTEM)));
    let refused = verifier().verify(token, at(NOW)).unwrap_err().to_string();
    assert!(refused.contains("issuer"), "{refused}");
}

#[tokio::test]
async fn an_identity_is_selected_in_each_way_that_clients_do() {
    let lower = USER_RESOURCE.to_lowercase();
    for (selector, object) in [
        (format!("client_id={SYSTEM}"), SYSTEM),
        (format!("client_id={USER}"), USER_OBJECT),
        (format!("object_id={USER_OBJECT}"), USER_OBJECT),
        (format!("principal_id={USER_OBJECT}"), USER_OBJECT),
        (format!("mi_res_id={USER_RESOURCE}"), USER_OBJECT),
        (format!("msi_res_id={lower}"), USER_OBJECT),
        ("client_id=".to_owned(), SYSTEM),
    ] {
        let request = metadata(&format!("{}&{selector}", metadata_query())).header("metadata", "true");
        let (status, answer) = send(empty(request)).await;
        assert_eq!(status, StatusCode::OK, "{selector}: {answer}");
        assert_eq!(caller(&answer), object, "{selector}");
    }
    for selector in [
        format!("client_id={ADMIN}"),
        format!("object_id={ADMIN}"),
        format!("object_id={USER}"),
        format!("client_id={USER}&object_id={USER_OBJECT}"),
        format!("client_id={USER}&client_id={USER}"),
        format!("mi_res_id={USER_RESOURCE}x"),
        "client_id=app".to_owned(),
    ] {
        let request = metadata(&format!("{}&{selector}", metadata_query())).header("metadata", "true");
        let (status, answer) = send(empty(request)).await;
        assert_eq!(
            (status, &answer["error"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{selector}"
        );
    }
}

#[tokio::test]
async fn whoever_does_not_know_the_header_gets_nothing() {
    let (status, answer) = send(empty(metadata(&metadata_query()))).await;
    let words = &answer["error_description"];
    assert_eq!((status, words), (StatusCode::BAD_REQUEST, &json!("Required metadata header not specified")));
    for value in ["", "false", "1", "true, true"] {
        let (status, _) = send(empty(metadata(&metadata_query()).header("metadata", value))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{value}");
    }
    for value in [None, Some(""), Some("the identity heade"), Some("the identity header "), Some("true")] {
        let mut request = app_service(&app_service_query()).header("metadata", "true");
        if let Some(value) = value {
            request = request.header("x-identity-header", value);
        }
        let (status, answer) = send(empty(request)).await;
        assert_eq!((status, &answer["statusCode"]), (StatusCode::UNAUTHORIZED, &json!(401)), "{value:?}");
        assert!(!answer.to_string().contains(SECRET));
    }
}

/// A page whose name points to loopback, a request that was passed on, a script's question whether it may ask.
#[tokio::test]
async fn what_does_not_come_from_this_machine_gets_nothing() {
    let right = |request: axum::http::request::Builder| {
        request.header("metadata", "true").header("x-identity-header", SECRET)
    };
    for path in [
        format!("{INSTANCE_METADATA_PATH}?{}", metadata_query()),
        format!("{APP_SERVICE_PATH}?{}", app_service_query()),
    ] {
        let good = || right(Request::get(&path));
        assert_eq!(send(empty(good().header("host", "localhost"))).await.0, StatusCode::OK);
        for request in [
            good(),
            good().header("host", "evil.example:8448"),
            good().header("host", "169.254.169.254"),
            good().header("host", "localhost").header("host", "evil.example"),
            good().header("host", "localhost").header("x-forwarded-for", "192.0.2.1"),
            good().header("host", "localhost").header("x-forwarded-host", "localhost"),
            good().header("host", "localhost").header("forwarded", "for=127.0.0.1"),
            right(Request::get(format!("http://evil.example{path}"))).header("host", "localhost"),
        ] {
            let (status, answer) = send(empty(request)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        }
        for method in ["OPTIONS", "POST", "HEAD", "PUT"] {
            let request = right(Request::builder().method(method).uri(&path)).header("host", "localhost");
            let response = router().oneshot(empty(request)).await.unwrap();
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        }
    }
}

#[tokio::test]
async fn each_mistake_has_its_answer() {
    for query in [
        String::new(),
        format!("resource={RESOURCE}"),
        format!("api-version=2017-09-01&resource={RESOURCE}"),
        format!("api-version=latest&resource={RESOURCE}"),
        "api-version=2018-02-01".to_owned(),
        "api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net".to_owned(),
        format!("{}&resource={RESOURCE}", metadata_query()),
        format!("{}&x=%ff", metadata_query()),
    ] {
        let (status, answer) = send(empty(metadata(&query).header("metadata", "true"))).await;
        assert_eq!(
            (status, &answer["error"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{query}"
        );
    }
    let (status, answer) =
        send(empty(app_service(&metadata_query()).header("x-identity-header", SECRET))).await;
    assert_eq!((status, &answer["statusCode"]), (StatusCode::BAD_REQUEST, &json!(400)));
    for path in ["/", "/metadata/instance", "/msi", "/11111111-1111-4111-8111-111111111111/oauth2/v2.0/token"]
    {
        let request = Request::get(path).header("host", "localhost").header("metadata", "true");
        assert_eq!(send(empty(request)).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[test]
fn only_registered_clients_are_identities_of_a_machine() {
    let refused = |clients| ManagedIdentity::new(ISSUER.clone(), clients, SECRET).err().unwrap();
    assert_eq!(refused(vec![]), ManagedIdentityError::NoClient);
    let system = vec![ManagedClient { client_id: SYSTEM.parse().unwrap(), resource_id: None }];
    let nameless = ManagedIdentity::new(ISSUER.clone(), system, "").err();
    assert_eq!(nameless, Some(ManagedIdentityError::NoHeader));
    let client_id = TENANT.parse().unwrap();
    let unknown = ManagedClient { client_id, resource_id: None };
    assert_eq!(refused(vec![unknown]), ManagedIdentityError::UnknownClient { client_id });
}
