//! SHA-256 for trees, fingerprints and caches; SHA-2 of each length for what clients sign.

/// What is hashed in one piece, without a context of the library's on the heap.
const SHORT_BYTES: usize = 1024;

/// SHA-256 (FIPS 180-4) over the concatenation of `parts`.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut short = [0; SHORT_BYTES];
    let mut length = 0;
    for part in parts {
        let Some(place) = short.get_mut(length..length + part.len()) else { return sha256_of_many(parts) };
        place.copy_from_slice(part);
        length += part.len();
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &short[..length]);
    digest.as_ref().try_into().expect("SHA-256 is 32 bytes")
}

fn sha256_of_many(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().expect("SHA-256 is 32 bytes")
}

/// SHA-2 (FIPS 180-4) over input that need not be in memory at once.
#[derive(Clone)]
pub struct RunningHash(aws_lc_rs::digest::Context);

impl RunningHash {
    /// SHA-256, SHA-384 or SHA-512, by the bytes of its digest; `None` for any other length.
    pub fn of_length(bytes: usize) -> Option<Self> {
        let algorithms = [&aws_lc_rs::digest::SHA256, &aws_lc_rs::digest::SHA384, &aws_lc_rs::digest::SHA512];
        let algorithm = algorithms.into_iter().find(|algorithm| algorithm.output_len() == bytes)?;
        Some(Self(aws_lc_rs::digest::Context::new(algorithm)))
    }

    pub fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

/// Bytes as people compare them: lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills `out` from the operating system's random source through the library's DRBG.
pub fn random(out: &mut [u8]) {
    aws_lc_rs::rand::fill(out).expect("the random source of the operating system answers");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_all_parts_whatever_their_length() {
        for length in [0, 1, SHORT_BYTES / 2, SHORT_BYTES - 1, SHORT_BYTES, SHORT_BYTES + 1, 5000] {
            let input = vec![7; length];
            let (begin, rest) = input.split_at(length / 3);
            let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &input);
            assert_eq!(sha256(&[begin, rest]), expected.as_ref());
            assert_eq!(sha256(&[&input]), expected.as_ref());
        }
    }

    #[test]
    fn a_running_hash_is_the_hash_of_its_length() {
        let digest = |bytes: usize| {
            let mut hash = RunningHash::of_length(bytes).unwrap();
            hash.update(b"a");
            hash.update(b"bc");
            hex(&hash.finish())
        };
        assert_eq!(digest(32), hex(&sha256(&[b"abc"])));
        assert!(digest(48).starts_with("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163"));
        assert!(digest(64).starts_with("ddaf35a193617abacc417349ae20413112e6fa4e89a97ea2"));
        assert!(RunningHash::of_length(20).is_none());
    }
}
