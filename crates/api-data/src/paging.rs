//! Pages of lists: `maxresults` and `$skiptoken` in, `nextLink` out.
//!
//! A token is the place of the last item shown, so it needs no memory here, survives a restart, and stays good when
//! items before it come or go. It gives nobody a right: what a page may show is decided for each request.

use crate::wire::{BASE64URL, bad};
use base64::Engine as _;
use domain::name::{KeyName, KeyVersion};
use service::{Error, PageRequest};
use std::fmt::Display;
use std::str::FromStr;

/// The service's default and maximum.
const PAGE: usize = 25;

/// A place in a list, as a token has it: a letter for the kind of list, then its text.
pub(crate) trait Place: Display + FromStr {
    const PREFIX: &'static str;
}

impl Place for KeyName {
    const PREFIX: &'static str = "1k:";
}

impl Place for KeyVersion {
    const PREFIX: &'static str = "1v:";
}

pub(crate) fn page_request<C: Place>(
    max_results: Option<&str>,
    token: Option<&str>,
) -> Result<PageRequest<C>, Error> {
    let limit = match max_results {
        None => PAGE,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=PAGE).contains(limit))
            .ok_or_else(|| bad(format!("maxresults must be 1 to {PAGE}")))?,
    };
    let after =
        token.map(|token| place(token).ok_or_else(|| bad("$skiptoken is not one of this list".into())));
    Ok(PageRequest { limit, after: after.transpose()? })
}

fn place<C: Place>(token: &str) -> Option<C> {
    let text = String::from_utf8(BASE64URL.decode(token).ok()?).ok()?;
    text.strip_prefix(C::PREFIX)?.parse().ok()
}

/// The address of the page behind `place`, on the host that the client called.
pub(crate) fn next_link<C: Place>(
    origin: &str,
    path: &str,
    api_version: &str,
    limit: usize,
    place: &C,
) -> String {
    let token = BASE64URL.encode(format!("{}{place}", C::PREFIX));
    format!("{origin}{path}?api-version={api_version}&maxresults={limit}&$skiptoken={token}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_names_the_place_behind_which_the_next_page_begins() {
        let name: KeyName = "Payroll-1".parse().unwrap();
        let link = next_link("https://h:1", "/keys", "7.6", 7, &name);
        assert!(link.starts_with("https://h:1/keys?api-version=7.6&maxresults=7&$skiptoken="), "{link}");
        let token = link.rsplit_once('=').unwrap().1;
        let request = page_request::<KeyName>(Some("7"), Some(token)).unwrap();
        assert_eq!(request, PageRequest { limit: 7, after: Some(name) });
        assert!(page_request::<KeyVersion>(None, Some(token)).is_err());
    }

    #[test]
    fn pages_have_one_to_25_items() {
        for text in ["0", "26", "-1", "", "x", "99999999999999999999"] {
            assert!(page_request::<KeyName>(Some(text), None).is_err(), "{text}");
        }
        assert_eq!(page_request::<KeyName>(None, None).unwrap().limit, 25);
    }

    proptest! {
        #[test]
        fn arbitrary_tokens_never_panic(limit in "\\PC{0,8}", token in "\\PC{0,40}") {
            let _ = page_request::<KeyName>(Some(&limit), Some(&token));
            let _ = page_request::<KeyVersion>(None, Some(&token));
        }
    }
}
