//! The exit status of a command that was asked whether something holds, for scripts that read no more than they need.

use std::io::pipe;
use std::process::Command;

#[test]
fn no_stays_no_when_the_reader_has_left() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("card.byok");
    std::fs::write(&file, "{}").unwrap();
    let (reader, output) = pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(["byok", "check"]).arg(&file).stdout(output);
    assert_eq!(command.status().unwrap().code(), Some(1));
}
