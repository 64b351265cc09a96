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
}
