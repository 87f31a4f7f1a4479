//! `holdfast quickstart` and its companions, through the command line.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use common::{ISSUER_OFFSET, MANAGED_IDENTITY_OFFSET, PROXY_OFFSET, Quickstart, mode};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

/// Whatever moment the first start ends at, the next one goes on from there, and the one after finds all as it was.
#[test]
fn a_first_start_killed_at_any_moment_is_resumed() {
    const STEPS: u32 = 5;
    let mut whole = Quickstart::new();
    let began = Instant::now();
    whole.start(&[]);
    let takes = began.elapsed();
    whole.kill();
    for step in 1..=STEPS {
        let mut quickstart = Quickstart::new();
        // Twice, as the second try starts from other remains than the first.
        quickstart.start_and_kill(takes * step / STEPS);
        quickstart.start_and_kill(takes * (STEPS + 1 - step) / STEPS);
        quickstart.start(&[]);
        let created = quickstart.call("POST", "/keys/first/create", r#"{"kty":"EC-HSM","crv":"P-256"}"#);
        assert_eq!(created.status, 200, "killed at step {step}: {}", created.body);
        let variables = quickstart.variables();
        quickstart.kill();
        quickstart.start(&[]);
        assert_eq!(quickstart.variables(), variables, "killed at step {step}");
        assert_eq!(quickstart.call("GET", "/keys/first", "").status, 200, "killed at step {step}");
        quickstart.run_well(&["audit", "verify"]);
    }
}

#[test]
fn everything_is_private_and_nothing_half_written_stays() {
    let quickstart = Quickstart::started();
    // From then on it writes nothing that it was not asked for.
    quickstart.wait_for_holders();
    let mut files = BTreeMap::new();
    walk(&quickstart.data(), &mut files);
    assert!(files.keys().any(|path| path.ends_with("root/root.key")));
    // Where root gives the gateway a user, its group may pass through to the sockets that are for it.
    let run = quickstart.data().join("run");
    let has_user = quickstart.data().join("users.json").exists();
    for (path, is_directory) in &files {
        let is_gateways =
            path.extension().is_some_and(|extension| extension == "sock" || extension == "priv")
                && path.parent() == Some(&run)
                && !path.ends_with("admin.sock");
        let expected = match (is_directory, has_user) {
            (true, true) if *path == run => 0o710,
            (true, _) => 0o700,
            (false, true) if is_gateways => 0o660,
            (false, _) => 0o600,
        };
        assert_eq!(mode(path), expected, "{}", path.display());
        assert!(path.extension().is_none_or(|extension| extension != "new"), "{}", path.display());
    }
    // The TLS keys are in no file: private keys are the CA's, the holders', that of `app`, and the issuer's in its state.
    let with_key = |path: &PathBuf| {
        std::fs::read(path).is_ok_and(|content| content.windows(11).any(|window| window == b"PRIVATE KEY"))
    };
    let holders: Vec<_> = files.keys().filter(|path| with_key(path)).collect();
    let holders_keys = ["ceremony/holder-1.key", "ceremony/holder-2.key", "ceremony/holder-3.key"];
    let expected =
        [&["ca/ca.key"][..], &holders_keys, &["identity/app.pem", "identity/issuer.json"]].concat();
    let expected: Vec<_> = expected.iter().map(|path| quickstart.data().join(path)).collect();
    assert_eq!(holders, expected.iter().collect::<Vec<_>>());
}

fn walk(path: &Path, found: &mut BTreeMap<PathBuf, bool>) {
    found.insert(path.to_owned(), path.is_dir());
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), found));
    }
}

#[test]
fn a_port_in_use_is_named_with_its_listener_and_the_way_out() {
    let mut quickstart = Quickstart::new();
    let port = quickstart.port;
    let port_text = port.to_string();
    for (address, taken, whose) in [
        ("127.0.0.1", port, "the pool"),
        ("127.0.0.1", port + ISSUER_OFFSET, "the issuer"),
        ("127.0.0.1", port + PROXY_OFFSET, "the CONNECT proxy"),
        ("127.0.0.1", port + MANAGED_IDENTITY_OFFSET, "managed identity"),
        // Who asks for `localhost` may ask here.
        ("::1", port, "the pool"),
    ] {
        let Ok(_holder) = TcpListener::bind((address, taken)) else {
            assert_eq!(address, "::1", "a machine without IPv6");
            continue;
        };
        for more in [&[][..], &["--detach"]] {
            let words = [&["quickstart", "--port", &port_text], more].concat();
            let output = quickstart.run(&words);
            assert_eq!(output.status.code(), Some(1));
            let errors = String::from_utf8(output.stderr).unwrap();
            assert!(errors.contains(&format!("port {taken} for {whose} is in use")), "{errors}");
            assert!(errors.contains("--port N"), "{errors}");
            assert!(output.stdout.is_empty());
        }
    }
    quickstart.start(&[]);
}

#[test]
fn a_second_one_is_refused_and_does_the_first_no_harm() {
    let quickstart = Quickstart::new();
    let port = quickstart.port.to_string();
    quickstart.run_well(&["quickstart", "--detach", "--port", &port]);
    let pid = std::fs::read_to_string(quickstart.data().join("run/holdfast.pid")).unwrap();
    for more in [&[][..], &["--detach"]] {
        let output = quickstart.run(&[&["quickstart", "--port", "19000"], more].concat());
        assert_eq!(output.status.code(), Some(1));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            errors.contains(&format!("pid {}", pid.trim())) && errors.contains("holdfast stop"),
            "{errors}"
        );
    }
    assert_eq!(quickstart.call("GET", "/keys/none", "").status, 404);
    // Its settings are as they were, and it can be stopped.
    assert!(quickstart.run_well(&["env"]).contains(&format!("demo.managedhsm.localhost:{port}'")));
    assert!(quickstart.run_well(&["stop"]).contains(pid.trim()));
    let again = quickstart.run(&["stop"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("nothing serves"));
}

#[test]
fn in_the_background_it_says_the_same_and_logs_to_its_file() {
    let quickstart = Quickstart::new();
    let port = quickstart.port.to_string();
    let mut command = quickstart.command(&["quickstart", "--detach", "--port", &port]);
    // Were any of our pipes still open in the background, this would wait for ever.
    let output = command.env("HOLDFAST_LOG", "info").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("Holdfast serves a pool"), "{text}");
    let log = quickstart.data().join("run/holdfast.log");
    assert!(text.contains(log.to_str().unwrap()), "{text}");
    assert_eq!(mode(&log), 0o600);
    quickstart.run_well(&["stop"]);
}

#[test]
fn the_conformance_principal_may_come_later() {
    let mut quickstart = Quickstart::started();
    let output = quickstart.run(&["env", "--conformance"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("--with-conformance-principal"), "{errors}");
    let before = quickstart.variables();
    quickstart.kill();
    quickstart.start(&["--with-conformance-principal"]);
    assert_eq!(quickstart.variables(), before, "the other principals stay");
    let conformance = quickstart.run_well(&["env", "--conformance"]);
    assert!(!conformance.contains(&format!("export CLIENT_ID='{}'", before["CLIENT_ID"])));
}

/// A reader that has seen enough is no error, and no panic.
#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let quickstart = Quickstart::started();
    for words in [&["env"][..], &["audit", "show"], &["quickstart", "--hosts"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = quickstart.command(words).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{words:?}: {errors}");
    }
}

#[test]
fn the_log_is_shown_by_the_running_pool_and_verified_without_it() {
    let mut quickstart = Quickstart::started();
    // They leave an event.
    quickstart.wait_for_holders();
    let created = quickstart.call("POST", "/keys/shown/create", r#"{"kty":"EC-HSM","crv":"P-256"}"#);
    assert_eq!(created.status, 200, "{}", created.body);
    let lines = quickstart.run_well(&["audit", "show"]);
    let line = lines.lines().find(|line| line.contains("KeyCreate")).expect("no line for the key");
    assert!(line.contains("shown") && line.contains(" 200 "), "{line}");
    let json: serde_json::Value =
        serde_json::from_str(&quickstart.run_well(&["audit", "show", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), lines.lines().count());
    let last = lines.lines().count() - 1;
    assert_eq!(quickstart.run_well(&["audit", "show", "--from", &last.to_string()]).lines().count(), 1);

    // What happens later comes to whoever follows.
    let mut follower = quickstart
        .command(&["audit", "show", "--follow", "--from", &(last + 1).to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(quickstart.call("GET", "/keys/shown", "").status, 200);
    let mut reader = std::io::BufReader::new(follower.stdout.take().unwrap());
    let mut followed = String::new();
    std::io::BufRead::read_line(&mut reader, &mut followed).unwrap();
    assert!(followed.contains("KeyGet"), "{followed}");
    follower.kill().unwrap();
    follower.wait().unwrap();

    quickstart.kill();
    let report = quickstart.run_well(&["audit", "verify"]);
    assert!(report.contains("owner key") && report.contains("verified"), "{report}");
    // Another owner's key does not verify it, and the exit code says so to whoever reads no text.
    let other = Quickstart::started();
    let key = other.data().join("pool/owner.pem");
    let output = quickstart.run(&["audit", "verify", "--owner-key", key.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let output = quickstart.run(&["audit", "show"]);
    assert_eq!(output.status.code(), Some(1));
}
