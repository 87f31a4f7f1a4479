//! The answer to a call without a usable token: where to get one, and for which resource.

/// The value of `WWW-Authenticate` for a 401.
///
/// `authority`: `https://host[:port]/tenant`, from configuration. `resource`: from
/// [`Audiences::resource_for_host`](crate::Audiences::resource_for_host) or the configured default.
///
/// The clients' parsers are crude: Go splits on spaces and `=`, Python on `,` and `=`. So: one scheme, a comma and
/// one space between pairs, quoted values, nothing else. `scope` is left out, since Go and Python would prefer it
/// and others not.
pub fn challenge(authority: &str, resource: &str) -> String {
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let resource = resource.strip_suffix('/').unwrap_or(resource);
    format!("Bearer authorization=\"{authority}\", resource=\"{resource}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_exact_form_that_clients_split() {
        let value = challenge("https://localhost:8446/adfs", "https://managedhsm.localhost:8443");
        assert_eq!(
            value,
            r#"Bearer authorization="https://localhost:8446/adfs", resource="https://managedhsm.localhost:8443""#
        );
        assert_eq!(value, challenge("https://localhost:8446/adfs/", "https://managedhsm.localhost:8443/"));
    }
}
