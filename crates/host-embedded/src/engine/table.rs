//! The tables of the redb file (`docs/formats/engine-embedded.md`) and how their bytes are read.

use host::{Entry, OperationId, Revision};
use redb::{Database, Error, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use super::history::Operations;

/// Key to revision (8 bytes, big-endian) and value.
pub(super) const DATA: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("data");
/// A ring: slot `revision % REMEMBERED_OPERATIONS` to that revision (8 bytes, big-endian) and operation id.
/// A ring and not a map from the id, because consecutive revisions then share a page: one page more per
/// group instead of one per commit.
pub(super) const OPERATIONS: TableDefinition<'_, u64, &[u8; 24]> = TableDefinition::new("operations");
/// Named numbers: `format` and `revision`.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub(super) const FORMAT: &str = "format";
pub(super) const REVISION: &str = "revision";
const FORMAT_VERSION: u64 = 1;

/// More than the 10,000 that [`host::Engine::settle`] promises.
pub(super) const REMEMBERED_OPERATIONS: u64 = 16_384;

const REVISION_BYTES: usize = 8;

/// Creates the tables in an empty database, and refuses a database that is not ours or of a later format.
pub(super) fn prepare(database: &Database) -> Result<(), Error> {
    let transaction = database.begin_read()?;
    let mut names: Vec<String> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    names.sort();
    if !names.is_empty() {
        if names != [DATA.name(), META.name(), OPERATIONS.name()] {
            return Err(damaged("its tables are not those of an engine"));
        }
        let format = transaction.open_table(META)?.get(FORMAT)?.map(|value| value.value());
        return match format {
            Some(FORMAT_VERSION) => Ok(()),
            Some(other) => Err(damaged(&format!("format version {other} is not known to this release"))),
            None => Err(damaged("it has no format version")),
        };
    }
    drop(transaction);
    let transaction = database.begin_write()?;
    {
        transaction.open_table(DATA)?;
        transaction.open_table(OPERATIONS)?;
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(REVISION, 0)?;
    }
    Ok(transaction.commit()?)
}

/// The current revision and the remembered operations.
pub(super) fn load(database: &Database) -> Result<(u64, Operations), Error> {
    let transaction = database.begin_read()?;
    let revision = revision(&transaction)?.0;
    let mut stored = Vec::new();
    for row in transaction.open_table(OPERATIONS)?.iter()? {
        let (slot, value) = row?;
        let (at, operation) = decode_operation(value.value());
        if at == 0 || at > revision || slot.value() != at % REMEMBERED_OPERATIONS {
            return Err(damaged("an operation lies in a slot that is not its own"));
        }
        stored.push((at, operation));
    }
    // Every revision has one operation, so the ring must hold the last ones without a gap.
    stored.sort_unstable();
    let expected = revision.min(REMEMBERED_OPERATIONS);
    let oldest = revision - expected + 1;
    let complete = stored.len() as u64 == expected && stored.first().is_none_or(|(at, _)| *at == oldest);
    if !complete {
        return Err(damaged("remembered operations do not match the revision"));
    }
    Ok((revision, Operations::from_sorted(stored)))
}

pub(super) fn revision(transaction: &ReadTransaction) -> Result<Revision, Error> {
    let stored = transaction.open_table(META)?.get(REVISION)?.map(|value| value.value());
    stored.map(Revision).ok_or_else(|| damaged("it has no revision"))
}

pub(super) fn read_entry(database: &Database, key: &[u8]) -> Result<Option<Entry>, Error> {
    let transaction = database.begin_read()?;
    let data = transaction.open_table(DATA)?;
    data.get(key)?.map(|stored| decode(key, stored.value())).transpose()
}

/// The revision at which `key` was last written.
pub(super) fn key_revision(
    data: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<Revision>, Error> {
    data.get(key)?.map(|stored| Ok(decode(key, stored.value())?.revision)).transpose()
}

pub(super) fn encode(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(REVISION_BYTES + value.len());
    stored.extend_from_slice(&revision.to_be_bytes());
    stored.extend_from_slice(value);
    stored
}

pub(super) fn decode(key: &[u8], stored: &[u8]) -> Result<Entry, Error> {
    let Some((revision, value)) = stored.split_first_chunk::<REVISION_BYTES>() else {
        return Err(damaged("a value is shorter than its revision"));
    };
    let revision = Revision(u64::from_be_bytes(*revision));
    Ok(Entry { key: key.to_vec(), value: value.to_vec(), revision })
}

pub(super) fn encode_operation(revision: u64, operation: OperationId) -> [u8; 24] {
    let mut stored = [0; 24];
    stored[..REVISION_BYTES].copy_from_slice(&revision.to_be_bytes());
    stored[REVISION_BYTES..].copy_from_slice(&operation.0);
    stored
}

fn decode_operation(stored: &[u8; 24]) -> (u64, OperationId) {
    let mut revision = [0; REVISION_BYTES];
    revision.copy_from_slice(&stored[..REVISION_BYTES]);
    let mut operation = [0; 16];
    operation.copy_from_slice(&stored[REVISION_BYTES..]);
    (u64::from_be_bytes(revision), OperationId(operation))
}

fn damaged(what: &str) -> Error {
    Error::Corrupted(what.to_owned())
}
