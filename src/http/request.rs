//! A request as a role's service sees it, and the bounded ways to read its body.

use crate::http::auth::Holder;
use crate::http::reply::BoxError;
use crate::http::{Body, reply};
use crate::wire::{Code, Failure};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{AsHeaderName, CONTENT_TYPE, HeaderName};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest request body anywhere: a long conversation is a few megabytes.
pub const BODY_BYTES_MAX: usize = 32 << 20;
/// The longest body of a control request, a job's operation for one.
pub const CONTROL_BYTES_MAX: usize = 8 << 20;
/// How long a client may take to send a body.
pub const BODY_READ_MAX: Duration = Duration::from_secs(60);

/// A request's name in every log on its way.
pub const ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// An id as a header. No two are the same, so that HTTP/2 should not keep them in its table of headers seen before: what is
/// marked like this it does not keep.
pub fn id_value(id: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(id).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Where a request came from, which decides what the guard asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp {
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// A socket file that only this user can open.
    Unix,
    /// The queen, over the link this hive dialled.
    Link,
}

#[derive(Debug)]
pub struct Request {
    pub inner: http::Request<Incoming>,
    /// Sent back as `x-request-id`, and in every error body.
    pub id: String,
    pub peer: Peer,
    /// Whose key it showed, as far as one was asked for.
    pub holder: Holder,
}

impl Request {
    pub fn method(&self) -> &http::Method {
        self.inner.method()
    }

    pub fn path(&self) -> &str {
        self.inner.uri().path()
    }

    pub fn headers(&self) -> &http::HeaderMap {
        self.inner.headers()
    }

    pub fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// Whether its body says that it is of this media type, whatever parameters it adds.
    pub fn is_of_type(&self, media_type: &str) -> bool {
        let content_type = self.header(CONTENT_TYPE).unwrap_or("");
        content_type.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(media_type)
    }

    /// A query parameter, percent-decoded.
    pub fn query(&self, key: &str) -> Option<String> {
        let query = self.inner.uri().query()?;
        query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == key).then(|| percent_decode(value))
        })
    }

    /// The whole body, no longer than `limit` and no slower than [`BODY_READ_MAX`].
    pub fn bytes(self, limit: usize) -> impl Future<Output = Result<Bytes, Failure>> + Send {
        read(self.inner.into_body(), limit)
    }

    /// A body that says it is JSON, as it came. The content type is demanded: a browser can send a form across origins,
    /// but not this.
    pub fn json_bytes(self, limit: usize) -> impl Future<Output = Result<Bytes, Failure>> + Send {
        let told = if self.is_of_type("application/json") {
            Ok(())
        } else {
            let content_type = self.header(CONTENT_TYPE).unwrap_or("");
            let how = format!("send JSON with `content-type: application/json` (got `{content_type}`)");
            Err(Failure::new(Code::UnsupportedMediaType, how))
        };
        let reading = self.bytes(limit);
        async move {
            told?;
            reading.await
        }
    }

    pub async fn json<T: DeserializeOwned>(self, limit: usize) -> Result<T, Failure> {
        parse(&self.json_bytes(limit).await?)
    }

    /// The request to send on: same method, given target, end-to-end headers only, the body streaming.
    pub fn forward(self, path_and_query: &str) -> Result<http::Request<Body>, Failure> {
        let (head, body) = self.inner.into_parts();
        let mut request = http::Request::builder()
            .method(head.method)
            .uri(path_and_query)
            .body(body.map_err(Into::into).boxed_unsync())
            .map_err(|_| Failure::invalid(format!("`{path_and_query}` is not a path that can be relayed")))?;
        for (name, value) in &head.headers {
            let hop = reply::HOP_BY_HOP.contains(name) && name != http::header::CONTENT_LENGTH;
            if !hop && name != http::header::HOST && name != http::header::AUTHORIZATION {
                request.headers_mut().append(name, value.clone());
            }
        }
        if let Some(id) = id_value(&self.id) {
            request.headers_mut().insert(ID_HEADER, id);
        }
        Ok(request)
    }
}

pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::invalid(format!("the body is not what this route takes: {error}")))
}

/// A whole body of a known bound, from either end of a connection.
pub async fn read<B>(body: B, limit: usize) -> Result<Bytes, Failure>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match tokio::time::timeout(BODY_READ_MAX, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::new(
            Code::BodyTooLarge,
            format!("the body is longer than this route's limit of {limit} bytes"),
        )),
        Ok(Err(error)) => Err(Failure::invalid(format!("reading the body failed: {error}"))),
        Err(_) => Err(Failure::new(
            Code::RequestTimeout,
            format!("the body did not arrive within {} s", BODY_READ_MAX.as_secs()),
        )),
    }
}

/// Percent-decoding as forms do it; what is not an escape stays as it is.
pub fn percent_decode(text: &str) -> String {
    let raw = text.as_bytes();
    let mut bytes = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let escaped = (raw[at] == b'%')
            .then(|| raw.get(at + 1..at + 3))
            .flatten()
            // A number may have a sign, an escape may not.
            .filter(|pair| pair.iter().all(u8::is_ascii_hexdigit))
            .and_then(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        match escaped {
            Some(value) => {
                bytes.push(value);
                at += 3;
            }
            None => {
                bytes.push(if raw[at] == b'+' { b' ' } else { raw[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Percent-encoding of one path segment or query value.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoding_undoes_encoding_and_leaves_stray_signs() {
        let text = "file:/a b/ü&=%.gguf";
        assert_eq!(percent_decode(&percent_encode(text)), text);
        assert_eq!(percent_decode("100%"), "100%");
        assert_eq!(percent_decode("%zz+"), "%zz ");
        assert_eq!(percent_decode("%+f%2B"), "% f+");
    }
}
