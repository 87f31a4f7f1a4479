//! Every format that lands on disk or leaves the machine has a page and a golden file. A page that names
//! no golden file, or one that is gone, describes a format that nobody tests.

use std::path::Path;

use crate::process::{Failure, Workspace, read};

pub fn run(workspace: &Workspace) -> Result<(), Failure> {
    let directory = workspace.root.join("docs").join("formats");
    let entries = std::fs::read_dir(&directory)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", directory.display())))?;
    let mut pages = 0;
    let mut complaints = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        pages += 1;
        let page = entry.file_name().to_string_lossy().into_owned();
        complaints
            .extend(check(&read(&path)?, &workspace.root).map(|complaint| format!("{page}: {complaint}")));
    }
    complaints.sort();
    for complaint in &complaints {
        eprintln!("docs: {complaint}");
    }
    if complaints.is_empty() {
        println!("docs: {pages} format pages, each with its golden files");
        return Ok(());
    }
    Err(Failure::new(format!("{} format pages without their golden file", complaints.len())))
}

/// What is wrong with the golden files that `page` names by their paths from the root.
fn check(page: &str, root: &Path) -> Option<String> {
    let named: Vec<&str> = golden_files(page).collect();
    if named.is_empty() {
        return Some("names no golden file (crates/…/tests/golden/…)".to_owned());
    }
    let gone: Vec<&str> = named.into_iter().filter(|name| !root.join(name).is_file()).collect();
    if gone.is_empty() { None } else { Some(format!("golden file does not exist: {}", gone.join(", "))) }
}

/// Words such as `crates/x/tests/golden/name.bin`, whatever Markdown stands around them.
fn golden_files(page: &str) -> impl Iterator<Item = &str> {
    page.split(|character: char| !(character.is_ascii_alphanumeric() || "/._-*".contains(character)))
        .map(|word| word.trim_end_matches(['.', '*']).trim_start_matches("../"))
        .map(|word| word.trim_start_matches("../"))
        .filter(|word| word.starts_with("crates/") && word.contains("/tests/golden/") && !word.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_files_are_found_in_prose_code_and_links() {
        let page = "See `crates/a/tests/golden/one.bin` and [two](../../crates/b/tests/golden/two.json).";
        let found: Vec<&str> = golden_files(page).collect();
        assert_eq!(found, ["crates/a/tests/golden/one.bin", "crates/b/tests/golden/two.json"]);
    }

    #[test]
    fn a_page_without_a_golden_file_or_with_a_missing_one_is_refused() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert!(check("a format of ours", root).unwrap().contains("names no golden file"));
        assert!(check("`crates/none/tests/golden/none.bin`", root).unwrap().contains("does not exist"));
    }
}
