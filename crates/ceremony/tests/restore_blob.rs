//! Restore blobs and the keys they are made for.

#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use ceremony::restore_blob::{self, BlobNotOpened};
use ceremony::transfer_key::{self, TransferKeyError};
use ceremony::{DomainFile, KeyHolder, LibraryTransport, RestoreBlob, Thumbprint, TransferKey, fuzz};
use common::{
    assert_is_ours, certificate, golden, golden_path, holder, holders, keys, new_transfer_key, transfer_key,
    writes_golden,
};
use crypto::SecretBytes;
use crypto::digest::random;
use crypto::transport::TransportCertificate;
use domain::guid::Guid;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

const BLOB_NAME: &str = "restore-blob-v1.json";
const KEY_NAME: &str = "transfer-key-v1.bin";

static BLOB: LazyLock<String> = LazyLock::new(|| {
    if writes_golden() && !golden_path(KEY_NAME).exists() {
        std::fs::write(golden_path(KEY_NAME), new_transfer_key().danger_export().danger_expose()).unwrap();
    }
    if writes_golden() && !golden_path(BLOB_NAME).exists() {
        std::fs::write(golden_path(BLOB_NAME), build(transfer_key().certificate())).unwrap();
    }
    golden(BLOB_NAME)
});

fn build(exchange: &TransportCertificate) -> String {
    let holders = holders(&[1, 3]);
    let file = DomainFile::parse(&golden("security-domain-v1.json")).unwrap();
    let opened = file.open(&keys(&holders), &random).unwrap();
    restore_blob::build(&opened, exchange, &LibraryTransport, &random).unwrap()
}

fn open(text: &str, key: &dyn KeyHolder) -> Result<(), BlobNotOpened> {
    RestoreBlob::parse(text).unwrap().open(key, &random).map(|opened| {
        assert_is_ours(&opened);
        let sealed = [1, 2, 3].map(|number| Thumbprint::of(&certificate(number)));
        assert_eq!((opened.holders.as_slice(), opened.required), (sealed.as_slice(), 2));
    })
}

fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut blob: Value = serde_json::from_str(&BLOB).unwrap();
    change(&mut blob);
    blob.to_string()
}

#[test]
fn the_golden_blob_opens_with_its_exchange_key_for_ever() {
    assert_eq!(open(&BLOB, &transfer_key()), Ok(()));
    assert_eq!(RestoreBlob::parse(&BLOB).unwrap().recipient(), transfer_key().thumbprint());
    // As the Azure CLI spaces it.
    let spaced = BLOB.replace("\":", "\": ").replace(",\"", ", \"");
    assert_eq!(open(&spaced, &transfer_key()), Ok(()));
}

/// Made by `az keyvault security-domain restore-blob` of azure-cli 2.91 from the golden file, for the golden key.
#[test]
fn a_blob_of_the_azure_cli_opens() {
    assert_eq!(open(&golden("restore-blob-azure-cli.json"), &transfer_key()), Ok(()));
}

#[test]
fn a_blob_opens_with_no_other_key_and_not_in_part() {
    assert_eq!(open(&BLOB, &holder(1)), Err(BlobNotOpened));
    let redirected =
        changed(|blob| blob["WrappedKey"]["x5t_256"] = json!(Thumbprint::of(&certificate(1)).to_string()));
    assert_eq!(open(&redirected, &holder(1)), Err(BlobNotOpened));
    assert_eq!(open(&redirected, &transfer_key()), Err(BlobNotOpened));
    let again: Value = serde_json::from_str(&build(transfer_key().certificate())).unwrap();
    for datum in 0..2 {
        let mixed = changed(|blob| blob["EncData"]["data"][datum] = again["EncData"]["data"][datum].clone());
        assert_eq!(open(&mixed, &transfer_key()), Err(BlobNotOpened), "{datum}");
    }
    let other_key = changed(|blob| blob["WrappedKey"] = again["WrappedKey"].clone());
    assert_eq!(open(&other_key, &transfer_key()), Err(BlobNotOpened));
    for fewer in [1, 0] {
        let short = changed(|blob| blob["EncData"]["data"].as_array_mut().unwrap().truncate(fewer));
        assert!(RestoreBlob::parse(&short).is_err());
    }
}

#[test]
fn each_changed_character_is_refused() {
    let key = transfer_key();
    for (index, character) in BLOB.char_indices().step_by(7) {
        let mut text = BLOB.clone();
        text.replace_range(index..=index, if character == 'Q' { "R" } else { "Q" });
        let opened = RestoreBlob::parse(&text).ok().and_then(|blob| blob.open(&key, &random).ok());
        assert!(opened.is_none(), "index {index}");
    }
}

/// Whatever the Azure CLI reads of the answer is there.
#[test]
fn a_transfer_key_answers_as_clients_read_it() {
    let key = transfer_key();
    let response: Value = serde_json::from_str(&key.to_response()).unwrap();
    assert_eq!(response["key_format"], "jwk");
    let jwk: Value = serde_json::from_str(response["transfer_key"].as_str().unwrap()).unwrap();
    let x5c = jwk["x5c"][0].as_str().unwrap();
    let lines: Vec<_> = x5c.as_bytes().chunks(65).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----", lines.join("\n"));
    let read = TransportCertificate::from_file(pem.as_bytes()).unwrap();
    assert_eq!(&read, key.certificate());
    assert_eq!(read.subject(), "CN=Holdfast transfer key of payroll-2");
    assert_eq!(transfer_key::pool_of(&read), Ok(Guid([9; 16])));
    assert_eq!(jwk["x5t#S256"], Thumbprint::of(&read).to_string());
    let members: Vec<&str> = jwk.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["alg", "e", "key_ops", "kid", "kty", "n", "x5c", "x5t", "x5t#S256"]);
    for private in ["d", "p", "q"] {
        assert!(jwk.get(private).is_none());
    }
}

#[test]
fn transfer_keys_survive_export_and_nothing_else_is_read() {
    let bytes = std::fs::read(golden_path(KEY_NAME)).unwrap();
    let key = TransferKey::import(&SecretBytes::new(bytes.clone())).unwrap();
    assert_eq!(key.pool(), Guid([9; 16]));
    assert_eq!(key.danger_export().danger_expose(), bytes);
    for length in 0..bytes.len() {
        assert!(TransferKey::import(&SecretBytes::new(bytes[..length].to_vec())).is_err(), "length {length}");
    }
    let mut newer = bytes.clone();
    newer[5] = 2;
    let refused = TransferKey::import(&SecretBytes::new(newer)).err();
    assert_eq!(refused, Some(TransferKeyError::Malformed));
    // Another key behind the certificate.
    let other = new_transfer_key();
    let der = key.certificate().der();
    let other_key = &other.danger_export();
    let other_key = &other_key.danger_expose()[10 + other.certificate().der().len()..];
    let mixed = [&bytes[..10 + der.len()], other_key].concat();
    assert!(TransferKey::import(&SecretBytes::new(mixed)).is_err());
    assert_eq!(transfer_key::pool_of(&certificate(1)), Err(TransferKeyError::NotATransferKey));
}

proptest! {
    #[test]
    fn arbitrary_input_never_panics(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..100), ours: bool) {
        prop_assert!(RestoreBlob::parse(&text).is_err());
        let bytes = if ours { [b"HFXFR\x01\0\0\0".as_slice(), &bytes].concat() } else { bytes };
        prop_assert!(TransferKey::import(&SecretBytes::new(bytes)).is_err());
    }

    #[test]
    fn damaged_blobs_never_panic(at in 0.0..1.0_f64, bytes in proptest::collection::vec(any::<u8>(), 0..20), cut in 0_usize..40) {
        let mut text = BLOB.clone().into_bytes();
        let at = (text.len() as f64 * at) as usize;
        let end = (at + cut).min(text.len());
        text.splice(at..end, bytes);
        fuzz::restore_blob(&text);
    }
}
