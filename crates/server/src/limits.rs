//! A TOML file that a pool's operator may write: its limits, whom it may call, and the services that it trusts. What is not
//! named has the service's default.

use crate::CommandError;
use crate::azure_blob::IdentityEndpoint;
use domain::network::{MAX_TRUSTED_NETWORKS, Network};
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

/// Networks of services that pass the firewall where its rules say `AzureServices`.
pub fn trusted_services(path: &Path) -> Result<Vec<Network>, CommandError> {
    trusted(read_file(path)?.network).map_err(|reason| format!("{}: {reason}", path.display()).into())
}

fn read_file(path: &Path) -> Result<File, CommandError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display()).into()),
    };
    toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn trusted(network: NetworkSection) -> Result<Vec<Network>, String> {
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
        trusted(toml::from_str::<File>(text).map_err(|error| error.to_string())?.network)
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
