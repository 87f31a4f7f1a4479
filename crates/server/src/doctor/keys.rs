//! What can be said of the keys, for a principal that may read them.

use super::finding::Finding;
use crate::CommandError;
use crate::SECONDS_PER_DAY;
use crate::client::list;
use crate::client::login::Client;
use crate::client::output::clean;
use domain::name::KeyName;
use http::Method;
use serde_json::Value;
use std::time::SystemTime;

/// Keys that are read one by one, as a list does not say what they may do. Each leaves an event.
const LOOKED_AT: usize = 100;
/// Named one by one; how many more there are is said.
const SHOWN: usize = 5;
const SOON_SECONDS: i64 = 30 * SECONDS_PER_DAY;

/// What a tool asks of a key (each was run against a pool).
const PAIRS: [(&[&str], &str); 2] = [
    (&["encrypt", "decrypt"], "sops"),
    (&["wrapKey", "unwrapKey"], "OpenBao's seal, MongoDB and disk encryption"),
];

pub struct Keys {
    names: Vec<KeyName>,
    items: Vec<Value>,
    bundles: Vec<Value>,
    /// How many versions each of them has.
    versions: Vec<usize>,
}

impl Keys {
    pub async fn read(client: &mut Client) -> Result<Self, CommandError> {
        let items = list::all(client, "/keys").await?;
        let name = |item: &Value| {
            let name = item["kid"].as_str().and_then(|kid| kid.split("/keys/").nth(1)?.split('/').next());
            name.and_then(|name| name.parse().ok()).ok_or("the service listed what is no key")
        };
        let names: Vec<KeyName> = items.iter().map(name).collect::<Result<_, _>>()?;
        let (mut bundles, mut versions) = (Vec::new(), Vec::new());
        for name in names.iter().take(LOOKED_AT) {
            let answer = client.call(Method::GET, &format!("/keys/{name}"), None).await?;
            bundles.push(serde_json::from_slice(&answer.body)?);
            versions.push(list::all(client, &format!("/keys/{name}/versions")).await?.len());
        }
        Ok(Self { names, items, bundles, versions })
    }

    pub fn findings(&self, now: SystemTime, versions_per_key: usize) -> [Finding; 3] {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        [self.expiry(now), self.uses(), self.versions(versions_per_key)]
    }

    /// A rotation that cannot be made changes nothing that anybody would see until the key ends.
    fn versions(&self, most: usize) -> Finding {
        let counted = self.bundles.iter().zip(&self.versions);
        let full: Vec<_> =
            counted.filter(|(_, count)| **count >= most).filter_map(|(bundle, _)| name(bundle)).collect();
        if full.is_empty() {
            return Finding::ok("versions of keys", "every key that was looked at can still rotate");
        }
        Finding::weak(
            "versions of keys",
            format!("at the limit of {most}: {}", few(&full)),
            "Such a key does not rotate any more, neither when somebody asks for it nor by its policy.",
            "a key of another name; or, below 100, more limits.versions_per_key in pool.toml and a new start",
        )
    }

    fn expiry(&self, now: i64) -> Finding {
        let names = |wanted: &dyn Fn(Option<i64>) -> bool| {
            let items = self.names.iter().zip(&self.items);
            let found: Vec<_> = items
                .filter(|(_, item)| wanted(item["attributes"]["exp"].as_i64()))
                .map(|(name, _)| name.to_string())
                .collect();
            found
        };
        let never = names(&|end| end.is_none());
        let ended = names(&|end| end.is_some_and(|end| end <= now));
        let soon = names(&|end| end.is_some_and(|end| end > now && end <= now.saturating_add(SOON_SECONDS)));
        let parts: Vec<_> = [("never", &never), ("already", &ended), ("within 30 days", &soon)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(when, names)| format!("{when}: {}", few(names)))
            .collect();
        if parts.is_empty() {
            let found = format!("{} keys; each ends, and none within 30 days", self.names.len());
            return Finding::ok("expiry of keys", found);
        }
        Finding::weak(
            "expiry of keys",
            parts.join("; "),
            "A key that never expires is never replaced; one that expires unnoticed stops what signs and encrypts with it.",
            "a new version by `holdfast key create NAME`, with --expires +365d; or `holdfast key update NAME --expires DATE`",
        )
    }

    /// Not a weakness: fewer operations are better. But a tool that misses one says so in words of its own.
    fn uses(&self) -> Finding {
        let is_rsa =
            |bundle: &&Value| bundle["key"]["kty"].as_str().is_some_and(|kty| kty.starts_with("RSA"));
        let keys: Vec<_> = self.bundles.iter().filter(is_rsa).collect();
        let mut parts = Vec::new();
        for (pair, tools) in PAIRS {
            let lacks = |bundle: &&&Value| !pair.iter().all(|operation| may(bundle, operation));
            let lacking: Vec<_> = keys.iter().filter(lacks).filter_map(|bundle| name(bundle)).collect();
            if !lacking.is_empty() {
                parts.push(format!("{tools}: needs {}, not with {}", pair.join(" and "), few(&lacking)));
            }
        }
        let looked_at = match self.names.len() > LOOKED_AT {
            true => format!(" (of the first {LOOKED_AT} of {})", self.names.len()),
            false => String::new(),
        };
        let found = match (keys.is_empty(), parts.is_empty()) {
            (true, _) => "there is no RSA key".to_owned(),
            (false, true) => "every RSA key serves sops, seals and MongoDB alike".to_owned(),
            (false, false) => parts.join("; "),
        };
        Finding::ok("what keys are for", format!("{found}{looked_at}"))
    }

    /// Keys of `kind` that may do one of `operations`, of those that were looked at.
    fn that_may(&self, kind: &str, operations: &[&str]) -> Vec<String> {
        let of_kind =
            |bundle: &&Value| bundle["key"]["kty"].as_str().is_some_and(|kty| kty.starts_with(kind));
        let bundles = self.bundles.iter().filter(of_kind);
        bundles
            .filter(|bundle| operations.iter().any(|operation| may(bundle, operation)))
            .filter_map(name)
            .collect()
    }
}

/// Whether the pool takes old algorithms; none where that could not be read.
#[derive(Clone, Copy, Default)]
pub struct OldAlgorithms {
    pub rsa15: Option<bool>,
    pub cbc: Option<bool>,
}

/// What remains of old algorithms: with `RSA1_5`, whether a decryption succeeds tells about the plaintext, and CBC is the bare
/// block cipher. `keys` is none where they could not be read.
pub fn old_algorithms(keys: Option<&Keys>, taken: OldAlgorithms) -> [Finding; 2] {
    let which = |kind, operations: &[&str]| keys.map(|keys| keys.that_may(kind, operations));
    let named = |keys: Option<Vec<String>>, all: &str| keys.map_or_else(|| all.to_owned(), |keys| few(&keys));
    let rsa = which("RSA", &["decrypt", "unwrapKey"]);
    let cbc = which("oct", &["encrypt", "decrypt"]);
    let rsa15 = match taken.rsa15 {
        Some(false) => Finding::ok("RSA1_5", "decryption with it is turned off"),
        _ if rsa.as_ref().is_some_and(Vec::is_empty) => {
            Finding::ok("RSA1_5", "no key that was looked at may decrypt with it")
        }
        _ => Finding::weak(
            "RSA1_5",
            format!("decrypts and unwraps with {}", named(rsa, "every RSA key that may")),
            "Whether it succeeds is all that an attacker who may call it needs to read a ciphertext of others, or to sign.",
            "holdfast setting set HoldfastAllowRsa15Decryption false, unless old clients need it",
        ),
    };
    let cbc = match taken.cbc {
        Some(false) => Finding::ok("CBC", "it is turned off"),
        _ if cbc.as_ref().is_some_and(Vec::is_empty) => {
            Finding::ok("CBC", "no key that was looked at may encrypt or decrypt with it")
        }
        _ => Finding::weak(
            "CBC",
            format!("encrypts and decrypts with {}", named(cbc, "every oct key that may")),
            "It is the bare block cipher: who may encrypt with it can read and forge what the same key made with GCM and wrap with it, who may decrypt can unwrap.",
            "holdfast setting set HoldfastAllowCbc false, unless clients need it; else a key for CBC alone",
        ),
    };
    [rsa15, cbc]
}

fn may(bundle: &Value, operation: &str) -> bool {
    let operations = bundle["key"]["key_ops"].as_array();
    operations.is_some_and(|held| held.iter().any(|held| held == operation))
}

fn name(bundle: &Value) -> Option<String> {
    let kid = bundle["key"]["kid"].as_str()?;
    kid.rsplit('/').nth(1).map(clean)
}

fn few(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use serde_json::json;

    const NOW: i64 = 1_000_000_000;

    fn keys(keys: &[(&str, &str, &[&str], Option<i64>)]) -> Keys {
        let kid = |name: &str| format!("https://h/keys/{name}");
        Keys {
            names: keys.iter().map(|(name, ..)| name.parse().unwrap()).collect(),
            items: keys
                .iter()
                .map(|(name, _, _, end)| json!({"kid": kid(name), "attributes": {"exp": end}}))
                .collect(),
            versions: vec![1; keys.len()],
            bundles: keys
                .iter()
                .map(|(name, kty, ops, _)| json!({"key": {"kid": kid(name) + "/v", "kty": kty, "key_ops": ops}}))
                .collect(),
        }
    }

    #[test]
    fn keys_that_end_soon_already_or_never_are_named() {
        let day = SECONDS_PER_DAY;
        let all = keys(&[
            ("forever", "EC-HSM", &[], None),
            ("over", "EC-HSM", &[], Some(NOW)),
            ("soon", "EC-HSM", &[], Some(NOW + 30 * day)),
            ("later", "EC-HSM", &[], Some(NOW + 31 * day)),
        ]);
        let finding = all.expiry(NOW);
        assert_eq!(finding.state, State::Weak);
        assert_eq!(finding.found, "never: forever; already: over; within 30 days: soon");
        assert_eq!(keys(&[("later", "EC-HSM", &[], Some(NOW + 31 * day))]).expiry(NOW).state, State::Ok);
    }

    #[test]
    fn keys_that_cannot_rotate_any_more_are_named() {
        let mut all = keys(&[("full", "EC-HSM", &[], None), ("young", "EC-HSM", &[], None)]);
        assert_eq!(all.versions(2).state, State::Ok);
        all.versions = vec![2, 1];
        let finding = all.versions(2);
        assert_eq!((finding.state, finding.found.as_str()), (State::Weak, "at the limit of 2: full"));
    }

    #[test]
    fn tools_are_told_what_a_key_lacks() {
        let seal: &[&str] = &["wrapKey", "unwrapKey"];
        let one = keys(&[("seal", "RSA-HSM", seal, None), ("ec", "EC-HSM", &["sign"], None)]);
        let finding = one.uses();
        assert_eq!(
            (finding.state, finding.found.as_str()),
            (State::Ok, "sops: needs encrypt and decrypt, not with seal")
        );
    }

    #[test]
    fn old_algorithms_matter_where_something_may_use_them() {
        let states = |held: Option<&Keys>, rsa15| {
            old_algorithms(held, OldAlgorithms { rsa15, cbc: None }).map(|finding| finding.state)
        };
        let harmless = keys(&[
            ("r", "RSA-HSM", &["sign", "encrypt"], None),
            ("o", "oct-HSM", &["wrapKey", "unwrapKey"], None),
        ]);
        assert_eq!(states(Some(&harmless), Some(true)), [State::Ok, State::Ok]);
        for operation in ["decrypt", "unwrapKey"] {
            let rsa = keys(&[("r", "RSA-HSM", &[operation], None)]);
            assert_eq!(states(Some(&rsa), Some(true)), [State::Weak, State::Ok]);
            assert_eq!(states(Some(&rsa), None), [State::Weak, State::Ok]);
            assert_eq!(states(Some(&rsa), Some(false)), [State::Ok, State::Ok]);
        }
        for operation in ["encrypt", "decrypt"] {
            let oct = keys(&[("o", "oct-HSM", &[operation], None)]);
            assert_eq!(states(Some(&oct), Some(false)), [State::Ok, State::Weak]);
            let off = OldAlgorithms { rsa15: Some(false), cbc: Some(false) };
            assert_eq!(old_algorithms(Some(&oct), off).map(|finding| finding.state), [State::Ok, State::Ok]);
        }
        assert_eq!(states(None, None), [State::Weak, State::Weak], "what is not seen is not well");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(few(&names), "0, 1, 2, 3, 4 and 3 more");
    }
}
