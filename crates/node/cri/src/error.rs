/// What every CRI call returns.
pub type Result<T> = std::result::Result<T, Error>;

/// gRPC's status codes, as far as CRI runtimes and CSI drivers use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    /// Somebody else is at it.
    Aborted,
    Unimplemented,
    Internal,
    Unavailable,
}

/// A failed call: gRPC's code and the runtime's own sentence, which the kubelet shows to the user.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    pub message: String,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}
