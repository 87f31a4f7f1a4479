//! A data directory that lost a file is refused, and left so that putting the file back is enough.

#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use common::Quickstart;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

#[test]
fn what_is_missing_is_asked_for_and_never_made_anew() {
    let mut quickstart = Quickstart::started();
    let created = quickstart.call("POST", "/keys/kept/create", r#"{"kty":"EC-HSM","crv":"P-256"}"#);
    assert_eq!(created.status, 200, "{}", created.body);
    quickstart.kill();
    let aside = quickstart.data().with_file_name("aside");
    for (taken, told_by_order) in [
        ("identity/principals.json", true),
        ("identity/issuer.json", true),
        ("pool/node", true),
        ("pool/domain.sealed", true),
        ("pool/store", true),
        // Their directories are made last and together: here the log tells, or the store does.
        ("pool/store/store.redb", false),
        ("pool/audit", false),
    ] {
        let place = quickstart.data().join(taken);
        fs::rename(&place, &aside).unwrap();
        let errors = refusal(&quickstart, taken);
        if told_by_order {
            assert!(errors.contains(&format!("{taken} is missing")), "{taken}: {errors}");
            assert!(!place.exists(), "{taken} was made anew");
        } else {
            assert!(
                errors.contains("has events of one") || errors.contains("on record"),
                "{taken}: {errors}"
            );
        }
        if place.is_dir() {
            fs::remove_dir_all(&place).unwrap();
        }
        fs::rename(&aside, &place).unwrap();
    }
    quickstart.start(&[]);
    assert_eq!(quickstart.call("GET", "/keys/kept", "").status, 200);
}

/// What can be made again, or what the owner took away to keep it elsewhere.
#[test]
fn the_ca_and_the_owners_public_key_are_made_again() {
    let mut quickstart = Quickstart::started();
    let owner = quickstart.data().join("pool/owner.pem");
    let before = fs::read(&owner).unwrap();
    quickstart.kill();
    fs::remove_file(&owner).unwrap();
    fs::remove_dir_all(quickstart.data().join("ca")).unwrap();
    quickstart.start(&[]);
    assert_eq!(fs::read(&owner).unwrap(), before);
    assert_eq!(quickstart.call("GET", "/keys/none", "").status, 404);
}

/// What it says before it ends. One that serves instead is ended, and the test with it.
fn refusal(quickstart: &Quickstart, taken: &str) -> String {
    let port = quickstart.port.to_string();
    let mut command = quickstart.command(&["quickstart", "--port", &port]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut printed = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut printed).unwrap();
    if !printed.is_empty() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "without {taken} it serves");
    String::from_utf8(output.stderr).unwrap()
}
