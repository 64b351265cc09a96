//! Answers: JSON, errors in the one shape, bodies that stream.

use crate::wire::Failure;
use bytes::Bytes;
use http::header::{self, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use serde::Serialize;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body this program sends.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Response = http::Response<Body>;

pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn json<T: Serialize + ?Sized>(value: &T) -> Response {
    json_status(200, value)
}

pub fn json_status<T: Serialize + ?Sized>(status: u16, value: &T) -> Response {
    let bytes = serde_json::to_vec(value).expect("what we send always has string keys and finite numbers");
    let mut response = Response::new(full(bytes));
    *response.status_mut() =
        http::StatusCode::from_u16(status).expect("statuses are written in this program");
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

pub fn text(body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A failure as the one error body, with the headers its code asks for.
pub fn failure(failure: &Failure, request_id: &str) -> Response {
    let mut response = json_status(failure.code.status(), &failure.body(request_id));
    if let Some(seconds) = failure.details.get("retry_after").and_then(serde_json::Value::as_u64) {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = failure.details.get("allow").and_then(serde_json::Value::as_str)
        && let Ok(value) = HeaderValue::from_str(allow)
    {
        response.headers_mut().insert(http::header::ALLOW, value);
    }
    if response.status() == 401 {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Headers that belong to one connection and are never relayed.
pub static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
];
