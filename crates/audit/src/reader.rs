//! Reads a segment through a window, so that memory is bounded whatever the host says a segment's length is.

use host::{Log, LogError, SegmentId};

pub(crate) struct SegmentReader<'a> {
    log: &'a dyn Log,
    id: SegmentId,
    chunk_bytes: usize,
    window: Vec<u8>,
    /// The window's place in the segment.
    start: u64,
}

impl<'a> SegmentReader<'a> {
    pub const CHUNK_BYTES: usize = 1 << 20;

    pub fn new(log: &'a dyn Log, id: SegmentId) -> Self {
        Self { log, id, chunk_bytes: Self::CHUNK_BYTES, window: Vec::new(), start: 0 }
    }

    /// Reads no further ahead than a segment's header reaches.
    pub fn for_header(log: &'a dyn Log, id: SegmentId) -> Self {
        Self { chunk_bytes: 4096, ..Self::new(log, id) }
    }

    /// `length` bytes from `offset`; fewer only at the segment's end.
    pub async fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8], LogError> {
        let inside = |start: u64, window: &[u8]| {
            let skipped = usize::try_from(offset.checked_sub(start)?).ok()?;
            (skipped.checked_add(length)? <= window.len()).then_some(skipped)
        };
        if let Some(skipped) = inside(self.start, &self.window) {
            return Ok(&self.window[skipped..skipped + length]);
        }
        let wanted = length.max(self.chunk_bytes);
        self.window = self.log.read(self.id, offset, wanted).await?;
        self.window.truncate(wanted);
        self.start = offset;
        Ok(&self.window[..length.min(self.window.len())])
    }

    /// Forgets what was read: the next read asks the host.
    pub fn refresh(&mut self) {
        self.window.clear();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use async_trait::async_trait;
    use host::SegmentInfo;

    /// A log of one segment, to read.
    pub(crate) struct OneSegment(Vec<u8>);

    pub(crate) fn segment_of(bytes: &[u8]) -> OneSegment {
        OneSegment(bytes.to_vec())
    }

    #[async_trait]
    impl Log for OneSegment {
        async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
            Ok(vec![SegmentInfo { id: SegmentId(0), bytes: self.0.len() as u64 }])
        }

        async fn read(&self, _: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError> {
            let start = usize::try_from(offset).unwrap().min(self.0.len());
            let end = (start + max).min(self.0.len());
            Ok(self.0[start..end].to_vec())
        }

        async fn resume(&self, _: SegmentId, _: u64) -> Result<(), LogError> {
            unreachable!("the segment is only read")
        }

        async fn roll(&self) -> Result<SegmentId, LogError> {
            unreachable!("the segment is only read")
        }

        async fn append(&self, _: Vec<u8>) -> Result<(), LogError> {
            unreachable!("the segment is only read")
        }
    }

    #[tokio::test]
    async fn windows_of_any_size_show_the_same_bytes() {
        let bytes: Vec<u8> = (0..20_000u32).map(|index| (index % 251) as u8).collect();
        let log = segment_of(&bytes);
        for chunk_bytes in [1, 512, 4096, 1 << 20] {
            let mut reader = SegmentReader { chunk_bytes, ..SegmentReader::new(&log, SegmentId(0)) };
            for (offset, length) in [(0, 10), (5, 5000), (4000, 600), (100, 1), (19_990, 100), (30_000, 5)] {
                let expected = &bytes[offset.min(bytes.len())..(offset + length).min(bytes.len())];
                assert_eq!(reader.bytes(offset as u64, length).await.unwrap(), expected);
            }
        }
    }
}
