//! Which address a node is to dial its queen at. She may be asked here over loopback, which leads nowhere from there.

use crate::http::client::Target;
use std::net::{IpAddr, SocketAddr};

/// `asked`: where we reach her; `listens`: where she says she listens; `from`: our address as the node sees it. None if no
/// address of hers can be reached from there.
pub fn dialled(asked: &Target, listens: &[SocketAddr], from: Option<IpAddr>) -> Option<String> {
    let (host, _) = asked.host_and_port()?;
    let is_here =
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !is_here {
        return Some(asked.to_string());
    }
    // Seen from loopback the node is this very machine.
    let is_same = from.is_some_and(|ip| ip.to_canonical().is_loopback());
    let at = |ip: IpAddr, port| format!("http://{}", SocketAddr::new(ip, port));
    listens.iter().find_map(|address| {
        let ip = address.ip().to_canonical();
        if ip.is_unspecified() {
            from.map(|from| at(from.to_canonical(), address.port()))
        } else {
            (!ip.is_loopback() || is_same).then(|| at(ip, address.port()))
        }
    })
}

/// What to do where there is none. `host`: the node, as ssh is told of it.
pub fn advice(listens: &[SocketAddr], host: &str) -> String {
    let all: Vec<String> = listens.iter().map(SocketAddr::to_string).collect();
    let all = all.join(", ");
    let near = listens.iter().find(|address| address.ip().to_canonical().is_loopback());
    let Some(near) = near else {
        return format!(
            "the queen listens on {all}, and nothing over there tells by which address ssh has come: say how she is reached from there, with --dial http://ADDRESS:PORT"
        );
    };
    let port = near.port();
    format!(
        "the queen listens on this machine only ({all}), where no other reaches her. Make a key (`rbee key create`), stop her, and start her with `--listen 0.0.0.0:{port}`. Or leave her as she is and keep a tunnel open for as long as the node is to serve, begun before this: `ssh -N -R {port}:{near} {host}`; then give --dial http://127.0.0.1:{port}. Whoever is on that machine reaches her through it, and without a key (`rbee key create`) may ask her for anything"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_an_address_that_leads_to_the_queen_from_there() {
        let dial = |asked: &str, listens: &[&str], from: Option<&str>| {
            let listens: Vec<SocketAddr> = listens.iter().map(|text| text.parse().unwrap()).collect();
            dialled(&Target::parse(asked).unwrap(), &listens, from.map(|ip| ip.parse().unwrap()))
        };
        let here = "http://127.0.0.1:7833";
        let from = Some("192.168.1.2");
        assert_eq!(dial(here, &["0.0.0.0:7833"], from).as_deref(), Some("http://192.168.1.2:7833"));
        assert_eq!(dial(here, &["[::]:7833"], Some("fd00::2")).as_deref(), Some("http://[fd00::2]:7833"));
        assert_eq!(dial(here, &["127.0.0.1:7833"], from), None);
        assert_eq!(
            dial(here, &["127.0.0.1:7833", "10.0.0.1:80"], from).as_deref(),
            Some("http://10.0.0.1:80")
        );
        assert_eq!(dial(here, &["0.0.0.0:7833"], None), None);
        assert_eq!(dial(here, &["127.0.0.1:7833"], Some("127.0.0.1")).as_deref(), Some(here));
        assert_eq!(dial("http://queen:7833", &["0.0.0.0:1"], from).as_deref(), Some("http://queen:7833"));
    }

    #[test]
    fn where_there_is_none_the_commands_that_help_are_told_in_full() {
        let told = |address: &str| advice(&[address.parse().unwrap()], "me@box");
        let near = told("127.0.0.1:7900");
        for words in
            ["ssh -N -R 7900:127.0.0.1:7900 me@box", "--dial http://127.0.0.1:7900", "--listen 0.0.0.0:7900"]
        {
            assert!(near.contains(words), "{words}: {near}");
        }
        assert!(told("[::1]:7833").contains("ssh -N -R 7833:[::1]:7833 me@box"));
        assert!(told("0.0.0.0:7833").contains("--dial http://ADDRESS:PORT"));
    }
}
