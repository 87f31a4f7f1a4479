//! A log as it was written when format version 1 landed: it opens and verifies for ever.

mod common;

use audit::verify::{Witness, verify};
use audit::{ReceiptText, open_event};
use common::{GENESIS_HASH, MemoryLog, NODE, POOL, Pool, SECTOR, append, leaf, numbers, sealer};
use crypto::certificate::OwnerPublicKey;
use host_embedded::FileLog;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/audit-log-v1")
}

#[tokio::test]
async fn the_golden_log_verifies_for_ever() {
    let text = |name: &str| std::fs::read_to_string(golden().join(name)).unwrap();
    let owner = OwnerPublicKey::from_pem(&text("owner.pem")).unwrap();
    let receipt: ReceiptText = text("receipt.txt").parse().unwrap();
    let log = FileLog::open_read_only(golden()).unwrap();
    let report = verify(&log, &owner, Some(GENESIS_HASH), &[Witness::Receipt(receipt)]).await.unwrap();
    assert_eq!(report.failures, []);
    assert_eq!((report.pool, report.node), (Some(POOL), Some(NODE)));
    assert_eq!((report.segments, report.groups, report.events, report.torn_bytes), (2, 6, 8, 0));
    assert_eq!(report.incarnations.len(), 2);
    assert_eq!(report.to_string(), "complete up to 8 events, witnessed by 1 receipt up to 8");
    let root: String = report.root.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(root, text("root.txt").trim());
}

/// The audit key of the golden log is 32 bytes 0x09.
#[tokio::test]
async fn the_golden_logs_events_open() {
    let segment = |name: &str| (std::fs::read(golden().join(name)).unwrap(), 0);
    let log = MemoryLog::of(vec![segment("segment-00000000.log"), segment("segment-00000001.log")]);
    let owner =
        OwnerPublicKey::from_pem(&std::fs::read_to_string(golden().join("owner.pem")).unwrap()).unwrap();
    assert_eq!(verify(&log, &owner, None, &[]).await.unwrap().complete_to, 8);
    let mut opened = 0u16;
    for (bytes, _) in &log.memory().segments {
        // Leaves are where their version, id and epoch are; the reader that a tool would write from the format's page.
        for at in 0..bytes.len() - 25 {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let Some(candidate) = bytes.get(at + 4..at + 4 + length) else { continue };
            if let Ok(leaf) = audit::Leaf::from_bytes(candidate.to_vec())
                && let Ok(event) = open_event(&leaf, &sealer())
            {
                assert_eq!(event.detail, format!("event {opened}"));
                opened += 1;
            }
        }
    }
    assert_eq!(opened, 8);
}

#[tokio::test]
#[ignore = "writes another golden log; the committed one stays"]
async fn write_golden_log() {
    let pool = Pool::with_segments_of(3_500);
    let log = MemoryLog::default();
    let first = pool.open(&log, None).await.unwrap().log;
    append(&first, 0..3).await;
    first.close().await;
    let second = pool.open(&log, None).await.unwrap().log;
    let together: Vec<_> = (3..6).map(|number| second.enqueue(leaf(number)).unwrap()).collect();
    for pending in together {
        pending.await.unwrap();
    }
    append(&second, 6..7).await;
    let receipt = second.append(leaf(7)).await.unwrap();
    assert_eq!(numbers(&second).await, (0..8).collect::<Vec<_>>());
    std::fs::create_dir_all(golden()).unwrap();
    for (number, (bytes, written)) in log.memory().segments.iter().enumerate() {
        let name = format!("segment-{number:08}.log");
        std::fs::write(golden().join(name), &bytes[..written + SECTOR]).unwrap();
    }
    let root: String = receipt.root().iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(golden().join("root.txt"), format!("{root}\n")).unwrap();
    std::fs::write(golden().join("receipt.txt"), format!("{}\n", receipt.header_value(true))).unwrap();
    std::fs::write(golden().join("owner.pem"), pool.secrets.owner_key().public_key().to_pem()).unwrap();
}
