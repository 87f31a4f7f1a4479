//! The issuer's view of a cloud, as `az` asks for it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use common::{NOW, at};
use domain::guid::Guid;
use domain::principal::TenantId;
use identity::Audiences;
use identity::issuer::{
    ClientRegistration, CloudConfig, DEFAULT_TOKEN_LIFETIME, GRAPH_AUDIENCE, Issuer, IssuerConfig,
    IssuerState, MAX_BODY_BYTES, MAX_IDS, PoolView, RESOURCE_MANAGER_AUDIENCES, SigningKey, subscription_id,
};
use identity::{TokenError, TokenVerifier, VerifierConfig};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use tower::ServiceExt as _;

const BASE: &str = "https://localhost:8446";
const POOLS: &str = "https://managedhsm.localhost:8443";
const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const APP: &str = "22222222-2222-4222-8222-222222222222";
const APP_OBJECT: &str = "33333333-3333-4333-8333-333333333333";
const ADMIN: &str = "44444444-4444-4444-8444-444444444444";
const ADMIN_OBJECT: &str = "55555555-5555-4555-8555-555555555555";
const SECRET: &str = "a secret of the app";
/// As `az` asks: the audience ends in a slash, and one more comes from `/.default`.
const RESOURCE_MANAGER: &str = "https://management.core.windows.net//.default";
const GRAPH: &str = "https://localhost:8446//.default";
const BY_IDS: &str = "/v1.0/directoryObjects/getByIds";

static PEM: LazyLock<String> =
    LazyLock::new(|| SigningKey::generate().unwrap().to_pkcs8_pem().unwrap().to_string());

static CLIENTS: LazyLock<Vec<ClientRegistration>> = LazyLock::new(|| {
    let mut state = IssuerState::generate(TenantId::parse(TENANT).unwrap()).unwrap();
    state.register(guid(APP), guid(APP_OBJECT), "app", SECRET);
    state.register(guid(ADMIN), guid(ADMIN_OBJECT), "admin", "a secret of the admin");
    state.clients
});

#[tokio::test]
async fn endpoints_are_one_object_or_a_list_of_one_and_need_no_token() {
    let (status, endpoints) = get("/metadata/endpoints?api-version=2022-09-01", None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(endpoints["resourceManager"], BASE);
    assert_eq!(endpoints["authentication"]["loginEndpoint"], BASE);
    assert_eq!(endpoints["authentication"]["audiences"][0], "https://management.core.windows.net/");
    assert_eq!(endpoints["microsoftGraphResourceId"], format!("{BASE}/"));
    assert_eq!(endpoints["suffixes"]["mhsmDns"], "managedhsm.localhost:8443");
    assert!(endpoints["suffixes"]["keyVaultDns"].is_string());
    for version in ["?api-version=2019-05-01", "?api-version=2020-06-01", ""] {
        let (status, listed) = get(&format!("/metadata/endpoints{version}"), None).await;
        assert_eq!((status, &listed), (StatusCode::OK, &json!([endpoints])), "{version}");
    }
}

#[tokio::test]
async fn the_subscription_is_found_and_stays_the_same() {
    let token = token(RESOURCE_MANAGER).await;
    let own = subscription_id(&TenantId::parse(TENANT).unwrap());
    // Remembered by every `az` that ever logged in.
    assert_eq!(own.to_string(), "188e1fee-0139-4a9d-9cad-79d278b995b4");
    let (status, listed) = get("/subscriptions?api-version=2022-12-01", Some(&token)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(listed["value"].as_array().unwrap().len(), 1);
    let subscription = &listed["value"][0];
    assert_eq!(subscription["subscriptionId"], own.to_string());
    assert_eq!(subscription["tenantId"], TENANT);
    assert_eq!(subscription["state"], "Enabled");
    let upper = own.to_string().to_ascii_uppercase();
    assert_eq!(
        get(&format!("/subscriptions/{upper}"), Some(&token)).await,
        (StatusCode::OK, subscription.clone())
    );
    let (status, tenants) = get("/tenants?api-version=2022-12-01", Some(&token)).await;
    assert_eq!((status, &tenants["value"][0]["tenantId"]), (StatusCode::OK, &json!(TENANT)));
    let (status, refusal) = get(&format!("/subscriptions/{APP}"), Some(&token)).await;
    assert_eq!((status, &refusal["error"]["code"]), (StatusCode::NOT_FOUND, &json!("SubscriptionNotFound")));
}

#[tokio::test]
async fn pools_are_resources() {
    let token = token(RESOURCE_MANAGER).await;
    let subscription = format!("/subscriptions/{}", subscription_id(&TenantId::parse(TENANT).unwrap()));
    let listed = get(&format!("{subscription}/providers/Microsoft.KeyVault/managedHSMs"), Some(&token)).await;
    assert_eq!(listed.0, StatusCode::OK);
    let pool = &listed.1["value"][0];
    let id =
        format!("{subscription}/resourceGroups/quickstart/providers/Microsoft.KeyVault/managedHSMs/demo");
    assert_eq!(pool["id"], id);
    assert_eq!(pool["properties"]["hsmUri"], "https://demo.managedhsm.localhost:8443/");
    assert_eq!(pool["properties"]["initialAdminObjectIds"], json!([ADMIN_OBJECT]));
    assert_eq!(pool["properties"]["softDeleteRetentionInDays"], 90);

    let group = format!("{subscription}/resourcegroups/QuickStart/providers/microsoft.keyvault/managedhsms");
    assert_eq!(get(&group, Some(&token)).await, listed);
    assert_eq!(get(&format!("{group}/Demo"), Some(&token)).await, (StatusCode::OK, pool.clone()));

    let resources = format!("{subscription}/resources");
    let vaults = "?$filter=resourceType%20eq%20%27Microsoft.KeyVault%2Fvaults%27&api-version=2015-11-01";
    let vault = "?$filter=resourceType%20eq%20'Microsoft.KeyVault/vaults'%20and%20name%20eq%20'x'";
    let pools = "?%24filter=resourceType+eq+'microsoft.keyvault/managedhsms'";
    for (query, expected) in
        [(vaults, json!([])), (vault, json!([])), (pools, json!([pool])), ("", json!([pool]))]
    {
        let answer = get(&format!("{resources}{query}"), Some(&token)).await;
        assert_eq!(answer, (StatusCode::OK, json!({"value": expected})), "{query}");
    }

    for (path, status, code) in [
        (format!("{group}/other"), StatusCode::NOT_FOUND, "ResourceNotFound"),
        (format!("{id}/regions"), StatusCode::NOT_FOUND, "ResourceNotFound"),
        (id.replace("quickstart", "other"), StatusCode::NOT_FOUND, "ResourceGroupNotFound"),
        (format!("{subscription}/resourcegroups"), StatusCode::NOT_FOUND, "ResourceNotFound"),
        (
            format!("{resources}?$filter=name%20eq%20'x'"),
            StatusCode::BAD_REQUEST,
            "InvalidFilterInQueryString",
        ),
    ] {
        let (found, refusal) = get(&path, Some(&token)).await;
        assert_eq!((found, &refusal["error"]["code"]), (status, &json!(code)), "{path}");
    }
    for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::POST] {
        let response = send(request(&method, &id, Some(&token), "{}")).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], "GET, HEAD");
    }
}

#[tokio::test]
async fn graph_names_principals_and_nothing_secret() {
    let token = token(GRAPH).await;
    let nobody = "99999999-9999-4999-8999-999999999999";
    let asked = json!({
        "ids": [APP_OBJECT, nobody, "not a GUID", APP_OBJECT],
        "types": ["user", "group", "servicePrincipal", "directoryObjectPartnerReference"],
    });
    let app = json!({
        "@odata.type": "#microsoft.graph.servicePrincipal", "id": APP_OBJECT, "appId": APP, "displayName": "app",
        "servicePrincipalNames": ["app", APP], "servicePrincipalType": "Application", "accountEnabled": true,
    });
    assert_eq!(post(BY_IDS, &token, &asked.to_string()).await, (StatusCode::OK, json!({"value": [app]})));
    let of_users = json!({"ids": [APP_OBJECT], "types": ["user"]}).to_string();
    assert_eq!(post(BY_IDS, &token, &of_users).await, (StatusCode::OK, json!({"value": []})));

    for (name, expected) in [("app", json!([app])), (APP, json!([app])), ("nobody", json!([]))] {
        let filter = encoded(&format!("servicePrincipalNames/any(c:c eq '{name}')"));
        let answer = get(&format!("/v1.0/servicePrincipals?$filter={filter}"), Some(&token)).await;
        assert_eq!(answer, (StatusCode::OK, json!({"value": expected})), "{name}");
    }
    let shown = get(&format!("/v1.0/servicePrincipals/{APP_OBJECT}"), Some(&token)).await;
    assert_eq!(shown, (StatusCode::OK, app));
    let (_, everybody) = get("/v1.0/servicePrincipals", Some(&token)).await;
    assert_eq!(everybody["value"].as_array().unwrap().len(), 2);

    let users = get("/v1.0/users?$filter=userPrincipalName%20eq%20'a@b'", Some(&token)).await;
    assert_eq!(users, (StatusCode::OK, json!({"value": []})));
    for (path, status, code) in [
        ("/v1.0/users/a@b", StatusCode::NOT_FOUND, "Request_ResourceNotFound"),
        ("/v1.0/servicePrincipals/x", StatusCode::NOT_FOUND, "Request_ResourceNotFound"),
        ("/v1.0/me", StatusCode::NOT_FOUND, "Request_ResourceNotFound"),
        ("/v1.0/servicePrincipals?$filter=x", StatusCode::BAD_REQUEST, "Request_UnsupportedQuery"),
        (BY_IDS, StatusCode::METHOD_NOT_ALLOWED, "Request_BadRequest"),
    ] {
        let (found, refusal) = get(path, Some(&token)).await;
        assert_eq!((found, &refusal["error"]["code"]), (status, &json!(code)), "{path}");
        assert!(refusal["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn what_is_too_much_for_graph_is_refused() {
    let token = token(GRAPH).await;
    let most = json!({"ids": vec![APP_OBJECT; MAX_IDS]}).to_string();
    assert!(most.len() < MAX_BODY_BYTES);
    let (status, found) = post(BY_IDS, &token, &most).await;
    assert_eq!((status, found["value"].as_array().unwrap().len()), (StatusCode::OK, 1));
    let more = json!({"ids": vec!["x"; MAX_IDS + 1]}).to_string();
    let long = format!("{{\"ids\":[\"{}\"]}}", "x".repeat(MAX_BODY_BYTES));
    for (body, status) in [
        (more.as_str(), StatusCode::BAD_REQUEST),
        (&long, StatusCode::PAYLOAD_TOO_LARGE),
        ("", StatusCode::BAD_REQUEST),
        ("[]", StatusCode::BAD_REQUEST),
        ("{\"ids\":[1]}", StatusCode::BAD_REQUEST),
        ("{\"ids\":[\"\\ud800\"]}", StatusCode::BAD_REQUEST),
    ] {
        let (found, refusal) = post(BY_IDS, &token, body).await;
        assert_eq!(found, status, "{refusal}");
        assert_eq!(refusal["error"]["code"], "Request_BadRequest");
    }
}

#[tokio::test]
async fn each_api_takes_its_own_tokens_and_no_others() {
    let (resource_manager, graph) = (token(RESOURCE_MANAGER).await, token(GRAPH).await);
    let of_graph = token(&format!("{GRAPH_AUDIENCE}/.default")).await;
    let of_pool = token(&format!("{POOLS}/.default")).await;
    assert_eq!(get("/subscriptions", Some(&resource_manager)).await.0, StatusCode::OK);
    assert_eq!(get("/v1.0/users", Some(&graph)).await.0, StatusCode::OK);
    assert_eq!(get("/v1.0/users", Some(&of_graph)).await.0, StatusCode::OK);
    for (path, tokens) in [
        ("/subscriptions", [None, Some(&graph), Some(&of_graph), Some(&of_pool)]),
        ("/subscriptions/x/y", [None, Some(&graph), Some(&of_graph), Some(&of_pool)]),
        ("/v1.0/users", [None, Some(&resource_manager), Some(&of_pool), None]),
        ("/v1.0/x", [None, Some(&resource_manager), Some(&of_pool), None]),
    ] {
        for token in tokens {
            let response = send(request(&Method::GET, path, token.map(String::as_str), "")).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
            let challenge = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
            assert_eq!(
                challenge,
                format!("Bearer authorization_uri=\"{BASE}/{TENANT}\", error=\"invalid_token\"")
            );
            let refusal = body(response).await;
            assert!(refusal["error"]["code"].as_str().unwrap().starts_with(['A', 'I']), "{refusal}");
        }
    }
}

/// A token for the cloud says who the caller is, to the cloud alone.
#[tokio::test]
async fn no_pool_takes_a_token_of_the_cloud() {
    let issuer = issuer();
    let config = VerifierConfig {
        issuers: vec![issuer.issuer()],
        tenant: TenantId::parse(TENANT).unwrap(),
        audiences: Audiences::new(["managedhsm.localhost"], ["https://managedhsm.azure.net"]).unwrap(),
        cached_tokens: 10,
    };
    let pool = TokenVerifier::new(config, issuer.key_set());
    let scopes = ["https://management.azure.com/.default", "https://graph.microsoft.com/.default"];
    for scope in [RESOURCE_MANAGER, GRAPH].into_iter().chain(scopes) {
        let refused = pool.verify(&token(scope).await, at(NOW));
        assert!(matches!(refused, Err(TokenError::WrongAudience { .. })), "{scope}: {refused:?}");
    }
    assert!(pool.verify(&token(&format!("{POOLS}/.default")).await, at(NOW)).is_ok());
}

#[tokio::test]
async fn the_issuers_keys_of_this_moment_count() {
    let issuer = Arc::new(issuer());
    let router = issuer.clone().router();
    let ask = async |token: &str| {
        let request = request(&Method::GET, "/subscriptions", Some(token), "");
        router.clone().oneshot(request).await.unwrap().status()
    };
    let old = token(RESOURCE_MANAGER).await;
    assert_eq!(ask(&old).await, StatusCode::OK);
    issuer.replace_keys(SigningKey::generate().unwrap().into());
    assert_eq!(ask(&old).await, StatusCode::UNAUTHORIZED);
    let new = token_of(&router, RESOURCE_MANAGER).await;
    assert_eq!(ask(&new).await, StatusCode::OK);
}

#[tokio::test]
async fn an_issuer_without_a_cloud_serves_none() {
    let issuer = Issuer::new(config(), SigningKey::from_pkcs8_pem(&PEM).unwrap(), clock()).unwrap();
    let router = Arc::new(issuer).router();
    for path in ["/metadata/endpoints", "/subscriptions", "/v1.0/users"] {
        let response = router.clone().oneshot(request(&Method::GET, path, None, "")).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a peer sends is answered, and never by 5xx.
    #[test]
    fn foreign_input_is_answered(
        path in "/(subscriptions|tenants|metadata/endpoints|v1\\.0)?(/[a-zA-Z.%']{0,12}|/resources|/users|/servicePrincipals|/directoryObjects/getByIds){0,5}",
        filter in "[ -~]{0,40}",
        content in proptest::collection::vec(any::<u8>(), 0..200),
        is_post in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let path = format!("{path}?%24filter={}&api-version={}", encoded(&filter), encoded(&filter));
        let method = if is_post { Method::POST } else { Method::GET };
        for token in [&*RESOURCE_MANAGER_TOKEN, &*GRAPH_TOKEN] {
            let mut request = request(&method, &path, Some(token), "");
            *request.body_mut() = Body::from(content.clone());
            let response = runtime.block_on(send(request));
            prop_assert!(!response.status().is_server_error(), "{}", response.status());
        }
    }
}

static RESOURCE_MANAGER_TOKEN: LazyLock<String> = LazyLock::new(|| blocking_token(RESOURCE_MANAGER));
static GRAPH_TOKEN: LazyLock<String> = LazyLock::new(|| blocking_token(GRAPH));

fn blocking_token(scope: &str) -> String {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(token(scope))
}

fn issuer() -> Issuer {
    let issuer = Issuer::new(config(), SigningKey::from_pkcs8_pem(&PEM).unwrap(), clock()).unwrap();
    let cloud = CloudConfig {
        name: "Holdfast".to_owned(),
        pool_suffix: "managedhsm.localhost:8443".to_owned(),
        resource_group: "quickstart".to_owned(),
        location: "local".to_owned(),
        pools: vec![PoolView {
            name: "demo".to_owned(),
            initial_administrators: vec![guid(ADMIN_OBJECT)],
            retention_days: 90,
            purge_protection: false,
        }],
    };
    issuer.with_cloud(cloud).unwrap()
}

fn config() -> IssuerConfig {
    let tenant = TenantId::parse(TENANT).unwrap();
    let exact = RESOURCE_MANAGER_AUDIENCES.into_iter().chain([GRAPH_AUDIENCE, BASE]);
    IssuerConfig {
        base_url: BASE.to_owned(),
        issuer: None,
        tenant,
        alias_tenant: None,
        audiences: Audiences::new(["managedhsm.localhost"], exact).unwrap(),
        clients: CLIENTS.clone(),
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    }
}

fn clock() -> identity::issuer::Clock {
    Arc::new(|| at(NOW))
}

fn guid(text: &str) -> Guid {
    text.parse().unwrap()
}

fn router() -> Router {
    Arc::new(issuer()).router()
}

async fn token(scope: &str) -> String {
    token_of(&router(), scope).await
}

async fn token_of(router: &Router, scope: &str) -> String {
    let form = format!(
        "grant_type=client_credentials&client_id={APP}&client_secret={}&scope={}",
        encoded(SECRET),
        encoded(scope)
    );
    let request = Request::post(format!("/{TENANT}/oauth2/v2.0/token"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(form))
        .unwrap();
    let answer = body(router.clone().oneshot(request).await.unwrap()).await;
    answer["access_token"].as_str().unwrap_or_else(|| panic!("{scope}: {answer}")).to_owned()
}

async fn get(path: &str, token: Option<&str>) -> (StatusCode, Value) {
    let response = send(request(&Method::GET, path, token, "")).await;
    (response.status(), body(response).await)
}

async fn post(path: &str, token: &str, content: &str) -> (StatusCode, Value) {
    let response = send(request(&Method::POST, path, Some(token), content)).await;
    (response.status(), body(response).await)
}

fn request(method: &Method, path: &str, token: Option<&str>, content: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(Body::from(content.to_owned())).unwrap()
}

async fn send(request: Request<Body>) -> Response<Body> {
    router().oneshot(request).await.unwrap()
}

async fn body(response: Response<Body>) -> Value {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
