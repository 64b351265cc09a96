//! What runs under a directory of records, and what it takes: for people who look, not for decisions.

use super::platform;
use super::record::Files;
use std::path::Path;
use std::time::Duration;

/// The leader of a tree that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// The tree's id.
    pub id: String,
    pub pid: i32,
    pub argv: Vec<String>,
    pub memory_bytes: u64,
    /// Over its whole life, 100 being one core.
    pub cpu_percent: f64,
    pub elapsed: Duration,
}

/// The trees recorded in `directory` whose leaders live.
pub fn running(directory: &Path) -> Vec<Running> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let records =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    let mut running: Vec<Running> = records
        .filter_map(|path| {
            let record = Files::beside(&path).read().ok()?;
            let child = record.child.filter(|child| child.still_lives())?;
            let usage = usage(child.pid).unwrap_or_default();
            Some(Running {
                id: record.spec.id,
                pid: child.pid,
                argv: record.spec.argv,
                memory_bytes: platform::memory_bytes(child.pid).unwrap_or(0),
                cpu_percent: usage.cpu_percent,
                elapsed: usage.elapsed,
            })
        })
        .collect();
    running.sort_by_key(|leader| leader.pid);
    running
}

#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    cpu_percent: f64,
    elapsed: Duration,
}

#[cfg(target_os = "linux")]
fn usage(pid: i32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime = uptime.split_ascii_whitespace().next()?.parse::<f64>().ok()?;
    parse(&stat, uptime, rustix::param::clock_ticks_per_second() as f64)
}

/// From /proc/PID/stat, whose second field may hold spaces and parentheses.
#[cfg(target_os = "linux")]
fn parse(stat: &str, uptime: f64, ticks: f64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks_of = |index: usize| fields.get(index)?.parse::<f64>().ok();
    // From "state", the third field, on: utime and stime are the 14th and 15th, starttime the 22nd.
    let busy = (ticks_of(11)? + ticks_of(12)?) / ticks;
    let elapsed = (uptime - ticks_of(19)? / ticks).max(0.0);
    let cpu_percent = if elapsed > 0.0 { 100.0 * busy / elapsed } else { 0.0 };
    Some(Usage { cpu_percent, elapsed: Duration::from_secs_f64(elapsed) })
}

#[cfg(not(target_os = "linux"))]
fn usage(pid: i32) -> Option<Usage> {
    let output = std::process::Command::new("ps")
        .env("LC_ALL", "C")
        .args(["-o", "pcpu=,etime=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (cpu, elapsed) = text.trim().split_once(char::is_whitespace)?;
    // [[days-]hours:]minutes:seconds
    let seconds = elapsed.trim().split(['-', ':']).rev().zip([1, 60, 3_600, 86_400]);
    let seconds = seconds.filter_map(|(field, unit)| Some(field.parse::<u64>().ok()? * unit)).sum();
    Some(Usage { cpu_percent: cpu.parse().ok()?, elapsed: Duration::from_secs(seconds) })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 9000 0 0";
        let usage = parse(stat, 100.0, 100.0).unwrap();
        assert_eq!((usage.cpu_percent, usage.elapsed), (20.0, Duration::from_secs(10)));
    }
}
