//! Who can open a security domain together: 3 to 10 certificates, of which 2 or more are needed.

use crate::keys::Thumbprint;
use crypto::transport::TransportCertificate;

/// `required` of `holders`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quorum {
    required: u8,
    holders: u8,
}

impl Quorum {
    pub const MIN_REQUIRED: u8 = 2;
    pub const MIN_HOLDERS: u8 = 3;
    pub const MAX_HOLDERS: u8 = 10;

    pub fn new(required: impl Into<u64>, holders: impl Into<u64>) -> Result<Self, HoldersRefused> {
        let (required, holders) = (required.into(), holders.into());
        let accepted = |number: u64, least: u8| {
            u8::try_from(number).ok().filter(|number| (least..=Self::MAX_HOLDERS).contains(number))
        };
        let count = accepted(holders, Self::MIN_HOLDERS).ok_or(HoldersRefused::Holders { holders })?;
        let quorum = accepted(required, Self::MIN_REQUIRED).ok_or(HoldersRefused::Required { required })?;
        if quorum > count {
            return Err(HoldersRefused::MoreThanHolders { required: quorum, holders: count });
        }
        Ok(Self { required: quorum, holders: count })
    }

    pub const fn required(self) -> u8 {
        self.required
    }

    pub const fn holders(self) -> u8 {
        self.holders
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HoldersRefused {
    #[error("{holders} certificates; a security domain is for 3 to 10")]
    Holders { holders: u64 },
    #[error("a quorum of {required}; it must be 2 to 10")]
    Required { required: u64 },
    #[error("a quorum of {required} cannot be had from {holders} certificates")]
    MoreThanHolders { required: u8, holders: u8 },
    /// One person with two certificates would be two holders.
    #[error("certificates {first} and {second} are for the same key")]
    SameKey { first: usize, second: usize },
}

/// Certificates of different keys, and how many of their holders are needed.
#[derive(Clone, Debug)]
pub struct HolderSet {
    certificates: Vec<TransportCertificate>,
    quorum: Quorum,
}

impl HolderSet {
    pub fn new(
        certificates: Vec<TransportCertificate>,
        required: impl Into<u64>,
    ) -> Result<Self, HoldersRefused> {
        let quorum = Quorum::new(required, certificates.len() as u64)?;
        for (second, certificate) in certificates.iter().enumerate() {
            let same = |other: &TransportCertificate| other.modulus() == certificate.modulus();
            if let Some(first) = certificates[..second].iter().position(same) {
                return Err(HoldersRefused::SameKey { first: first + 1, second: second + 1 });
            }
        }
        Ok(Self { certificates, quorum })
    }

    pub fn certificates(&self) -> &[TransportCertificate] {
        &self.certificates
    }

    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    pub fn thumbprints(&self) -> Vec<Thumbprint> {
        self.certificates.iter().map(Thumbprint::of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_outside_the_protocol_are_refused_each_for_its_reason() {
        for holders in [0, 1, 2, 11, 256 + 3, u64::MAX] {
            assert_eq!(Quorum::new(2_u64, holders), Err(HoldersRefused::Holders { holders }));
        }
        for required in [0, 1, 11, 256 + 2, u64::MAX] {
            assert_eq!(Quorum::new(required, 10_u64), Err(HoldersRefused::Required { required }));
        }
        let refused = HoldersRefused::MoreThanHolders { required: 4, holders: 3 };
        assert_eq!(Quorum::new(4_u64, 3_u64), Err(refused));
        assert!(Quorum::new(2_u64, 3_u64).is_ok() && Quorum::new(10_u64, 10_u64).is_ok());
    }
}
