//! What a backup holds, found out as it streams by: whether it is whole, and what restoring it changes. Nothing is kept for
//! each of its records.

use super::difference::{Age, Comparison, Difference};
use super::stream::{Next, Reader};
use crate::error::Error;
use crate::pool::Pool;
use bytes::Bytes;
use crypto::full_backup::FullBackupRefused;
use domain::principal::Caller;
use storage::{Counts, Manifest, Pairing, Record};

/// Of a backup that was read to its end.
pub(super) struct Survey {
    pub header_bytes: Bytes,
    pub manifest: Manifest,
    /// Of its keys the most that one has.
    pub most_versions: usize,
    pub difference: Difference,
}

/// Whether a backup is whole: each record as often as its manifest counts, no key without its versions and no version
/// without its key. That no record comes twice is found when it is staged.
pub(super) struct Whole {
    counts: Counts,
    pairing: Pairing,
    most_versions: usize,
}

impl Whole {
    pub fn new() -> Self {
        Self { counts: Counts::default(), pairing: Pairing::keyed(), most_versions: 0 }
    }

    pub fn add(&mut self, record: &Record) {
        self.counts.add(record);
        self.pairing.add(record);
        if let Record::Key(record) = record {
            self.most_versions = self.most_versions.max(record.key.versions().len());
        }
    }

    pub fn check(&self, manifest: &Manifest) -> Result<(), Error> {
        let inconsistent = |what: &str| Err(FullBackupRefused::Inconsistent(what.into()).into());
        if self.counts != manifest.counts {
            return inconsistent("its records are not as many as its manifest counts");
        }
        if !self.pairing.is_even() {
            return inconsistent("its versions are not those that its keys name");
        }
        Ok(())
    }
}

/// A survey under way.
pub(super) struct Surveying<'p> {
    whole: Whole,
    pub comparison: Comparison<'p>,
}

impl<'p> Surveying<'p> {
    pub fn new(pool: &'p Pool, caller: &Caller) -> Self {
        Self { whole: Whole::new(), comparison: Comparison::new(pool, caller) }
    }

    pub fn add(&mut self, record: &Record) {
        self.whole.add(record);
        self.comparison.add(record);
    }

    pub fn finish(&mut self, reader: &Reader<'_>, manifest: Manifest, age: Age) -> Result<Survey, Error> {
        self.whole.check(&manifest)?;
        Ok(Survey {
            header_bytes: reader.header_bytes(),
            manifest,
            most_versions: self.whole.most_versions,
            difference: self.comparison.finish(age),
        })
    }
}

impl Pool {
    /// Reads all of a backup, each chunk of it opened at its place and its manifest signed.
    pub(super) async fn survey(&self, mut reader: Reader<'_>, caller: &Caller) -> Result<Survey, Error> {
        let mut surveying = Surveying::new(self, caller);
        loop {
            match reader.next().await? {
                Next::Records(records) => records.iter().for_each(|record| surveying.add(record)),
                Next::End(manifest) => {
                    let age = self.age(reader.header(), &manifest);
                    return surveying.finish(&reader, manifest, age);
                }
            }
        }
    }
}
