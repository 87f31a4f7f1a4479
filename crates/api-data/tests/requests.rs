//! Whatever is asked, by whomever: an answer that is no failure of the server's, with one event where the caller is known,
//! and still in order for the next.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use api_data::RouteKind;
use common::{Bench, ROOT};
use domain::guid::Guid;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

const STRANGER: Guid = Guid([9; 16]);

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// Segments that mean something somewhere, and some that should not anywhere.
const SEGMENTS: [&str; 32] = [
    "keys",
    "KEYS",
    "deletedkeys",
    "this",
    "THIS",
    "other",
    "create",
    "recover",
    "versions",
    "sign",
    "verify",
    "encrypt",
    "decrypt",
    "wrapkey",
    "unwrapkey",
    "rng",
    "settings",
    "HoldfastAllowRsa15Decryption",
    "holdfast",
    "tokens",
    "providers",
    "Microsoft.Authorization",
    "roleAssignments",
    "roleDefinitions",
    "c1c1c1c1-c1c1-c1c1-c1c1-c1c1c1c1c1c1",
    "0123456789abcdef0123456789abcdef",
    "",
    "..",
    "%00",
    "%2F",
    "%ff",
    "rotationpolicy",
];

fn paths() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        8 => proptest::sample::select(&SEGMENTS[..]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9~._%-]{0,12}",
    ];
    let free =
        proptest::collection::vec(segment, 0..7).prop_map(|segments| format!("/{}", segments.join("/")));
    // A route's own path, so that most requests get as far as a use case.
    let route = proptest::sample::select(RouteKind::ALL).prop_map(|kind| {
        kind.path()
            .replace("{scope}", "/keys/this")
            .replace("{key}", "this")
            .replace("/{version}", "")
            .replace("{setting}", "HoldfastAllowRsa15Decryption")
            .replace("{id}", "c1c1c1c1-c1c1-c1c1-c1c1-c1c1c1c1c1c1")
    });
    let query = prop_oneof![
        4 => Just(String::new()),
        1 => "[?](maxresults|[$]skiptoken|api-version|x)=[a-zA-Z0-9%=&-]{0,30}",
    ];
    (prop_oneof![free, route], query).prop_map(|(path, query)| format!("{path}{query}"))
}

fn bodies() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-zA-Z0-9_-]{0,60}".prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        proptest::sample::select(&["ES256", "A256GCM", "A256KW", "RS256", "EC", "oct", "P-384", "sign"][..])
            .prop_map(Value::from),
    ];
    let member = proptest::sample::select(
        &[
            "alg",
            "value",
            "digest",
            "iv",
            "aad",
            "tag",
            "kty",
            "crv",
            "key_size",
            "key_ops",
            "attributes",
            "enabled",
            "nbf",
            "exp",
            "tags",
            "count",
            "properties",
            "principalId",
            "roleDefinitionId",
            "roleName",
            "permissions",
            "dataActions",
            "notBefore",
            "release_policy",
        ][..],
    );
    word.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            1 => proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            4 => proptest::collection::vec((member.clone(), inner), 0..6)
                .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

#[test]
fn any_request_gets_an_answer_in_order_and_leaves_one_event() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bench = runtime.block_on(async {
        let bench = Bench::new().await;
        bench.arrange("POST", "/keys/this/create", json!({ "kty": "EC" })).await;
        bench.arrange("POST", "/keys/other/create", json!({ "kty": "oct" })).await;
        bench
    });
    let tokens = [Some(bench.token(ROOT)), Some(bench.token(STRANGER)), Some("nonsense".to_owned()), None];
    let requests = (
        proptest::sample::select(&METHODS[..]),
        paths(),
        bodies(),
        prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2), 1 => Just(3)],
    );
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let ran = runner.run(&requests, |(method, path, body, caller): (&str, String, Value, usize)| {
        runtime.block_on(async {
            bench.new_events().await;
            let answer = bench.send(method, &path, Some(&body), tokens[caller].as_deref()).await;
            prop_assert!(answer.status < 500, "{:?}", answer);
            let known = caller < 2;
            prop_assert_eq!(answer.status == 401, !known, "{:?}", answer);
            prop_assert_eq!(bench.new_events().await.len(), usize::from(known));
            prop_assert_eq!(answer.challenge.is_some(), !known);
            if caller == 1 {
                prop_assert!(!answer.succeeded(), "a stranger succeeded: {:?}", answer);
            }
            Ok(())
        })
    });
    ran.unwrap();
    let keys = runtime.block_on(bench.as_root("GET", "/keys", None));
    assert!(keys.succeeded(), "{keys:?}");
}
