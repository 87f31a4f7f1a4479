//! Errors in the partition's own terms. The library's errors say nothing, and nothing of them is passed on.

use crypto::PartitionError;
use domain::algorithm::KeySpec;

pub(crate) fn mismatch(algorithm: &'static str, spec: KeySpec) -> PartitionError {
    PartitionError::AlgorithmMismatch { algorithm, spec }
}

pub(crate) fn input_length(message: String) -> PartitionError {
    PartitionError::InputLength(message)
}

pub(crate) fn invalid_material(message: String) -> PartitionError {
    PartitionError::InvalidMaterial(message)
}

/// For `map_err`: the library refused `action`, and nothing about the input explains it.
pub(crate) fn failed_to<E>(action: &'static str) -> impl FnOnce(E) -> PartitionError {
    move |_| PartitionError::Internal(action)
}
