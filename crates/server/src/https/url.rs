//! Where a call goes.

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use std::net::Ipv6Addr;
use std::str::FromStr;

const DEFAULT_PORT: u16 = 443;
const MAX_URL_BYTES: usize = 8 * 1024;

/// `https://host[:port]/path?query`. No `Debug` and no `Display`: a query may be a secret.
#[derive(Clone)]
pub struct Url {
    /// As in a `Host` header.
    authority: String,
    host: String,
    port: u16,
    path_and_query: PathAndQuery,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedUrl {
    #[error("it is no URL")]
    NoUrl,
    #[error("it does not begin with https://")]
    NotHttps,
    #[error("it has a user or a password before the host")]
    UserInformation,
    #[error("its port is no port")]
    Port,
    #[error("it has a fragment")]
    Fragment,
}

impl Url {
    /// The host, an IPv6 address in its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn path(&self) -> &str {
        self.path_and_query.path()
    }

    pub fn query(&self) -> Option<&str> {
        self.path_and_query.query()
    }

    pub(super) fn path_and_query(&self) -> &PathAndQuery {
        &self.path_and_query
    }

    /// As a certificate names it.
    pub(super) fn server_name(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// The same origin at another path and query.
    pub fn at(&self, path_and_query: &str) -> Result<Self, MalformedUrl> {
        if !path_and_query.starts_with('/') || path_and_query.len() > MAX_URL_BYTES {
            return Err(MalformedUrl::NoUrl);
        }
        if path_and_query.contains('#') {
            return Err(MalformedUrl::Fragment);
        }
        let path_and_query = path_and_query.parse().map_err(|_| MalformedUrl::NoUrl)?;
        Ok(Self { path_and_query, ..self.clone() })
    }
}

/// The port of `authority`, which names no user; `None` where what stands there is no port, which `http` takes for none.
pub fn port_of(authority: &Authority, default: u16) -> Option<u16> {
    let behind = authority.as_str().get(authority.host().len()..)?;
    if behind.is_empty() {
        return Some(default);
    }
    let digits = behind.strip_prefix(':').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|port| *port != 0)
}

impl FromStr for Url {
    type Err = MalformedUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_URL_BYTES {
            return Err(MalformedUrl::NoUrl);
        }
        // `http` takes fragments away, unseen.
        if text.contains('#') {
            return Err(MalformedUrl::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| MalformedUrl::NoUrl)?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(MalformedUrl::NoUrl);
        };
        if *scheme != Scheme::HTTPS {
            return Err(MalformedUrl::NotHttps);
        }
        if authority.as_str().contains('@') {
            return Err(MalformedUrl::UserInformation);
        }
        let host = authority.host();
        // `http` takes nearly anything between brackets, wherever they stand, and nothing before a port.
        let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_good = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok()),
            None => !host.is_empty() && host.bytes().all(in_name),
        };
        if !is_good {
            return Err(MalformedUrl::NoUrl);
        }
        let port = port_of(authority, DEFAULT_PORT).ok_or(MalformedUrl::Port)?;
        let authority = match port {
            DEFAULT_PORT => host.to_owned(),
            port => format!("{host}:{port}"),
        };
        // With its slash, also where the text went on with a query at once.
        let path_and_query = match uri.path_and_query() {
            Some(given) => given.to_string().parse().map_err(|_| MalformedUrl::NoUrl)?,
            None => PathAndQuery::from_static("/"),
        };
        Ok(Self { authority, host: host.to_owned(), port, path_and_query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_is_https_to_a_host_at_a_port() {
        let parse = |text: &str| {
            text.parse::<Url>().map(|url| {
                (
                    url.authority().to_owned(),
                    url.port(),
                    url.path().to_owned(),
                    url.query().map(str::to_owned),
                )
            })
        };
        let expected = |authority: &str, port, path: &str, query: Option<&str>| {
            Ok((authority.to_owned(), port, path.to_owned(), query.map(str::to_owned)))
        };
        assert_eq!(parse("https://a.example"), expected("a.example", 443, "/", None));
        assert_eq!(parse("https://a.example:443/b/c?d=e"), expected("a.example", 443, "/b/c", Some("d=e")));
        assert_eq!(parse("HTTPS://[::1]:10000/b"), expected("[::1]:10000", 10000, "/b", None));
        for (text, reason) in [
            ("http://a.example/", MalformedUrl::NotHttps),
            ("ftp://a.example/", MalformedUrl::NotHttps),
            ("file:///etc/passwd", MalformedUrl::NoUrl),
            ("gopher://127.0.0.1:25/x", MalformedUrl::NotHttps),
            ("//a.example/", MalformedUrl::NoUrl),
            ("/b", MalformedUrl::NoUrl),
            ("a.example", MalformedUrl::NoUrl),
            ("", MalformedUrl::NoUrl),
            ("https://", MalformedUrl::NoUrl),
            ("https:///b", MalformedUrl::NoUrl),
            ("https://:443/", MalformedUrl::NoUrl),
            ("https://[%:1]/", MalformedUrl::NoUrl),
            ("https://[a.example]/", MalformedUrl::NoUrl),
            ("https://a.example[b]/", MalformedUrl::NoUrl),
            ("https://a%2eexample/", MalformedUrl::NoUrl),
            ("https://user@a.example/", MalformedUrl::UserInformation),
            ("https://user:password@a.example/", MalformedUrl::UserInformation),
            ("https://a.example@b.example/", MalformedUrl::UserInformation),
            ("https://a.example:0/", MalformedUrl::Port),
            ("https://a.example:/", MalformedUrl::Port),
            ("https://a.example:65536/", MalformedUrl::Port),
            ("https://a.example:+443/", MalformedUrl::Port),
            ("https://a.example/#b", MalformedUrl::Fragment),
            ("https://a.example#@b.example/", MalformedUrl::Fragment),
            ("https://a.example\\@b.example/", MalformedUrl::NoUrl),
            ("https://a.example/\r\nX: y", MalformedUrl::NoUrl),
            ("https://a example/", MalformedUrl::NoUrl),
            (&format!("https://a.example/{}", "x".repeat(MAX_URL_BYTES)), MalformedUrl::NoUrl),
        ] {
            assert_eq!(parse(text).err(), Some(reason), "{text}");
        }
    }

    #[test]
    fn another_path_stays_at_the_origin() {
        let url: Url = "https://a.example:8443/b?c".parse().unwrap();
        let other = url.at("/d?e=f").unwrap();
        assert_eq!((other.authority(), other.path(), other.query()), ("a.example:8443", "/d", Some("e=f")));
        for path in ["", "d", "https://b.example/", "//b.example/ x", "/d#e", "/\u{e9}\n"] {
            assert!(url.at(path).is_err(), "{path}");
        }
        // Two slashes are a path, not a host.
        assert_eq!(url.at("//b.example/").unwrap().authority(), "a.example:8443");
    }

    proptest! {
        /// Whatever is taken means the same when it is read again, and its host is nothing but a host.
        #[test]
        fn a_url_is_one_way_to_read_it(
            text in prop_oneof![
                ".{0,60}",
                "https://[a-z0-9.:@%\\[\\]/?#\\\\ -]{0,40}",
                "https://[a-z.@:]{1,20}(:[0-9+]{0,6})?/[ -~]{0,20}",
            ],
        ) {
            let Ok(url) = text.parse::<Url>() else { return Ok(()) };
            prop_assert!(!url.host().is_empty());
            prop_assert!(!url.host().contains(['@', '/', '?', '#', '\\', ' ', '\r', '\n']), "{}", url.host());
            let again = format!("https://{}{}", url.authority(), url.path_and_query());
            let again: Url = again.parse().map_err(|error| TestCaseError::fail(format!("{again}: {error}")))?;
            prop_assert_eq!((again.host(), again.port()), (url.host(), url.port()));
            prop_assert_eq!(again.path_and_query(), url.path_and_query());
        }
    }
}
