//! The one shape of an error that leaves a process: a stable code, a sentence for a person, details for a program.
//! HTTP answers, job events and exit messages are all made from it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Stable public codes. Wording may change; these may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    InvalidRequest,
    UnsupportedMediaType,
    MissingApiKey,
    InvalidApiKey,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    JobNotFound,
    HiveNotFound,
    WorkerNotFound,
    ModelNotFound,
    Conflict,
    BodyTooLarge,
    RequestTimeout,
    ContextLengthExceeded,
    InvalidModel,
    InsufficientMemory,
    InsufficientDisk,
    BackendUnavailable,
    LoadingModel,
    LoadingTimeout,
    AllSlotsBusy,
    TooManyRequests,
    InferenceTimeout,
    WorkerLost,
    HiveLost,
    VersionMismatch,
    ConnectionFailed,
    DownloadFailed,
    DownloadTimeout,
    ChecksumMismatch,
    CatalogUnavailable,
    RecipeInvalid,
    PlatformUnsupported,
    MissingDependencies,
    BuildFailed,
    ShuttingDown,
    Internal,
    /// A code of a newer peer. Kept so that an old keeper can still print its message.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status that goes with the code.
    pub fn status(self) -> u16 {
        match self {
            Code::InvalidRequest | Code::ContextLengthExceeded | Code::InvalidModel | Code::RecipeInvalid => {
                400
            }
            Code::MissingApiKey | Code::InvalidApiKey => 401,
            Code::Forbidden => 403,
            Code::NotFound
            | Code::JobNotFound
            | Code::HiveNotFound
            | Code::WorkerNotFound
            | Code::ModelNotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::RequestTimeout => 408,
            Code::Conflict => 409,
            Code::BodyTooLarge => 413,
            Code::UnsupportedMediaType => 415,
            Code::VersionMismatch => 426,
            Code::TooManyRequests => 429,
            Code::Internal | Code::Unknown | Code::ChecksumMismatch | Code::BuildFailed => 500,
            Code::WorkerLost
            | Code::HiveLost
            | Code::ConnectionFailed
            | Code::DownloadFailed
            | Code::CatalogUnavailable => 502,
            Code::InsufficientMemory
            | Code::PlatformUnsupported
            | Code::MissingDependencies
            | Code::BackendUnavailable
            | Code::LoadingModel
            | Code::AllSlotsBusy
            | Code::ShuttingDown => 503,
            Code::LoadingTimeout | Code::InferenceTimeout | Code::DownloadTimeout => 504,
            Code::InsufficientDisk => 507,
        }
    }

    /// OpenAI's `type` for clients that look at it.
    pub fn kind(self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "unavailable_error",
            _ => "server_error",
        }
    }
}

/// An error as it is told to whoever asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
    pub message: String,
    #[serde(default)]
    pub details: Value,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), details: Value::Null }
    }

    pub fn with(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Failure::new(Code::InvalidRequest, message)
    }

    /// An error of ours, not the user's, with its whole chain of causes.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Failure::new(Code::Internal, chain(error))
    }

    /// The public JSON body (contract/http.md).
    pub fn body(&self, request_id: &str) -> Value {
        serde_json::json!({"error": {
            "code": self.code, "message": self.message, "type": self.code.kind(), "param": null,
            "details": self.details, "request_id": request_id,
        }})
    }

    /// Reads such a body back, from any OpenAI-shaped server.
    pub fn from_body(status: u16, body: &[u8]) -> Self {
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let error = parsed.as_ref().and_then(|v| v.get("error"));
        let message = error
            .and_then(|e| e.get("message").and_then(Value::as_str).or(e.as_str()))
            .map(str::to_owned)
            .unwrap_or_else(|| {
                let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
                format!("the server answered {status} {text}").trim_end().to_owned()
            });
        let code =
            error.and_then(|e| serde_json::from_value(e.get("code")?.clone()).ok()).unwrap_or(Code::Unknown);
        let details = error.and_then(|e| e.get("details")).cloned().unwrap_or(Value::Null);
        Failure { code, message, details }
    }
}

/// An error and its sources on one line, printed once, at the edge.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Names that one message lists.
pub const NAMES_LISTED_MAX: usize = 30;

/// Names for a message; of many the first, and how many more there are.
pub fn listed<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> String {
    let mut text = String::new();
    let mut more = 0;
    for (number, name) in names.into_iter().enumerate() {
        if number >= NAMES_LISTED_MAX {
            more += 1;
            continue;
        }
        if number > 0 {
            text.push_str(", ");
        }
        text.push_str(name.as_ref());
    }
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_screaming_snake_case_and_survive_a_newer_peer() {
        assert_eq!(serde_json::to_value(Code::AllSlotsBusy).unwrap(), "ALL_SLOTS_BUSY");
        assert_eq!(serde_json::from_str::<Code>("\"FROM_THE_FUTURE\"").unwrap(), Code::Unknown);
    }

    #[test]
    fn a_body_reads_back_as_the_failure_it_was_made_from() {
        let failure =
            Failure::new(Code::InsufficientMemory, "too big").with(serde_json::json!({"needed": 1}));
        let body = serde_json::to_vec(&failure.body("r1")).unwrap();
        assert_eq!(Failure::from_body(503, &body), failure);
    }

    #[test]
    fn a_foreign_body_still_gives_a_sentence() {
        assert_eq!(Failure::from_body(500, b"{\"error\":\"boom\"}").message, "boom");
        assert!(Failure::from_body(502, b"<html>bad gateway").message.contains("502"));
    }
}
