//! Licences, banned crates, sources and advisories: by cargo-deny where it is installed, else by the
//! checks of our own, which know everything in `deny.toml` but the advisories.

use crate::metadata::Graph;
use crate::policy::Policy;
use crate::process::{Failure, Workspace, on_path, run as run_command, succeeds};

pub fn run(workspace: &Workspace) -> Result<(), Failure> {
    // Ours run in any case: they must not rot where cargo-deny happens to be installed.
    let graph = Graph::load(&workspace.root)?;
    let policy = Policy::load(workspace)?;
    let mut complaints = policy.bad_licences(&graph);
    complaints.extend(policy.banned_edges(&graph));
    complaints.extend(policy.bad_sources(&graph));
    for complaint in &complaints {
        eprintln!("deny: {complaint}");
    }
    if !complaints.is_empty() {
        return Err(Failure::new(format!("{} breaches of deny.toml", complaints.len())));
    }
    println!("deny: licences, bans and sources of {} packages keep to deny.toml", graph.packages.len());
    if !on_path("cargo-deny") {
        println!(
            "deny: CARGO-DENY NOT INSTALLED: licences, bans and sources were checked by the built-in fallback; \
             ADVISORIES WERE NOT CHECKED"
        );
        return Ok(());
    }
    run_command(workspace.cargo(&["deny", "check", "licenses", "bans", "sources"]))?;
    if !succeeds(workspace.cargo(&["deny", "fetch", "db"])) {
        println!("deny: ADVISORIES WERE NOT CHECKED: their database cannot be reached");
        return Ok(());
    }
    run_command(workspace.cargo(&["deny", "check", "advisories"]))
}
