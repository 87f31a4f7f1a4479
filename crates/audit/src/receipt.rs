//! Receipts: what a caller keeps to show later that its event was in the log.

use crate::segment::Checkpoint;
use crate::tree::Hash;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::guid::Guid;
use domain::time::Time;
use std::str::FromStr;
use std::sync::Arc;

/// Proof for a caller that its event is in the log, durably.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// The event's place in the log.
    pub index: u64,
    /// Shared by all events of a group.
    pub(crate) checkpoint: Arc<Checkpoint>,
}

impl Receipt {
    pub fn node(&self) -> Guid {
        self.checkpoint.node
    }

    /// Events in the log once this one and its group were.
    pub fn tree_size(&self) -> u64 {
        self.checkpoint.size
    }

    pub fn root(&self) -> Hash {
        self.checkpoint.root
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Value of `x-holdfast-receipt`: `node=…;index=…`, and in full also the signed checkpoint:
    /// `size`, `root`, `time` (Unix milliseconds), `incarnation`, `signature`; bytes in base64url.
    pub fn header_value(&self, full: bool) -> String {
        let checkpoint = &self.checkpoint;
        let short = format!("node={};index={}", checkpoint.node, self.index);
        if !full {
            return short;
        }
        format!(
            "{short};size={};root={};time={};incarnation={};signature={}",
            checkpoint.size,
            URL_SAFE_NO_PAD.encode(checkpoint.root),
            checkpoint.time.unix_milliseconds(),
            checkpoint.incarnation,
            URL_SAFE_NO_PAD.encode(checkpoint.signature),
        )
    }
}

/// A receipt as someone kept it: [`Receipt::header_value`], short or full.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiptText {
    pub node: Guid,
    pub index: u64,
    pub checkpoint: Option<Checkpoint>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a receipt of this service")]
pub struct MalformedReceipt;

impl FromStr for ReceiptText {
    type Err = MalformedReceipt;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.trim().split(';');
        let mut field = |name: &str| {
            let (found, value) = fields.next()?.split_once('=')?;
            (found == name).then_some(value)
        };
        let number = |text: &str| text.parse().map_err(|_| MalformedReceipt);
        let node = guid(field("node"))?;
        let index = number(field("index").ok_or(MalformedReceipt)?)?;
        let Some(size) = field("size") else {
            // Nothing may follow the short form.
            return if text.matches(';').count() == 1 {
                Ok(Self { node, index, checkpoint: None })
            } else {
                Err(MalformedReceipt)
            };
        };
        let size = number(size)?;
        let root = bytes(field("root"))?;
        let time = field("time").and_then(|time| time.parse().ok()).ok_or(MalformedReceipt)?;
        let time = Time::from_unix_milliseconds(time);
        let incarnation = guid(field("incarnation"))?;
        let signature = bytes(field("signature"))?;
        if fields.next().is_some() || index >= size {
            return Err(MalformedReceipt);
        }
        let checkpoint = Checkpoint { node, incarnation, size, root, time, signature };
        Ok(Self { node, index, checkpoint: Some(checkpoint) })
    }
}

fn guid(text: Option<&str>) -> Result<Guid, MalformedReceipt> {
    text.and_then(|text| text.parse().ok()).ok_or(MalformedReceipt)
}

fn bytes<const N: usize>(text: Option<&str>) -> Result<[u8; N], MalformedReceipt> {
    let decoded = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    decoded.and_then(|decoded| decoded.try_into().ok()).ok_or(MalformedReceipt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receipt() -> Receipt {
        let checkpoint = Checkpoint {
            node: Guid([1; 16]),
            incarnation: Guid([2; 16]),
            size: 12,
            root: [3; 32],
            time: Time::from_unix_milliseconds(1_772_600_767_089),
            signature: [4; 64],
        };
        Receipt { index: 11, checkpoint: Arc::new(checkpoint) }
    }

    #[test]
    fn a_receipt_is_read_as_written() {
        let short = receipt().header_value(false);
        assert_eq!(short, "node=01010101-0101-0101-0101-010101010101;index=11");
        let read: ReceiptText = short.parse().unwrap();
        assert_eq!((read.node, read.index, read.checkpoint), (receipt().node(), 11, None));
        let full: ReceiptText = receipt().header_value(true).parse().unwrap();
        assert_eq!((full.index, full.checkpoint.as_ref()), (11, Some(receipt().checkpoint())));
    }

    #[test]
    fn what_is_no_receipt_is_refused() {
        let full = receipt().header_value(true);
        for text in [
            "",
            "index=1",
            "node=1;index=1",
            &full.replace("index=11", "index=12"),
            &full.replace("index=11", "index=-1"),
            &full.replace("root=AwMD", "root=A"),
            &format!("{full};more=1"),
            &full[..full.len() - 1],
            &format!("{};", receipt().header_value(false)),
        ] {
            assert_eq!(text.parse::<ReceiptText>(), Err(MalformedReceipt), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,100}", cut in 0usize..300) {
            let _ = text.parse::<ReceiptText>();
            let full = receipt().header_value(true);
            let _ = full[..cut.min(full.len())].parse::<ReceiptText>();
        }
    }
}
