//! Which resources (`aud` of a token, `resource` of a challenge, `scope` of a token request) are ours.
//!
//! One value of [`Audiences`] answers for all three, so that what a challenge names, the issuer issues for and the
//! verifier accepts. An audience is no boundary between pools: pools under one suffix share it, and local roles
//! keep them apart.

/// A set of resources: host suffixes with or without any port, and exact values. Compared without regard to ASCII
/// case and to one final `/`.
///
/// A suffix such as `managedhsm.example` stands for `https://managedhsm.example` and for
/// `https://managedhsm.example:PORT` with any port. SDKs ask with the port of the URL that they call, which a
/// container's port mapping may have changed; libmongocrypt asks without it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Audiences {
    suffixes: Vec<String>,
    exact: Vec<String>,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a host suffix: expected labels of a-z 0-9 - separated by dots, without scheme or port")]
pub struct MalformedSuffix;

impl Audiences {
    /// `suffixes`: host names without scheme or port, such as `managedhsm.localhost` (a leading dot is dropped).
    /// `exact`: whole resources, such as `https://managedhsm.azure.net`.
    pub fn new<S, E>(suffixes: S, exact: E) -> Result<Self, MalformedSuffix>
    where
        S: IntoIterator,
        S::Item: AsRef<str>,
        E: IntoIterator,
        E::Item: AsRef<str>,
    {
        let mut audiences = Self { suffixes: Vec::new(), exact: Vec::new() };
        for suffix in suffixes {
            let suffix = suffix.as_ref();
            let suffix = suffix.strip_prefix('.').unwrap_or(suffix).to_ascii_lowercase();
            if !is_host_name(&suffix) {
                return Err(MalformedSuffix);
            }
            audiences.suffixes.push(suffix);
        }
        let exact = exact.into_iter().map(|value| normalized(value.as_ref()));
        audiences.exact.extend(exact.filter(|value| !value.is_empty()));
        Ok(audiences)
    }

    /// The one spelling of `asked` (lower case, no final `/`) if it is in this set.
    pub fn canonical(&self, asked: &str) -> Option<String> {
        let asked = normalized(asked);
        (self.exact.contains(&asked) || self.has_suffix_resource(&asked)).then_some(asked)
    }

    /// The resource for a request with this `Host` header (or `:authority`): `https://`, the host minus its first
    /// label, the port as it came. `None` if that suffix is not ours: then the caller names its configured default,
    /// and never what a peer made up.
    ///
    /// The client's own spelling is kept: Go compares with regard to case.
    pub fn resource_for_host(&self, host: &str) -> Option<String> {
        let (name, port) = split_port(host)?;
        let (pool, suffix) = name.split_once('.')?;
        let ours = self.suffixes.iter().any(|own| own.eq_ignore_ascii_case(suffix));
        if !ours || !is_label(&pool.to_ascii_lowercase()) {
            return None;
        }
        Some(match port {
            Some(port) => format!("https://{suffix}:{port}"),
            None => format!("https://{suffix}"),
        })
    }

    /// What to tell a developer who asked for something else.
    pub(crate) fn described(&self) -> String {
        let suffixes = self.suffixes.iter().map(|suffix| format!("https://{suffix}[:port]"));
        suffixes.chain(self.exact.iter().cloned()).collect::<Vec<_>>().join(", ")
    }

    fn has_suffix_resource(&self, resource: &str) -> bool {
        let Some((name, _)) = resource.strip_prefix("https://").and_then(split_port) else { return false };
        self.suffixes.iter().any(|own| own == name)
    }
}

fn normalized(resource: &str) -> String {
    resource.strip_suffix('/').unwrap_or(resource).to_ascii_lowercase()
}

/// `name[:port]` with a port of 1 to 65535 in its shortest spelling.
fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let Some((name, text)) = host.split_once(':') else { return Some((host, None)) };
    let port: u16 = text.parse().ok()?;
    (port != 0 && port.to_string() == text).then_some((name, Some(port)))
}

fn is_host_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audiences() -> Audiences {
        Audiences::new(
            [".ManagedHSM.localhost", "managedhsm.example"],
            ["https://managedhsm.azure.net/", "/", ""],
        )
        .unwrap()
    }

    #[test]
    fn accepts_each_resource_with_and_without_port_and_final_slash() {
        for (asked, canonical) in [
            ("https://managedhsm.localhost", "https://managedhsm.localhost"),
            ("https://managedhsm.localhost/", "https://managedhsm.localhost"),
            ("https://managedhsm.localhost:8443", "https://managedhsm.localhost:8443"),
            ("https://managedhsm.localhost:9443/", "https://managedhsm.localhost:9443"),
            ("https://ManagedHSM.Example", "https://managedhsm.example"),
            ("https://managedhsm.azure.net", "https://managedhsm.azure.net"),
            ("https://managedhsm.azure.net/", "https://managedhsm.azure.net"),
        ] {
            assert_eq!(audiences().canonical(asked).as_deref(), Some(canonical), "{asked}");
        }
    }

    #[test]
    fn refuses_what_only_resembles_a_resource() {
        for asked in [
            "",
            "/",
            "https://",
            "http://managedhsm.localhost",
            "managedhsm.localhost",
            "https://managedhsm.localhost//",
            "https://managedhsm.localhost:",
            "https://managedhsm.localhost:0",
            "https://managedhsm.localhost:08443",
            "https://managedhsm.localhost:+8443",
            "https://managedhsm.localhost:65536",
            "https://managedhsm.localhost:8443:1",
            "https://managedhsm.localhost.evil.example",
            "https://evil-managedhsm.localhost",
            "https://a.managedhsm.localhost",
            "https://user@managedhsm.localhost",
            "https://managedhsm.azure.net:8443",
            "https://managedhsm.localhost:8443/path",
        ] {
            assert_eq!(audiences().canonical(asked), None, "{asked}");
        }
    }

    #[test]
    fn a_challenge_echoes_only_configured_suffixes() {
        for (host, resource) in [
            ("demo.managedhsm.localhost:8443", Some("https://managedhsm.localhost:8443")),
            ("demo.managedhsm.localhost", Some("https://managedhsm.localhost")),
            ("Demo.ManagedHSM.localhost:8443", Some("https://ManagedHSM.localhost:8443")),
            ("managedhsm.localhost:8443", None),
            ("a.b.managedhsm.localhost:8443", None),
            (".managedhsm.localhost:8443", None),
            ("de mo.managedhsm.localhost", None),
            ("demo.managedhsm.localhost:https", None),
            ("demo.managedhsm.localhost:0", None),
            ("demo.managedhsm.localhost.", None),
            ("demo.evil.example", None),
            ("localhost:8443", None),
            ("127.0.0.1:8443", None),
            ("[::1]:8443", None),
            ("", None),
        ] {
            assert_eq!(audiences().resource_for_host(host).as_deref(), resource, "{host}");
        }
    }

    #[test]
    fn what_a_challenge_names_is_accepted() {
        for host in ["demo.managedhsm.localhost:8443", "x.managedhsm.example", "X.MANAGEDHSM.example:1"] {
            let resource = audiences().resource_for_host(host).unwrap();
            assert!(audiences().canonical(&resource).is_some(), "{resource}");
        }
    }

    #[test]
    fn a_suffix_is_a_plain_host_name() {
        for suffix in ["", ".", "a..b", "managedhsm.localhost:8443", "https://x", "a b", "a\"b", "a=b", "a,b"]
        {
            assert_eq!(Audiences::new([suffix], [""; 0]), Err(MalformedSuffix), "{suffix:?}");
        }
    }
}
