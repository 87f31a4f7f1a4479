//! The `api-version` that every data-plane call must name.

use std::fmt;

/// A version string that a client of the data plane is known to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiVersion(String);

const KNOWN: [&str; 12] = [
    "2016-10-01",
    "7.0",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "2025-07-01",
    "2026-01-01",
    "2026-04-01",
    "2026-07-01",
];

/// Those of which there are previews alone.
const PREVIEWS: [&str; 3] = ["2025-06-01", "2026-03-01", "2026-05-01"];

impl ApiVersion {
    /// Any known version and any preview of one: `7.6-preview.2`, `2026-01-01-preview`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_known = match text.split_once("-preview") {
            None => KNOWN.contains(&text),
            Some((version, number)) => {
                let numbered = number
                    .strip_prefix('.')
                    .is_some_and(|n| !n.is_empty() && n.len() <= 3 && n.bytes().all(|b| b.is_ascii_digit()));
                if !(number.is_empty() || numbered) {
                    return None;
                }
                KNOWN.contains(&version) || PREVIEWS.contains(&version)
            }
        };
        is_known.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn known() -> impl fmt::Display {
        KNOWN.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_clients_send_and_nothing_else() {
        for text in [
            "7.0",
            "7.4",
            "7.5-preview.1",
            "7.6-preview.2",
            "2025-06-01-preview",
            "2025-07-01",
            "2026-01-01-preview",
            "2026-03-01-preview",
            "2026-05-01-preview",
            "2016-10-01",
        ] {
            assert!(ApiVersion::parse(text).is_some(), "{text}");
        }
        for text in [
            "",
            "7",
            "7.7",
            "8.0",
            "7.4-preview.",
            "7.4-preview.x",
            "7.4 ",
            "2025-07-02",
            "2025-06-01",
            "7.4-previewed",
            "-preview",
        ] {
            assert!(ApiVersion::parse(text).is_none(), "{text}");
        }
    }
}
