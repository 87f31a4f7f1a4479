//! Who may depend on whom: the crate table of the design, checked against what cargo resolves.
//!
//! The table is the architecture. A crate that is not in it fails the check, so a new crate is a decision
//! and not an accident. Which crates may use a library for TLS or cryptography is in `deny.toml`, and is
//! checked here as well so that it holds where cargo-deny is not installed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::metadata::{Graph, Kind};
use crate::policy::Policy;
use crate::process::{Failure, Workspace};

/// A crate and the crates of ours that it may use directly.
struct Row {
    name: &'static str,
    may_use: &'static [&'static str],
}

/// Crates that must not be reached, by whatever path, from the crates named.
struct Wall {
    from: &'static [&'static str],
    never_reach: &'static [&'static str],
    reason: &'static str,
}

/// A crate and the crates of others that it may use, where that is settled.
struct Foreign {
    of: &'static str,
    may_use: &'static [&'static str],
}

const TABLE: &[Row] = &[
    Row { name: "domain", may_use: &[] },
    Row { name: "host", may_use: &[] },
    Row { name: "scheduling", may_use: &[] },
    Row { name: "crypto", may_use: &["domain"] },
    Row { name: "crypto-software", may_use: &["crypto", "domain"] },
    Row { name: "host-embedded", may_use: &["host"] },
    Row { name: "host-etcd", may_use: &["host"] },
    Row { name: "storage", may_use: &["host", "crypto", "domain"] },
    Row { name: "audit", may_use: &["host", "crypto", "domain"] },
    Row { name: "seal", may_use: &["crypto", "domain"] },
    Row { name: "ceremony", may_use: &["crypto", "domain"] },
    Row { name: "identity", may_use: &["domain"] },
    Row {
        name: "service",
        may_use: &["domain", "crypto", "storage", "audit", "ceremony", "identity", "host", "scheduling"],
    },
    Row { name: "api-data", may_use: &["service", "identity", "domain"] },
    Row { name: "fabric", may_use: &["host", "identity"] },
    // It passes bytes on, and so needs nothing of what they are for.
    Row { name: "gateway", may_use: &[] },
    Row { name: "api-control", may_use: &["fabric", "identity"] },
    Row {
        name: "server",
        may_use: &[
            "domain",
            "host",
            "crypto",
            "crypto-software",
            "host-embedded",
            "host-etcd",
            "storage",
            "audit",
            "seal",
            "ceremony",
            "identity",
            "scheduling",
            "service",
            "api-data",
            "fabric",
            "gateway",
            "api-control",
        ],
    },
    // Tests only: it stands in for hosts and clients, never for what is trusted.
    Row { name: "testkit", may_use: &["host", "host-embedded", "domain"] },
    // Tests only: what is fuzzed, and so whatever reads foreign bytes.
    Row {
        name: "fuzz-targets",
        may_use: &[
            "domain",
            "host",
            "crypto",
            "crypto-software",
            "storage",
            "audit",
            "seal",
            "ceremony",
            "identity",
            "service",
            "api-data",
            "api-control",
            "gateway",
            "server",
        ],
    },
    // Tools beside the product: they drive the built binary and link nothing of ours.
    Row { name: "xtask", may_use: &[] },
    Row { name: "bench", may_use: &[] },
];

/// `domain` has no clock, no randomness and no input or output. What of these the standard library has, its `clippy.toml`
/// refuses.
const FOREIGN: &[Foreign] = &[
    Foreign { of: "domain", may_use: &["serde", "serde_json", "thiserror"] },
    // It may call the kernel, and so needs nobody.
    Foreign { of: "scheduling", may_use: &["libc"] },
];

const WALLS: &[Wall] = &[
    Wall {
        from: &["fabric", "gateway", "api-control", "host", "host-embedded", "host-etcd"],
        never_reach: &["crypto", "crypto-software", "service", "storage"],
        reason: "nothing outside the core may reach a key or a right",
    },
    Wall { from: &["gateway"], never_reach: &["rustls", "aws-lc-rs"], reason: "TLS ends behind the gateway" },
    // Whatever the crates that it may use come to use.
    Wall {
        from: &["domain"],
        never_reach: &["tokio", "getrandom", "rand", "fastrand", "time", "chrono", "uuid", "aws-lc-rs"],
        reason: "the rules have no clock, no randomness and no input or output",
    },
];

/// Crates that tests alone may use.
const DEVELOPMENT_ONLY: &[&str] = &["testkit", "fuzz-targets"];

pub fn run(workspace: &Workspace) -> Result<(), Failure> {
    let graph = Graph::load(&workspace.root)?;
    let policy = Policy::load(workspace)?;
    let mut complaints = check(&graph);
    complaints.extend(policy.banned_edges(&graph));
    if complaints.is_empty() {
        println!("deps: {} crates keep to the table", graph.members.len());
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("deps: {complaint}");
    }
    Err(Failure::new(format!("{} forbidden dependencies", complaints.len())))
}

/// Every edge of ours that the table, the walls or the development-only list forbids.
fn check(graph: &Graph) -> Vec<String> {
    let mut complaints = Vec::new();
    let ours: BTreeSet<&str> = graph.members().map(|(_, package)| package.name.as_str()).collect();
    for (_, package) in graph.members() {
        let name = package.name.as_str();
        let Some(row) = TABLE.iter().find(|row| row.name == name) else {
            complaints.push(format!("{name} is not in the table of xtask/src/dependencies.rs"));
            continue;
        };
        for (_, used) in graph.built_with(package) {
            let used = used.name.as_str();
            if DEVELOPMENT_ONLY.contains(&used) {
                complaints.push(format!("{name} -> {used}: {used} may be a development dependency only"));
            } else if ours.contains(used) && !row.may_use.contains(&used) {
                complaints
                    .push(format!("{name} -> {used}: the table lets {name} use {}", listed(row.may_use)));
            } else if !ours.contains(used) && !may_use_foreign(name, used) {
                complaints
                    .push(format!("{name} -> {used}: xtask/src/dependencies.rs lists what {name} may use"));
            }
        }
    }
    for wall in WALLS {
        for from in wall.from {
            complaints.extend(breaches(graph, from, wall));
        }
    }
    complaints
}

fn may_use_foreign(name: &str, used: &str) -> bool {
    FOREIGN.iter().find(|settled| settled.of == name).is_none_or(|settled| settled.may_use.contains(&used))
}

/// The shortest path from `from` to each crate behind the wall. The path is shown because the edge to
/// remove is rarely the last one.
fn breaches(graph: &Graph, from: &str, wall: &Wall) -> Vec<String> {
    let Some((start, _)) = graph.members().find(|(_, package)| package.name == from) else {
        return Vec::new();
    };
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start.as_str()]);
    let mut complaints = Vec::new();
    while let Some(id) = queue.pop_front() {
        let package = &graph.packages[id];
        if wall.never_reach.contains(&package.name.as_str()) {
            let mut path = vec![package.name.as_str()];
            let mut at = id;
            while let Some(before) = came_from.get(at) {
                path.push(graph.packages[*before].name.as_str());
                at = before;
            }
            path.reverse();
            complaints.push(format!("{}: {}", path.join(" -> "), wall.reason));
            continue;
        }
        for (used, _) in package.uses.iter().filter(|(_, kind)| *kind == Kind::NormalOrBuild) {
            if graph.packages.contains_key(used) && used != start && !came_from.contains_key(used.as_str()) {
                came_from.insert(used, id);
                queue.push_back(used);
            }
        }
    }
    complaints
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "no crate of ours".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Package;

    fn graph(edges: &[(&str, &str, Kind)]) -> Graph {
        let mut graph = Graph::default();
        for (from, to, kind) in edges {
            for name in [from, to] {
                graph.members.insert((*name).to_owned());
                graph.packages.entry((*name).to_owned()).or_insert_with(|| Package {
                    name: (*name).to_owned(),
                    version: "0.0.0".to_owned(),
                    licence: None,
                    source: None,
                    uses: BTreeSet::new(),
                });
            }
            graph.packages.get_mut(*from).unwrap().uses.insert(((*to).to_owned(), *kind));
        }
        graph
    }

    #[test]
    fn edges_of_the_table_pass() {
        let graph = graph(&[
            ("service", "storage", Kind::NormalOrBuild),
            ("storage", "crypto", Kind::NormalOrBuild),
            ("crypto", "domain", Kind::NormalOrBuild),
        ]);
        assert_eq!(check(&graph), Vec::<String>::new());
    }

    #[test]
    fn an_edge_that_the_table_lacks_fails_and_is_named() {
        let complaints = check(&graph(&[("domain", "storage", Kind::NormalOrBuild)]));
        assert_eq!(complaints, ["domain -> storage: the table lets domain use no crate of ours"]);
    }

    #[test]
    fn a_crate_of_others_is_listed_where_that_is_settled() {
        let mut graph = graph(&[
            ("domain", "serde", Kind::NormalOrBuild),
            ("domain", "jiff", Kind::NormalOrBuild),
            ("domain", "proptest", Kind::Development),
            ("storage", "jiff", Kind::NormalOrBuild),
        ]);
        graph.members.retain(|name| ["domain", "storage"].contains(&name.as_str()));
        assert_eq!(check(&graph), ["domain -> jiff: xtask/src/dependencies.rs lists what domain may use"]);
    }

    #[test]
    fn a_wall_holds_through_crates_in_between_and_the_path_is_shown() {
        let complaints = check(&graph(&[
            ("fabric", "identity", Kind::NormalOrBuild),
            ("identity", "service", Kind::NormalOrBuild),
        ]));
        assert!(
            complaints.iter().any(|text| text.starts_with("fabric -> identity -> service: ")),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_test_may_use_what_a_build_may_not() {
        assert_eq!(check(&graph(&[("storage", "testkit", Kind::Development)])), Vec::<String>::new());
        let complaints = check(&graph(&[("storage", "testkit", Kind::NormalOrBuild)]));
        assert_eq!(complaints, ["storage -> testkit: testkit may be a development dependency only"]);
    }

    #[test]
    fn a_crate_outside_the_table_fails() {
        let complaints = check(&graph(&[("surprise", "domain", Kind::NormalOrBuild)]));
        assert_eq!(complaints, ["surprise is not in the table of xtask/src/dependencies.rs"]);
    }
}
