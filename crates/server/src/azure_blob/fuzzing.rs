//! What a caller says of a storage and what the storage, an issuer or an identity endpoint answers, for fuzz targets alone.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a finding

use super::identity::{Kept, LONGEST};
use super::*;
use crate::https::over;
use http::Request;
use http_body_util::Full;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

const LIMIT: usize = 1024;

/// A connection whose other end answers with these bytes, once it was asked anything.
struct Peer {
    answer: Cursor<Vec<u8>>,
    was_asked: bool,
    waiting: Option<Waker>,
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.was_asked {
            self.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.answer).poll_read(context, buffer)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.was_asked = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn answered(bytes: &[u8]) -> Result<Response<Bytes>, CallError> {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());
    let peer = Peer { answer: Cursor::new(bytes.to_vec()), was_asked: false, waiting: None };
    let request = Request::get("/c/f/b").header("host", "a.example").body(Full::default()).unwrap();
    RUNTIME.block_on(over(peer, "a.example", request, LIMIT))
}

/// An answer in HTTP/1.1. It is no longer than was allowed and never cut short, and errors repeat little of it.
pub fn http_answer(bytes: &[u8]) {
    let response = match answered(bytes) {
        Ok(response) => response,
        Err(error) => return check_words(&chain(&error)),
    };
    let body = response.body().clone();
    assert!(body.len() <= LIMIT);
    let headers = response.headers();
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if let Some(length) = length
        && !headers.contains_key("transfer-encoding")
        && matches!(response.status().as_u16(), 200 | 206 | 400..)
    {
        assert_eq!(body.len(), length);
    }
    if let Some(code) = error_code(&response) {
        assert!((1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
    check_words(&refusal(&response).to_string());
    match size_of("f/b", &response) {
        Ok(size) => assert_eq!(size.is_some(), response.status() == StatusCode::OK),
        Err(error) => check_words(&error.to_string()),
    }
    for offset in [0, 4] {
        match Window::of("f/b", offset, response.clone()) {
            Ok(window) => {
                for length in [1, 4, LIMIT] {
                    let part = window.part("f/b", offset, length);
                    assert_eq!(part.as_deref(), body.get(..length));
                }
                assert_eq!(window.part("f/b", offset + 1, body.len()), None);
                assert_eq!(window.part("f/c", offset, 0), None);
            }
            Err(error) => check_words(&error.to_string()),
        }
    }
}

/// A message is logged, and goes into a job that its caller reads.
fn check_words(message: &str) {
    assert!(message.len() < 400 && !message.chars().any(char::is_control), "{message:?}");
}

/// A container, a blob's name and a SAS, a line each. What is called is a blob below the container, and does what was asked.
pub fn storage_location(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (container, name, sas) = (next(), next(), next());
    let container = match Container::parse(container) {
        Ok(container) => container,
        Err(error) => return check_words(&error.to_string()),
    };
    let host = container.url().host();
    assert!(!host.is_empty() && !host.contains(['@', '/', '?', '#', '\\', ' ', '%']), "{host}");
    let again = format!("https://{}{}", container.url().authority(), container.own_path());
    let again = Container::parse(&again).unwrap();
    assert_eq!((again.own_path(), again.is_whole()), (container.own_path(), container.is_whole()));
    let Ok(path) = container.blob_path(name) else { return };
    if let Err(error) = check_sas(sas) {
        return check_words(&error.to_string());
    }
    let asked = [("comp", "block"), ("blockid", "a/b=")];
    let Ok(url) = container.at(&path, &asked, Some(sas)) else { return };
    assert_eq!(url.authority(), container.url().authority());
    let rest = url.path().strip_prefix(container.own_path()).and_then(|rest| rest.strip_prefix('/'));
    assert!(rest.unwrap().split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", url.path());
    let decoded = percent_encoding::percent_decode_str(rest.unwrap()).decode_utf8().unwrap();
    assert_eq!(decoded, name);
    let query = url.query().unwrap();
    assert!(query.starts_with("comp=block&blockid=a%2Fb%3D&"), "{query}");
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    let decides =
        names.filter(|name| name.eq_ignore_ascii_case("comp") || name.eq_ignore_ascii_case("restype"));
    assert_eq!(decides.count(), 1, "{query}");
}

/// A token and its time. It is one header's value, the one that another reader of JSON finds, and kept no longer than a day.
pub fn identity_answer(bytes: &[u8]) {
    let Some(kept) = Kept::read(bytes) else { return };
    assert!(kept.bearer.is_sensitive() && kept.until <= Instant::now() + LONGEST);
    assert!(!kept.bearer.as_bytes().contains(&b'\r') && !kept.bearer.as_bytes().contains(&b'\n'));
    // It refuses half of a surrogate pair also in a member that nobody reads.
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    assert_eq!(
        kept.bearer.as_bytes(),
        format!("Bearer {}", value["access_token"].as_str().unwrap()).as_bytes()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! corpus {
        ($name:literal) => {
            include_bytes!(concat!("../../../../fuzz/corpus/", $name))
        };
    }

    /// Where nothing ever was an answer, the promises of the targets would say nothing.
    #[test]
    fn an_answer_is_whole_or_none() {
        assert_eq!(answered(corpus!("http_answer/part")).unwrap().body(), &b"0123456789"[..]);
        assert_eq!(answered(corpus!("http_answer/chunks")).unwrap().body(), &b"0123456789"[..]);
        assert!(matches!(answered(corpus!("http_answer/cut")), Err(CallError::Http { .. })));
        assert!(matches!(answered(corpus!("http_answer/too-long")), Err(CallError::TooLong { .. })));
        assert!(Kept::read(corpus!("identity_answer/machine")).is_some());
        assert!(Kept::read(corpus!("identity_answer/line-break")).is_none());
        assert!(Kept::read(corpus!("identity_answer/list")).is_none());
    }
}
