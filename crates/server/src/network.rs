//! Network rules between the control plane, which knows them as text, and a pool, which knows what they mean.

use domain::network::{Bypass, DefaultAction, MalformedRules, NetworkRules};
use fabric::{Network, Reach};
use std::net::IpAddr;

pub fn reach(reach: &Reach) -> Result<NetworkRules, MalformedRules> {
    let mut rules = rules(&reach.network)?;
    rules.private = reach.private.iter().map(IpAddr::to_canonical).collect();
    Ok(rules)
}

pub fn rules(network: &Network) -> Result<NetworkRules, MalformedRules> {
    let mut rules = NetworkRules::default().with_ip_rules(&network.ip_rules)?;
    rules.default_action = if network.deny_by_default { DefaultAction::Deny } else { DefaultAction::Allow };
    rules.bypass = if network.bypass { Bypass::TrustedServices } else { Bypass::None };
    rules.public_access = network.public_access;
    Ok(rules)
}

/// The same with each rule in its one form; else why a pool would not take them.
pub fn checked(network: Network) -> Result<Network, String> {
    let rules = rules(&network).map_err(|error| error.to_string())?;
    Ok(Network { ip_rules: rules.ip_rules().iter().map(ToString::to_string).collect(), ..network })
}
