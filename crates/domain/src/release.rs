//! Release policies (behaviour section 8): which attested environments may be given a key.
//!
//! Default deny. A policy is read once, strictly: a member that is not known might have been meant as a condition. A
//! condition on a claim that is absent, or of another type, is not met, `notEquals` included.

use crate::json::{Json, Number, shown};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of the document, decoded.
pub const MAX_POLICY_BYTES: usize = 64 * 1024;
/// Groups within groups.
pub const MAX_NESTING: usize = 32;
pub const MAX_CONTENT_TYPE_BYTES: usize = 128;
pub const MAX_AUTHORITY_BYTES: usize = 512;
pub const DEFAULT_CONTENT_TYPE: &str = "application/json; charset=utf-8";
const MAX_CLAIM_BYTES: usize = 256;
const VERSION: &str = "1.0.0";

/// The release policy of a key version: the document as its owner wrote it, and what it says.
#[derive(Clone, Debug)]
pub struct ReleasePolicy {
    document: Arc<str>,
    content_type: Arc<str>,
    immutable: bool,
    policy: Arc<Policy>,
}

/// Equal when written alike: the meaning follows from the document.
impl PartialEq for ReleasePolicy {
    fn eq(&self, other: &Self) -> bool {
        self.document == other.document
            && self.content_type == other.content_type
            && self.immutable == other.immutable
    }
}

impl Eq for ReleasePolicy {}

/// Why a policy was not taken: where in the document, and what is wrong there.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PolicyRefused {
    #[error("release_policy.data has more than {MAX_POLICY_BYTES} bytes")]
    TooLong,
    #[error("release_policy.contentType must be of 1 to {MAX_CONTENT_TYPE_BYTES} printable ASCII characters")]
    ContentType,
    #[error("the release policy is not a document: {0}")]
    Json(#[from] crate::json::MalformedJson),
    #[error("the release policy is wrong at {}: {mistake}", if at.is_empty() { "its top" } else { at })]
    At { at: String, mistake: Mistake },
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Mistake {
    #[error("expected an object, found {0}")]
    NotObject(&'static str),
    #[error("expected a list, found {0}")]
    NotList(&'static str),
    #[error("the list is empty, so that it says nothing")]
    Empty,
    #[error("version must be \"{VERSION}\"")]
    Version,
    #[error("anyOf, the list of authorities, is missing")]
    NoAuthorities,
    #[error("allOf does not stand here; the list of authorities is anyOf")]
    AllOfAuthorities,
    #[error("member {0} is not known")]
    UnknownMember(String),
    #[error("authority is missing")]
    NoAuthority,
    #[error("authority must be a string")]
    AuthorityType,
    #[error("{0}")]
    Authority(#[from] MalformedAuthority),
    #[error("neither anyOf nor allOf is there; expected one of them")]
    NoGroup,
    #[error("both anyOf and allOf are there; expected one of them")]
    TwoGroups,
    #[error("anyOf or allOf beside claim; expected one of the two")]
    GroupAndClaim,
    #[error("conditions are nested more than {MAX_NESTING} deep")]
    TooDeep,
    #[error("claim must be a string of 1 to {MAX_CLAIM_BYTES} bytes whose parts between dots are not empty")]
    ClaimName,
    #[error(
        "no operator; expected one of equals, notEquals, less, lessOrEquals, greater, greaterOrEquals, exists"
    )]
    NoOperator,
    #[error("operators {0} and {1} in one condition; expected one")]
    TwoOperators(&'static str, &'static str),
    #[error("{0} compares with a string, a number or a boolean, not with {1}")]
    Value(&'static str, &'static str),
    #[error("{0} compares with a number, not with {1}")]
    NotOrdered(&'static str, &'static str),
    #[error("exists takes true or false, not {0}")]
    Exists(&'static str),
    #[error("the number is too large to be compared exactly")]
    InexactNumber,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "an authority is https://host[:port][/path] of at most {MAX_AUTHORITY_BYTES} characters, without user, query and fragment"
)]
pub struct MalformedAuthority;

/// Whose assertions count: the issuer of tokens, and the place where its keys are found.
///
/// Written with a slash at the end or without, it is the same one, as the documents of the service write both.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Authority(String);

impl Authority {
    pub fn parse(text: &str) -> Result<Self, MalformedAuthority> {
        let refuse = Err(MalformedAuthority);
        let text = text.strip_suffix('/').unwrap_or(text);
        let Some(rest) = text.strip_prefix("https://") else { return refuse };
        let (host_and_port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match host_and_port.strip_prefix('[') {
            // An IPv6 address.
            Some(bracketed) => match bracketed.split_once(']') {
                Some((address, rest))
                    if address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':') =>
                {
                    (address, rest)
                }
                _ => return refuse,
            },
            None => {
                let (host, port) =
                    host_and_port.split_at(host_and_port.find(':').unwrap_or(host_and_port.len()));
                let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
                if !host.bytes().all(name) {
                    return refuse;
                }
                (host, port)
            }
        };
        let port_fits = port.is_empty()
            || port.strip_prefix(':').is_some_and(|digits| {
                digits.bytes().all(|byte| byte.is_ascii_digit())
                    && digits.parse::<u16>().is_ok_and(|port| port > 0)
            });
        // What no software reads in two ways: no escapes, no dot segments, no empty ones.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let path_fits = path.split('/').skip(1).all(|segment| {
            !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(plain)
        });
        if host.is_empty() || !port_fits || !path_fits || text.len() > MAX_AUTHORITY_BYTES {
            return refuse;
        }
        Ok(Self(text.to_owned()))
    }

    /// Without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> &str {
        let host = "https://".len();
        self.0[host..].find('/').map_or(&self.0, |end| &self.0[..host + end])
    }

    /// Whether a token whose `iss` is `issuer` is of this authority.
    pub fn issues(&self, issuer: &str) -> bool {
        issuer.strip_suffix('/').unwrap_or(issuer) == self.0
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a policy says: one of these authorities, with its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    authorities: Vec<AuthorityRule>,
}

#[derive(Clone, Debug, PartialEq)]
struct AuthorityRule {
    authority: Authority,
    conditions: Group,
}

#[derive(Clone, Debug, PartialEq)]
struct Group {
    all: bool,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Claim { claim: String, test: Test },
    Group(Group),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Equals(Scalar),
    NotEquals(Scalar),
    Less(Number),
    LessOrEquals(Number),
    Greater(Number),
    GreaterOrEquals(Number),
    Exists(bool),
}

#[derive(Clone, Debug, PartialEq)]
enum Scalar {
    Bool(bool),
    Number(Number),
    Text(String),
}

/// The first condition of an authority's that is not met. Names of claims, no values.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unmet {
    #[error("the policy names no authority {0}")]
    Authority(String),
    #[error("the condition on claim {} at {at} is not met", shown(claim))]
    Claim { claim: String, at: String },
}

impl ReleasePolicy {
    pub fn new(
        document: String,
        content_type: Option<String>,
        immutable: bool,
    ) -> Result<Self, PolicyRefused> {
        let content_type = content_type.unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned());
        let printable = content_type.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if !printable || !(1..=MAX_CONTENT_TYPE_BYTES).contains(&content_type.len()) {
            return Err(PolicyRefused::ContentType);
        }
        let policy = Arc::new(Policy::parse(&document)?);
        Ok(Self { document: document.into(), content_type: content_type.into(), immutable, policy })
    }

    /// As it was given.
    pub fn document(&self) -> &str {
        &self.document
    }

    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    pub fn is_immutable(&self) -> bool {
        self.immutable
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl Policy {
    pub fn parse(document: &str) -> Result<Self, PolicyRefused> {
        if document.len() > MAX_POLICY_BYTES {
            return Err(PolicyRefused::TooLong);
        }
        let json = Json::parse(document.as_bytes())?;
        let mut top = Members::of(&json, String::new())?;
        match top.take("version") {
            None => {}
            Some(version) if version.as_text() == Some(VERSION) => {}
            Some(_) => return Err(top.wrong_member("version", Mistake::Version)),
        }
        let (name, all, list) = top.take_group()?.ok_or_else(|| top.wrong(Mistake::NoAuthorities))?;
        if all {
            return Err(top.wrong_member(name, Mistake::AllOfAuthorities));
        }
        top.end()?;
        let parse = |(at, item)| AuthorityRule::parse(at, item);
        let authorities = items(&top.path(name), list)?.map(parse).collect::<Result<_, _>>()?;
        Ok(Self { authorities })
    }

    /// Whose assertions it takes.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.authorities.iter().map(|rule| &rule.authority)
    }

    /// The authority that issues as `issuer`, if the policy names it.
    pub fn authority(&self, issuer: &str) -> Option<&Authority> {
        self.authorities().find(|authority| authority.issues(issuer))
    }

    /// Whether one authority both is the issuer and has its conditions met by `claims`.
    pub fn check(&self, issuer: &str, claims: &Json) -> Result<(), Unmet> {
        let mut unmet = Unmet::Authority(shown(issuer));
        for (index, rule) in self.authorities.iter().enumerate() {
            if !rule.authority.issues(issuer) {
                continue;
            }
            match rule.conditions.check(&format!("anyOf[{index}]"), claims) {
                Ok(()) => return Ok(()),
                Err(first) => unmet = first,
            }
        }
        Err(unmet)
    }
}

impl AuthorityRule {
    fn parse(at: String, json: &Json) -> Result<Self, PolicyRefused> {
        let mut members = Members::of(json, at)?;
        let authority = members.take("authority").ok_or_else(|| members.wrong(Mistake::NoAuthority))?;
        let authority = authority
            .as_text()
            .ok_or(Mistake::AuthorityType)
            .and_then(|text| Ok(Authority::parse(text)?))
            .map_err(|mistake| members.wrong_member("authority", mistake))?;
        let (name, all, list) = members.take_group()?.ok_or_else(|| members.wrong(Mistake::NoGroup))?;
        members.end()?;
        let conditions = Group::parse(members.path(name), all, list, 1)?;
        Ok(Self { authority, conditions })
    }
}

impl Group {
    fn parse(at: String, all: bool, list: &Json, depth: usize) -> Result<Self, PolicyRefused> {
        if depth > MAX_NESTING {
            return Err(PolicyRefused::At { at, mistake: Mistake::TooDeep });
        }
        let parse = |(at, item)| Condition::parse(at, item, depth);
        let conditions = items(&at, list)?.map(parse).collect::<Result<_, _>>()?;
        Ok(Self { all, conditions })
    }

    /// `Err` with the first condition that is not met.
    fn check(&self, at: &str, claims: &Json) -> Result<(), Unmet> {
        let word = if self.all { "allOf" } else { "anyOf" };
        let mut first = None;
        for (index, condition) in self.conditions.iter().enumerate() {
            let at = format!("{at}.{word}[{index}]");
            let met = match condition {
                Condition::Group(group) => group.check(&at, claims),
                Condition::Claim { claim, test } if test.is_met(walk(claims, claim)) => Ok(()),
                Condition::Claim { claim, .. } => Err(Unmet::Claim { claim: claim.clone(), at }),
            };
            match met {
                Ok(()) if !self.all => return Ok(()),
                Ok(()) => {}
                Err(unmet) if self.all => return Err(unmet),
                Err(unmet) => first = first.or(Some(unmet)),
            }
        }
        // A group is never empty.
        first.map_or(Ok(()), Err)
    }
}

impl Condition {
    fn parse(at: String, json: &Json, depth: usize) -> Result<Self, PolicyRefused> {
        let mut members = Members::of(json, at)?;
        let group = members.take_group()?;
        let claim = members.take("claim");
        match (group, claim) {
            (Some(_), Some(_)) => Err(members.wrong(Mistake::GroupAndClaim)),
            (Some((name, all, list)), None) => {
                members.end()?;
                Group::parse(members.path(name), all, list, depth + 1).map(Condition::Group)
            }
            (None, Some(claim)) => {
                let claim = claim
                    .as_text()
                    .filter(|name| {
                        name.len() <= MAX_CLAIM_BYTES && name.split('.').all(|part| !part.is_empty())
                    })
                    .ok_or_else(|| members.wrong_member("claim", Mistake::ClaimName))?;
                let test = members.take_test()?;
                members.end()?;
                Ok(Condition::Claim { claim: claim.to_owned(), test })
            }
            (None, None) => {
                members.end()?;
                Err(members.wrong(Mistake::NoGroup))
            }
        }
    }
}

impl Test {
    const OPERATORS: [&'static str; 7] =
        ["equals", "notEquals", "less", "lessOrEquals", "greater", "greaterOrEquals", "exists"];

    fn parse(operator: &'static str, value: &Json) -> Result<Self, Mistake> {
        let scalar = || match value {
            Json::Bool(value) => Ok(Scalar::Bool(*value)),
            Json::Text(text) => Ok(Scalar::Text(text.clone())),
            Json::Number(number) if number.is_exact() => Ok(Scalar::Number(*number)),
            Json::Number(_) => Err(Mistake::InexactNumber),
            other => Err(Mistake::Value(operator, other.kind())),
        };
        let number = || match value {
            Json::Number(number) if number.is_exact() => Ok(*number),
            Json::Number(_) => Err(Mistake::InexactNumber),
            // Digits in a string have an order that is not the numbers'.
            other => Err(Mistake::NotOrdered(operator, other.kind())),
        };
        match operator {
            "equals" => scalar().map(Test::Equals),
            "notEquals" => scalar().map(Test::NotEquals),
            "less" => number().map(Test::Less),
            "lessOrEquals" => number().map(Test::LessOrEquals),
            "greater" => number().map(Test::Greater),
            "greaterOrEquals" => number().map(Test::GreaterOrEquals),
            _ => match value {
                Json::Bool(expected) => Ok(Test::Exists(*expected)),
                other => Err(Mistake::Exists(other.kind())),
            },
        }
    }

    fn is_met(&self, claim: Option<&Json>) -> bool {
        let ordered = |expected: Number, accepted: fn(Ordering) -> bool| match claim {
            Some(Json::Number(number)) => number.compare(expected).is_some_and(accepted),
            _ => false,
        };
        match self {
            Test::Equals(expected) => claim.and_then(|claim| expected.equals(claim)) == Some(true),
            Test::NotEquals(expected) => claim.and_then(|claim| expected.equals(claim)) == Some(false),
            Test::Less(expected) => ordered(*expected, Ordering::is_lt),
            Test::LessOrEquals(expected) => ordered(*expected, Ordering::is_le),
            Test::Greater(expected) => ordered(*expected, Ordering::is_gt),
            Test::GreaterOrEquals(expected) => ordered(*expected, Ordering::is_ge),
            Test::Exists(expected) => claim.is_some() == *expected,
        }
    }
}

impl Scalar {
    /// `None` where `claim` is of another type, or a number of which it is not known which one it is.
    fn equals(&self, claim: &Json) -> Option<bool> {
        match (self, claim) {
            (Scalar::Bool(own), Json::Bool(claim)) => Some(own == claim),
            (Scalar::Text(own), Json::Text(claim)) => Some(own == claim),
            (Scalar::Number(own), Json::Number(claim)) => own.compare(*claim).map(Ordering::is_eq),
            _ => None,
        }
    }
}

/// The claim that `name` leads to: each dot goes into an object. `null` is absent.
fn walk<'a>(claims: &'a Json, name: &str) -> Option<&'a Json> {
    let found = name.split('.').try_fold(claims, |value, part| value.member(part))?;
    (*found != Json::Null).then_some(found)
}

/// The items of a list, each with its place.
fn items<'a>(at: &str, list: &'a Json) -> Result<impl Iterator<Item = (String, &'a Json)>, PolicyRefused> {
    let wrong = |mistake| PolicyRefused::At { at: at.to_owned(), mistake };
    match list.as_array() {
        None => Err(wrong(Mistake::NotList(list.kind()))),
        Some([]) => Err(wrong(Mistake::Empty)),
        Some(list) => {
            let at = at.to_owned();
            Ok(list.iter().enumerate().map(move |(index, item)| (format!("{at}[{index}]"), item)))
        }
    }
}

/// The members of an object that were not looked at yet.
struct Members<'a> {
    at: String,
    left: BTreeMap<&'a str, &'a Json>,
}

impl<'a> Members<'a> {
    fn of(json: &'a Json, at: String) -> Result<Self, PolicyRefused> {
        match json {
            Json::Object(members) => {
                Ok(Self { at, left: members.iter().map(|(name, value)| (name.as_str(), value)).collect() })
            }
            other => Err(PolicyRefused::At { at, mistake: Mistake::NotObject(other.kind()) }),
        }
    }

    fn take(&mut self, name: &str) -> Option<&'a Json> {
        self.left.remove(name)
    }

    /// `anyOf` or `allOf`, in either spelling, with its name and whether it is the latter.
    fn take_group(&mut self) -> Result<Option<(&'static str, bool, &'a Json)>, PolicyRefused> {
        let spellings = [("anyOf", false), ("anyof", false), ("allOf", true), ("allof", true)];
        let mut found = None;
        for (name, all) in spellings {
            if let Some(list) = self.take(name) {
                if found.is_some() {
                    return Err(self.wrong(Mistake::TwoGroups));
                }
                found = Some((name, all, list));
            }
        }
        Ok(found)
    }

    fn take_test(&mut self) -> Result<Test, PolicyRefused> {
        let mut found: Option<(&'static str, &Json)> = None;
        for operator in Test::OPERATORS {
            if let Some(value) = self.take(operator) {
                if let Some((first, _)) = found {
                    return Err(self.wrong(Mistake::TwoOperators(first, operator)));
                }
                found = Some((operator, value));
            }
        }
        match found {
            Some((operator, value)) => {
                Test::parse(operator, value).map_err(|mistake| self.wrong_member(operator, mistake))
            }
            None => {
                self.end()?;
                Err(self.wrong(Mistake::NoOperator))
            }
        }
    }

    fn end(&self) -> Result<(), PolicyRefused> {
        match self.left.keys().next() {
            Some(name) => Err(self.wrong(Mistake::UnknownMember(shown(name)))),
            None => Ok(()),
        }
    }

    fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    fn wrong(&self, mistake: Mistake) -> PolicyRefused {
        PolicyRefused::At { at: self.at.clone(), mistake }
    }

    fn wrong_member(&self, name: &str, mistake: Mistake) -> PolicyRefused {
        PolicyRefused::At { at: self.path(name), mistake }
    }
}

#[cfg(test)]
mod tests;
