//! The system's own names, by its own program: `getent ahosts`.

use super::SYSTEM_MAX;
use std::net::IpAddr;
use std::process::Stdio;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const BYTES_MAX: u64 = 64 << 10;

pub async fn lookup(host: &str) -> Result<Vec<IpAddr>, String> {
    let child = Command::new("getent")
        .args(["ahosts", host])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err("not installed".into()),
        Err(error) => return Err(error.to_string()),
    };
    let Some(stdout) = child.stdout.take() else { return Ok(Vec::new()) };
    let mut text = String::new();
    let read_and_reap = async {
        let read = stdout.take(BYTES_MAX).read_to_string(&mut text).await;
        child.wait().await.and(read)
    };
    match tokio::time::timeout(SYSTEM_MAX, read_and_reap).await {
        Ok(Ok(_)) => Ok(parse_ahosts(&text)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", SYSTEM_MAX.as_secs())),
    }
}

/// Lines of `ADDRESS TYPE NAME`, the address repeated for each socket type.
fn parse_ahosts(text: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getent_lines_give_each_address_once() {
        let text = "192.0.2.1 STREAM hub\n192.0.2.1 DGRAM\n192.0.2.1 RAW\n2001:db8::1 STREAM\nnonsense\n";
        assert_eq!(parse_ahosts(text).len(), 2);
    }
}
