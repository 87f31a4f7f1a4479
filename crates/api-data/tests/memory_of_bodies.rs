//! A small body does not become large in memory, and before its sender is known it is not read at all.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use bytes::Bytes;
use common::{Bench, DEFINITIONS, ROOT};
use peak_alloc::PeakAlloc;

/// Counts what is allocated: no other test is in this binary.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Close to the largest body that any route but one takes.
const BODY_BYTES: usize = 240 * 1024;
/// For whoever sends it without a token.
const MOST_UNREAD: usize = 16 * 1024;
/// For whoever has one, whatever their rights. A list without a limit of its own would be eighty bodies.
const MOST_READ: usize = 32 * BODY_BYTES;
const ROLE: &str = "c1c1c1c1-c1c1-c1c1-c1c1-c1c1c1c1c1c1";

/// `head`, then as many of `item` with commas between them as there is room for, then `tail`.
fn body(head: &str, item: impl Fn(usize) -> String, tail: &str) -> Bytes {
    let mut text = head.to_owned();
    for number in 0.. {
        text += &item(number);
        if text.len() > BODY_BYTES {
            break;
        }
        text += ",";
    }
    (text + tail).into()
}

fn bodies() -> Vec<(&'static str, String, Bytes)> {
    let create = || "/keys/k/create".to_owned();
    let role = || format!("/{DEFINITIONS}/{ROLE}");
    let same = |item: &'static str| move |_| item.to_owned();
    let many = |number| format!("\"{number}\":\"\"");
    vec![
        ("POST", create(), body("{\"tags\":[", same("[]"), "]}")),
        ("POST", create(), body("{\"tags\":{", many, "}}")),
        ("POST", create(), body("{\"release_policy\":{", many, "}}")),
        ("POST", create(), body("{\"kty\":\"EC\",\"key_ops\":[", same("\"\""), "]}")),
        ("PUT", "/keys/k/rotationpolicy".to_owned(), body("{\"lifetimeActions\":[", same("{}"), "]}")),
        ("PUT", role(), body("{\"properties\":{\"permissions\":[", same("{}"), "]}}")),
        ("PUT", role(), body("{\"properties\":{\"permissions\":[{\"dataActions\":[", same("\"\""), "]}]}}")),
        (
            "POST",
            "/securitydomain/download".to_owned(),
            body("{\"certificates\":[", same("{\"x5c\":[]}"), "]}"),
        ),
    ]
}

/// By how much memory grows at most while a request is answered.
async fn growth(bench: &Bench, (method, path, body): &(&str, String, Bytes), token: Option<&str>) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let answer = bench.send_bytes(method, path, body.clone(), token).await;
    let grown = MEMORY.peak_usage() - before;
    assert_eq!(answer.status, if token.is_some() { 400 } else { 401 }, "{method} {path}: {answer:?}");
    grown
}

#[tokio::test]
async fn small_bodies_do_not_grow_large_and_are_not_read_before_the_token() {
    let bench = Bench::new().await;
    let token = bench.token(ROOT);
    // Whatever is allocated once is there.
    bench.send("GET", "/keys", None, Some(&token)).await;
    for request in bodies() {
        for (token, most) in [(None, MOST_UNREAD), (Some(token.as_str()), MOST_READ)] {
            let grown = growth(&bench, &request, token).await;
            eprintln!("{} {}: {grown} bytes", request.0, request.1);
            assert!(grown < most, "{} {}: {grown} bytes, and {most} is the limit", request.0, request.1);
        }
    }
}
