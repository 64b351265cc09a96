//! Machines in a network, as far as the kernel can make them: each host has a network namespace of its own, held by a
//! process that sleeps, and a cable to the test's. All of it is gone with the test's PID namespace.

use std::process::{Child, Command, Stdio};

/// The test's end of a cable, and the host's.
pub struct Host {
    holder: Child,
    number: u8,
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}

impl Host {
    pub fn connected(number: u8) -> Host {
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo there; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Once it speaks, its network is made.
        let mut word = [0; 6];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut word).unwrap();
        let host = Host { holder, number };
        ip(&format!("link add v{number} type veth peer name e{number} netns {}", host.pid()));
        ip(&format!("addr add {}/24 dev v{number}", host.ours()));
        ip(&format!("link set v{number} up"));
        host.ip("link set lo up");
        host.ip(&format!("addr add {}/24 dev e{number}", host.address()));
        host.ip(&format!("link set e{number} up"));
        host
    }

    /// Whose network it is.
    pub fn pid(&self) -> i32 {
        self.holder.id() as i32
    }

    fn ip(&self, arguments: &str) {
        let status = Command::new("nsenter")
            .args(["-t", &self.pid().to_string(), "-n", "ip"])
            .args(arguments.split(' '))
            .status()
            .unwrap();
        assert!(status.success(), "ip {arguments} on host {}: {status}", self.number);
    }

    /// The test's address at this cable.
    pub fn ours(&self) -> String {
        format!("10.83.{}.1", self.number)
    }

    pub fn address(&self) -> String {
        format!("10.83.{}.2", self.number)
    }

    /// Nothing that we send arrives there any more; what it sends still comes.
    pub fn cut_towards(&self) {
        ip(&format!("route add blackhole {}/32", self.address()));
    }

    pub fn mend_towards(&self) {
        ip(&format!("route del blackhole {}/32", self.address()));
    }

    /// Nothing that it sends arrives any more; what we send still does.
    pub fn cut_from(&self) {
        self.ip(&format!("route add blackhole {}/32", self.ours()));
    }

    pub fn mend_from(&self) {
        self.ip(&format!("route del blackhole {}/32", self.ours()));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It sleeps and no more; a failure here would hide the test's own.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
