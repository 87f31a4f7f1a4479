//! Roots of trust: what seals a security domain's secrets to one machine, so that it restarts unattended.
//!
//! Bytes in, bytes out: no file is read or written here. Sealed file, format version 1
//! (`docs/formats/sealed-file.md`): `magic "HFSEAL" | version u8 = 1 | root kind u8 | of kind credential: iterations u32,
//! passphrase salt 16 bytes | salt 24 bytes | ciphertext | tag 16 bytes`; associated data: the bytes before the salt,
//! then the node id.

use crypto::SecretBytes;
use crypto::passphrase::{self, ITERATIONS};
use domain::guid::Guid;
use std::num::NonZeroU32;

const MAGIC: &[u8; 6] = b"HFSEAL";
const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
const KIND_FILE: u8 = 1;
const KIND_CREDENTIAL: u8 = 2;
/// Header, iterations and salt of a passphrase.
const CREDENTIAL_HEADER_BYTES: usize = HEADER_BYTES + 4 + passphrase::SALT_BYTES;

/// Bytes of a file root's key.
pub const FILE_ROOT_BYTES: usize = 32;
/// A file that asks for more is not ours, and would only keep a start busy.
const MAX_ITERATIONS: u32 = 4_000_000;

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

/// What a file was sealed under, as its header says. The header is authenticated only when the file opens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RootKind {
    File,
    Credential,
}

impl RootKind {
    pub fn of(sealed: &[u8]) -> Result<Self, SealError> {
        let header = sealed.first_chunk::<HEADER_BYTES>().ok_or(SealError::UnknownFormat)?;
        match header {
            [magic @ .., FORMAT_VERSION, KIND_FILE] if magic == MAGIC => Ok(Self::File),
            [magic @ .., FORMAT_VERSION, KIND_CREDENTIAL] if magic == MAGIC => Ok(Self::Credential),
            _ => Err(SealError::UnknownFormat),
        }
    }
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
        if RootKind::of(sealed)? != RootKind::File {
            return Err(SealError::OtherKind);
        }
        let (header, body) = sealed.split_at(HEADER_BYTES);
        crypto::root::open(&self.0, &associated_data(header, node), body).ok_or(SealError::DoesNotOpen)
    }
}

/// A passphrase that the machine is handed at each start and does not keep: a credential of systemd, which may be sealed
/// to a TPM, or a file in memory. Whoever takes the machine's disks has to guess it.
pub struct CredentialRoot {
    passphrase: SecretBytes,
    iterations: NonZeroU32,
}

impl CredentialRoot {
    pub fn new(passphrase: SecretBytes) -> Self {
        Self { passphrase, iterations: ITERATIONS }
    }
}

impl Root for CredentialRoot {
    fn name(&self) -> &'static str {
        "credential"
    }

    fn seal(&self, node: Guid, secret: &SecretBytes) -> Vec<u8> {
        let salt = passphrase::salt();
        let iterations = self.iterations.get().to_be_bytes();
        let header = [header(KIND_CREDENTIAL).as_slice(), &iterations, &salt].concat();
        let key = passphrase::derive(&self.passphrase, &salt, self.iterations);
        let sealed = crypto::root::seal(&key, &associated_data(&header, node), secret);
        [header, sealed].concat()
    }

    fn open(&self, node: Guid, sealed: &[u8]) -> Result<SecretBytes, SealError> {
        if RootKind::of(sealed)? != RootKind::Credential {
            return Err(SealError::OtherKind);
        }
        let (header, body) =
            sealed.split_first_chunk::<CREDENTIAL_HEADER_BYTES>().ok_or(SealError::UnknownFormat)?;
        let (iterations, salt) =
            header[HEADER_BYTES..].split_first_chunk::<4>().expect("a header is longer than that");
        let iterations = NonZeroU32::new(u32::from_be_bytes(*iterations))
            .filter(|iterations| iterations.get() <= MAX_ITERATIONS)
            .ok_or(SealError::UnknownFormat)?;
        let key = passphrase::derive(&self.passphrase, salt, iterations);
        crypto::root::open(&key, &associated_data(header, node), body).ok_or(SealError::DoesNotOpen)
    }
}

fn header(kind: u8) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..6].copy_from_slice(MAGIC);
    header[6] = FORMAT_VERSION;
    header[7] = kind;
    header
}

fn associated_data(header: &[u8], node: Guid) -> Vec<u8> {
    [header, &node.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: Guid = Guid([5; 16]);

    fn file_root(byte: u8) -> FileRoot {
        FileRoot::new(SecretBytes::new(vec![byte; FILE_ROOT_BYTES])).unwrap()
    }

    /// With few iterations: each test below derives a key for each bit of a file.
    fn credential_root(byte: u8) -> CredentialRoot {
        let iterations = NonZeroU32::new(2).unwrap();
        CredentialRoot { iterations, ..CredentialRoot::new(SecretBytes::new(vec![byte; 20])) }
    }

    fn secret() -> SecretBytes {
        SecretBytes::new(b"domain secrets".to_vec())
    }

    #[test]
    fn the_golden_files_open_for_ever() {
        let of_file = include_bytes!("../tests/golden/sealed-file-v1.bin");
        assert_eq!(file_root(8).open(NODE, of_file).unwrap().danger_expose(), b"domain secrets");
        let of_credential = include_bytes!("../tests/golden/sealed-file-credential-v1.bin");
        let root = CredentialRoot::new(SecretBytes::new(b"correct horse battery".to_vec()));
        assert_eq!(root.open(NODE, of_credential).unwrap().danger_expose(), b"domain secrets");
        assert_eq!(of_credential[8..12], ITERATIONS.get().to_be_bytes());
    }

    #[test]
    fn opens_only_with_its_root_on_its_node() {
        assert_eq!(FileRoot::new(SecretBytes::new(vec![9; 31])).err(), Some(SealError::MalformedRoot));
        let roots: [(Box<dyn Root>, Box<dyn Root>); 2] = [
            (Box::new(file_root(8)), Box::new(file_root(9))),
            (Box::new(credential_root(8)), Box::new(credential_root(9))),
        ];
        for (root, other) in roots {
            let sealed = root.seal(NODE, &secret());
            assert_eq!(root.open(NODE, &sealed).unwrap().danger_expose(), b"domain secrets");
            assert_eq!(root.open(Guid([6; 16]), &sealed).err(), Some(SealError::DoesNotOpen));
            assert_eq!(other.open(NODE, &sealed).err(), Some(SealError::DoesNotOpen));
            for bit in 0..sealed.len() * 8 {
                let mut damaged = sealed.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(root.open(NODE, &damaged).is_err(), "{} bit {bit}", root.name());
            }
            for length in 0..sealed.len() {
                assert!(root.open(NODE, &sealed[..length]).is_err(), "{} length {length}", root.name());
            }
        }
    }

    #[test]
    fn another_kind_is_named_as_such() {
        let (file, credential) = (file_root(8), credential_root(8));
        assert_eq!(file.open(NODE, &credential.seal(NODE, &secret())).err(), Some(SealError::OtherKind));
        assert_eq!(credential.open(NODE, &file.seal(NODE, &secret())).err(), Some(SealError::OtherKind));
        assert_eq!(RootKind::of(&credential.seal(NODE, &secret())), Ok(RootKind::Credential));
    }

    /// Whoever can write the file could otherwise make each start take hours.
    #[test]
    fn no_file_asks_for_more_work_than_the_limit() {
        let mut sealed = credential_root(8).seal(NODE, &secret());
        sealed[8..12].copy_from_slice(&(MAX_ITERATIONS + 1).to_be_bytes());
        assert_eq!(credential_root(8).open(NODE, &sealed).err(), Some(SealError::UnknownFormat));
        sealed[8..12].copy_from_slice(&0_u32.to_be_bytes());
        assert_eq!(credential_root(8).open(NODE, &sealed).err(), Some(SealError::UnknownFormat));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 0..3_u8) {
            if kind > 0 {
                bytes.splice(0..0, header(kind));
            }
            // The work that a credential's file asks for has its own test.
            if kind == KIND_CREDENTIAL && bytes.len() >= 12 {
                bytes[8..12].copy_from_slice(&[0, 0, 0, 1]);
            }
            prop_assert!(file_root(8).open(NODE, &bytes).is_err());
            prop_assert!(credential_root(8).open(NODE, &bytes).is_err());
        }
    }
}
