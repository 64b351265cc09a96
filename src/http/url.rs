//! Addresses of files on a web server, and what a redirect may make of one.

use std::fmt;

/// An absolute address: `http` or `https`, no user, no fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `https://host[:port]`, in lower case and without a scheme's own port: equal text is an equal origin.
    origin: String,
    /// Path and query, starting with a slash.
    path: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address: it should start with http:// or https:// and name a host")]
pub struct BadUrl(String);

impl Url {
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(text.to_owned());
        let without_fragment = text.split('#').next().unwrap_or(text);
        // The one parser that hyper and the client use, so that no two readings of an address disagree.
        let uri: http::Uri = without_fragment.parse().map_err(|_| bad())?;
        let scheme = uri.scheme_str().ok_or_else(bad)?.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80u16,
            "https" => 443,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad());
        }
        let host = authority.host().to_ascii_lowercase();
        let port = match authority.port() {
            None => String::new(),
            Some(port) if port == default_port => String::new(),
            Some(port) => format!(":{port}"),
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Url { origin: format!("{scheme}://{host}{port}"), path: format!("{slash}{path}") })
    }

    /// This address with `/segment` after it for every segment, each escaped.
    pub fn with_segments<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut path = self.path.trim_end_matches('/').to_owned();
        for segment in segments {
            path.push('/');
            escape(segment, &mut path);
        }
        Url { origin: self.origin.clone(), path }
    }

    /// This address with `?query`.
    pub fn with_query(mut self, query: Option<&str>) -> Self {
        if let Some(query) = query {
            self.path.push('?');
            self.path.push_str(query);
        }
        self
    }

    /// Where a `Location` header leads from here.
    pub fn join(&self, location: &str) -> Result<Self, BadUrl> {
        if location.contains("://") {
            return Url::parse(location);
        }
        let scheme = self.origin.split(':').next().unwrap_or("https");
        if location.starts_with("//") {
            return Url::parse(&format!("{scheme}:{location}"));
        }
        if location.starts_with('/') {
            return Url::parse(&format!("{}{location}", self.origin));
        }
        let path = self.path.split('?').next().unwrap_or("/");
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Url::parse(&format!("{}{folder}/{location}", self.origin))
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn is_encrypted(&self) -> bool {
        self.origin.starts_with("https:")
    }
}

impl fmt::Display for Url {
    /// Without the query: a signed address's query is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path.split('?').next().unwrap_or_default())
    }
}

fn escape(segment: &str, path: &mut String) {
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            _ => {
                path.push('%');
                path.push_str(&format!("{byte:02X}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let from = Url::parse("https://Hub.test/mirror/a?x=1#f").unwrap();
        assert_eq!((from.origin(), from.path()), ("https://hub.test", "/mirror/a?x=1"));
        let to = |location: &str| from.join(location).map(|u| format!("{}{}", u.origin, u.path));
        assert_eq!(to("/b").unwrap(), "https://hub.test/b");
        assert_eq!(to("b?y").unwrap(), "https://hub.test/mirror/b?y");
        assert_eq!(to("//cdn.test/b").unwrap(), "https://cdn.test/b");
        assert_eq!(to("http://cdn.test:81/b").unwrap(), "http://cdn.test:81/b");
        assert_eq!(to("http://cdn.test:80/b").unwrap(), "http://cdn.test/b");
        assert_eq!(to("https://hub.test:443/b").unwrap(), "https://hub.test/b");
        for bad in ["ftp://x/y", "https://u@h/", "https://", "https://a b/", "file:///etc/passwd"] {
            assert!(from.join(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn segments_are_escaped() {
        let url = Url::parse("http://127.0.0.1:8000/").unwrap().with_segments(["a", "b c", "../d", "ü"]);
        assert_eq!(url.to_string(), "http://127.0.0.1:8000/a/b%20c/..%2Fd/%C3%BC");
    }
}
