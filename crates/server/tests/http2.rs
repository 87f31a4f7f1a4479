//! HTTP/2 from peers that keep to the letter of RFC 9113 and not to its sense: each is cut off or held back, and another
//! client is served meanwhile. Frames are written by hand, as no client library would.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use common::{Quickstart, TlsStream};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

/// A deadline: a server that takes nothing for so long holds back.
const WRITE_TIME: Duration = Duration::from_secs(60);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
/// What `MAX_CONCURRENT_STREAMS` says.
const STREAMS: usize = 128;
const INITIAL_WINDOW_SIZE: u16 = 4;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// How a connection that was written to went on.
#[derive(Debug, Eq, PartialEq)]
enum End {
    /// The server closed it.
    Cut,
    /// The server takes no more as long as its answers are not read.
    HeldBack,
}

struct Http2 {
    stream: TlsStream,
    authority: String,
}

impl Http2 {
    /// A connection whose settings were exchanged; `settings` are ours.
    fn open(quickstart: &Quickstart, settings: &[(u16, u32)]) -> Self {
        let mut stream = quickstart.tls(quickstart.port, Some("h2"));
        stream.sock.set_write_timeout(Some(WRITE_TIME)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut http2 = Self { stream, authority: format!("demo.managedhsm.localhost:{}", quickstart.port) };
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        http2.write(&frame(SETTINGS, 0, 0, &payload)).unwrap();
        assert_eq!(http2.read().unwrap().kind, SETTINGS);
        http2.write(&frame(SETTINGS, ACK, 0, b"")).unwrap();
        http2
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The next frame; `None` once the connection has ended, however it did.
    fn read(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        self.fill(&mut header)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.fill(&mut payload)?;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        Some(Frame { kind: header[3], flags: header[4], stream, payload })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) => {
                let timed_out = [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind());
                assert!(!timed_out, "neither an answer nor an end");
                None
            }
        }
    }

    /// A header block: pseudo-headers by the static table, all else as literals that are not indexed (RFC 7541).
    fn block(&self, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        // The scheme is https.
        let mut block = vec![0x87];
        literal(&mut block, 2, method);
        literal(&mut block, 4, path);
        literal(&mut block, 1, &self.authority);
        for (name, value) in more {
            block.push(0);
            text(&mut block, name);
            text(&mut block, value);
        }
        block
    }

    fn get(&self, stream: u32) -> Vec<u8> {
        let block = self.block("GET", "/keys?api-version=7.6", &[]);
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
    }

    /// Writes `bytes` again and again, `limit` bytes in all, and reads nothing.
    fn flood(&mut self, limit: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> Option<End> {
        let mut written = 0;
        for round in 0.. {
            if written >= limit {
                return None;
            }
            let bytes = bytes(round);
            written += bytes.len();
            match self.write(&bytes) {
                Ok(()) => {}
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                    return Some(End::HeldBack);
                }
                Err(_) => return Some(End::Cut),
            }
        }
        None
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn literal(block: &mut Vec<u8>, index: u8, value: &str) {
    block.push(index);
    text(block, value);
}

/// A string without Huffman coding: an integer with a prefix of seven bits, then its bytes.
fn text(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap());
    }
    block.extend_from_slice(text.as_bytes());
}

fn odd(number: usize) -> u32 {
    u32::try_from(number * 2 + 1).unwrap()
}

/// The promise beside each: whoever else comes is answered.
fn others_are_served(quickstart: &Quickstart) {
    let request = format!("GET /keys?api-version=7.6 HTTP/1.1\r\nHost: localhost:{}", quickstart.port);
    assert_eq!(quickstart.request(quickstart.port, &request, "").status, 401);
}

/// One server for all: nothing here lasts.
#[test]
fn peers_that_abuse_http2_are_cut_off_or_held_back() {
    let quickstart = Quickstart::started();
    frames_written_by_hand_are_understood(&quickstart);
    streams_that_are_reset_at_once(&quickstart);
    headers_that_never_end(&quickstart);
    headers_that_are_too_many(&quickstart);
    streams_beyond_the_limit(&quickstart);
    answers_that_are_not_read(&quickstart);
    pings_and_settings_without_end(&quickstart);
    data_on_no_stream(&quickstart);
}

/// The control: the same frames, used as they are meant, get an answer.
fn frames_written_by_hand_are_understood(quickstart: &Quickstart) {
    let mut http2 = Http2::open(quickstart, &[]);
    let get = http2.get(1);
    http2.write(&get).unwrap();
    let mut kinds = Vec::new();
    loop {
        let frame = http2.read().unwrap();
        kinds.push(frame.kind);
        if frame.stream == 1 && frame.flags & END_STREAM != 0 {
            break;
        }
    }
    assert!(kinds.contains(&HEADERS) && kinds.contains(&DATA), "{kinds:?}");
}

/// A request and its reset, without end (CVE-2023-44487).
fn streams_that_are_reset_at_once(quickstart: &Quickstart) {
    let mut http2 = Http2::open(quickstart, &[]);
    let rounds = (0..100).map(|round| {
        let streams = (round * 1_000..(round + 1) * 1_000).map(odd);
        streams.flat_map(|stream| {
            [http2.get(stream), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
        })
    });
    let rounds: Vec<Vec<u8>> = rounds.map(Iterator::collect).collect();
    let end = http2.flood(usize::MAX, |round| rounds.get(round).cloned().unwrap_or_default());
    others_are_served(quickstart);
    assert_eq!(end, Some(End::Cut));
}

/// CONTINUATION after CONTINUATION (VU#421644).
fn headers_that_never_end(quickstart: &Quickstart) {
    const FLOOD_BYTES: usize = 64 << 20;
    let mut http2 = Http2::open(quickstart, &[]);
    let block = http2.block("GET", "/", &[]);
    http2.write(&frame(HEADERS, END_STREAM, 1, &block)).unwrap();
    let more = {
        let mut more = vec![0];
        text(&mut more, "a");
        text(&mut more, &"x".repeat(16_000));
        more
    };
    let end = http2.flood(FLOOD_BYTES, |_| frame(CONTINUATION, 0, 1, &more));
    others_are_served(quickstart);
    assert_eq!(end, Some(End::Cut));

    // Empty ones cost nothing to hold, and are cut as well.
    let mut http2 = Http2::open(quickstart, &[]);
    let block = http2.block("GET", "/", &[]);
    http2.write(&frame(HEADERS, END_STREAM, 1, &block)).unwrap();
    let empty = frame(CONTINUATION, 0, 1, b"").repeat(1_000);
    let end = http2.flood(FLOOD_BYTES, |_| empty.clone());
    others_are_served(quickstart);
    assert_eq!(end, Some(End::Cut));
}

fn headers_that_are_too_many(quickstart: &Quickstart) {
    let mut http2 = Http2::open(quickstart, &[]);
    let value = "x".repeat(8_000);
    let values = [("a", value.as_str()); 5];
    let block = http2.block("GET", "/healthstatus", &values);
    let (first, rest) = block.split_at(16_000);
    http2.write(&frame(HEADERS, END_STREAM, 1, first)).unwrap();
    let (second, third) = rest.split_at(16_000);
    http2.write(&frame(CONTINUATION, 0, 1, second)).unwrap();
    let _ = http2.write(&frame(CONTINUATION, END_HEADERS, 1, third));
    // 431 in the static table is no entry of its own: a literal, which ends the connection's or the stream's hopes.
    while let Some(frame) = http2.read() {
        match frame.kind {
            HEADERS => {
                assert_ne!(frame.payload[0], 0x88, "answered with 200");
                break;
            }
            RST_STREAM | GOAWAY => break,
            _ => {}
        }
    }
    others_are_served(quickstart);
}

/// Requests whose bodies do not come: as many as were agreed are waited for.
fn streams_beyond_the_limit(quickstart: &Quickstart) {
    const MORE: usize = 40;
    let token = format!("Bearer {}", quickstart.token());
    let mut http2 = Http2::open(quickstart, &[]);
    let block = http2.block("POST", "/keys/k/create?api-version=7.6", &[("authorization", &token)]);
    for number in 0..STREAMS + MORE {
        http2.write(&frame(HEADERS, END_HEADERS, odd(number), &block)).unwrap();
    }
    others_are_served(quickstart);
    let mut refused = BTreeSet::new();
    while refused.len() < MORE {
        let frame = http2.read().unwrap();
        assert_ne!(frame.kind, HEADERS, "answered without a body");
        if frame.kind == RST_STREAM {
            assert_eq!(frame.payload, REFUSED_STREAM.to_be_bytes(), "stream {}", frame.stream);
            refused.insert(frame.stream);
        }
    }
    assert_eq!(refused.first(), Some(&odd(STREAMS)), "the first ones are kept");
}

/// A window of nothing: answers wait, and so many and no more.
fn answers_that_are_not_read(quickstart: &Quickstart) {
    const MORE: usize = 200;
    let mut http2 = Http2::open(quickstart, &[(INITIAL_WINDOW_SIZE, 0)]);
    for number in 0..STREAMS + MORE {
        let get = http2.get(odd(number));
        http2.write(&get).unwrap();
    }
    others_are_served(quickstart);
    let mut refused = 0;
    while refused < MORE {
        let frame = http2.read().unwrap();
        assert_ne!((frame.kind, frame.payload.is_empty()), (DATA, false), "sent against the window");
        refused += usize::from(frame.kind == RST_STREAM);
    }
}

/// Each asks for an answer, and none is read.
fn pings_and_settings_without_end(quickstart: &Quickstart) {
    const FLOOD_BYTES: usize = 64 << 20;
    for asking in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, b"")] {
        let mut http2 = Http2::open(quickstart, &[]);
        // Here an end is as good as being held back, which nothing but time shows.
        http2.stream.sock.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let many = asking.repeat(2_000);
        let end = http2.flood(FLOOD_BYTES, |_| many.clone());
        others_are_served(quickstart);
        assert!(end.is_some(), "64 MiB were taken without an answer being read");
    }
}

fn data_on_no_stream(quickstart: &Quickstart) {
    let mut http2 = Http2::open(quickstart, &[]);
    let _ = http2.write(&frame(DATA, 0, 1, &[0; 100]));
    let mut last = None;
    while let Some(frame) = http2.read() {
        last = Some(frame.kind);
    }
    assert_eq!(last, Some(GOAWAY));
    others_are_served(quickstart);
}
