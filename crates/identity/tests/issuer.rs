//! The issuer through its routes, as MSAL and `az` call it, and its tokens through the verifier.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, too, fail by panicking")]

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{NOW, at};
use domain::guid::Guid;
use domain::principal::TenantId;
use domain::time::Time;
use identity::issuer::{
    ClientRegistration, DEFAULT_TOKEN_LIFETIME, GRAPH_AUDIENCE, Issuer, IssuerConfig, IssuerConfigError,
    MAX_BODY_BYTES, RESOURCE_MANAGER_AUDIENCES, SigningKey, secret_digest,
};
use identity::{Audiences, TokenError, TokenVerifier, VerifierConfig};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tower::ServiceExt as _;

const BASE: &str = "https://localhost:8446";
const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const CLIENT: &str = "22222222-2222-4222-8222-222222222222";
const OBJECT: &str = "33333333-3333-4333-8333-333333333333";
const SECRET: &str = "s3cret +&=%/ü";
const V2: &str = "/11111111-1111-4111-8111-111111111111/oauth2/v2.0/token";
const V1: &str = "/11111111-1111-4111-8111-111111111111/oauth2/token";

static PEM: LazyLock<String> =
    LazyLock::new(|| SigningKey::generate().unwrap().to_pkcs8_pem().unwrap().to_string());

#[tokio::test]
async fn discovery_names_every_endpoint_in_each_spelling() {
    for (path, tenant) in [
        (format!("/{TENANT}/v2.0/.well-known/openid-configuration"), TENANT),
        (format!("/{TENANT}/V2.0/.Well-Known/OpenID-Configuration?x=1"), TENANT),
        (format!("//{TENANT}/.well-known/openid-configuration"), TENANT),
        ("/adfs/.well-known/openid-configuration".to_owned(), "adfs"),
        ("/ADFS/v2.0/.well-known/openid-configuration".to_owned(), "adfs"),
        ("/organizations/v2.0/.well-known/openid-configuration".to_owned(), TENANT),
        ("/common/v2.0/.well-known/openid-configuration".to_owned(), TENANT),
    ] {
        let (status, document) = get(&path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(document["issuer"], format!("{BASE}/{TENANT}/v2.0"));
        assert_eq!(document["token_endpoint"], format!("{BASE}/{tenant}/oauth2/v2.0/token"));
        assert_eq!(document["jwks_uri"], format!("{BASE}/{tenant}/discovery/v2.0/keys"));
        assert_eq!(document["authorization_endpoint"], format!("{BASE}/{tenant}/oauth2/v2.0/authorize"));
        assert_eq!(
            document["device_authorization_endpoint"],
            format!("{BASE}/{tenant}/oauth2/v2.0/devicecode")
        );
    }
}

/// Clients compare its origin with their authority's. Tokens keep the name that pools pin.
#[tokio::test]
async fn discovery_names_an_issuer_of_its_own_origin_whatever_tokens_say() {
    let pinned = IssuerConfig { issuer: Some("https://issuer.localhost/t/v2.0".into()), ..config() };
    let issuer = Issuer::new(pinned, SigningKey::from_pkcs8_pem(&PEM).unwrap(), Arc::new(now)).unwrap();
    assert_eq!(issuer.issuer(), "https://issuer.localhost/t/v2.0");
    let request = Request::get("/adfs/.well-known/openid-configuration").body(Body::empty()).unwrap();
    let document = body(Arc::new(issuer).router().oneshot(request).await.unwrap()).await;
    assert_eq!(document["issuer"], format!("{BASE}/{TENANT}/v2.0"));
}

#[tokio::test]
async fn keys_are_served_without_anything_private() {
    for path in [format!("/{TENANT}/discovery/v2.0/keys"), "/adfs/discovery/keys".to_owned()] {
        let (status, document) = get(&path).await;
        assert_eq!(status, StatusCode::OK);
        let mut members: Vec<&String> = document["keys"][0].as_object().unwrap().keys().collect();
        members.sort();
        assert_eq!(members, ["alg", "e", "kid", "kty", "n", "use"]);
        assert_eq!(document["keys"][0]["kid"], SigningKey::from_pkcs8_pem(&PEM).unwrap().key_id());
    }
}

#[tokio::test]
async fn instance_metadata_vouches_for_this_host_alone() {
    let (status, document) = get("/common/discovery/instance?authorization_endpoint=https%3A%2F%2Flogin.example%2Fadfs%2Foauth2%2Fv2.0%2Fauthorize&api-version=1.1")
    .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        document["tenant_discovery_endpoint"],
        format!("{BASE}/adfs/v2.0/.well-known/openid-configuration")
    );
    assert_eq!(document["metadata"][0]["aliases"], json!(["localhost:8446", "localhost"]));
    let (_, document) = get("/common/discovery/instance?authorization_endpoint=%ff").await;
    assert_eq!(
        document["tenant_discovery_endpoint"],
        format!("{BASE}/{TENANT}/v2.0/.well-known/openid-configuration")
    );
}

#[tokio::test]
async fn health_needs_nothing() {
    let response = send(Request::get("/HealthStatus").body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
}

/// What `az login` sends, down to the fields that are ignored.
#[tokio::test]
async fn a_client_secret_gives_a_token_that_verifies() {
    let mut fields = form(&[("scope", "https://managedhsm.localhost:8443/.default")]);
    fields.push(("client_info", "1"));
    fields.push(("claims", r#"{"access_token":{"xms_cc":{"values":["CP1"]}}}"#));
    let (status, answer) = post(V2, &fields).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["expires_in"], 3599);
    assert_eq!(answer["ext_expires_in"], 3599);

    let token = answer["access_token"].as_str().unwrap();
    let [header, payload, _] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let key_id = SigningKey::from_pkcs8_pem(&PEM).unwrap().key_id().to_owned();
    assert_eq!(decoded(header), json!({"typ": "JWT", "alg": "RS256", "kid": key_id}));
    let mut claims = decoded(payload);
    assert_eq!(claims["uti"].take().as_str().unwrap().len(), 22);
    assert_eq!(
        claims,
        json!({
            "aud": "https://managedhsm.localhost:8443", "iss": format!("{BASE}/{TENANT}/v2.0"), "iat": NOW,
            "nbf": NOW, "exp": NOW + 3600, "tid": TENANT, "oid": OBJECT, "sub": OBJECT, "appid": CLIENT,
            "azp": CLIENT, "idtyp": "app", "ver": "2.0", "uti": null,
        })
    );

    let verifier = verifier(["managedhsm.localhost"]);
    let caller = verifier.verify(token, at(NOW)).unwrap();
    assert_eq!(caller.object_id.to_string(), OBJECT);
    assert_eq!(caller.application_id.as_deref(), Some(CLIENT));
    assert!(matches!(verifier.verify(token, at(NOW + 3600)), Err(TokenError::Expired { .. })));
}

#[tokio::test]
async fn scopes_give_their_audience_without_final_slash() {
    for (scope, audience) in [
        ("https://managedhsm.localhost/.default", "https://managedhsm.localhost"),
        ("https://managedhsm.localhost//.default", "https://managedhsm.localhost"),
        ("https://managedhsm.localhost:9443/.default", "https://managedhsm.localhost:9443"),
        ("https://management.core.windows.net//.default", "https://management.core.windows.net"),
        ("https://management.azure.com/.default", "https://management.azure.com"),
        ("https://graph.microsoft.com/.default", "https://graph.microsoft.com"),
        // As MSAL for Go writes it.
        (
            "https://managedhsm.localhost/.default openid offline_access profile",
            "https://managedhsm.localhost",
        ),
    ] {
        let (status, answer) = post(V2, &form(&[("scope", scope)])).await;
        assert_eq!(status, StatusCode::OK, "{scope}: {answer}");
        assert_eq!(audience_of(&answer), audience, "{scope}");
    }
}

#[tokio::test]
async fn the_older_endpoint_takes_a_resource_and_answers_in_strings() {
    let (status, answer) = post(V1, &form(&[("resource", "https://management.core.windows.net/")])).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["expires_in"], "3599");
    assert_eq!(answer["expires_on"], (NOW + 3600).to_string());
    assert_eq!(answer["resource"], "https://management.core.windows.net");
    assert_eq!(audience_of(&answer), "https://management.core.windows.net");
}

#[tokio::test]
async fn tokens_of_the_alias_tenant_are_those_of_the_tenant() {
    let fields = form(&[("scope", "https://managedhsm.localhost:8443/.default")]);
    let (status, answer) = post("/adfs/oauth2/v2.0/token", &fields).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let token = answer["access_token"].as_str().unwrap();
    assert!(verifier(["managedhsm.localhost"]).verify(token, at(NOW)).is_ok());
}

#[tokio::test]
async fn http_basic_serves_as_well() {
    let credentials = STANDARD.encode(format!("{CLIENT}:{}", encoded(SECRET)));
    let answer = |authorization: String, fields: Vec<(&'static str, &'static str)>| async move {
        let request = Request::post(V2)
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header("authorization", authorization);
        let response = send(request.body(Body::from(urlencoded(&fields))).unwrap()).await;
        let challenge = response.headers().get("www-authenticate").is_some();
        (response.status(), challenge, body(response).await)
    };
    let fields =
        vec![("grant_type", "client_credentials"), ("scope", "https://managedhsm.localhost/.default")];
    let (status, _, good) = answer(format!("Basic {credentials}"), fields.clone()).await;
    assert_eq!(status, StatusCode::OK, "{good}");

    let wrong = STANDARD.encode(format!("{CLIENT}:wrong"));
    let (status, challenge, _) = answer(format!("basic {wrong}"), fields.clone()).await;
    assert_eq!((status, challenge), (StatusCode::UNAUTHORIZED, true));

    for header in ["Bearer x", "Basic", "Basic !!!", &format!("Basic {}", STANDARD.encode("no colon"))] {
        let (status, _, answer) = answer(header.to_owned(), fields.clone()).await;
        assert_eq!(
            (status, &answer["error"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{header}"
        );
    }
    for extra in [("client_secret", "x"), ("client_id", OBJECT)] {
        let both = [fields.clone(), vec![extra]].concat();
        let (status, _, answer) = answer(format!("Basic {credentials}"), both).await;
        assert_eq!((status, &answer["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")));
    }
}

#[tokio::test]
async fn each_mistake_has_its_answer() {
    let scope = ("scope", "https://managedhsm.localhost/.default");
    let good = || form(&[scope]);
    let without = |name: &str| good().into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    let replaced = |name: &'static str, value: &'static str| [without(name), vec![(name, value)]].concat();
    for (fields, status, error, number, words) in [
        (without("grant_type"), 400, "invalid_request", 900_144, "parameter: 'grant_type'"),
        (
            replaced("grant_type", "password"),
            400,
            "unsupported_grant_type",
            70_003,
            "\"password\" is not supported",
        ),
        (without("client_id"), 400, "invalid_request", 900_144, "parameter: 'client_id'"),
        (without("client_secret"), 400, "invalid_request", 900_144, "parameter: 'client_secret'"),
        (replaced("client_secret", ""), 400, "invalid_request", 900_144, "parameter: 'client_secret'"),
        (
            replaced("client_secret", "wrong"),
            401,
            "invalid_client",
            7_000_215,
            "Invalid client secret provided",
        ),
        (
            replaced("client_id", OBJECT),
            400,
            "unauthorized_client",
            700_016,
            "was not found in the directory",
        ),
        (
            replaced("client_id", "app"),
            400,
            "unauthorized_client",
            700_016,
            "identifier \"app\" was not found",
        ),
        (without("scope"), 400, "invalid_request", 900_144, "parameter: 'scope'"),
        (
            replaced("scope", "https://vault.azure.net/.default"),
            400,
            "invalid_scope",
            70_011,
            "with a resource of: https://managedhsm.localhost[:port], https://management.core.windows.net",
        ),
        (
            replaced("scope", "https://managedhsm.localhost"),
            400,
            "invalid_scope",
            70_011,
            "expected '<resource>/.default'",
        ),
        (replaced("scope", "/.default"), 400, "invalid_scope", 70_011, "is not valid"),
        (
            replaced("scope", "https://managedhsm.localhost/.default https://graph.microsoft.com/.default"),
            400,
            "invalid_scope",
            70_011,
            "is not valid",
        ),
        (replaced("scope", "openid profile"), 400, "invalid_scope", 70_011, "is not valid"),
        (
            replaced("scope", "https://managedhsm.localhost///.default"),
            400,
            "invalid_scope",
            70_011,
            "is not valid",
        ),
        (
            [without("scope"), vec![("resource", "https://vault.azure.net")]].concat(),
            400,
            "invalid_resource",
            500_011,
            "\"https://vault.azure.net\" is not one of",
        ),
        ([good(), vec![("resource", "x")]].concat(), 400, "invalid_request", 90_023, "exclude each other"),
        ([good(), vec![scope]].concat(), 400, "invalid_request", 90_023, "more than once"),
        (
            [good(), vec![("client_assertion", "x.y.z")]].concat(),
            400,
            "invalid_request",
            90_023,
            "exclude each other",
        ),
    ] {
        let (found, answer) = post(V2, &fields).await;
        let shown = format!("{fields:?}: {answer}");
        assert_eq!((found.as_u16(), answer["error"].as_str()), (status, Some(error)), "{shown}");
        assert_eq!(answer["error_codes"], json!([number]), "{shown}");
        let description = answer["error_description"].as_str().unwrap();
        assert!(
            description.starts_with(&format!("AADSTS{number}: ")) && description.contains(words),
            "{shown}"
        );
        assert_eq!(answer["timestamp"], "2026-08-21 10:00:00Z");
        assert!(!description.contains(SECRET) && !description.contains("wrong"), "{shown}");
        for id in ["trace_id", "correlation_id"] {
            assert_ne!(answer[id].as_str().unwrap().parse::<Guid>().unwrap(), Guid::NIL, "{id}");
        }
    }
}

#[tokio::test]
async fn requests_outside_the_routes_are_refused_in_the_same_form() {
    let request = |method: &str, path: &str, body: &str| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("client-request-id", OBJECT)
            .body(Body::from(body.to_owned()))
            .unwrap()
    };
    for (method, path, status, error) in [
        ("GET", "/", 404, "invalid_request"),
        ("GET", "/x/y", 404, "invalid_request"),
        ("GET", V2, 405, "invalid_request"),
        ("POST", "/healthstatus", 405, "invalid_request"),
        ("DELETE", "/common/discovery/instance", 405, "invalid_request"),
        ("GET", "/other/v2.0/.well-known/openid-configuration", 400, "invalid_tenant"),
        ("GET", "/other/discovery/v2.0/keys", 400, "invalid_tenant"),
        ("POST", "/organizations/oauth2/v2.0/token", 400, "invalid_tenant"),
        ("GET", "/adfs/oauth2/v2.0/authorize", 400, "unauthorized_client"),
        ("POST", "/adfs/oauth2/v2.0/devicecode", 400, "unauthorized_client"),
    ] {
        let response = send(request(method, path, "")).await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        assert_eq!(response.headers().contains_key("allow"), status == 405, "{method} {path}");
        let answer = body(response).await;
        assert_eq!(answer["error"], error, "{method} {path}: {answer}");
        assert_eq!(answer["correlation_id"], OBJECT, "the client's own id comes back");
    }
}

#[tokio::test]
async fn bodies_are_bounded_and_of_one_type() {
    let large = format!("{}&pad={}", urlencoded(&form(&[])), "x".repeat(MAX_BODY_BYTES));
    let response = send(
        Request::post(V2)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(large))
            .unwrap(),
    )
    .await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);

    for (content_type, payload) in [
        ("application/json", "{}"),
        ("", "grant_type=client_credentials"),
        ("application/x-www-form-urlencoded", "a=%ff"),
    ] {
        let response =
            send(Request::post(V2).header("content-type", content_type).body(Body::from(payload)).unwrap())
                .await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{content_type} {payload}");
        assert_eq!(body(response).await["error"], "invalid_request");
    }
}

#[tokio::test]
async fn answers_with_tokens_are_not_stored() {
    let fields = form(&[("scope", "https://managedhsm.localhost/.default")]);
    let request = Request::post(V2).header("content-type", "application/x-www-form-urlencoded");
    let response = send(request.body(Body::from(urlencoded(&fields))).unwrap()).await;
    assert_eq!(response.headers()["cache-control"], "no-store");
}

#[test]
fn a_token_for_one_resource_is_refused_by_another() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (_, answer) =
        runtime.block_on(post(V2, &form(&[("scope", "https://management.azure.com/.default")])));
    let refused =
        verifier(["managedhsm.localhost"]).verify(answer["access_token"].as_str().unwrap(), at(NOW));
    assert!(matches!(refused, Err(TokenError::WrongAudience { .. })));
}

#[test]
fn bad_settings_are_refused() {
    let refused = |change: &dyn Fn(&mut IssuerConfig)| {
        let mut config = config();
        change(&mut config);
        Issuer::new(config, SigningKey::from_pkcs8_pem(&PEM).unwrap(), Arc::new(now)).err().unwrap()
    };
    assert!(matches!(refused(&|c| c.base_url.push('/')), IssuerConfigError::BaseUrl { .. }));
    assert_eq!(
        refused(&|c| c.token_lifetime = Duration::from_secs(59)).to_string(),
        "token lifetime of 59 seconds is outside 60 to 86400"
    );
    assert!(matches!(
        refused(&|c| c.clients.extend(c.clients.clone())),
        IssuerConfigError::DuplicateClient { .. }
    ));
}

#[test]
fn authority_and_issuer_are_what_pools_pin() {
    let issuer = issuer();
    assert_eq!(issuer.issuer(), format!("{BASE}/{TENANT}/v2.0"));
    assert_eq!(issuer.authority(), format!("{BASE}/adfs"));
    assert_eq!(issuer.key_set().len(), 1);
}

fn now() -> Time {
    at(NOW)
}

fn config() -> IssuerConfig {
    IssuerConfig {
        issuer: None,
        base_url: BASE.to_owned(),
        tenant: TenantId::parse(TENANT).unwrap(),
        alias_tenant: Some(TenantId::parse("adfs").unwrap()),
        audiences: Audiences::new(
            ["managedhsm.localhost"],
            RESOURCE_MANAGER_AUDIENCES.into_iter().chain([GRAPH_AUDIENCE]),
        )
        .unwrap(),
        clients: vec![ClientRegistration {
            client_id: CLIENT.parse().unwrap(),
            object_id: OBJECT.parse().unwrap(),
            display_name: "app".to_owned(),
            secret_sha256: Some(secret_digest(SECRET)),
            certificates: Vec::new(),
            federated: Vec::new(),
        }],
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    }
}

fn issuer() -> Issuer {
    Issuer::new(config(), SigningKey::from_pkcs8_pem(&PEM).unwrap(), Arc::new(now)).unwrap()
}

fn router() -> Router {
    Arc::new(issuer()).router()
}

fn verifier<const N: usize>(suffixes: [&str; N]) -> TokenVerifier {
    let issuer = issuer();
    let config = VerifierConfig {
        issuers: vec![issuer.issuer()],
        tenant: TenantId::parse(TENANT).unwrap(),
        audiences: Audiences::new(suffixes, [""; 0]).unwrap(),
        cached_tokens: 10,
    };
    TokenVerifier::new(config, issuer.key_set())
}

fn form(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut fields =
        vec![("grant_type", "client_credentials"), ("client_id", CLIENT), ("client_secret", SECRET)];
    fields.extend(more);
    fields
}

async fn get(path: &str) -> (StatusCode, Value) {
    let response = send(Request::get(path).body(Body::empty()).unwrap()).await;
    (response.status(), body(response).await)
}

async fn post(path: &str, fields: &[(&str, &str)]) -> (StatusCode, Value) {
    let request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
    let response = send(request.body(Body::from(urlencoded(fields))).unwrap()).await;
    (response.status(), body(response).await)
}

async fn send(request: Request<Body>) -> Response<Body> {
    router().oneshot(request).await.unwrap()
}

async fn body(response: Response<Body>) -> Value {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn urlencoded(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn decoded(part: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn audience_of(answer: &Value) -> String {
    let token = answer["access_token"].as_str().unwrap();
    decoded(token.split('.').nth(1).unwrap())["aud"].as_str().unwrap().to_owned()
}
