//! One question and its answer at the end of all redirects. A key goes to the origin it belongs to, and nowhere a redirect
//! leads; what is encrypted stays so; and nobody is led to a private address who was not sent to one.

use super::DownloadError;
use crate::http::Body;
use crate::http::client::{self, ClientError, Connection, Target};
use crate::http::url::Url;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use hyper::body::Incoming;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub const REDIRECTS_MAX: usize = 5;
const ERROR_CODE: &str = "x-error-code";
const GATED: &str = "GatedRepo";
const AGENT: HeaderValue = HeaderValue::from_static(concat!("rbee/", env!("CARGO_PKG_VERSION")));

/// A key to one server. It is shown to nobody: no `Display`, and a `Debug` that tells nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    pub fn new(text: &str) -> Self {
        Key(text.trim().to_owned())
    }

    pub fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// What a server may ask for before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Nothing: we have no key for it.
    Open,
    /// The hub asks for a key where a model is private or gated.
    Hub(Option<Key>),
}

impl Access {
    fn key(&self) -> Option<&Key> {
        match self {
            Access::Open => None,
            Access::Hub(key) => key.as_ref(),
        }
    }

    /// What to do about a refusal.
    fn hint(&self, code: Option<&str>) -> &'static str {
        match (self, code) {
            (Access::Open, _) => "it asks for a key, and there is none for it",
            (Access::Hub(Some(_)), Some(GATED)) => {
                "accept the model's terms on its page at the hub, with the account that the key belongs to"
            }
            (Access::Hub(None), Some(GATED)) => {
                "the model is gated: accept its terms on its page at the hub, and set HF_TOKEN"
            }
            (Access::Hub(Some(_)), _) => "the key that HF_TOKEN or the token file holds does not open it",
            (Access::Hub(None), _) => "set HF_TOKEN if it is private or gated",
        }
    }
}

/// Which servers may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// The public network, and these origins wherever they are.
    Public(Vec<String>),
    /// Whoever configured a server of a private network trusts what it redirects to.
    Anywhere,
}

impl Reach {
    pub fn is_trusted(&self, origin: &str) -> bool {
        match self {
            Reach::Public(origins) => origins.iter().any(|trusted| trusted == origin),
            Reach::Anywhere => true,
        }
    }
}

/// Where a question begins, and the rules of the road.
#[derive(Debug, Clone)]
pub struct Visit {
    pub url: Url,
    pub access: Access,
    pub reach: Arc<Reach>,
    /// A sum pins the bytes, so that they may come unencrypted.
    pub may_be_plain: bool,
    pub cancel: CancellationToken,
}

/// An answer, whose it is, and the connection, which can be asked again when the answer was read.
pub struct Answer {
    pub url: Url,
    pub response: http::Response<Incoming>,
    pub connection: Connection,
    /// The head of the first answer, where a redirect followed: the hub says there what the file is.
    pub first: Option<HeaderMap>,
}

impl Visit {
    /// Asks, and follows redirects. `headers` are made for every stop.
    pub async fn ask(
        &self,
        method: &str,
        patience: impl Fn(usize) -> Duration,
        headers: impl Fn(&Url) -> HeaderMap,
    ) -> Result<Answer, DownloadError> {
        let mut url = self.url.clone();
        let mut first = None;
        for hop in 0..=REDIRECTS_MAX {
            let (connection, response) = self.stop(&url, method, patience(hop), headers(&url)).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { url, response, connection, first });
            }
            let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let location = location.ok_or_else(|| DownloadError::NoLocation(url.to_string()))?;
            let next = url
                .join(location)
                .map_err(|source| DownloadError::BadRedirect { from: url.to_string(), source })?;
            let stays_plain =
                !url.is_encrypted() && (self.may_be_plain || self.reach.is_trusted(next.origin()));
            if !next.is_encrypted() && !stays_plain {
                return Err(DownloadError::Downgrade { from: url.to_string(), to: next.origin().to_owned() });
            }
            first.get_or_insert_with(|| response.headers().clone());
            url = next;
        }
        Err(DownloadError::Redirects(self.url.to_string()))
    }

    async fn stop(
        &self,
        url: &Url,
        method: &str,
        patience: Duration,
        headers: HeaderMap,
    ) -> Result<(Connection, http::Response<Incoming>), DownloadError> {
        let origin = || url.origin().to_owned();
        let exchange = async {
            let request = self.request(url, method, headers)?;
            let target = Target::parse(url.origin())?;
            let target = if self.reach.is_trusted(url.origin()) { target } else { target.public_only() };
            let mut connection = Connection::open(&target).await?;
            let response = connection.send(request).await?;
            Ok::<_, ClientError>((connection, response))
        };
        tokio::time::timeout(patience, self.cancel.run_until_cancelled(exchange))
            .await
            .map_err(|_| DownloadError::NoAnswer { origin: origin(), limit: patience })?
            .ok_or(DownloadError::Cancelled)?
            .map_err(|source| DownloadError::Ask { origin: origin(), source })
    }

    pub(super) fn request(
        &self,
        url: &Url,
        method: &str,
        mut headers: HeaderMap,
    ) -> Result<http::Request<Body>, ClientError> {
        let mut request = client::request(method, url.path(), crate::http::reply::empty())?;
        headers.insert(USER_AGENT, AGENT);
        if let Some(value) =
            self.access.key().filter(|_| url.origin() == self.url.origin()).and_then(Key::header)
        {
            headers.insert(AUTHORIZATION, value);
        }
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// What an answer that is none of ours means.
pub fn refusal(url: &Url, access: &Access, status: u16, headers: &HeaderMap) -> DownloadError {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let url = url.to_string();
    match status {
        404 | 410 => DownloadError::NotThere { url, status },
        401 | 403 => DownloadError::Denied { url, status, hint: access.hint(text(ERROR_CODE)) },
        _ => {
            let retry_after = text(RETRY_AFTER.as_str()).and_then(pause_asked);
            DownloadError::Status { url, status, retry_after }
        }
    }
}

/// `Retry-After`: seconds, or a date.
fn pause_asked(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

pub(super) fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_nowhere() {
        let key = Key::new(" hf_canary\n");
        assert!(!format!("{key:?}").contains("canary"));
        assert_eq!(key.header().unwrap(), "Bearer hf_canary");
        assert!(!format!("{:?}", key.header().unwrap()).contains("canary"));
    }

    #[test]
    fn servers_may_ask_for_a_pause_in_both_ways() {
        assert_eq!(pause_asked(" 7"), Some(Duration::from_secs(7)));
        let past = pause_asked("Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(past, Some(Duration::ZERO));
        assert_eq!(pause_asked("soon"), None);
    }
}
