//! What a flag's value may be. Command line, environment, configuration file and defaults all come through
//! [`Kind::check`], so that a value is right or wrong in the same way wherever it was written.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than anybody waits; keeps `Instant::now() + duration` from overflowing.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Switch,
    Text,
    Number {
        min: i64,
        max: i64,
    },
    Float {
        min: f64,
        max: f64,
    },
    Duration,
    Choice(&'static [&'static str]),
    /// HOST:PORT.
    Address,
    /// HOST:PORT, unix:PATH, or fd:N for a listener that was inherited.
    Endpoint,
    /// http:// or https://
    Url,
    Path,
}

/// A value that passed [`Kind::check`].
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    On(bool),
    Text(String),
    Number(i64),
    Float(f64),
    Duration(Duration),
    Path(PathBuf),
}

impl Value {
    /// As it can be typed.
    pub fn text(&self) -> OsString {
        match self {
            Value::On(on) => on.to_string().into(),
            Value::Text(text) => text.into(),
            Value::Number(number) => number.to_string().into(),
            Value::Float(float) => float.to_string().into(),
            Value::Duration(time) => format!("{}ms", time.as_millis()).into(),
            Value::Path(path) => path.into(),
        }
    }
}

/// What a value should have been; reads on from "`x` is not …".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected(String);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Kind {
    pub fn takes_value(self) -> bool {
        self != Kind::Switch
    }

    /// Whether one variable or string may hold several values, comma by comma. Free text may hold commas itself.
    pub fn splits(self) -> bool {
        !matches!(self, Kind::Text | Kind::Path)
    }

    pub fn check(self, text: &str) -> Result<Value, Expected> {
        let checked = match self {
            Kind::Switch => match text {
                "1" | "true" | "yes" | "on" => Some(Value::On(true)),
                "0" | "false" | "no" | "off" => Some(Value::On(false)),
                _ => None,
            },
            Kind::Text => Some(Value::Text(text.to_owned())),
            Kind::Number { min, max } => {
                text.parse().ok().filter(|n| (min..=max).contains(n)).map(Value::Number)
            }
            Kind::Float { min, max } => {
                text.parse().ok().filter(|n| (min..=max).contains(n)).map(Value::Float)
            }
            Kind::Duration => duration(text).map(Value::Duration),
            Kind::Choice(choices) => choices.contains(&text).then(|| Value::Text(text.to_owned())),
            Kind::Address => is_address(text).then(|| Value::Text(text.to_owned())),
            Kind::Endpoint => is_endpoint(text).then(|| Value::Text(text.to_owned())),
            Kind::Url => is_url(text).then(|| Value::Text(text.trim_end_matches('/').to_owned())),
            Kind::Path => (!text.is_empty()).then(|| Value::Path(PathBuf::from(text))),
        };
        checked.ok_or_else(|| self.expected())
    }

    fn expected(self) -> Expected {
        Expected(match self {
            Kind::Switch => "true or false".into(),
            Kind::Text => "text".into(),
            Kind::Number { min, max: i64::MAX } => format!("a whole number from {min} up"),
            Kind::Number { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Float { min, max } => format!("a number from {min} to {max}"),
            Kind::Duration => "a duration such as 500ms, 60s, 5m or 1h30m".into(),
            Kind::Choice(choices) => format!("one of {}", choices.join(", ")),
            Kind::Address => "an address such as 127.0.0.1:7833 or [::1]:7833".into(),
            Kind::Endpoint => "HOST:PORT, unix:PATH or fd:N".into(),
            Kind::Url => "a URL such as http://127.0.0.1:7833".into(),
            Kind::Path => "a path".into(),
        })
    }
}

/// `1h30m`, `500ms`; a bare `0` is allowed, any other bare number is not: its unit would be a guess.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total_ms: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total_ms = total_ms.checked_add(count.checked_mul(unit_ms)?)?;
    }
    let total = Duration::from_millis(total_ms);
    (!text.is_empty() && total <= DURATION_MAX).then_some(total)
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_ok = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && !host.contains([':', '/', '@']) && !host.contains(char::is_whitespace),
    };
    host_ok && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn is_endpoint(text: &str) -> bool {
    if let Some(path) = text.strip_prefix("unix:") {
        return !path.is_empty();
    }
    if let Some(fd) = text.strip_prefix("fd:") {
        return fd.parse::<u16>().is_ok();
    }
    is_address(text)
}

fn is_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<::http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let port_ok = match authority.as_str().rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => authority.port_u16().is_some(),
        _ => true,
    };
    matches!(uri.scheme_str(), Some("http" | "https")) && !authority.host().is_empty() && port_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_have_a_limit() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for bad in ["", "30", "s", "5 m", "-1s", "1.5h", "1s5", "99999999999999999999s", "9999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:0", "[::1]:7833", "node-a.local:80", "0.0.0.0:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in
            ["", ":80", "127.0.0.1", "::1:80", "[::1]", "h:65536", "h:+1", "http://h:80", "a b:1", "[x]:1"]
        {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn urls_are_http_and_name_a_host() {
        for good in ["http://h", "https://h:1/", "http://[::1]:7833", "http://h/prefix"] {
            assert!(is_url(good), "{good}");
        }
        for bad in ["h:80", "ftp://h", "http://", "http://h:99999", "http://a b", "/x"] {
            assert!(!is_url(bad), "{bad}");
        }
    }

    #[test]
    fn endpoints_are_sockets_descriptors_or_addresses() {
        for good in ["unix:/run/w.sock", "fd:3", "127.0.0.1:8080"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in ["unix:", "fd:", "fd:x", "8080"] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }

    #[test]
    fn numbers_keep_their_range_and_nothing_is_not_a_number() {
        let percent = Kind::Float { min: 0.0, max: 1.0 };
        assert_eq!(percent.check("0.5"), Ok(Value::Float(0.5)));
        assert!(percent.check("NaN").is_err() && percent.check("1.5").is_err() && percent.check("").is_err());
        let error = Kind::Number { min: 1, max: 4 }.check("5").unwrap_err();
        assert_eq!(error.to_string(), "a whole number from 1 to 4");
    }
}
