//! What comes before TLS: a ClientHello on the gateway's port, a PROXY header behind it, and rules for addresses.

use domain::network::{Network, NetworkRules};
use gateway::Hello;
use gateway::proxy_protocol::Ends;
use std::net::Ipv4Addr;

/// A name found in the first bytes is found as well when more came; what is refused stays refused.
pub fn client_hello(bytes: &[u8]) {
    let whole = gateway::server_name(bytes);
    if let Ok(Hello::Complete(Some(name))) = &whole {
        assert!((1..=253).contains(&name.len()) && name.is_ascii());
    }
    let more = [bytes, &[0; 16]].concat();
    match whole {
        Ok(Hello::Incomplete) => {}
        known => assert_eq!(gateway::server_name(&more), known),
    }
}

pub fn proxy_header(bytes: &[u8]) {
    if let Ok(ends) = Ends::parse(bytes) {
        assert_eq!(Ends::parse(&ends.header()), Ok(ends));
    }
}

/// IP rules, one a line.
pub fn network_rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(rules) = NetworkRules::default().with_ip_rules(text.lines()) else { return };
    for rule in rules.ip_rules() {
        assert_eq!(rule.to_string().parse::<Network>().as_ref(), Ok(rule));
    }
    assert!(rules.admit(Ipv4Addr::LOCALHOST.into(), &[]).is_ok());
}
