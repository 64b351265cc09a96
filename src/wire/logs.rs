//! Logs as they are asked for and told: the same words to a hive (`/v1/logs`) and to the queen (`/v2/logs`).

use super::{Code, Failure};
use serde::{Deserialize, Serialize};

/// Lines of each log, where nobody says how many.
pub const TAIL_LINES: usize = 100;
/// As many as are kept of one.
pub const TAIL_LINES_MAX: usize = 1_000;
const WORKER_ID_BYTES_MAX: usize = 64;

/// Which lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// One machine of the fleet; all where none is named.
    pub node: Option<String>,
    pub worker: Option<String>,
    /// Those to come, too.
    pub follow: bool,
    /// How many of each log's last lines.
    pub tail: usize,
}

impl LogQuery {
    /// From a request's parameters.
    pub fn read(parameter: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let follow = match parameter("follow").as_deref() {
            None | Some("false" | "0" | "no") => false,
            Some("" | "true" | "1" | "yes") => true,
            Some(other) => return Err(Failure::invalid(format!("`follow` is true or false, not `{other}`"))),
        };
        let tail = match parameter("tail") {
            None => TAIL_LINES,
            Some(text) => text.parse().ok().filter(|lines| *lines <= TAIL_LINES_MAX).ok_or_else(|| {
                Failure::invalid(format!("`tail` is a number of lines up to {TAIL_LINES_MAX}, not `{text}`"))
            })?,
        };
        let worker = parameter("worker").filter(|id| !id.is_empty());
        if let Some(id) = &worker {
            check_worker_id(id)?;
        }
        Ok(LogQuery { node: parameter("node").filter(|node| !node.is_empty()), worker, follow, tail })
    }

    /// As parameters again, but the node, which is the one that is asked.
    pub fn text(&self) -> String {
        let worker = self.worker.as_ref().map_or_else(String::new, |id| format!("&worker={id}"));
        format!("follow={}&tail={}{worker}", self.follow, self.tail)
    }
}

/// A worker's id becomes a file's name.
fn check_worker_id(id: &str) -> Result<(), Failure> {
    let is_plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_plain && id.len() <= WORKER_ID_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::new(Code::InvalidRequest, format!("`{id}` is no worker's id; see `rbee workers list`")))
}

/// One line, and where it was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub node: String,
    /// None: the daemon itself.
    pub worker: Option<String>,
    /// `queen`, `hive` or `worker`.
    pub stream: String,
    pub line: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameters: &[(&str, &str)]) -> Result<LogQuery, Failure> {
        LogQuery::read(|name| {
            parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_query_reads_back_from_its_text() {
        let query = read(&[("follow", ""), ("tail", "7"), ("worker", "w1"), ("node", "one")]).unwrap();
        assert_eq!(query.text(), "follow=true&tail=7&worker=w1");
        let plain = read(&[]).unwrap();
        assert_eq!(plain, LogQuery { node: None, worker: None, follow: false, tail: TAIL_LINES });
    }

    #[test]
    fn a_workers_id_cannot_lead_to_another_file_and_numbers_have_limits() {
        for bad in ["../serve", "a/b", "a.log", "w\0", &"w".repeat(65)] {
            assert!(read(&[("worker", bad)]).is_err(), "{bad}");
        }
        assert!(read(&[("tail", "1001")]).is_err() && read(&[("tail", "-1")]).is_err());
        assert!(read(&[("follow", "maybe")]).is_err());
    }
}
