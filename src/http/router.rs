//! A role's routes as one table: method, pattern, endpoint. The table is what answers 404 and 405, and what tests walk.

use crate::wire::{Code, Failure};

/// One line of a role's table. `{name}` takes one segment, `{name*}` the rest of the path.
#[derive(Debug)]
pub struct Route<E: 'static> {
    /// A method, or `ANY`.
    pub method: &'static str,
    pub path: &'static str,
    pub to: E,
}

/// Segments that the pattern named, percent-decoded, in the pattern's order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<String>);

impl Params {
    /// The n-th named segment; the table guarantees that it is there.
    pub fn get(&self, n: usize) -> &str {
        self.0.get(n).map_or("", String::as_str)
    }
}

/// Finds the endpoint for a request, or the failure that says why there is none.
pub fn find<E: Copy>(table: &[Route<E>], method: &str, path: &str) -> Result<(E, Params), Failure> {
    let mut allowed: Vec<&str> = Vec::new();
    for route in table {
        let Some(params) = matches(route.path, path) else { continue };
        if route.method == "ANY" || route.method == method {
            return Ok((route.to, params));
        }
        allowed.push(route.method);
    }
    if allowed.is_empty() {
        return Err(Failure::new(Code::NotFound, format!("there is no {path} here")));
    }
    allowed.dedup();
    let allow = allowed.join(", ");
    Err(Failure::new(Code::MethodNotAllowed, format!("{path} takes {allow}, not {method}"))
        .with(serde_json::json!({ "allow": allow })))
}

fn matches(pattern: &str, path: &str) -> Option<Params> {
    // Most patterns are none of a path's, which the first bytes tell.
    let same =
        pattern.bytes().zip(path.bytes()).take_while(|(ours, its)| ours == its && *ours != b'{').count();
    if pattern.as_bytes().get(same).is_some_and(|next| *next != b'{') {
        return None;
    }
    let mut params = Vec::new();
    let mut rest = path.strip_prefix('/')?;
    let mut parts = pattern.strip_prefix('/')?.split('/').peekable();
    while let Some(part) = parts.next() {
        if part.ends_with("*}") {
            params.push(rest.to_owned());
            return Some(Params(params));
        }
        let (segment, after) = match rest.split_once('/') {
            Some((segment, after)) => (segment, Some(after)),
            None => (rest, None),
        };
        if part.starts_with('{') {
            if segment.is_empty() {
                return None;
            }
            params.push(crate::http::request::percent_decode(&segment.replace('+', "%2B")));
        } else if part != segment {
            return None;
        }
        match (after, parts.peek()) {
            (Some(after), Some(_)) => rest = after,
            (None, None) => return Some(Params(params)),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Route<u8>] = &[
        Route { method: "GET", path: "/v1/jobs", to: 1 },
        Route { method: "POST", path: "/v1/jobs", to: 2 },
        Route { method: "GET", path: "/v1/jobs/{id}/stream", to: 3 },
        Route { method: "ANY", path: "/v1/workers/{id}/{rest*}", to: 4 },
    ];

    #[test]
    fn a_path_finds_its_route_and_names_its_segments() {
        assert_eq!(find(TABLE, "POST", "/v1/jobs").unwrap().0, 2);
        let (to, params) = find(TABLE, "GET", "/v1/jobs/a%20b/stream").unwrap();
        assert_eq!((to, params.get(0)), (3, "a b"));
        let (to, params) = find(TABLE, "PATCH", "/v1/workers/w/v1/chat/completions").unwrap();
        assert_eq!((to, params.get(0), params.get(1)), (4, "w", "v1/chat/completions"));
    }

    #[test]
    fn an_unknown_path_is_404_and_a_wrong_method_405_with_allow() {
        assert_eq!(find(TABLE, "GET", "/v1/job").unwrap_err().code, Code::NotFound);
        assert_eq!(find(TABLE, "GET", "/v1/jobs/").unwrap_err().code, Code::NotFound);
        assert_eq!(find(TABLE, "GET", "/v1/jobs//stream").unwrap_err().code, Code::NotFound);
        let failure = find(TABLE, "DELETE", "/v1/jobs").unwrap_err();
        assert_eq!(failure.code, Code::MethodNotAllowed);
        assert_eq!(failure.details["allow"], "GET, POST");
    }
}
