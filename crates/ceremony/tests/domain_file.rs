//! Security domain files: who can open one, what a change to one does.

#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use ceremony::domain_file::{self, OpenError, UnreadableFile, WriteError};
use ceremony::holders::HoldersRefused;
use ceremony::shares::ShareError;
use ceremony::{DomainFile, LibraryTransport, Thumbprint, fuzz};
use common::{
    assert_is_ours, certificate, description, golden, golden_path, holder, holder_set, holders, keys,
    secrets, writes_golden,
};
use crypto::digest::random;
use crypto::domain_secrets::DomainSecrets;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

const NAME: &str = "security-domain-v1.json";

static FILE: LazyLock<String> = LazyLock::new(|| {
    if writes_golden() && !golden_path(NAME).exists() {
        let set = holder_set(&[1, 2, 3], 2);
        let file = domain_file::write(&description(), &secrets(), &set, &LibraryTransport, &random).unwrap();
        std::fs::write(golden_path(NAME), file).unwrap();
    }
    golden(NAME)
});

fn open(text: &str, numbers: &[usize]) -> Result<(), OpenError> {
    let file = DomainFile::parse(text).unwrap();
    let holders = holders(numbers);
    file.open(&keys(&holders), &random).map(|opened| assert_is_ours(&opened))
}

fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut file: Value = serde_json::from_str(&FILE).unwrap();
    change(&mut file);
    file.to_string()
}

#[test]
fn the_golden_file_opens_with_each_quorum_for_ever() {
    let file = DomainFile::parse(&FILE).unwrap();
    assert_eq!(*file.description(), description());
    assert_eq!((file.quorum().required(), file.quorum().holders()), (2, 3));
    let named: Vec<_> = [1, 2, 3].map(|number| Thumbprint::of(&certificate(number))).into();
    assert_eq!(file.holders().collect::<Vec<_>>(), named);
    for quorum in [[1, 2].as_slice(), &[2, 1], &[1, 3], &[2, 3], &[3, 1, 2]] {
        assert_eq!(open(&FILE, quorum), Ok(()), "{quorum:?}");
        let holders = holders(quorum);
        assert_eq!(file.verify(&keys(&holders), &random), Ok(()));
    }
}

/// Azure PowerShell takes no file without it; our first ones, of which the golden file is one, have none.
#[test]
fn a_file_has_the_version_of_its_frame_or_none() {
    assert!(!FILE.contains("version"));
    let set = holder_set(&[1, 2, 3], 2);
    let file = domain_file::write(&description(), &secrets(), &set, &LibraryTransport, &random).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&file).unwrap()["version"], 2);
    assert_eq!(open(&file, &[1, 2]), Ok(()));
    for other in [1, 3] {
        let refusal = DomainFile::parse(&changed(|file| file["version"] = json!(other))).unwrap_err();
        assert!(refusal.to_string().contains("version is not 2"), "{refusal}");
    }
}

/// The members, and their order, are those of the clients' format.
#[test]
fn a_file_has_the_members_that_clients_read() {
    let file: Value = serde_json::from_str(&FILE).unwrap();
    assert_eq!(file["SharedKeys"]["key_algorithm"], "shamir_share");
    assert_eq!(file["SharedKeys"]["required"], 2);
    assert_eq!(file["EncData"]["kdf"], "sp108_kdf");
    for datum in file["EncData"]["data"].as_array().unwrap() {
        assert!(datum["tag"].is_string() && datum["compact_jwe"].as_str().unwrap().contains(".."));
    }
    assert_eq!(file["holdfast"]["format"], 1);
    assert_eq!(file["holdfast"]["genesis_sha256"], "ab".repeat(32));
}

#[test]
fn less_than_a_quorum_opens_nothing() {
    for number in 1..=3 {
        assert_eq!(open(&FILE, &[number]), Err(OpenError::TooFewKeys { given: 1, required: 2 }));
    }
    assert_eq!(open(&FILE, &[]), Err(OpenError::TooFewKeys { given: 0, required: 2 }));
    let first = Thumbprint::of(&certificate(1));
    assert_eq!(open(&FILE, &[1, 1]), Err(OpenError::SameKey { holder: first }));
    let fourth = Thumbprint::of(&certificate(4));
    assert_eq!(open(&FILE, &[1, 4]), Err(OpenError::NotAHolder { holder: fourth }));
    // A file for three of three does not open with two, whatever it is made to say.
    let set = holder_set(&[1, 2, 3], 3);
    let file = domain_file::write(&description(), &secrets(), &set, &LibraryTransport, &random).unwrap();
    assert_eq!(open(&file, &[1, 2]), Err(OpenError::TooFewKeys { given: 2, required: 3 }));
    let lowered = file.replace(r#""required":3"#, r#""required":2"#);
    assert!(matches!(open(&lowered, &[1, 2]), Err(OpenError::NotAuthentic | OpenError::Shares(_))));
    assert_eq!(open(&file, &[1, 2, 3]), Ok(()));
}

#[test]
fn whoever_edits_the_file_is_found_out_by_whoever_opens_it() {
    let holdfast = |member: &'static str, value: Value| changed(|file| file["holdfast"][member] = value);
    let guid = "09090909-0909-0909-0909-090909090909";
    for edited in [
        holdfast("pool", json!(guid)),
        holdfast("pool_name", json!("payrolls")),
        holdfast("security_domain", json!(guid)),
        holdfast("class", json!("test")),
        holdfast("genesis_sha256", json!("ac".repeat(32))),
        holdfast("owner_sha256", json!("ac".repeat(32))),
        // One holder less than sealed; the others go on to open.
        changed(|file| {
            file["SharedKeys"]["enc_shares"][2]["x5t_256"] = json!(Thumbprint([7; 32]).to_string())
        }),
        // A quorum that is higher than sealed.
        changed(|file| file["SharedKeys"]["required"] = json!(3)),
    ] {
        let quorum: &[usize] = if edited.contains(r#""required":3"#) { &[1, 2, 3] } else { &[1, 2] };
        assert_eq!(open(&edited, quorum), Err(OpenError::Changed), "{edited}");
    }
    let swapped_shares = changed(|file| {
        let shares = &mut file["SharedKeys"]["enc_shares"];
        let (one, two) = (shares[0]["enc_key"].clone(), shares[1]["enc_key"].clone());
        (shares[0]["enc_key"], shares[1]["enc_key"]) = (two, one);
    });
    let first = Thumbprint::of(&certificate(1));
    assert_eq!(open(&swapped_shares, &[1, 2]), Err(OpenError::ShareNotOpened { holder: first }));
    let swapped_data = changed(|file| {
        let data = &mut file["EncData"]["data"];
        let (one, two) = (data[0]["compact_jwe"].clone(), data[1]["compact_jwe"].clone());
        (data[0]["compact_jwe"], data[1]["compact_jwe"]) = (two, one);
    });
    assert_eq!(open(&swapped_data, &[1, 2]), Err(OpenError::NotAuthentic));
    // What means nothing may change.
    let reordered = changed(|file| file["SharedKeys"]["enc_shares"].as_array_mut().unwrap().reverse());
    assert_eq!(open(&reordered, &[1, 2]), Ok(()));
    let more = changed(|file| file["more"] = json!({"a": [1]}));
    assert_eq!(open(&more, &[1, 2]), Ok(()));
}

#[test]
fn files_that_cannot_be_meant_are_refused_with_the_reason() {
    let refused = |text: &str| DomainFile::parse(text).unwrap_err();
    let holders = |text: &str| match refused(text) {
        UnreadableFile::Holders(error) => error,
        other => panic!("{other}"),
    };
    let required = |value: u64| changed(|file| file["SharedKeys"]["required"] = json!(value));
    assert_eq!(holders(&required(1)), HoldersRefused::Required { required: 1 });
    assert_eq!(holders(&required(4)), HoldersRefused::MoreThanHolders { required: 4, holders: 3 });
    let fewer = changed(|file| drop(file["SharedKeys"]["enc_shares"].as_array_mut().unwrap().pop()));
    assert_eq!(holders(&fewer), HoldersRefused::Holders { holders: 2 });
    for (text, said) in [
        (changed(|file| file["holdfast"]["format"] = json!(2)), "format 2"),
        (changed(|file| file["holdfast"]["class"] = json!("other")), "class"),
        (changed(|file| file["SharedKeys"]["key_algorithm"] = json!("xor")), "key_algorithm"),
        (changed(|file| file["EncData"]["kdf"] = json!("other")), "data"),
        (changed(|file| file["EncData"]["data"][0]["tag"] = json!("SD.Other")), "data"),
        (changed(|file| drop(file.as_object_mut().unwrap().remove("holdfast"))), "holdfast"),
        (
            changed(|file| {
                let shares = &mut file["SharedKeys"]["enc_shares"];
                shares[1]["x5t_256"] = shares[0]["x5t_256"].clone();
            }),
            "two shares",
        ),
        (FILE.replace(r#""required":2"#, r#""required":2,"required":2"#), "twice"),
        (format!("{}{}", *FILE, " ".repeat(domain_file::MAX_FILE_BYTES)), "longer than"),
    ] {
        let error = refused(&text).to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// Characters from all over the file, and each one that says something in the clear.
#[test]
fn a_changed_character_is_never_taken_for_another_domain() {
    let holders = holders(&[1, 2]);
    let clear = FILE.find(r#""holdfast""#).unwrap();
    for (index, character) in FILE.char_indices().filter(|(index, _)| *index >= clear || index % 31 == 0) {
        let mut text = FILE.clone();
        text.replace_range(index..=index, if character == '1' { "2" } else { "1" });
        let Ok(file) = DomainFile::parse(&text) else { continue };
        if let Ok(opened) = file.open(&keys(&holders), &random) {
            // Only in the share of a holder who was not asked.
            assert!(file.holders().count() == 3 && text.find("holdfast\"").unwrap() > index, "index {index}");
            assert_is_ours(&opened);
        }
    }
}

#[test]
fn a_new_file_is_for_its_new_holders_and_the_old_one_stays_what_it_was() {
    let file = DomainFile::parse(&FILE).unwrap();
    let old = holders(&[1, 2]);
    let opened = file.open(&keys(&old), &random).unwrap();
    let rekeyed = opened.rekey(&holder_set(&[2, 3, 4], 3), &LibraryTransport, &random).unwrap();
    assert_eq!(open(&rekeyed, &[4, 3, 2]), Ok(()));
    assert_eq!(open(&rekeyed, &[2, 3]), Err(OpenError::TooFewKeys { given: 2, required: 3 }));
    let first = Thumbprint::of(&certificate(1));
    assert_eq!(open(&rekeyed, &[1, 2, 3]), Err(OpenError::NotAHolder { holder: first }));
    assert_eq!(open(&FILE, &[1, 2]), Ok(()));
    // A share of the old file is of no use in the new one.
    let mut mixed: Value = serde_json::from_str(&rekeyed).unwrap();
    let old: Value = serde_json::from_str(&FILE).unwrap();
    mixed["SharedKeys"]["enc_shares"][0]["enc_key"] = old["SharedKeys"]["enc_shares"][1]["enc_key"].clone();
    let error = open(&mixed.to_string(), &[2, 3, 4]).unwrap_err();
    let expected = [
        OpenError::NotAuthentic,
        OpenError::Shares(ShareError::SamePlace),
        OpenError::Shares(ShareError::Inconsistent),
    ];
    assert!(expected.contains(&error), "{error}");
}

#[test]
fn a_description_of_other_secrets_is_not_written() {
    let set = holder_set(&[1, 2, 3], 2);
    let other = DomainSecrets::generate();
    let written = domain_file::write(&description(), &other, &set, &LibraryTransport, &random);
    assert_eq!(written, Err(WriteError::ForeignDescription));
}

#[test]
fn nothing_of_the_secrets_is_legible_in_a_file() {
    let export = secrets().danger_export();
    let name_key = hex::encode(&export.danger_expose()[6..38]);
    assert!(!FILE.contains(&name_key) && !FILE.contains("HFDOM"));
    // Two files of one domain have nothing in common that is not public.
    let set = holder_set(&[1, 2, 3], 2);
    let again = domain_file::write(&description(), &secrets(), &set, &LibraryTransport, &random).unwrap();
    let data = |text: &str| {
        let file: Value = serde_json::from_str(text).unwrap();
        file["EncData"]["data"][0]["compact_jwe"].as_str().unwrap().rsplit('.').nth(1).unwrap()[..40]
            .to_owned()
    };
    assert_ne!(data(&FILE), data(&again));
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let pem = golden("holder-1.key");
    let file = crypto::key_file::KeyFile::read(&crypto::SecretBytes::new(pem.into_bytes())).unwrap();
    let crypto::key_file::KeyFile::Plain(pkcs8) = file else { panic!("encrypted") };
    let key = crypto::transport::TransportKey::from_pkcs8(pkcs8).unwrap();
    assert!(ceremony::LibraryHolder::new(key, &certificate(2)).is_err());
    let _ = holder(1);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let parsers = [
            fuzz::download_request, fuzz::domain_file, fuzz::restore_blob, fuzz::jwe,
            fuzz::share, fuzz::transfer_key, fuzz::certificate, fuzz::key_file,
        ];
        parsers.iter().for_each(|parser| parser(&bytes));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        prop_assert!(DomainFile::parse(&text).is_err());
    }

    #[test]
    fn damaged_files_never_panic(at in 0.0..1.0_f64, bytes in proptest::collection::vec(any::<u8>(), 0..20), cut in 0_usize..40) {
        let mut text = FILE.clone().into_bytes();
        let at = (text.len() as f64 * at) as usize;
        let end = (at + cut).min(text.len());
        text.splice(at..end, bytes);
        fuzz::domain_file(&text);
    }
}
