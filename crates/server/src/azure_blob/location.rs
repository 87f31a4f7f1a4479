//! The URI of a container, and those of the blobs in it.

use crate::https::{MalformedUrl, Url};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use service::backup::TargetError;
use std::net::IpAddr;

const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const IN_QUERY: &AsciiSet = IN_PATH;
/// Azure's.
const MAX_NAME_BYTES: usize = 1024;
/// What a call does is ours to say, and not the token's.
const NOT_IN_A_SAS: [&str; 10] = [
    "comp",
    "restype",
    "blockid",
    "blocklisttype",
    "snapshot",
    "versionid",
    "deletetype",
    "prefix",
    "timeout",
    "marker",
];

/// A container, or the account that it is in: clients that restore split their URI after its first segment, so that
/// where the account is a part of the path its container is the begin of the folder's name.
pub struct Container {
    url: Url,
    /// Without a slash at its end.
    path: String,
    is_whole: bool,
}

fn refused(reason: impl std::fmt::Display) -> TargetError {
    // The URI is not repeated: it may have a token in it, in a wrong place.
    TargetError::NotAllowed(format!("storageResourceUri is not a blob container's URI: {reason}"))
}

impl Container {
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let url: Url = text.parse().map_err(refused)?;
        if url.query().is_some() {
            return Err(refused("it has a query; a SAS goes into the token"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        if !segments.iter().all(|segment| is_plain(segment)) {
            return Err(refused(
                "its path has an empty segment, or one that is not of letters, digits, - and $",
            ));
        }
        // As emulators have it, which have no names of their own to put the account into.
        let host = url.host().trim_matches(['[', ']']);
        let with_account = host.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost");
        let (account, whole) = (usize::from(with_account), usize::from(with_account) + 1);
        match segments.len() {
            length if length == whole || length == account => {
                Ok(Self { is_whole: length == whole, url, path })
            }
            length if length > whole => Err(refused("it goes on after the container's name")),
            _ => Err(refused("it names no account")),
        }
    }

    /// Whether it names the container and not its account alone.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The container itself.
    pub fn own_path(&self) -> &str {
        &self.path
    }

    /// `name` is `folder/blob`, or behind an account `container/folder/blob`.
    pub fn blob_path(&self, name: &str) -> Result<String, TargetError> {
        let is_good = |segment: &str| {
            !matches!(segment, "" | "." | "..") && !segment.contains(['\\', '\0']) && !segment.ends_with('.')
        };
        if name.len() > MAX_NAME_BYTES || !name.split('/').all(is_good) {
            return Err(TargetError::NotAllowed(
                "the folder's name is not one that a blob can have".to_owned(),
            ));
        }
        let segments = name.split('/').map(|segment| utf8_percent_encode(segment, IN_PATH).to_string());
        let path = segments.collect::<Vec<_>>().join("/");
        Ok(format!("{}/{path}", self.path))
    }

    /// `path` with a query of what is asked and, behind it, a SAS as it was given.
    pub fn at(&self, path: &str, query: &[(&str, &str)], sas: Option<&str>) -> Result<Url, MalformedUrl> {
        let asked =
            query.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, IN_QUERY)));
        let query = asked.chain(sas.map(str::to_owned)).collect::<Vec<_>>().join("&");
        let separator = if query.is_empty() { "" } else { "?" };
        self.url.at(&format!("{path}{separator}{query}"))
    }
}

fn is_plain(segment: &str) -> bool {
    !segment.is_empty()
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'$'))
}

/// Whether a token is one that can stand in a query and says nothing of what a call does.
pub fn check_sas(sas: &str) -> Result<(), TargetError> {
    let refused = |reason: &str| Err(TargetError::NotAllowed(format!("token is not a SAS: {reason}")));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;:@/?%&=".contains(&byte);
    if !sas.bytes().all(allowed) {
        return refused("it has a character that a query cannot have");
    }
    let mut names = sas.split('&').map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    if !names.clone().any(|name| name == "sig") {
        return refused("it has no signature (sig)");
    }
    if names.any(|name| name.contains('%') || NOT_IN_A_SAS.iter().any(|own| name.eq_ignore_ascii_case(own))) {
        return refused("it has a parameter that belongs to no SAS");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_container_is_where_its_uri_says() {
        for (text, path, is_whole) in [
            ("https://account.blob.core.windows.net/backups", "/backups", true),
            ("https://account.blob.core.windows.net/backups/", "/backups", true),
            ("https://account.blob.core.windows.net", "", false),
            ("https://127.0.0.1:10000/devstoreaccount1/backup", "/devstoreaccount1/backup", true),
            ("https://127.0.0.1:10000/devstoreaccount1/", "/devstoreaccount1", false),
            ("https://[::1]:10000/devstoreaccount1/backup", "/devstoreaccount1/backup", true),
        ] {
            let container = Container::parse(text).unwrap();
            assert_eq!((container.own_path(), container.is_whole()), (path, is_whole), "{text}");
        }
        for (text, words) in [
            ("http://a.blob.core.windows.net/c", "https://"),
            ("https://user@a.blob.core.windows.net/c", "user"),
            ("https://a.blob.core.windows.net/c?sig=secret", "a SAS goes into the token"),
            ("https://a.blob.core.windows.net/c/folder", "after the container's name"),
            ("https://a.blob.core.windows.net/../c", "path"),
            ("https://a.blob.core.windows.net/%2e%2e", "path"),
            ("https://a.blob.core.windows.net//c", "path"),
            ("https://127.0.0.1:10000", "no account"),
            ("backups", "no URL"),
            ("", "no URL"),
        ] {
            let Err(TargetError::NotAllowed(message)) = Container::parse(text) else { panic!("{text}") };
            assert!(message.contains(words) && !message.contains("secret"), "{text}: {message}");
        }
    }

    #[test]
    fn a_blob_stays_in_its_container() {
        let container = Container::parse("https://a.example/c").unwrap();
        assert_eq!(
            container.blob_path("mhsm-demo-20261126120000/backup").unwrap(),
            "/c/mhsm-demo-20261126120000/backup"
        );
        assert_eq!(container.blob_path("a b?#%/\u{e9}").unwrap(), "/c/a%20b%3F%23%25/%C3%A9");
        for name in ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\0", &"x".repeat(1025)] {
            assert!(container.blob_path(name).is_err(), "{name}");
        }
        let url =
            container.at("/c/a", &[("comp", "block"), ("blockid", "a+/=")], Some("sv=1&sig=s%2B")).unwrap();
        assert_eq!(url.query(), Some("comp=block&blockid=a%2B%2F%3D&sv=1&sig=s%2B"));
        assert_eq!(container.at("/c/a", &[], None).unwrap().query(), None);
    }

    #[test]
    fn a_sas_says_who_may_and_never_what_is_done() {
        check_sas("sv=2021-12-02&ss=b&srt=co&sp=rwdlacu&st=2026-01-01T00:00:00Z&se=2027-01-01T00%3A00%3A00Z&sig=a%2Fb%3D").unwrap();
        for sas in [
            "",
            "secret",
            "sv=1",
            "sig=a#b",
            "sig=a b",
            "sig=a\r\nx-ms-version: 1",
            "sig=a&comp=blocklist",
            "sig=a&COMP=lease",
            "comp=list&sig=a",
            "sig=a&%63omp=list",
            "sig=a&restype=container",
            "sig=\u{e9}",
        ] {
            let Err(TargetError::NotAllowed(message)) = check_sas(sas) else { panic!("{sas}") };
            assert!(sas.is_empty() || !message.contains(sas), "{message}");
        }
    }

    proptest! {
        /// Whatever a caller gives: what is called is a blob below the container, and does what was asked for.
        #[test]
        fn what_is_given_leads_nowhere_else(
            container in prop_oneof![".{0,40}", "https://a.example/[ -~]{0,20}", "https://a.example/[a-z$-]{1,20}"],
            name in prop_oneof![".{0,30}", "[a-z./%\\\\-]{1,20}"],
            sas in prop_oneof![".{0,30}", "(sv=1&)?sig=[ -~]{0,20}"],
        ) {
            let Ok(container) = Container::parse(&container) else { return Ok(()) };
            let Ok(path) = container.blob_path(&name) else { return Ok(()) };
            if check_sas(&sas).is_err() {
                return Ok(());
            }
            let asked = [("comp", "block"), ("blockid", "a/b=")];
            let url = container.at(&path, &asked, Some(&sas)).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(url.authority(), container.url().authority());
            let rest = url.path().strip_prefix(container.own_path()).and_then(|rest| rest.strip_prefix('/'));
            prop_assert!(rest.is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | ".."))));
            let query = url.query().unwrap_or_default();
            let names: Vec<_> = query.split('&').filter_map(|pair| pair.split('=').next()).collect();
            prop_assert_eq!(names.iter().filter(|name| name.eq_ignore_ascii_case("comp")).count(), 1);
            prop_assert!(query.starts_with("comp=block&blockid=a%2Fb%3D&"));
        }
    }
}
