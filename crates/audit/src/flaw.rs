//! What can be wrong with a log's bytes, named once for opening and for verifying.

use crypto::certificate::CertificateError;

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flaw {
    #[error("the frame's header does not check")]
    FrameHeader,
    #[error("the frame's content does not check")]
    FrameContent,
    #[error("the frame runs past the segment's end")]
    FramePastEnd,
    #[error("a sector is missing before later content")]
    MissingSector,
    #[error("the frame's content is not of format version 1")]
    Malformed,
    #[error("the segment has no header")]
    NoHeader,
    #[error("a write that was cut short, in a segment that is not the last")]
    TornBeforeLaterSegment,
    #[error("the segment belongs to another pool, genesis or node")]
    Foreign,
    #[error("the segment calls itself number {found}")]
    OutOfOrder { found: u32 },
    #[error("the segment does not continue the one before it")]
    DoesNotContinue,
    #[error("the group starts at event {found}, not {expected}")]
    Index { found: u64, expected: u64 },
    #[error("the checkpoint's root is not the root of the events up to it")]
    Root,
    #[error("the checkpoint is older than the one before it")]
    TimeRunsBackwards,
    #[error("the group's certificate is refused: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the group's certificate is for another pool, genesis, node or purpose")]
    ForeignCertificate,
    #[error("the checkpoint's incarnation has no certificate in this segment")]
    NoCertificate,
    #[error("the checkpoint was made outside its certificate's validity")]
    OutsideValidity,
    #[error("the checkpoint's signature does not verify")]
    Signature,
}
