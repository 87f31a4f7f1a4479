//! Shamir's secret sharing modulo 257, a polynomial per byte of the secret.
//!
//! Coefficients are fresh for each byte. Arithmetic on values has no branch and no index that depends on them; the
//! places of shares are public.

use crate::RandomSource;
use crate::holders::Quorum;
use crypto::SecretBytes;
use zeroize::Zeroizing;

const PRIME: u32 = 257;
/// Values take 9 bits, 0 to 256; the place is above them.
const VALUE_BITS: u32 = 9;
const VALUE_MASK: u16 = (1 << VALUE_BITS) - 1;
const MAX_PLACE: u16 = 126;
const WORD_BYTES: usize = 2;
/// Bytes of a secret that are shared or restored.
pub const MAX_SECRET_BYTES: usize = 1024;

/// One holder's share. Wiped on drop; no `Debug`, no `Clone`.
pub struct Share {
    place: u8,
    values: Zeroizing<Vec<u16>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ShareError {
    #[error("a share is 1 to {MAX_SECRET_BYTES} words of 16 bits")]
    Length,
    #[error("a share is for a place from 1 to {MAX_PLACE}")]
    Place,
    #[error("the words of a share are for different places")]
    MixedPlaces,
    #[error("a value in a share is above 256")]
    ValueOutOfRange,
    #[error("two shares are for the same place")]
    SamePlace,
    #[error("the shares are of secrets of different lengths")]
    DifferentLengths,
    #[error("{given} shares of {required}")]
    TooFew { given: usize, required: u8 },
    #[error("the shares do not belong together")]
    Inconsistent,
}

/// One share for each holder, at the places 1, 2, ….
pub fn split(
    secret: &SecretBytes,
    quorum: Quorum,
    random: RandomSource<'_>,
) -> Result<Vec<Share>, ShareError> {
    if secret.is_empty() || secret.len() > MAX_SECRET_BYTES {
        return Err(ShareError::Length);
    }
    let share = |place| Share { place, values: Zeroizing::new(Vec::with_capacity(secret.len())) };
    let mut shares: Vec<Share> = (1..=quorum.holders()).map(share).collect();
    // The highest power first, the secret last.
    let mut coefficients = Zeroizing::new(vec![0; quorum.required().into()]);
    for byte in secret.danger_expose() {
        let (constant, others) = coefficients.split_last_mut().expect("a quorum is at least 2");
        others.iter_mut().for_each(|coefficient| *coefficient = uniform(random));
        *constant = u32::from(*byte);
        for share in &mut shares {
            let place = u32::from(share.place);
            let value =
                coefficients.iter().fold(0, |value, coefficient| (value * place + coefficient) % PRIME);
            share.values.push(value as u16);
        }
    }
    Ok(shares)
}

/// The secret, from at least `required` shares of it. Shares beyond the quorum must agree with the others.
pub fn combine(shares: &[Share], required: u8) -> Result<SecretBytes, ShareError> {
    let given = shares.len();
    let Some((quorum, beyond)) =
        shares.split_at_checked(required.into()).filter(|(quorum, _)| !quorum.is_empty())
    else {
        return Err(ShareError::TooFew { given, required });
    };
    for (index, share) in shares.iter().enumerate() {
        if shares[..index].iter().any(|other| other.place == share.place) {
            return Err(ShareError::SamePlace);
        }
        if share.values.len() != shares[0].values.len() {
            return Err(ShareError::DifferentLengths);
        }
    }
    let mut difference = 0;
    for share in beyond {
        let expected = interpolate(quorum, share.place.into());
        difference |=
            expected.iter().zip(share.values.iter()).fold(0, |sum, (one, other)| sum | (one ^ other));
    }
    let values = interpolate(quorum, 0);
    // 256 is an element of the field and no byte. Seen once all is done, so that the place of a wrong share is not.
    difference |= values.iter().fold(0, |sum, value| sum | (value >> 8));
    let secret = SecretBytes::new(values.iter().map(|value| *value as u8).collect());
    if difference == 0 { Ok(secret) } else { Err(ShareError::Inconsistent) }
}

impl Share {
    /// Reads what [`Share::to_bytes`] writes.
    pub fn parse(bytes: &SecretBytes) -> Result<Self, ShareError> {
        let (words, rest) = bytes.danger_expose().as_chunks::<WORD_BYTES>();
        if !rest.is_empty() || words.is_empty() || words.len() > MAX_SECRET_BYTES {
            return Err(ShareError::Length);
        }
        let words = Zeroizing::new(words.iter().copied().map(u16::from_le_bytes).collect::<Vec<_>>());
        let place = words[0] >> VALUE_BITS;
        if !(1..=MAX_PLACE).contains(&place) {
            return Err(ShareError::Place);
        }
        if words.iter().any(|word| word >> VALUE_BITS != place) {
            return Err(ShareError::MixedPlaces);
        }
        let values = Zeroizing::new(words.iter().map(|word| word & VALUE_MASK).collect::<Vec<_>>());
        // Above 256: the ninth bit and any other.
        let above = values.iter().fold(0, |sum, value| sum | ((value >> 8) * (value & 0xff)));
        if above != 0 {
            return Err(ShareError::ValueOutOfRange);
        }
        Ok(Self { place: place as u8, values })
    }

    /// For each byte of the secret the place above the value's nine bits, little-endian.
    pub fn to_bytes(&self) -> SecretBytes {
        let mut bytes = Vec::with_capacity(self.values.len() * WORD_BYTES);
        for value in self.values.iter() {
            let word = u16::from(self.place) << VALUE_BITS | value;
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        SecretBytes::new(bytes)
    }

    pub fn place(&self) -> u8 {
        self.place
    }
}

/// Lagrange's interpolation at `point` through `shares`, whose places differ.
fn interpolate(shares: &[Share], point: u32) -> Zeroizing<Vec<u16>> {
    let mut sums = Zeroizing::new(vec![0_u32; shares[0].values.len()]);
    for (index, share) in shares.iter().enumerate() {
        let place = u32::from(share.place);
        let (mut numerator, mut denominator) = (1, 1);
        for (other_index, other) in shares.iter().enumerate() {
            if other_index != index {
                let other = u32::from(other.place);
                numerator = numerator * (PRIME + point - other) % PRIME;
                denominator = denominator * (PRIME + place - other) % PRIME;
            }
        }
        let weight = numerator * inverse(denominator) % PRIME;
        for (sum, value) in sums.iter_mut().zip(share.values.iter()) {
            *sum = (*sum + weight * u32::from(*value)) % PRIME;
        }
    }
    Zeroizing::new(sums.iter().map(|sum| *sum as u16).collect())
}

/// By Fermat: `value` to the power of `PRIME - 2`. Only places come here, and they are public.
fn inverse(value: u32) -> u32 {
    (0..PRIME - 2).fold(1, |power, _| power * value % PRIME)
}

/// 0 to 256, all equally likely: 65535 is 255 times 257, so that one draw in 65536 is thrown away.
fn uniform(random: RandomSource<'_>) -> u32 {
    loop {
        let mut bytes = Zeroizing::new([0; WORD_BYTES]);
        random(bytes.as_mut_slice());
        let drawn = u16::from_le_bytes(*bytes);
        if drawn != u16::MAX {
            return u32::from(drawn) % PRIME;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::digest::{hex, random};
    use proptest::prelude::*;
    use std::cell::Cell;

    const SHARES: [&str; 3] = [
        "00030f02190223022d02370241024b0255025f02690273027d02870291029b02a502af02b902c302cd02d702e102eb02f502ff02080212021c02260230023a02",
        "ff041d0430044304560469047c048f04a204b504c804db04ee0400041304260439044c045f04720485049804ab04be04d104e404f70409041c042f0442045504",
        "fe062b06470663067f069b06b706d306ef060a06260642065e067a069606b206ce06ea06050621063d06590675069106ad06c906e50600061c06380654067006",
    ];

    fn quorum(required: u8, holders: u8) -> Quorum {
        Quorum::new(required, holders).unwrap()
    }

    fn parse(words: &[u16]) -> Result<Share, ShareError> {
        Share::parse(&SecretBytes::new(words.iter().flat_map(|word| word.to_le_bytes()).collect()))
    }

    fn read(text: &str) -> Share {
        Share::parse(&SecretBytes::new(hex::decode(text).unwrap())).unwrap()
    }

    fn pick(shares: &[Share], places: &[usize]) -> Vec<Share> {
        places.iter().map(|index| Share::parse(&shares[*index].to_bytes()).unwrap()).collect()
    }

    /// The worked vector of the protocol, checked with the client's code.
    #[test]
    fn the_worked_vector_is_made_and_read() {
        let secret = SecretBytes::new((0..32).collect());
        let drawn = Cell::new(0_u16);
        let coefficients = |bytes: &mut [u8]| {
            let index = drawn.replace(drawn.get() + 1);
            let coefficient = if index == 0 { 256 } else { (9 * index + 5) % 257 };
            bytes.copy_from_slice(&coefficient.to_le_bytes());
        };
        let shares = split(&secret, quorum(2, 3), &coefficients).unwrap();
        for (share, expected) in shares.iter().zip(SHARES) {
            assert_eq!(hex(share.to_bytes().danger_expose()), expected);
        }
        for places in [[0, 1], [1, 0], [0, 2], [2, 1]] {
            let shares: Vec<_> = places.map(|place| read(SHARES[place])).into();
            assert_eq!(combine(&shares, 2).unwrap().danger_expose(), secret.danger_expose());
        }
    }

    #[test]
    fn every_quorum_of_every_size_restores_and_one_share_less_does_not() {
        for holders in 3..=10 {
            for required in 2..=holders {
                let mut secret = vec![0; 32];
                random(&mut secret);
                let shares =
                    split(&SecretBytes::new(secret.clone()), quorum(required, holders), &random).unwrap();
                // Every contiguous choice, around the end, in both directions.
                for start in 0..holders {
                    let mut places: Vec<usize> =
                        (0..required).map(|step| usize::from((start + step) % holders)).collect();
                    for _ in 0..2 {
                        let restored = combine(&pick(&shares, &places), required).unwrap();
                        assert_eq!(restored.danger_expose(), secret, "{required} of {holders} at {places:?}");
                        places.reverse();
                    }
                    let fewer = pick(&shares, &places[1..]);
                    let error = combine(&fewer, required).err().unwrap();
                    assert_eq!(error, ShareError::TooFew { given: fewer.len(), required });
                    // Nor does it help to lie about the threshold.
                    if let Ok(wrong) = combine(&fewer, required - 1) {
                        assert_ne!(wrong.danger_expose(), secret);
                    }
                }
                assert_eq!(combine(&shares, required).unwrap().danger_expose(), secret);
            }
        }
    }

    /// With one share fewer than the quorum each byte is as likely as any other: for each there is a polynomial.
    #[test]
    fn a_share_alone_fits_every_secret() {
        let known = parse(&[1 << 9 | 77]).unwrap();
        let mut seen = [false; 256];
        for value in 0..=256 {
            let other = parse(&[2 << 9 | value]).unwrap();
            if let Ok(secret) = combine(&[pick(std::slice::from_ref(&known), &[0]).remove(0), other], 2) {
                seen[usize::from(secret.danger_expose()[0])] = true;
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn coefficients_are_fresh_for_each_byte() {
        let shares = split(&SecretBytes::new(vec![9; 64]), quorum(2, 3), &random).unwrap();
        let first = shares[0].values[0];
        assert!(shares[0].values.iter().any(|value| *value != first));
    }

    #[test]
    fn coefficients_are_uniform_over_the_field() {
        let next = Cell::new(0_u32);
        let counting = |bytes: &mut [u8]| {
            let drawn = next.replace(next.get() + 1) as u16;
            bytes.copy_from_slice(&drawn.to_le_bytes());
        };
        let mut seen = [0; PRIME as usize];
        (0..65535).for_each(|_| seen[uniform(&counting) as usize] += 1);
        assert_eq!(seen, [255; PRIME as usize]);
        // 65535 itself is thrown away: the next draw starts over at 0.
        assert_eq!((uniform(&counting), next.get()), (0, 65537));
    }

    #[test]
    fn malformed_shares_are_refused_each_for_its_reason() {
        let (place, refused) = (|place: u16| place << 9, |words: &[u16]| parse(words).err());
        assert_eq!(refused(&[]), Some(ShareError::Length));
        assert_eq!(Share::parse(&SecretBytes::new(vec![0, 2, 1])).err(), Some(ShareError::Length));
        assert_eq!(refused(&[place(1); MAX_SECRET_BYTES + 1]), Some(ShareError::Length));
        assert_eq!(refused(&[place(0) | 3]), Some(ShareError::Place));
        assert_eq!(refused(&[place(127) | 3]), Some(ShareError::Place));
        assert_eq!(refused(&[place(1) | 3, place(2) | 3]), Some(ShareError::MixedPlaces));
        assert_eq!(refused(&[place(1) | 257]), Some(ShareError::ValueOutOfRange));
        assert_eq!(refused(&[place(1) | 511]), Some(ShareError::ValueOutOfRange));
        assert!(parse(&[place(126) | 256]).is_ok());
    }

    #[test]
    fn shares_that_do_not_fit_are_refused_each_for_its_reason() {
        let share = |place: u16, values: &[u16]| {
            parse(&values.iter().map(|value| place << 9 | value).collect::<Vec<_>>()).unwrap()
        };
        let refused = |shares: &[Share]| combine(shares, 2).err();
        assert_eq!(refused(&[share(1, &[5]), share(1, &[6])]), Some(ShareError::SamePlace));
        assert_eq!(refused(&[share(1, &[5]), share(2, &[6, 7])]), Some(ShareError::DifferentLengths));
        // f(x) = 256 + 0x: no byte.
        assert_eq!(refused(&[share(1, &[256]), share(2, &[256])]), Some(ShareError::Inconsistent));
        assert_eq!(combine(&[], 0).err(), Some(ShareError::TooFew { given: 0, required: 0 }));
        // f(x) = 5 + x, but for the third.
        let third = |value| [share(1, &[6]), share(2, &[7]), share(3, &[value])];
        assert_eq!(combine(&third(8), 2).unwrap().danger_expose(), [5]);
        assert_eq!(refused(&third(9)), Some(ShareError::Inconsistent));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            first in proptest::collection::vec(any::<u8>(), 0..20),
            second in proptest::collection::vec(any::<u8>(), 0..20),
            required: u8,
        ) {
            let shares: Vec<_> = [first, second].into_iter().flat_map(|bytes| Share::parse(&SecretBytes::new(bytes))).collect();
            let _ = combine(&shares, required);
        }

        #[test]
        fn secrets_of_any_length_come_back(secret in proptest::collection::vec(any::<u8>(), 1..80), required in 2_u8..=10, more in 0_u8..=8) {
            let holders = (required + more).clamp(3, 10);
            let shares = split(&SecretBytes::new(secret.clone()), quorum(required, holders), &random).unwrap();
            let restored = combine(&shares[usize::from(holders - required)..], required).unwrap();
            prop_assert_eq!(restored.danger_expose(), secret);
        }
    }
}
