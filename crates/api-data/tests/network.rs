//! The firewall: asked before the token, on the client's own address, and by everybody but the administration socket.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use api_data::Origin;
use common::{Bench, ROOT};
use domain::network::{DefaultAction, NetworkRules};
use std::net::SocketAddr;

fn from(address: &str) -> Origin {
    Origin::Network(SocketAddr::new(address.parse().unwrap(), 40_000))
}

fn at(bench: &Bench, origin: Origin) {
    *bench.origin.lock().unwrap() = origin;
}

fn deny(ip_rules: &[&str]) -> NetworkRules {
    let mut rules = NetworkRules::default().with_ip_rules(ip_rules).unwrap();
    rules.default_action = DefaultAction::Deny;
    rules
}

#[tokio::test]
async fn who_is_elsewhere_is_refused_before_the_token() {
    let bench = Bench::new().await;
    bench.pool.apply_network_rules(deny(&["192.0.2.0/24"]), vec![]).await.unwrap();
    let _ = bench.new_events().await;
    let good = bench.token(ROOT);
    // Nothing tells a good token from a bad one, a path that exists from one that does not.
    at(&bench, from("198.51.100.7"));
    let mut answers = Vec::new();
    for token in [None, Some("nonsense"), Some(good.as_str())] {
        for path in ["/keys", "/nowhere", "/healthstatus", "/securitydomain/download"] {
            let answer = bench.send("GET", path, None, token).await;
            assert_eq!(answer.to_string(), "403 Forbidden/ForbiddenByFirewall", "{path}");
            assert_eq!(answer.challenge, None, "{path}");
            answers.push(answer);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    let message = answers[0].body["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("Client address 198.51.100.7 is not authorized"), "{message}");

    // The form that a listener of both families gives an IPv4 client.
    at(&bench, from("::ffff:192.0.2.200"));
    assert_eq!(bench.send("GET", "/keys", None, None).await.status, 401);
    assert_eq!(bench.send("GET", "/keys", None, Some(&good)).await.status, 200);
    at(&bench, from("::ffff:198.51.100.7"));
    assert_eq!(bench.send("GET", "/keys", None, Some(&good)).await.status, 403);

    let events = bench.new_events().await;
    let refused: Vec<_> = events.iter().filter(|event| event["httpStatusCode"] == 403).collect();
    assert_eq!(refused.len(), 1, "one address, one event: {events:?}");
    assert_eq!(refused[0]["callerIpAddress"], "198.51.100.7");
    assert_eq!(refused[0]["operationName"], "KeyList");
}

#[tokio::test]
async fn the_administration_socket_passes_the_firewall_and_nothing_else() {
    let bench = Bench::new().await;
    let mut closed = NetworkRules::default();
    closed.public_access = false;
    bench.pool.apply_network_rules(closed, vec![]).await.unwrap();
    let good = bench.token(ROOT);
    assert_eq!(bench.send("GET", "/keys", None, Some(&good)).await.status, 403);
    at(&bench, Origin::Administration);
    assert_eq!(bench.send("GET", "/keys", None, None).await.status, 401);
    let stranger = bench.token(domain::guid::Guid([9; 16]));
    assert_eq!(bench.send("GET", "/keys", None, Some(&stranger)).await.inner_code(), Some("ForbiddenByRbac"));
    assert_eq!(bench.send("GET", "/keys", None, Some(&good)).await.status, 200);
}

#[tokio::test]
async fn rules_in_force_are_in_the_log_once() {
    let bench = Bench::new().await;
    let before = bench.pool.audit_page(0, 1000).await.unwrap().len();
    bench.pool.apply_network_rules(NetworkRules::default(), vec![]).await.unwrap();
    for _ in 0..3 {
        bench.pool.apply_network_rules(deny(&["10.0.0.0/8"]), vec![]).await.unwrap();
    }
    let trusted = vec!["203.0.113.0/24".parse().unwrap()];
    bench.pool.apply_network_rules(deny(&["10.0.0.0/8"]), trusted).await.unwrap();
    let events = bench.pool.audit_page(0, 1000).await.unwrap();
    let applied: Vec<_> =
        events[before..].iter().map(|event| event["operationName"].as_str().unwrap()).collect();
    assert_eq!(applied, ["NetworkRulesApplied"; 2], "open at first, and the same again is no change");
    at(&bench, from("203.0.113.9"));
    assert_eq!(bench.send("GET", "/keys", None, Some(&bench.token(ROOT))).await.status, 200);
    at(&bench, from("203.0.114.9"));
    assert_eq!(bench.send("GET", "/keys", None, Some(&bench.token(ROOT))).await.status, 403);
}

#[tokio::test]
async fn a_private_way_is_open_whatever_the_other_rules_are_and_only_where_it_is_approved() {
    let bench = Bench::new().await;
    let good = bench.token(ROOT);
    let client = SocketAddr::new("192.0.2.7".parse().unwrap(), 40_000);
    let by = |called: &str| Origin::Private { client, called: called.parse().unwrap() };
    // Open to everybody on the public way: that is no approval.
    at(&bench, by("10.0.0.5"));
    assert_eq!(bench.send("GET", "/keys", None, Some(&good)).await.inner_code(), Some("ForbiddenByFirewall"));

    let mut closed = NetworkRules::default();
    closed.public_access = false;
    closed.private = vec!["10.0.0.5".parse().unwrap()];
    bench.pool.apply_network_rules(closed, vec![]).await.unwrap();
    let _ = bench.new_events().await;
    // Past the firewall, and token and role are asked for as anywhere.
    assert_eq!(bench.send("GET", "/keys", None, None).await.status, 401);
    let stranger = bench.token(domain::guid::Guid([9; 16]));
    assert_eq!(bench.send("GET", "/keys", None, Some(&stranger)).await.inner_code(), Some("ForbiddenByRbac"));
    assert_eq!(bench.send("GET", "/keys", None, Some(&good)).await.status, 200);
    for elsewhere in [by("10.0.0.6"), Origin::Network(client), from("10.0.0.5")] {
        at(&bench, elsewhere);
        let answer = bench.send("GET", "/keys", None, Some(&good)).await;
        assert_eq!(answer.inner_code(), Some("ForbiddenByFirewall"), "{elsewhere:?}");
    }
    let events = bench.new_events().await;
    assert!(
        events.iter().any(|event| event["callerIpAddress"] == "192.0.2.7" && event["httpStatusCode"] == 200)
    );
}
