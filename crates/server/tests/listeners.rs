//! What the listeners of a built server take from a peer: versions of TLS and HTTP, limits, the proxy's allow-list.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use common::{ISSUER_OFFSET, PROXY_OFFSET, Quickstart, converse, exchange};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

/// One server for all: nothing here changes it.
#[test]
fn listeners_keep_to_their_limits() {
    let quickstart = Quickstart::started();
    for port in [quickstart.port, quickstart.port + ISSUER_OFFSET] {
        tls_before_1_2_is_refused(port);
        plain_http_is_no_http(port);
        http2_settings_are_ours(&quickstart, port);
        oversized_headers_are_refused(&quickstart, port);
    }
    another_host_is_misdirected(&quickstart);
    the_certificate_fits_each_name(&quickstart);
    the_proxy_goes_nowhere_else(&quickstart);
}

/// A ClientHello that offers TLS 1.1 at most gets the alert `protocol_version` (RFC 8446 section 6.2); the same with 1.2
/// is answered.
fn tls_before_1_2_is_refused(port: u16) {
    let answer = converse(port, &client_hello(0x02));
    assert_eq!((answer[0], &answer[5..7]), (21, &[2, 70][..]), "fatal, protocol_version: {answer:?}");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&client_hello(0x03)).unwrap();
    let mut kind = [0];
    stream.read_exact(&mut kind).unwrap();
    assert_eq!(kind, [22], "a handshake message");
}

/// Of version 3.`minor`, with the suites, groups and signatures that this server has for TLS 1.2.
fn client_hello(minor: u8) -> Vec<u8> {
    let extensions: [&[u8]; 3] =
        [&[0, 10, 0, 4, 0, 2, 0, 23], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 4, 0, 2, 4, 3]];
    let extensions = extensions.concat();
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    // No session; ECDHE-ECDSA with AES-128-GCM; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, extensions.len() as u8]);
    body.extend(extensions);
    let mut message = vec![1, 0, 0, body.len() as u8];
    message.extend(body);
    let mut record = vec![22, 3, 1, 0, message.len() as u8];
    record.extend(message);
    record
}

fn plain_http_is_no_http(port: u16) {
    let answer = converse(port, b"GET /keys HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!answer.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&answer));
}

/// The first frame of an HTTP/2 server is its SETTINGS (RFC 9113 section 3.4).
fn http2_settings_are_ours(quickstart: &Quickstart, port: u16) {
    let mut stream = quickstart.tls(port, Some("h2"));
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut header = [0; 9];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(header[3], 4, "SETTINGS: {header:?}");
    let mut payload = vec![0; usize::from(header[2])];
    stream.read_exact(&mut payload).unwrap();
    let setting = |entry: &[u8]| {
        (
            u16::from_be_bytes([entry[0], entry[1]]),
            u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]),
        )
    };
    let settings: HashMap<u16, u32> = payload.chunks_exact(6).map(setting).collect();
    assert_eq!(settings[&3], 128, "MAX_CONCURRENT_STREAMS");
    assert_eq!(settings[&4], 256 * 1024, "INITIAL_WINDOW_SIZE");
    assert_eq!(settings[&6], 32 * 1024, "MAX_HEADER_LIST_SIZE");
}

fn oversized_headers_are_refused(quickstart: &Quickstart, port: u16) {
    // As much as may be, and no end of it yet. With more behind it the answer could be lost to a reset.
    let mut stream = quickstart.tls(port, None);
    let mut head = b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ".to_vec();
    head.resize(32 * 1024, b'x');
    stream.write_all(&head).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = "\r\nA: b".repeat(101);
    assert_eq!(quickstart.request(port, &format!("GET / HTTP/1.1\r\nHost: localhost{many}"), "").status, 431);
}

fn another_host_is_misdirected(quickstart: &Quickstart) {
    let answer = quickstart.request(quickstart.port, "GET /keys HTTP/1.1\r\nHost: other.example.com", "");
    assert_eq!(answer.status, 421, "{}", answer.body);
}

fn the_certificate_fits_each_name(quickstart: &Quickstart) {
    for name in ["demo.managedhsm.localhost", "other.managedhsm.localhost", "localhost", "127.0.0.1", "::1"] {
        let stream = TcpStream::connect(("127.0.0.1", quickstart.port)).unwrap();
        let stream = quickstart.tls_over(stream, name, None);
        let host = format!("localhost:{}", quickstart.port);
        let status = exchange(stream, &format!("GET /keys HTTP/1.1\r\nHost: {host}"), "").status;
        // Whatever the pool thinks of such a name, the handshake was good.
        assert!([401, 421].contains(&status), "{name}: {status}");
    }
}

fn the_proxy_goes_nowhere_else(quickstart: &Quickstart) {
    let port = quickstart.port;
    let proxy = port + PROXY_OFFSET;
    for (target, status) in [
        ("example.com:443".to_owned(), "403"),
        (format!("example.com:{port}"), "403"),
        ("localhost:22".to_owned(), "403"),
        (format!("localhost:{proxy}"), "403"),
        ("nonsense".to_owned(), "400"),
    ] {
        let answer = converse(proxy, format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes());
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {answer}");
        assert!(answer.contains("managedhsm.localhost"), "it says what it opens: {answer}");
    }
    let answer = converse(proxy, b"GET http://example.com/ HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 405 "));
    let endless = converse(proxy, &[b'x'; 9 * 1024]);
    assert!(endless.is_empty() || endless.starts_with(b"HTTP/1.1 400 "));

    // Through the tunnel, a whole TLS conversation with the name that no resolver knows.
    let mut stream = TcpStream::connect(("127.0.0.1", proxy)).unwrap();
    write!(stream, "CONNECT demo.managedhsm.localhost:{port} HTTP/1.1\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    let stream = quickstart.tls_over(stream, "demo.managedhsm.localhost", None);
    let request = format!("GET /keys/none HTTP/1.1\r\nHost: demo.managedhsm.localhost:{port}");
    let answer = exchange(stream, &request, "");
    assert_eq!(answer.status, 401);
    assert!(answer.head.to_ascii_lowercase().contains("www-authenticate: bearer "), "{}", answer.head);
}
