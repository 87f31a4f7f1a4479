//! Paths of the data plane: one pure function from method and path to a typed route.
//!
//! What clients really send (each seen in use): keywords in any case, `/keys/N/` and `/keys/N//sign` for the current
//! version, a doubled leading slash. None of it may be answered with a redirect.

use domain::access::Scope;
use domain::guid::Guid;
use domain::name::{KeyName, KeyVersion};
use http::Method;
use percent_encoding::percent_decode_str;
use service::KeyReference;

/// The six operations that use a key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyUse {
    Sign,
    Verify,
    Encrypt,
    Decrypt,
    WrapKey,
    UnwrapKey,
}

impl KeyUse {
    pub const ALL: [KeyUse; 6] =
        [KeyUse::Sign, KeyUse::Verify, KeyUse::Encrypt, KeyUse::Decrypt, KeyUse::WrapKey, KeyUse::UnwrapKey];

    const fn keyword(self) -> &'static str {
        match self {
            KeyUse::Sign => "sign",
            KeyUse::Verify => "verify",
            KeyUse::Encrypt => "encrypt",
            KeyUse::Decrypt => "decrypt",
            KeyUse::WrapKey => "wrapkey",
            KeyUse::UnwrapKey => "unwrapkey",
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route {
    CreateKey(KeyName),
    ReadKey(KeyReference),
    UseKey(KeyUse, KeyReference),
    CreateAssignment(Scope, Guid),
    ReadAssignment(Scope, Guid),
    DeleteAssignment(Scope, Guid),
    ListAssignments(Scope),
    ReadRole(Scope, Guid),
    ListRoles(Scope),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RouteRefused {
    /// No such path, or not with this method.
    Unknown,
    /// The path is one of ours, but a name in it is malformed: says how.
    Malformed(String),
}

impl Route {
    pub fn parse(method: &Method, path: &str) -> Result<Self, RouteRefused> {
        let segments = decode(path)?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        // Before keys: in `/keys/providers/Microsoft.Authorization/…`, `providers` is no key's name.
        let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        let is_provider = |pair: &[&str]| is(pair[0], "providers") && is(pair[1], "Microsoft.Authorization");
        if let Some(position) = segments.windows(2).position(is_provider) {
            return Self::parse_authorization(method, &segments[..position], &segments[position + 2..]);
        }
        match segments.split_first() {
            Some((first, rest)) if is(first, "keys") => Self::parse_key(method, rest),
            Some(_) | None => Err(RouteRefused::Unknown),
        }
    }

    /// The operation's name in the audit log (behaviour section 18.3).
    pub const fn operation(&self) -> &'static str {
        match self {
            Route::CreateKey(_) => "KeyCreate",
            Route::ReadKey(_) => "KeyGet",
            Route::UseKey(KeyUse::Sign, _) => "KeySign",
            Route::UseKey(KeyUse::Verify, _) => "KeyVerify",
            Route::UseKey(KeyUse::Encrypt, _) => "KeyEncrypt",
            Route::UseKey(KeyUse::Decrypt, _) => "KeyDecrypt",
            Route::UseKey(KeyUse::WrapKey, _) => "KeyWrap",
            Route::UseKey(KeyUse::UnwrapKey, _) => "KeyUnwrap",
            Route::CreateAssignment(..) => "RoleAssignmentCreate",
            Route::ReadAssignment(..) => "RoleAssignmentGet",
            Route::DeleteAssignment(..) => "RoleAssignmentDelete",
            Route::ListAssignments(_) => "RoleAssignmentList",
            Route::ReadRole(..) => "RoleDefinitionGet",
            Route::ListRoles(_) => "RoleDefinitionList",
        }
    }

    fn parse_authorization(method: &Method, scope: &[&str], rest: &[&str]) -> Result<Self, RouteRefused> {
        let scope = Scope::parse(&scope.join("/")).map_err(malformed)?;
        let Some((kind, name)) = rest.split_first() else { return Err(RouteRefused::Unknown) };
        let name: Option<Guid> = match name {
            [] => None,
            [name] => Some(name.parse().map_err(malformed)?),
            _ => return Err(RouteRefused::Unknown),
        };
        match (kind.to_ascii_lowercase().as_str(), method.as_str(), name) {
            ("roleassignments", "GET", None) => Ok(Route::ListAssignments(scope)),
            ("roleassignments", "GET", Some(name)) => Ok(Route::ReadAssignment(scope, name)),
            ("roleassignments", "PUT", Some(name)) => Ok(Route::CreateAssignment(scope, name)),
            ("roleassignments", "DELETE", Some(name)) => Ok(Route::DeleteAssignment(scope, name)),
            ("roledefinitions", "GET", None) => Ok(Route::ListRoles(scope)),
            ("roledefinitions", "GET", Some(name)) => Ok(Route::ReadRole(scope, name)),
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn parse_key(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        let Some((name, rest)) = segments.split_first() else { return Err(RouteRefused::Unknown) };
        let name: KeyName = name.parse().map_err(malformed)?;
        match rest {
            [] if method == Method::GET => Ok(Route::ReadKey(KeyReference { name, version: None })),
            [create] if create.eq_ignore_ascii_case("create") && method == Method::POST => {
                Ok(Route::CreateKey(name))
            }
            [operation] if method == Method::POST => {
                Self::key_use(operation, KeyReference { name, version: None })
            }
            [version] if method == Method::GET => {
                // Words such as `versions` are other routes, not malformed versions.
                let version: KeyVersion = version.parse().map_err(|error| match known_word(version) {
                    true => RouteRefused::Unknown,
                    false => malformed(error),
                })?;
                Ok(Route::ReadKey(KeyReference { name, version: Some(version) }))
            }
            [version, operation] if method == Method::POST => {
                let version = version.parse().map_err(malformed)?;
                Self::key_use(operation, KeyReference { name, version: Some(version) })
            }
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn key_use(operation: &str, key: KeyReference) -> Result<Self, RouteRefused> {
        KeyUse::ALL
            .into_iter()
            .find(|known| known.keyword().eq_ignore_ascii_case(operation))
            .map(|operation| Route::UseKey(operation, key))
            .ok_or(RouteRefused::Unknown)
    }
}

fn known_word(segment: &str) -> bool {
    ["versions", "rotationpolicy", "attestation"].iter().any(|word| word.eq_ignore_ascii_case(segment))
}

fn malformed(error: impl std::error::Error) -> RouteRefused {
    RouteRefused::Malformed(error.to_string())
}

/// Segments, percent-decoded, without the empty ones. An encoded slash stays inside its segment, where no name or
/// keyword can hold it.
fn decode(path: &str) -> Result<Vec<String>, RouteRefused> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| {
            let decoded = percent_decode_str(segment).decode_utf8();
            decoded.map(String::from).map_err(|_| RouteRefused::Malformed("the path is not UTF-8".into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn post(path: &str) -> Result<Route, RouteRefused> {
        Route::parse(&Method::POST, path)
    }

    fn key(version: Option<&str>) -> KeyReference {
        KeyReference { name: "n".parse().unwrap(), version: version.map(|version| version.parse().unwrap()) }
    }

    #[test]
    fn every_spelling_that_clients_use_is_understood() {
        for path in ["/keys/n", "/keys/n/", "//keys/n", "/KEYS/n//", "/keys/%6e"] {
            assert_eq!(Route::parse(&Method::GET, path), Ok(Route::ReadKey(key(None))), "{path}");
        }
        for path in ["/keys/n/wrapkey", "/keys/n//wrapKey", "/Keys/n/WRAPKEY/"] {
            assert_eq!(post(path), Ok(Route::UseKey(KeyUse::WrapKey, key(None))), "{path}");
        }
        assert_eq!(
            post(&format!("/keys/n/{VERSION}/sign")),
            Ok(Route::UseKey(KeyUse::Sign, key(Some(VERSION))))
        );
        assert_eq!(post("/keys/create/create"), Ok(Route::CreateKey("create".parse().unwrap())));
    }

    #[test]
    fn scopes_come_before_key_names() {
        let id = "a290e904-7015-4bba-90c8-60543313cdb4";
        for (prefix, scope) in [
            ("/", "/"),
            ("", "/"),
            ("/keys", "/keys"),
            ("/Keys/n", "/keys/n"),
            ("/keys/providers", "/keys/providers"),
        ] {
            let path = format!("{prefix}/providers/microsoft.authorization/RoleAssignments/{id}");
            let expected = Route::CreateAssignment(Scope::parse(scope).unwrap(), id.parse().unwrap());
            assert_eq!(Route::parse(&Method::PUT, &path), Ok(expected), "{path}");
        }
        assert_eq!(
            Route::parse(&Method::GET, "/keys/providers/Microsoft.Authorization/roleDefinitions"),
            Ok(Route::ListRoles(Scope::Keys))
        );
        let wrong = "/providers/Microsoft.Authorization/roleAssignments/nonsense";
        assert!(matches!(Route::parse(&Method::PUT, wrong), Err(RouteRefused::Malformed(_))));
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for path in ["/", "", "/keys", "/secrets/n", "/keys/n/o/p/q", "/keys/n/nothing", "/keys/providers/x"]
        {
            assert_eq!(post(path), Err(RouteRefused::Unknown), "{path}");
        }
        assert_eq!(Route::parse(&Method::DELETE, "/keys/n"), Err(RouteRefused::Unknown));
        assert_eq!(Route::parse(&Method::GET, "/keys/n/versions"), Err(RouteRefused::Unknown));
        for path in ["/keys/a_b/sign", "/keys/n/xyz/sign", "/keys/a%2Fb/sign", "/keys/%ff/sign"] {
            assert!(matches!(post(path), Err(RouteRefused::Malformed(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_panic(path in "(/|[ -~]|\\PC|%[0-9a-f]{2}|keys/|sign){0,40}") {
            for method in [Method::GET, Method::POST, Method::PUT] {
                let _ = Route::parse(&method, &path);
            }
        }
    }
}
