//! Roots of trust: what seals a security domain's secrets to one machine, so that it restarts unattended.
//!
//! Bytes in, bytes out: no file is read or written here. Sealed file, format version 1
//! (`docs/formats/sealed-file.md`): `magic "HFSEAL" | version u8 = 1 | root kind u8 | salt 24 bytes | ciphertext | tag
//! 16 bytes`; associated data: the 8 bytes before the salt, then the node id.

use crypto::SecretBytes;
use domain::guid::Guid;

const MAGIC: &[u8; 6] = b"HFSEAL";
const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
const KIND_FILE: u8 = 1;

/// Bytes of a file root's key.
pub const FILE_ROOT_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SealError {
    #[error("a file root is {FILE_ROOT_BYTES} bytes")]
    MalformedRoot,
    #[error("not a sealed file of format version 1")]
    UnknownFormat,
    #[error("the file was sealed under another kind of root of trust")]
    OtherKind,
    /// Damaged, sealed for another node, or under another key.
    #[error("the sealed file does not open with this root of trust on this node")]
    DoesNotOpen,
}

/// Seals secrets to a machine.
pub trait Root: Send + Sync {
    fn name(&self) -> &'static str;
    fn seal(&self, node: Guid, secret: &SecretBytes) -> Vec<u8>;
    fn open(&self, node: Guid, sealed: &[u8]) -> Result<SecretBytes, SealError>;
}

/// A key in a file: protects against the theft of the pool's directory without it, and against nothing else.
pub struct FileRoot(SecretBytes);

impl FileRoot {
    pub fn new(key: SecretBytes) -> Result<Self, SealError> {
        if key.len() == FILE_ROOT_BYTES { Ok(Self(key)) } else { Err(SealError::MalformedRoot) }
    }
}

impl Root for FileRoot {
    fn name(&self) -> &'static str {
        "file"
    }

    fn seal(&self, node: Guid, secret: &SecretBytes) -> Vec<u8> {
        let header = header(KIND_FILE);
        let sealed = crypto::root::seal(&self.0, &associated_data(&header, node), secret);
        [header.as_slice(), &sealed].concat()
    }

    fn open(&self, node: Guid, sealed: &[u8]) -> Result<SecretBytes, SealError> {
        let (found, body) = sealed.split_first_chunk::<HEADER_BYTES>().ok_or(SealError::UnknownFormat)?;
        if found[..7] != header(KIND_FILE)[..7] {
            return Err(SealError::UnknownFormat);
        }
        if found[7] != KIND_FILE {
            return Err(SealError::OtherKind);
        }
        crypto::root::open(&self.0, &associated_data(found, node), body).ok_or(SealError::DoesNotOpen)
    }
}

fn header(kind: u8) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..6].copy_from_slice(MAGIC);
    header[6] = FORMAT_VERSION;
    header[7] = kind;
    header
}

fn associated_data(header: &[u8; HEADER_BYTES], node: Guid) -> Vec<u8> {
    [header.as_slice(), &node.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: Guid = Guid([5; 16]);

    fn root() -> FileRoot {
        FileRoot::new(SecretBytes::new(vec![8; FILE_ROOT_BYTES])).unwrap()
    }

    #[test]
    fn the_golden_file_opens_for_ever() {
        let sealed = include_bytes!("../tests/golden/sealed-file-v1.bin");
        assert_eq!(root().open(NODE, sealed).unwrap().danger_expose(), b"domain secrets");
    }

    #[test]
    fn opens_only_with_its_root_on_its_node() {
        let sealed = root().seal(NODE, &SecretBytes::new(b"domain secrets".to_vec()));
        assert_eq!(root().open(Guid([6; 16]), &sealed).err(), Some(SealError::DoesNotOpen));
        let other = FileRoot::new(SecretBytes::new(vec![9; FILE_ROOT_BYTES])).unwrap();
        assert_eq!(other.open(NODE, &sealed).err(), Some(SealError::DoesNotOpen));
        assert_eq!(FileRoot::new(SecretBytes::new(vec![9; 31])).err(), Some(SealError::MalformedRoot));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(root().open(NODE, &damaged).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), ours in any::<bool>()) {
            if ours {
                bytes.splice(0..0, header(KIND_FILE));
            }
            prop_assert!(root().open(NODE, &bytes).is_err());
        }
    }
}
