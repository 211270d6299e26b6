//! What can go wrong with a request, and the questions callers ask about it.

use meta::Status;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a failure.
    #[error("{0}")]
    Api(Box<Status>),
    /// The server could not be reached, or the connection broke while it answered.
    #[error("reach the API server: {0}")]
    Transport(#[from] std::io::Error),
    /// The answer is not what the call expected; `what` names the call.
    #[error("decode the answer to {what}: {source}")]
    Decode { what: String, source: serde_json::Error },
    /// The request could not be built.
    #[error("build the request: {0}")]
    Request(String),
}

impl Error {
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api(status) => Some(status),
            _ => None,
        }
    }
    /// The HTTP code of the server's answer; 0 where there was none.
    pub fn code(&self) -> u16 {
        self.status().map_or(0, |status| status.code)
    }
    fn is(&self, reason: &str) -> bool {
        self.status().is_some_and(|status| status.is(reason))
    }
    pub fn is_not_found(&self) -> bool {
        self.code() == 404 || self.is("NotFound")
    }
    /// A stale resourceVersion or a failed precondition; false for "already exists", which has the same code.
    pub fn is_conflict(&self) -> bool {
        self.is("Conflict")
    }
    pub fn is_already_exists(&self) -> bool {
        self.is("AlreadyExists")
    }
    /// The resourceVersion or continue token is too old: list again.
    pub fn is_expired(&self) -> bool {
        self.code() == 410 || self.is("Expired") || self.is("Gone")
    }
    pub fn is_forbidden(&self) -> bool {
        self.code() == 403
    }
    pub fn is_invalid(&self) -> bool {
        self.code() == 422
    }
    pub fn is_too_many_requests(&self) -> bool {
        self.code() == 429
    }
    /// A create refused because its namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        let details = self.status().filter(|status| status.code == 403).and_then(|status| status.details.as_ref());
        details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }
}

/// `Ok` where the object is gone already: for who wants it away.
pub fn ignore_not_found<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// `None` where there is no such object.
pub fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}

/// `Ok` where the object is there already, whatever it holds: for who wants it to exist.
pub fn ignore_already_exists<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

/// What the server said in a body of a failed request; bodies that are no `Status` become one, as client-go does.
pub(crate) fn from_response(code: u16, body: &[u8]) -> Error {
    let status = match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.kind == "Status" => Status { code, ..status },
        _ => Status::failure(code, reason_of(code), unexpected(code, body)),
    };
    Error::Api(Box::new(status))
}

fn unexpected(code: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(1024)]);
    format!("the server answered {code}: {}", text.trim())
}

fn reason_of(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Gone",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        code if code >= 500 => "InternalError",
        _ => "",
    }
}
