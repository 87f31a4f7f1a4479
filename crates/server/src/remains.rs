//! Tells a first start that was cut short from a data directory that lost a file.
//!
//! What a first start makes, it makes in one order and durably, so whatever moment it ends at leaves the first so many of
//! the files. A file that is missing in front of one that is there was taken away; to make it anew would not be "as it
//! was": new secrets beside an old store, a new pool beside an old log, and the way back overwritten.

use crate::CommandError;
use crate::layout::Layout;
use std::path::{Path, PathBuf};

/// Refuses a data directory that lost a file. Nothing but empty directories is made before this has passed.
pub fn check(layout: &Layout) -> Result<(), CommandError> {
    check_order(layout, &in_order(layout))
}

/// Likewise that of a pool of class production.
pub fn check_production(layout: &Layout) -> Result<(), CommandError> {
    check_order(layout, &[layout.node(), layout.sealed_domain(), layout.store(), layout.audit()])
}

fn check_order(layout: &Layout, made: &[PathBuf]) -> Result<(), CommandError> {
    let mut missing: Option<&Path> = None;
    for path in made {
        match (path.try_exists()?, missing) {
            (true, Some(missing)) => {
                let (missing, later) = (missing.display(), path.display());
                let data = layout.data.display();
                return Err(format!(
                    "{missing} is missing, yet {later}, which was made after it, is there; put it back from a copy, or move {data} away to begin anew"
                )
                .into());
            }
            (true, None) => {}
            (false, _) => missing = missing.or(Some(path)),
        }
    }
    Ok(())
}

/// What cannot be made twice, in the order that it is made in. The CA, the port and the owner's public key are not here:
/// they can, and the owner may take the last one away. Nor is the root of trust, without which the pool stays sealed
/// until it is back.
fn in_order(layout: &Layout) -> [PathBuf; 6] {
    [
        layout.principals(),
        layout.issuer(),
        layout.node(),
        layout.sealed_domain(),
        layout.store(),
        layout.audit(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;

    fn layout(directory: &tempfile::TempDir) -> Layout {
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
        layout
    }

    #[test]
    fn a_start_cut_short_anywhere_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        check(&layout).unwrap();
        for path in in_order(&layout) {
            files::write(&path, b"").unwrap();
            check(&layout).unwrap();
        }
    }

    #[test]
    fn each_file_that_was_taken_away_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let made = in_order(&layout);
        made.iter().for_each(|path| files::write(path, b"").unwrap());
        // Without the last one, the log, it could be a start that was cut short: the pool itself tells.
        for path in &made[..made.len() - 1] {
            std::fs::remove_file(path).unwrap();
            let error = check(&layout).unwrap_err().to_string();
            assert!(error.contains(&format!("{} is missing", path.display())), "{error}");
            files::write(path, b"").unwrap();
        }
        check(&layout).unwrap();
    }
}
