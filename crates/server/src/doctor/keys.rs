//! What can be said of the keys, for a principal that may read them.

use super::finding::Finding;
use crate::CommandError;
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
const SOON_SECONDS: i64 = 30 * 86_400;

/// What a tool asks of a key (each was run against a pool).
const PAIRS: [(&[&str], &str); 2] = [
    (&["encrypt", "decrypt"], "sops"),
    (&["wrapKey", "unwrapKey"], "OpenBao's seal, MongoDB and disk encryption"),
];

pub struct Keys {
    names: Vec<KeyName>,
    items: Vec<Value>,
    bundles: Vec<Value>,
}

impl Keys {
    pub async fn read(client: &mut Client) -> Result<Self, CommandError> {
        let items = list::all(client, "/keys").await?;
        let name = |item: &Value| {
            let name = item["kid"].as_str().and_then(|kid| kid.split("/keys/").nth(1)?.split('/').next());
            name.and_then(|name| name.parse().ok()).ok_or("the service listed what is no key")
        };
        let names: Vec<KeyName> = items.iter().map(name).collect::<Result<_, _>>()?;
        let mut bundles = Vec::new();
        for name in names.iter().take(LOOKED_AT) {
            let answer = client.call(Method::GET, &format!("/keys/{name}"), None).await?;
            bundles.push(serde_json::from_slice(&answer.body)?);
        }
        Ok(Self { names, items, bundles })
    }

    pub fn findings(&self, now: SystemTime) -> Vec<Finding> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        vec![self.expiry(i64::try_from(now).unwrap_or(i64::MAX)), self.uses(), self.old_paddings()]
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
            return Finding::ok(
                "expiry of keys",
                format!("{} keys, all with more than 30 days to go", self.names.len()),
            );
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
        let mut parts = Vec::new();
        for (pair, tools) in PAIRS {
            let lacking: Vec<_> = self
                .bundles
                .iter()
                .filter(|bundle| bundle["key"]["kty"].as_str().is_some_and(|kind| kind.starts_with("RSA")))
                .filter(|bundle| !pair.iter().all(|operation| may(bundle, operation)))
                .filter_map(name)
                .collect();
            if !lacking.is_empty() {
                parts.push(format!("{tools}: needs {}, not with {}", pair.join(" and "), few(&lacking)));
            }
        }
        let looked_at = match self.names.len() > LOOKED_AT {
            true => format!(" (of the first {LOOKED_AT} of {})", self.names.len()),
            false => String::new(),
        };
        let found = if parts.is_empty() {
            "every RSA key serves sops, seals and MongoDB alike".to_owned()
        } else {
            parts.join("; ")
        };
        Finding::ok("what keys are for", format!("{found}{looked_at}"))
    }

    fn old_paddings(&self) -> Finding {
        let open: Vec<_> = self
            .bundles
            .iter()
            .filter(|bundle| match bundle["key"]["kty"].as_str() {
                Some(kind) if kind.starts_with("RSA") => may(bundle, "decrypt") || may(bundle, "unwrapKey"),
                Some(kind) => kind.starts_with("oct") && may(bundle, "decrypt"),
                None => false,
            })
            .filter_map(name)
            .collect();
        if open.is_empty() {
            return Finding::ok("RSA1_5 and CBC", "no key that was looked at may decrypt with them");
        }
        old_paddings(&format!("{} may decrypt with them", few(&open)))
    }
}

/// Where no key could be looked at.
pub fn unseen_old_paddings() -> Finding {
    old_paddings("any key that may decrypt or unwrap does it with them, too")
}

fn old_paddings(found: &str) -> Finding {
    Finding::weak(
        "RSA1_5 and CBC",
        format!("{found}, and no setting forbids it"),
        "Both tell whether the padding was good. Whoever may decrypt can use that to read others' ciphertexts and, with RSA1_5, to sign.",
        "give decrypt and unwrap to few; use RSA-OAEP-256 and GCM; leave them out of --ops where they are not needed",
    )
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
            bundles: keys
                .iter()
                .map(|(name, kty, ops, _)| json!({"key": {"kid": kid(name) + "/v", "kty": kty, "key_ops": ops}}))
                .collect(),
        }
    }

    #[test]
    fn keys_that_end_soon_already_or_never_are_named() {
        let day = 86_400;
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
    fn only_keys_that_may_decrypt_are_open_to_padding_oracles() {
        assert_eq!(keys(&[("k", "RSA-HSM", &["sign", "encrypt"], None)]).old_paddings().state, State::Ok);
        assert_eq!(
            keys(&[("k", "oct-HSM", &["wrapKey", "unwrapKey"], None)]).old_paddings().state,
            State::Ok
        );
        for (kty, operation) in [("RSA-HSM", "decrypt"), ("RSA-HSM", "unwrapKey"), ("oct-HSM", "decrypt")] {
            let finding = keys(&[("k", kty, &[operation], None)]).old_paddings();
            assert_eq!(finding.state, State::Weak, "{kty} {operation}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(few(&names), "0, 1, 2, 3, 4 and 3 more");
    }
}
