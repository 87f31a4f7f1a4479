//! A pool whose root of trust is missing or wrong stays sealed, says so, and is as it was once the root is back.

#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::Quickstart;
use std::fs;
use std::time::Duration;

const CREATE: &str = r#"{"kty":"EC-HSM","crv":"P-256"}"#;

fn with_a_key(more: &[&str]) -> Quickstart {
    let mut quickstart = Quickstart::new();
    quickstart.start(more);
    let created = quickstart.call("POST", "/keys/kept/create", CREATE);
    assert_eq!(created.status, 200, "{}", created.body);
    quickstart.kill();
    quickstart
}

/// Any request at all, from whoever: nothing can be authenticated.
fn refused(quickstart: &Quickstart) {
    for line in ["GET /keys/kept", "POST /keys/kept/create", "GET /healthstatus", "GET /"] {
        let request = format!("{line}?api-version=7.4 HTTP/1.1\r\nHost: demo.managedhsm.localhost");
        let answer = quickstart.request(quickstart.port, &request, "");
        assert_eq!(answer.status, 503, "{line}");
        assert!(answer.head.to_lowercase().contains("retry-after:"), "{}", answer.head);
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["error"]["innererror"]["code"], "HsmSealed");
        assert!(!answer.body.contains(quickstart.data().to_str().unwrap()), "a path for everybody to read");
    }
}

fn opens_by_itself(quickstart: &Quickstart) {
    for _ in 0..1_200 {
        std::thread::sleep(Duration::from_millis(100));
        // The issuer is there again with the pool.
        if std::net::TcpStream::connect(("127.0.0.1", quickstart.port + 3)).is_ok() {
            assert_eq!(quickstart.call("GET", "/keys/kept", "").status, 200);
            return;
        }
    }
    panic!("the pool stayed sealed");
}

#[test]
fn a_key_file_that_is_missing_or_another_is_asked_for_and_never_made_anew() {
    let mut quickstart = with_a_key(&[]);
    let root = quickstart.data().join("root/root.key");
    let kept = fs::read(&root).unwrap();
    let sealed = fs::read(quickstart.data().join("pool/domain.sealed")).unwrap();
    for wrong in [None, Some([0; 32].as_slice()), Some(b"short")] {
        match wrong {
            None => fs::remove_file(&root).unwrap(),
            Some(content) => fs::write(&root, content).unwrap(),
        }
        let said = quickstart.start_sealed(&[]);
        assert!(said.contains("root.key") && said.contains("put"), "{said}");
        refused(&quickstart);
        assert_eq!(root.exists(), wrong.is_some(), "made anew");
        assert_eq!(fs::read(quickstart.data().join("pool/domain.sealed")).unwrap(), sealed);
        fs::write(&root, &kept).unwrap();
        opens_by_itself(&quickstart);
        quickstart.kill();
    }
}

#[test]
fn a_credential_leaves_no_key_on_the_machine_and_is_needed_at_each_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, passphrase: &str| {
        let path = directory.path().join(name);
        fs::write(&path, passphrase).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let right = file("right", "correct horse battery\n");
    let wrong = file("wrong", "correct horse batterx\n");
    let mut quickstart = with_a_key(&["--root-credential", &right]);
    assert!(!quickstart.data().join("root/root.key").exists());
    for (more, told) in [
        (["--root-credential", &wrong].as_slice(), "passphrase that it was sealed under"),
        (&[], "start with --root-credential"),
    ] {
        let said = quickstart.start_sealed(more);
        assert!(said.contains(told), "{said}");
        refused(&quickstart);
        quickstart.kill();
        assert!(!quickstart.data().join("root/root.key").exists(), "a root was made for what is sealed");
    }
    quickstart.start(&["--root-credential", &right]);
    assert_eq!(quickstart.call("GET", "/keys/kept", "").status, 200);
    let doctor = String::from_utf8(quickstart.run(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("a credential, handed over at each start"), "{doctor}");
}

/// One that a quickstart was sealed with a file under, and the other way round: said before anything is written.
#[test]
fn a_credential_for_a_pool_of_a_key_file_is_refused_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("passphrase");
    fs::write(&path, "correct horse battery").unwrap();
    let mut quickstart = with_a_key(&[]);
    let said = quickstart.start_sealed(&["--root-credential", path.to_str().unwrap()]);
    assert!(said.contains("start without --root-credential"), "{said}");
    quickstart.kill();
    fs::write(&path, "short").unwrap();
    let output = quickstart.run(&["quickstart", "--root-credential", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    quickstart.start(&[]);
    assert_eq!(quickstart.call("GET", "/keys/kept", "").status, 200);
}
