//! What a disk hands back: records, genesis, sealed files, certificates, the audit log.

use crate::memory::MemoryLog;
use audit::event::Event;
use audit::verify::verify;
use audit::{Leaf, ReceiptText, fuzzing as log};
use crypto::SecretBytes;
use crypto::attestation::{AttestationChain, SignedStatement};
use crypto::certificate::{InstancePublicKey, OwnerPublicKey};
use crypto::domain_secrets::DomainSecrets;
use crypto::record::{RecordPlace, WrappedDataKey};
use domain::guid::Guid;
use domain::pool::PoolClass;
use seal::{FILE_ROOT_BYTES, FileRoot, Root};
use std::sync::LazyLock;
use storage::{SignedGenesis, fuzzing as store};

macro_rules! golden {
    ($path:literal) => {
        include_bytes!(concat!("../../../crates/", $path))
    };
}

static SECRETS: LazyLock<DomainSecrets> = LazyLock::new(|| {
    let golden = golden!("crypto/tests/golden/domain-secrets-v1.bin");
    DomainSecrets::import(&SecretBytes::new(golden.to_vec())).unwrap()
});

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// A single-key backup, as far as it is read before it opens.
pub fn key_backup(bytes: &[u8]) {
    storage::fuzz::key_backup(bytes);
}

/// What is inside one that opens.
pub fn key_backup_content(bytes: &[u8]) {
    storage::fuzz::key_backup_content(bytes);
}

/// DER. Under one owner's key exactly one known certificate is good, to the byte.
pub fn certificate(bytes: &[u8]) {
    const GOLDEN: &[u8] = golden!("crypto/tests/golden/instance-certificate-v1.der");
    static OWNER: LazyLock<OwnerPublicKey> = LazyLock::new(|| {
        OwnerPublicKey::from_pem(include_str!("../../../crates/crypto/tests/golden/owner-v1.pem")).unwrap()
    });
    assert_eq!(OWNER.verify_certificate(bytes).is_ok(), bytes == GOLDEN);
}

/// An owner's public key as PEM, which people hand over.
pub fn owner_pem(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(owner) = OwnerPublicKey::from_pem(text) else { return };
    assert_eq!(OwnerPublicKey::from_pem(&owner.to_pem()).as_ref(), Ok(&owner));
    assert!(!owner.verify_genesis(b"message", &[7; 96]));
}

/// The first byte chooses the kind. What is read is written in one form, which is read as the same.
pub fn record(bytes: &[u8]) {
    let Some((first, content)) = bytes.split_first() else { return };
    let kind = store::KINDS[usize::from(*first) % store::KINDS.len()];
    let Some((record, written)) = store::record(kind, content) else { return };
    let (again, rewritten) = store::record(kind, &written).expect("what was written is read");
    assert_eq!(again, record);
    assert_eq!(rewritten, written);
}

pub fn pool_state(bytes: &[u8]) {
    let Some(written) = store::pool_state(bytes) else { return };
    assert_eq!(store::pool_state(&written).as_ref(), Some(&written));
}

/// The signed record. Under one owner's key exactly the known records are good, to the byte.
pub fn genesis(bytes: &[u8]) {
    const GOLDEN: [&[u8]; 2] = [
        golden!("storage/tests/golden/genesis-v1.cbor"),
        golden!("storage/tests/golden/genesis-v1-key-source.cbor"),
    ];
    let read = SignedGenesis::read(bytes, &SECRETS.owner_key().public_key());
    assert_eq!(read.is_ok(), GOLDEN.contains(&bytes));
}

/// What stands behind the signature.
pub fn genesis_content(bytes: &[u8]) {
    let Some(written) = store::genesis_content(bytes) else { return };
    assert_eq!(store::genesis_content(&written).as_ref(), Some(&written));
}

/// A sealed record's header, the record itself, and a wrapped data key: without the key, nothing opens.
pub fn sealed_record(bytes: &[u8]) {
    let (pool, security_domain, class) = (Guid([1; 16]), Guid([2; 16]), PoolClass::Test);
    static KEY: LazyLock<crypto::record::DataKey> =
        LazyLock::new(|| DomainSecrets::generate().new_data_key(Guid([1; 16]), PoolClass::Test, 1).0);
    if let Ok(header) = crypto::record::header(bytes) {
        let place = RecordPlace {
            pool,
            security_domain,
            class,
            kind: header.kind,
            name_mac: &[7; 32],
            record_version: header.record_version,
        };
        assert!(KEY.open(&place, bytes).is_err());
    }
    let wrapped = WrappedDataKey(bytes.to_vec());
    let golden = golden!("crypto/tests/golden/wrapped-data-key-v1.bin");
    assert!(SECRETS.unwrap_data_key(pool, class, 1, &wrapped).is_err() || bytes == golden);
}

/// A sealed file of the file root. Exactly one known file opens, to the byte.
pub fn sealed_file(bytes: &[u8]) {
    const GOLDEN: &[u8] = golden!("seal/tests/golden/sealed-file-v1.bin");
    let root = FileRoot::new(SecretBytes::new(vec![8; FILE_ROOT_BYTES])).unwrap();
    assert_eq!(root.open(Guid([5; 16]), bytes).is_ok(), bytes == GOLDEN);
}

/// A security domain's secrets, once their seal is open.
pub fn domain_secrets(bytes: &[u8]) {
    let Ok(secrets) = DomainSecrets::import(&SecretBytes::new(bytes.to_vec())) else { return };
    assert_eq!(secrets.danger_export().danger_expose(), bytes);
}

/// The first segment of a log, before the golden log's second. Only the golden log verifies up to its end.
pub fn audit_segment(bytes: &[u8]) {
    const FIRST: &[u8] = golden!("audit/tests/golden/audit-log-v1/segment-00000000.log");
    const SECOND: &[u8] = golden!("audit/tests/golden/audit-log-v1/segment-00000001.log");
    const EVENTS: u64 = 8;
    static OWNER: LazyLock<OwnerPublicKey> = LazyLock::new(|| {
        let pem = include_str!("../../../crates/audit/tests/golden/audit-log-v1/owner.pem");
        OwnerPublicKey::from_pem(pem).unwrap()
    });
    block_on(async {
        log::frames(&MemoryLog::of(&[bytes])).await;
        let report = verify(&MemoryLog::of(&[bytes, SECOND]), &OWNER, None, &[]).await.unwrap();
        if report.failures.is_empty() {
            assert_eq!(report.complete_to, EVENTS, "{report}");
            // Zeros behind the last frame may be more or fewer: space that is not written yet.
            let trim = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0);
            assert_eq!(trim(bytes), trim(FIRST));
        }
    });
}

/// A segment's header and a group, as they stand in a frame: fixed fields, so that what is read is written the same.
pub fn audit_body(bytes: &[u8]) {
    const HEADER_BYTES: usize = 48;
    for frame in [log::header(bytes), log::group(bytes)].into_iter().flatten() {
        assert_eq!(frame.get(HEADER_BYTES..HEADER_BYTES + bytes.len()), Some(bytes));
    }
}

/// A leaf, and an event once its seal is open.
pub fn audit_event(bytes: &[u8]) {
    if let Ok(leaf) = Leaf::from_bytes(bytes.to_vec()) {
        assert_eq!(leaf.as_bytes(), bytes);
        let _ = leaf.event_id();
    }
    let Ok(event) = Event::decode(bytes) else { return };
    let json = event.to_azure_json(u64::MAX);
    assert!(json["operationName"].is_string(), "{json}");
    // Text over the limits is cut when it is written; what was cut stays as it is.
    let written = event.encode();
    let again = Event::decode(&written).expect("what was written is read");
    assert_eq!(again.encode(), written);
}

/// A receipt that somebody kept.
pub fn receipt(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(receipt) = text.parse::<ReceiptText>() else { return };
    assert!(receipt.checkpoint.is_none_or(|checkpoint| receipt.index < checkpoint.size));
}

/// A statement of key attestation, which a verifier gets from anybody. Under one key exactly the known ones are good, to the
/// byte.
pub fn key_statement(bytes: &[u8]) {
    const GOLDEN: [&[u8]; 2] = [
        golden!("crypto/tests/golden/key-attestation-v1-private.cbor"),
        golden!("crypto/tests/golden/key-attestation-v1-public.cbor"),
    ];
    static KEY: LazyLock<InstancePublicKey> = LazyLock::new(|| {
        let chain = include_str!("../../../crates/crypto/tests/golden/key-attestation-v1.pem");
        let chain = AttestationChain::parse(chain).unwrap();
        chain.owner.unwrap().verify_certificate(&chain.instance).unwrap().1
    });
    let good = SignedStatement::parse(bytes).is_ok_and(|signed| signed.is_signed_by(&KEY));
    assert_eq!(good, GOLDEN.contains(&bytes));
}

/// The certificates that come with it. An owner's certificate is good for the key that signed it alone.
pub fn attestation_chain(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(chain) = AttestationChain::parse(text) else { return };
    if let Some(owner) = chain.owner {
        assert!(!owner.verify_genesis(b"message", &[7; 96]));
        assert_eq!(OwnerPublicKey::from_pem(&owner.to_pem()).as_ref(), Ok(&owner));
    }
}
