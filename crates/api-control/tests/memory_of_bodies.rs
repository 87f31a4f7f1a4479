//! A small body does not become large in memory, and before its sender is known it is not read at all.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use axum::body::{Body, Bytes};
use common::{Bench, OWNER, POOLS};
use peak_alloc::PeakAlloc;
use serde_json::Value;

/// Counts what is allocated: no other test is in this binary.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// For whoever sends it without a token.
const MOST_UNREAD: usize = 16 * 1024;
/// For whoever has one. Without a limit on what is in a body it would be a hundred bodies.
const MOST_READ: usize = 4 * api_control::MAX_BODY_BYTES;

/// `begin`, then as many of `item` with commas between them as there is room for, then `end`.
fn body(begin: &str, item: impl Fn(usize) -> String, end: &str) -> Bytes {
    let mut text = begin.to_owned();
    for number in 0.. {
        let item = item(number);
        if text.len() + item.len() + end.len() + 1 > api_control::MAX_BODY_BYTES {
            break;
        }
        if number > 0 {
            text.push(',');
        }
        text += &item;
    }
    (text + end).into()
}

fn bodies() -> Vec<Bytes> {
    let same = |item: &'static str| move |_| item.to_owned();
    vec![
        body("{\"a\":[", same("1"), "]}"),
        body("{\"a\":[", same("[0]"), "]}"),
        body("{\"a\":[", same("{\"\":0}"), "]}"),
        body("{\"tags\":{", |number| format!("\"{number}\":\"\""), "}}"),
        body("{\"properties\":{\"initialAdminObjectIds\":[", same("\"\""), "]}}"),
        body("{\"properties\":{\"networkAcls\":{\"ipRules\":[", same("{\"value\":\"\"}"), "]}}}"),
    ]
}

/// By how much memory grows at most while a request is answered, and the answer.
async fn growth(bench: &Bench, token: Option<&str>, body: &Bytes) -> (usize, u16, Value) {
    let body = Body::from(body.clone());
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let (status, answer) = bench.send_body(token, "PUT", &format!("{POOLS}/fresh"), body).await;
    (MEMORY.peak_usage() - before, status, answer)
}

#[tokio::test]
async fn small_bodies_do_not_grow_large_and_are_not_read_before_the_token() {
    let bench = Bench::new().await;
    // Whatever is allocated once is there.
    bench.send(Some(OWNER), "GET", POOLS, None).await;
    for body in bodies() {
        let begin = String::from_utf8_lossy(&body[..40]).into_owned();
        for (token, expected, most) in [(None, 401, MOST_UNREAD), (Some(OWNER), 400, MOST_READ)] {
            let (grown, status, answer) = growth(&bench, token, &body).await;
            eprintln!("{begin}: {grown} bytes of {}", body.len());
            assert_eq!(status, expected, "{answer}");
            assert!(grown < most, "{begin}: {grown} bytes, and {most} is the limit");
            if token.is_some() {
                assert_eq!(answer["error"]["message"], "The request body must have at most 1000 values.");
            }
        }
    }
}
