//! SHA-256 for trees, fingerprints and caches.

/// SHA-256 (FIPS 180-4) over the concatenation of `parts`.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().expect("SHA-256 is 32 bytes")
}

/// Bytes as people compare them: lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills `out` from the operating system's random source through the library's DRBG.
pub fn random(out: &mut [u8]) {
    aws_lc_rs::rand::fill(out).expect("the random source of the operating system answers");
}
