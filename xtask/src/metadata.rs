//! The dependency graph as `cargo metadata` resolves it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::process::{Failure, cargo_program, output};

/// How one package uses another. A build dependency runs on the build machine and shapes the result, so
/// it counts like a normal one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    NormalOrBuild,
    Development,
}

/// One package of the graph.
#[derive(Clone, Debug)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// An SPDX expression, where the manifest has one.
    pub licence: Option<String>,
    /// `None` for a package of this workspace, else the registry or repository it comes from.
    pub source: Option<String>,
    /// Identifiers of the packages that this one uses.
    pub uses: BTreeSet<(String, Kind)>,
}

/// Every package that a build or a test of the workspace can reach, by identifier.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub packages: BTreeMap<String, Package>,
    pub members: BTreeSet<String>,
}

impl Graph {
    pub fn load(root: &Path) -> Result<Self, Failure> {
        // The manifests must agree with the committed lock file: a check of another graph proves nothing.
        let mut command = Command::new(cargo_program());
        command.current_dir(root).stdin(Stdio::null()).args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
        ]);
        Self::parse(&output(command)?)
    }

    pub fn parse(text: &str) -> Result<Self, Failure> {
        let malformed = |what: &str| Failure::new(format!("cargo metadata: {what} is missing"));
        let json: Value = serde_json::from_str(text)
            .map_err(|error| Failure::new(format!("cargo metadata is not JSON: {error}")))?;
        let mut graph = Self::default();
        for package in json["packages"].as_array().ok_or_else(|| malformed("packages"))? {
            let word = |name: &str| package[name].as_str().map(str::to_owned);
            graph.packages.insert(
                word("id").ok_or_else(|| malformed("a package id"))?,
                Package {
                    name: word("name").ok_or_else(|| malformed("a package name"))?,
                    version: word("version").unwrap_or_default(),
                    licence: word("license"),
                    source: word("source"),
                    uses: BTreeSet::new(),
                },
            );
        }
        let manifests: BTreeMap<&str, &Value> = json["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|package| Some((package["id"].as_str()?, package)))
            .collect();
        for node in json["resolve"]["nodes"].as_array().ok_or_else(|| malformed("resolve.nodes"))? {
            let package = node["id"]
                .as_str()
                .and_then(|id| graph.packages.get_mut(id))
                .ok_or_else(|| malformed("the package of a node"))?;
            let manifest = node["id"].as_str().and_then(|id| manifests.get(id));
            for used in node["deps"].as_array().into_iter().flatten() {
                let Some(id) = used["pkg"].as_str() else { continue };
                let name = manifests.get(id).and_then(|used| used["name"].as_str());
                if let (Some(manifest), Some(name)) = (manifest, name)
                    && !is_active(manifest, &node["features"], name)
                {
                    continue;
                }
                for kind in used["dep_kinds"].as_array().into_iter().flatten() {
                    let kind = if kind["kind"].as_str() == Some("dev") {
                        Kind::Development
                    } else {
                        Kind::NormalOrBuild
                    };
                    package.uses.insert((id.to_owned(), kind));
                }
            }
        }
        for member in json["workspace_members"].as_array().into_iter().flatten() {
            graph.members.extend(member.as_str().map(str::to_owned));
        }
        graph.drop_unreachable();
        Ok(graph)
    }

    fn drop_unreachable(&mut self) {
        let mut reached: BTreeSet<String> = BTreeSet::new();
        let mut queue: Vec<String> = self.members.iter().cloned().collect();
        while let Some(id) = queue.pop() {
            if let Some(package) = self.packages.get(&id)
                && reached.insert(id)
            {
                queue.extend(package.uses.iter().map(|(used, _)| used.clone()));
            }
        }
        self.packages.retain(|id, _| reached.contains(id));
    }

    /// The packages of this workspace.
    pub fn members(&self) -> impl Iterator<Item = (&String, &Package)> {
        self.packages.iter().filter(|(id, _)| self.members.contains(*id))
    }

    /// What `package` uses in a build that is not a test.
    pub fn built_with<'a>(&'a self, package: &'a Package) -> impl Iterator<Item = (&'a String, &'a Package)> {
        package
            .uses
            .iter()
            .filter(|(_, kind)| *kind == Kind::NormalOrBuild)
            .filter_map(|(id, _)| self.packages.get_key_value(id))
    }
}

/// Whether `manifest` really uses the package `name` with the features that are on. Cargo also lists an
/// optional dependency that is only named weakly (`ring?/alloc`), and never builds it.
fn is_active(manifest: &Value, features: &Value, name: &str) -> bool {
    let dependencies = manifest["dependencies"].as_array();
    let mut declared = dependencies.into_iter().flatten().filter(|dependency| dependency["name"] == name);
    declared.any(|dependency| {
        if dependency["optional"] != true {
            return true;
        }
        let known_as = dependency["rename"].as_str().unwrap_or(name);
        let turns_on = |item: &str| {
            item.strip_prefix("dep:") == Some(known_as)
                || item.split_once('/').is_some_and(|(before, _)| before == known_as)
        };
        features.as_array().into_iter().flatten().filter_map(Value::as_str).any(|feature| {
            let items = manifest["features"][feature].as_array();
            items.into_iter().flatten().filter_map(Value::as_str).any(turns_on)
        })
    })
}

/// Where cargo puts what it builds.
pub fn target_directory(root: &Path) -> Result<PathBuf, Failure> {
    let mut command = Command::new(cargo_program());
    command.current_dir(root).stdin(Stdio::null()).args(["metadata", "--format-version", "1", "--no-deps"]);
    let json: Value = serde_json::from_str(&output(command)?)
        .map_err(|error| Failure::new(format!("cargo metadata is not JSON: {error}")))?;
    let target = json["target_directory"].as_str();
    target.map(PathBuf::from).ok_or_else(|| Failure::new("cargo metadata: target_directory is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_is_only_named_weakly_is_not_in_the_graph() {
        let metadata = |features: &str| {
            format!(
                r#"{{
                "packages": [
                    {{"id": "us", "name": "us", "features": {{"alloc": ["ring?/alloc"], "ring": ["dep:ring"]}},
                      "dependencies": [{{"name": "ring", "optional": true, "rename": null}}]}},
                    {{"id": "ring", "name": "ring", "features": {{}}, "dependencies": []}}
                ],
                "workspace_members": ["us"],
                "resolve": {{"nodes": [
                    {{"id": "us", "features": {features}, "deps": [{{"pkg": "ring", "dep_kinds": [{{"kind": null}}]}}]}},
                    {{"id": "ring", "features": [], "deps": []}}
                ]}}
            }}"#
            )
        };
        let weakly = Graph::parse(&metadata(r#"["alloc"]"#)).unwrap();
        assert_eq!(weakly.packages.keys().collect::<Vec<_>>(), ["us"]);
        let really = Graph::parse(&metadata(r#"["alloc", "ring"]"#)).unwrap();
        assert_eq!(really.packages.keys().collect::<Vec<_>>(), ["ring", "us"]);
    }
}
