//! `deny.toml`, as far as it is enforced here: licences allowed, crates banned or kept to a few users,
//! and where crates may come from.
//!
//! It reads licence expressions (SPDX 2.3, annex D) only as far as crates write them; an expression that
//! it cannot read is not allowed.

use crate::metadata::Graph;
use crate::process::{Failure, Workspace, read};

/// What `deny.toml` says.
#[derive(Debug, Default)]
pub struct Policy {
    licences: Vec<String>,
    bans: Vec<Ban>,
    registries: Vec<String>,
}

/// A crate that may not be used, or only by the crates in `wrappers`.
#[derive(Debug)]
struct Ban {
    name: String,
    wrappers: Vec<String>,
    reason: String,
}

impl Policy {
    pub fn load(workspace: &Workspace) -> Result<Self, Failure> {
        Self::parse(&read(&workspace.root.join("deny.toml"))?)
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let file: toml::Table =
            toml::from_str(text).map_err(|error| Failure::new(format!("deny.toml: {error}")))?;
        let missing = |what: &str| Failure::new(format!("deny.toml: {what} is missing"));
        let section =
            |name: &str| file.get(name).and_then(toml::Value::as_table).ok_or_else(|| missing(name));
        let mut policy = Self {
            licences: words(section("licenses")?.get("allow")),
            bans: Vec::new(),
            registries: words(section("sources")?.get("allow-registry")),
        };
        let bans = section("bans")?.get("deny").and_then(toml::Value::as_array);
        for ban in bans.ok_or_else(|| missing("bans.deny"))? {
            let word = |name: &str| ban.get(name).and_then(toml::Value::as_str).map(str::to_owned);
            policy.bans.push(Ban {
                name: word("crate").ok_or_else(|| missing("the crate of a ban"))?,
                wrappers: words(ban.get("wrappers")),
                reason: word("reason").ok_or_else(|| missing("the reason of a ban"))?,
            });
        }
        Ok(policy)
    }

    /// Each use of a banned crate by a crate that is not one of its wrappers, in what is built and shipped.
    pub fn banned_edges(&self, graph: &Graph) -> Vec<String> {
        let mut complaints = Vec::new();
        for package in graph.packages.values() {
            for (_, used) in graph.built_with(package) {
                let Some(ban) = self.bans.iter().find(|ban| ban.name == used.name) else { continue };
                if !ban.wrappers.contains(&package.name) {
                    let allowed =
                        if ban.wrappers.is_empty() { "nobody".to_owned() } else { ban.wrappers.join(", ") };
                    complaints.push(format!(
                        "{} -> {}: deny.toml lets {allowed} use it ({})",
                        package.name, used.name, ban.reason
                    ));
                }
            }
        }
        complaints.sort();
        complaints.dedup();
        complaints
    }

    /// Packages without a licence that the policy allows.
    pub fn bad_licences(&self, graph: &Graph) -> Vec<String> {
        let mut complaints = Vec::new();
        for package in graph.packages.values() {
            match &package.licence {
                None => complaints.push(format!("{} {} states no licence", package.name, package.version)),
                Some(licence) if !self.allows(licence) => complaints
                    .push(format!("{} {}: licence {licence} is not allowed", package.name, package.version)),
                Some(_) => {}
            }
        }
        complaints
    }

    /// Packages that come from neither this workspace nor a registry of the policy.
    pub fn bad_sources(&self, graph: &Graph) -> Vec<String> {
        let known =
            |source: &str| self.registries.iter().any(|registry| source == format!("registry+{registry}"));
        let foreign = graph.packages.values().filter_map(|package| {
            let source = package.source.as_deref().filter(|source| !known(source))?;
            Some(format!("{} {} comes from {source}", package.name, package.version))
        });
        foreign.collect()
    }

    fn allows(&self, expression: &str) -> bool {
        let tokens = tokens(expression);
        let mut rest = tokens.as_slice();
        self.any_of(&mut rest).is_some_and(|allowed| allowed && rest.is_empty())
    }

    /// `A OR B OR …`; `None` where the text does not read as an expression.
    fn any_of(&self, rest: &mut &[String]) -> Option<bool> {
        let mut allowed = self.all_of(rest)?;
        while take(rest, "OR") {
            allowed |= self.all_of(rest)?;
        }
        Some(allowed)
    }

    fn all_of(&self, rest: &mut &[String]) -> Option<bool> {
        let mut allowed = self.one(rest)?;
        while take(rest, "AND") {
            allowed &= self.one(rest)?;
        }
        Some(allowed)
    }

    fn one(&self, rest: &mut &[String]) -> Option<bool> {
        if take(rest, "(") {
            let allowed = self.any_of(rest)?;
            return take(rest, ")").then_some(allowed);
        }
        let (first, after) = rest.split_first()?;
        if matches!(first.as_str(), "AND" | "OR" | "WITH" | ")") {
            return None;
        }
        *rest = after;
        let mut name = first.clone();
        if take(rest, "WITH") {
            let (exception, after) = rest.split_first()?;
            *rest = after;
            name = format!("{name} WITH {exception}");
        }
        Some(self.licences.contains(&name))
    }
}

/// `/` is how crates wrote OR before the expression had a grammar.
fn tokens(expression: &str) -> Vec<String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    spaced.split_whitespace().map(str::to_owned).collect()
}

fn take(rest: &mut &[String], word: &str) -> bool {
    match rest.split_first() {
        Some((first, after)) if first == word => {
            *rest = after;
            true
        }
        _ => false,
    }
}

fn words(value: Option<&toml::Value>) -> Vec<String> {
    let list = value.and_then(toml::Value::as_array);
    list.into_iter().flatten().filter_map(toml::Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metadata::{Kind, Package};

    const POLICY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
        [bans]
        deny = [
            { crate = "tls", wrappers = ["server"], reason = "TLS ends there" },
            { crate = "openssl", reason = "not linked" },
        ]
        [sources]
        allow-registry = ["https://registry.example/index"]
    "#;

    fn package(name: &str, uses: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: Some("MIT".to_owned()),
            source: None,
            uses: uses.iter().map(|used| ((*used).to_owned(), Kind::NormalOrBuild)).collect(),
        }
    }

    fn graph(packages: impl IntoIterator<Item = Package>) -> Graph {
        let packages = packages.into_iter().map(|package| (package.name.clone(), package)).collect();
        Graph { packages, members: BTreeSet::new() }
    }

    #[test]
    fn expressions_are_read_with_their_precedence() {
        let policy = Policy::parse(POLICY).unwrap();
        for allowed in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-3.0 OR MIT",
            "(MIT OR X) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(policy.allows(allowed), "{allowed}");
        }
        for refused in ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR X AND MIT", "MIT OR", "(MIT", "MIT MIT", ""]
        {
            assert!(!policy.allows(refused), "{refused}");
        }
    }

    #[test]
    fn a_kept_crate_is_for_its_wrappers_alone_and_a_banned_one_for_nobody() {
        let policy = Policy::parse(POLICY).unwrap();
        let mut tested = package("tested", &[]);
        tested.uses.insert(("tls".to_owned(), Kind::Development));
        let graph = graph([
            tested,
            package("server", &["tls"]),
            package("service", &["tls", "openssl"]),
            package("tls", &[]),
            package("openssl", &[]),
        ]);
        assert_eq!(
            policy.banned_edges(&graph),
            [
                "service -> openssl: deny.toml lets nobody use it (not linked)",
                "service -> tls: deny.toml lets server use it (TLS ends there)",
            ]
        );
    }

    #[test]
    fn a_package_from_elsewhere_or_without_a_licence_is_named() {
        let policy = Policy::parse(POLICY).unwrap();
        let mut good = package("good", &[]);
        good.source = Some("registry+https://registry.example/index".to_owned());
        let mut bad = package("bad", &[]);
        bad.source = Some("git+https://example.org/bad".to_owned());
        bad.licence = None;
        let graph = graph([good, bad]);
        assert_eq!(policy.bad_sources(&graph), ["bad 1.0.0 comes from git+https://example.org/bad"]);
        assert_eq!(policy.bad_licences(&graph), ["bad 1.0.0 states no licence"]);
    }
}
