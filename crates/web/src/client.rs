//! Where a request comes from: one answer for limits, for log-in and for the audit log.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::Response;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of whoever asks. In every request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) IpAddr);

/// From where the request with these comes.
pub(crate) fn of(extensions: &Extensions) -> Client {
    extensions.get().copied().unwrap_or(Client(Ipv4Addr::UNSPECIFIED.into()))
}

/// The servers in front of us that say for whom they ask.
#[derive(Clone, Debug)]
pub struct Proxies(Arc<[Network]>);

impl Proxies {
    #[must_use]
    pub fn new(networks: impl IntoIterator<Item = Network>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Who asks: whoever has connected, or whom a server in front of us has named.
    ///
    /// Each server adds the address that it has seen behind what it was told, to the last line or as a line of its own.
    /// So the last of all is what our own server has seen, and everything before it what anybody may have invented.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.0.iter().any(|network| network.contains(peer)) {
            return peer;
        }
        let last = headers.get_all(FORWARDED_FOR).iter().next_back().and_then(|line| line.to_str().ok());
        let last = last.and_then(|line| line.rsplit(',').next()?.trim().parse::<IpAddr>().ok());
        last.map_or(peer, |address| address.to_canonical())
    }
}

/// This machine: whoever can connect from it can read more than addresses.
impl Default for Proxies {
    fn default() -> Self {
        let (v4, v6) = (Ipv4Addr::new(127, 0, 0, 0), Ipv6Addr::LOCALHOST);
        Self::new([Network { base: v4.into(), bits: 8 }, Network { base: v6.into(), bits: 128 }])
    }
}

/// Notes in the request where it comes from.
pub(crate) async fn find(State(proxies): State<Proxies>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip());
    let client = Client(proxies.client(peer, request.headers()));
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// Addresses that begin alike: `10.0.0.0/8`, `2001:db8::/32`, or one of them alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u32,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differs = base.to_bits() ^ address.to_bits();
                differs.checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differs = base.to_bits() ^ address.to_bits();
                differs.checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd = || format!("`{text}` is no network such as 10.0.0.0/8 or 192.0.2.7");
        let (base, bits) = text.split_once('/').map_or((text, None), |(base, bits)| (base, Some(bits)));
        let base: IpAddr = base.parse().map_err(|_| odd())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| odd())?;
        if bits > most {
            return Err(odd());
        }
        Ok(Self { base, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &Proxies, peer: &str, lines: &[&str]) -> String {
        let headers = lines.iter().map(|line| (FORWARDED_FOR, line.parse().unwrap())).collect();
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_last_entry_of_the_last_line_is_what_our_own_server_has_seen() {
        let here = Proxies::default();
        assert_eq!(client(&here, "127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(client(&here, "127.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(&here, "127.0.0.1", &["10.6.6.6, 192.0.2.1"]), "192.0.2.1");
        // A server that adds a line leaves the client's own before it.
        assert_eq!(client(&here, "::1", &["10.6.6.6", "192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(&here, "::ffff:127.0.0.1", &["::ffff:192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(&here, "127.0.0.1", &["192.0.2.1, nonsense"]), "127.0.0.1");
    }

    #[test]
    fn nobody_is_believed_but_the_servers_that_were_named() {
        assert_eq!(client(&Proxies::default(), "192.0.2.9", &["10.6.6.6"]), "192.0.2.9");
        let named = Proxies::new(["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
        assert_eq!(client(&named, "10.200.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(&named, "2001:db8:1::1", &["192.0.2.1"]), "192.0.2.1");
        for other in ["11.0.0.1", "127.0.0.1", "2001:db9::1"] {
            assert_eq!(client(&named, other, &["192.0.2.1"]), other);
        }
    }

    #[test]
    fn networks_are_read_or_refused() {
        for text in ["0.0.0.0/0", "::/0", "10.0.0.0/8", "192.0.2.7/32", "::1/128"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<Network>().unwrap().to_string(), "192.0.2.7/32");
        for text in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
    }
}
