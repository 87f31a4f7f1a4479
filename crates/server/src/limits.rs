//! A TOML file that a pool's operator may write: its limits, whom it may call, who may call it, and the services that it
//! trusts. What is not named has the service's default.

use crate::CommandError;
use crate::azure_blob::IdentityEndpoint;
use domain::network::{DefaultAction, MAX_TRUSTED_NETWORKS, Network, NetworkRules};
use host::Destination;
use serde::Deserialize;
use service::PoolLimits;
use std::path::{Path, PathBuf};

/// Above these a pool's start, or one of its commits, would take long.
const MAX_KEYS: usize = 100_000;
const MAX_VERSIONS_PER_KEY: usize = 100;
const MAX_OF_ROLES: usize = 10_000;
const MAX_AT_KEY: usize = 10;
/// Of each size; one of RSA-4096 takes half a second to make.
const MAX_READY: usize = 100;
const MAX_CACHED: usize = 1_000_000;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    network: NetworkSection,
    #[serde(default)]
    outgoing: OutgoingTable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkSection {
    #[serde(default)]
    trusted_services: Vec<String>,
    ip_rules: Option<Vec<String>>,
    default_action: Option<WrittenAction>,
}

/// As the control plane's clients write it.
#[derive(Clone, Copy, Deserialize)]
enum WrittenAction {
    Allow,
    Deny,
}

/// See `outgoing`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutgoingTable {
    pub trust_ca: Option<PathBuf>,
    pub blob_endpoints: Vec<Destination>,
    pub identity_endpoint: Option<IdentityEndpoint>,
    pub backup_folder: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    keys: Option<usize>,
    versions_per_key: Option<usize>,
    custom_roles: Option<usize>,
    assignments_at_pool_scope: Option<usize>,
    assignments_at_key_scope: Option<usize>,
    rsa15_failures_per_hour: Option<u32>,
    loaded_keys: Option<usize>,
    ready_keys: Option<usize>,
    cached_tokens: Option<usize>,
}

/// The limits in `path`; the defaults where there is no such file.
pub fn read(path: &Path) -> Result<PoolLimits, CommandError> {
    limits(read_file(path)?.limits).map_err(|reason| format!("{}: {reason}", path.display()).into())
}

/// Whom the pool may call by what is in `path`.
pub fn read_outgoing(path: &Path) -> Result<OutgoingTable, CommandError> {
    Ok(read_file(path)?.outgoing)
}

/// Networks of services that pass the firewall where its rules, which the control plane sets, say `AzureServices`.
pub fn trusted_services(path: &Path) -> Result<Vec<Network>, CommandError> {
    refuse_rules(path)?;
    trusted(&read_file(path)?.network).map_err(|reason| format!("{}: {reason}", path.display()).into())
}

/// The rules of a pool of class production, which has no control plane, and networks that pass in any case.
pub fn network_rules(path: &Path) -> Result<(NetworkRules, Vec<Network>), CommandError> {
    let section = read_file(path)?.network;
    let rules = rules(&section).and_then(|rules| Ok((rules, trusted(&section)?)));
    rules.map_err(|reason| format!("{}: {reason}", path.display()).into())
}

/// For pools that have their rules from elsewhere, or none: who writes one here would believe in it.
pub fn refuse_rules(path: &Path) -> Result<(), CommandError> {
    let section = read_file(path)?.network;
    if section.ip_rules.is_none() && section.default_action.is_none() {
        return Ok(());
    }
    Err(format!(
        "{}: network.ip_rules and network.default_action are for a pool of class production; the control plane has those of its pools",
        path.display()
    )
    .into())
}

fn read_file(path: &Path) -> Result<File, CommandError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display()).into()),
    };
    toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn rules(network: &NetworkSection) -> Result<NetworkRules, String> {
    let default_action = match (network.default_action, &network.ip_rules) {
        (Some(WrittenAction::Allow), _) | (None, None) => DefaultAction::Allow,
        (Some(WrittenAction::Deny), _) => DefaultAction::Deny,
        // Whoever lists some means to keep out the others, or not: neither is to be guessed.
        (None, Some(_)) => {
            return Err("network.ip_rules needs network.default_action, \"Deny\" or \"Allow\": what becomes of others".into());
        }
    };
    let listed = network.ip_rules.as_deref().unwrap_or_default();
    let mut rules = NetworkRules::default()
        .with_ip_rules(listed)
        .map_err(|error| format!("network.ip_rules: {error}"))?;
    rules.default_action = default_action;
    Ok(rules)
}

fn trusted(network: &NetworkSection) -> Result<Vec<Network>, String> {
    if network.trusted_services.len() > MAX_TRUSTED_NETWORKS {
        return Err(format!("network.trusted_services has more than {MAX_TRUSTED_NETWORKS} networks"));
    }
    let parse = |text: &String| text.parse().map_err(|error| format!("network.trusted_services: {error}"));
    network.trusted_services.iter().map(parse).collect()
}

fn limits(limits: Limits) -> Result<PoolLimits, String> {
    let default = PoolLimits::default();
    let within = |name: &str, value: Option<usize>, default: usize, most: usize| match value {
        None => Ok(default),
        Some(value) if (1..=most).contains(&value) => Ok(value),
        Some(value) => Err(format!("limits.{name} is {value}; it must be 1 to {most}")),
    };
    Ok(PoolLimits {
        keys: within("keys", limits.keys, default.keys, MAX_KEYS)?,
        versions_per_key: within(
            "versions_per_key",
            limits.versions_per_key,
            default.versions_per_key,
            MAX_VERSIONS_PER_KEY,
        )?,
        custom_roles: within("custom_roles", limits.custom_roles, default.custom_roles, MAX_OF_ROLES)?,
        assignments_at_pool_scope: within(
            "assignments_at_pool_scope",
            limits.assignments_at_pool_scope,
            default.assignments_at_pool_scope,
            MAX_OF_ROLES,
        )?,
        assignments_at_key_scope: within(
            "assignments_at_key_scope",
            limits.assignments_at_key_scope,
            default.assignments_at_key_scope,
            MAX_AT_KEY,
        )?,
        rsa15_failures_per_hour: limits.rsa15_failures_per_hour.unwrap_or(default.rsa15_failures_per_hour),
        // Not to be raised: it is what the IVs are good for.
        gcm_encryptions: default.gcm_encryptions,
        ready_keys: match limits.ready_keys {
            None => default.ready_keys,
            Some(wanted @ 0..=MAX_READY) => wanted,
            Some(wanted) => {
                return Err(format!("limits.ready_keys is {wanted}; it must be 0 to {MAX_READY}"));
            }
        },
        ready_keys_after: default.ready_keys_after,
        loaded_keys: within("loaded_keys", limits.loaded_keys, default.loaded_keys, MAX_CACHED)?,
        cached_tokens: within("cached_tokens", limits.cached_tokens, default.cached_tokens, MAX_CACHED)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PoolLimits, String> {
        limits(toml::from_str::<File>(text).map_err(|error| error.to_string())?.limits)
    }

    fn parse_trusted(text: &str) -> Result<Vec<Network>, String> {
        trusted(&toml::from_str::<File>(text).map_err(|error| error.to_string())?.network)
    }

    /// As the log says them.
    fn parse_rules(text: &str) -> Result<String, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        rules(&file.network).map(|rules| rules.to_string())
    }

    #[test]
    fn rules_say_what_becomes_of_those_whom_they_do_not_name() {
        let open = NetworkRules::default().to_string();
        assert_eq!(parse_rules("").unwrap(), open);
        assert_eq!(parse_rules("[network]\ntrusted_services = [\"192.0.2.0/24\"]\n").unwrap(), open);
        let rules =
            |action: &str, listed: &str| parse_rules(&format!("[network]\n{action}ip_rules = [{listed}]\n"));
        let deny = "default_action = \"Deny\"\n";
        let some = rules(deny, "\"192.0.2.0/24\", \"2001:db8::1\"").unwrap();
        let mut expected = NetworkRules::default().with_ip_rules(["192.0.2.0/24", "2001:db8::1"]).unwrap();
        expected.default_action = DefaultAction::Deny;
        assert_eq!(some, expected.to_string());
        assert_ne!(rules("default_action = \"Allow\"\n", "\"192.0.2.0/24\"").unwrap(), some);
        assert!(rules("", "").unwrap_err().contains("needs network.default_action"));
        assert!(rules(deny, "\"192.0.2.1/24\"").unwrap_err().contains("network.ip_rules: "));
        let eleven: Vec<_> = (0..11).map(|number| format!("\"192.0.2.{number}\"")).collect();
        assert!(rules(deny, &eleven.join(", ")).unwrap_err().contains("at most 10"));
        assert!(rules("default_action = \"deny\"\n", "").unwrap_err().contains("unknown variant"));
    }

    #[test]
    fn rules_are_refused_where_they_would_do_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        refuse_rules(file.path()).unwrap();
        for text in ["ip_rules = []", "default_action = \"Deny\""] {
            std::fs::write(file.path(), format!("[network]\n{text}\n")).unwrap();
            for refused in [refuse_rules(file.path()), trusted_services(file.path()).map(drop)] {
                assert!(refused.unwrap_err().to_string().contains("for a pool of class production"));
            }
        }
        assert!(network_rules(file.path()).is_ok());
    }

    #[test]
    fn trusted_services_are_networks() {
        assert_eq!(parse_trusted("[limits]\nkeys = 3\n").unwrap(), []);
        let some = parse_trusted("[network]\ntrusted_services = [\"192.0.2.0/24\", \"::1\"]\n").unwrap();
        assert_eq!(some.iter().map(Network::to_string).collect::<Vec<_>>(), ["192.0.2.0/24", "::1"]);
        assert!(parse("[network]\ntrusted_services = []\n").is_ok());
        for text in ["[network]\ntrusted = []\n", "[network]\ntrusted_services = [\"192.0.2.1/24\"]\n"] {
            assert!(parse_trusted(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_named_has_its_default_and_what_is_unknown_is_refused() {
        let limits = parse("[limits]\nkeys = 3\n").unwrap();
        assert_eq!((limits.keys, limits.versions_per_key), (3, 100));
        assert_eq!(parse("").unwrap().keys, 5_000);
        for (text, expected) in [
            ("[limits]\nkey = 3\n", "unknown field `key`"),
            ("limit = 3\n", "unknown field `limit`"),
            ("[limits]\nkeys = 0\n", "limits.keys is 0; it must be 1 to 100000"),
            ("[limits]\nversions_per_key = 101\n", "it must be 1 to 100"),
            ("[limits]\nready_keys = 101\n", "limits.ready_keys is 101; it must be 0 to 100"),
            ("[limits]\nkeys = \"3\"\n", "invalid type"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
