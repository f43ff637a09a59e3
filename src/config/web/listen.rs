//! Where metrics are served: `web_listen_address`, `web_systemd_socket`.

use crate::config::diagnose::Diagnostics;
use crate::config::endpoint::{Listen, ListenAddress};
use crate::config::fields::Node;
use crate::config::layers::{Layers, Sourced};
use crate::config::place::ConfigSource;
use crate::config::words::quote;

/// Decodes where metrics are served.
pub(in crate::config) fn listen(layers: &Layers<'_>, health_port: u16) -> Listen {
    let addresses = layers.read("web_listen_address", addresses);
    let inherited = layers.read("web_systemd_socket", |node| node.boolean()).filter(|given| given.value);
    let Some(at) = addresses.as_ref().map(|given| &given.at).or(inherited.as_ref().map(|given| &given.at))
    else {
        return Listen::Port;
    };
    for own in ["metrics_port", "bind"].into_iter().filter(|name| layers.has(name)) {
        layers
            .diags
            .error(at, format!("{own} and this both say where the metrics are served"))
            .help(format!("remove {own}; the health endpoint stays on health_port of 127.0.0.1"));
    }
    match (addresses, inherited) {
        (Some(addresses), Some(_)) => {
            layers
                .diags
                .error(&addresses.at, "web_listen_address and web_systemd_socket are mutually exclusive")
                .help("with web_systemd_socket the addresses are set in the socket unit");
            Listen::Inherited
        }
        (Some(addresses), None) => {
            refuse_overlaps(layers.diags, &addresses, health_port);
            Listen::Addresses(addresses.value)
        }
        (None, _) => Listen::Inherited,
    }
}

/// Reports addresses that cannot be bound at the same time.
fn refuse_overlaps(diags: &Diagnostics, given: &Sourced<Vec<ListenAddress>>, health_port: u16) {
    let all = &given.value;
    let help = ":PORT and 0.0.0.0:PORT are every address of this machine: list each address once";
    for (number, address) in all.iter().enumerate() {
        if let Some(other) = all[..number].iter().find(|other| other.excludes(address)) {
            let error = match other == address {
                true => format!("{address} is listed twice"),
                false => format!("{address} and {other} overlap: only one of them can be listened on"),
            };
            diags.error(&given.at, error).help(help);
        }
    }
    let health = ListenAddress::Tcp { host: Some("127.0.0.1".to_owned()), port: health_port };
    if let Some(address) = all.iter().find(|address| address.excludes(&health)) {
        diags
            .error(&given.at, format!("{address} overlaps with {health}, where health_port is served"))
            .help("choose another health_port, or another port here");
    }
}

/// Decodes one or more addresses, as a list or separated by commas.
fn addresses(node: &Node<'_>) -> Option<Vec<ListenAddress>> {
    let is_file = matches!(*node.at.source, ConfigSource::File(_));
    if !is_file {
        let text = node.text_as("an address")?;
        return text.split(',').map(|text| address(node, text.trim())).collect();
    }
    let each: Vec<_> =
        node.one_or_list().iter().map(|node| address(node, node.text_as("an address")?)).collect();
    if each.is_empty() {
        node.error("expected an address, found an empty list");
    }
    each.into_iter().collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
}

fn address(node: &Node<'_>, text: &str) -> Option<ListenAddress> {
    let refuse = |reason: &str| {
        node.error(format!("{} is not an address to listen on: {reason}", quote(text)))
            .help("write :9435, 127.0.0.1:9435, [::1]:9435 or unix:/run/exporter.sock");
        None
    };
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') {
            return refuse("the path of a socket must be absolute");
        }
        return Some(ListenAddress::Unix(path.into()));
    }
    if text.starts_with("vsock:") {
        return refuse("vsock is not supported");
    }
    let Some((host, port)) = text.rsplit_once(':') else { return refuse("it has no port") };
    let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
        return refuse("the port must be a number from 1 to 65535");
    };
    let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(Some(v6)) if is_ipv6(v6) => v6,
        Some(_) => return refuse("only an IPv6 address is written in brackets"),
        None if host.contains(':') => return refuse("an IPv6 address must be in brackets"),
        None => host,
    };
    if host.chars().any(|c| c.is_whitespace() || c == '/') {
        return refuse("the host is neither an address nor a name");
    }
    Some(ListenAddress::Tcp { host: (!host.is_empty()).then(|| host.to_owned()), port })
}

/// Whether it is an IPv6 address, possibly with a zone: `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "x"));
    !zone.is_empty() && address.parse::<std::net::Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnose::Diagnostics;
    use crate::config::place::Place;
    use crate::config::tree::Tree;

    #[test]
    fn accepts_go_and_unix_socket_addresses() {
        let read = |text: &str| {
            let diags = Diagnostics::new();
            let tree = Tree::text(text);
            let read = addresses(&Node::new(Place::flag("--web.listen-address"), &tree, &diags));
            assert_eq!(read.is_none(), !diags.is_empty(), "{text}: {diags}");
            read
        };
        let tcp = |host: &str, port| ListenAddress::Tcp { host: Some(host.to_owned()), port };
        let all = ListenAddress::Tcp { host: None, port: 9100 };
        assert_eq!(read(":9100"), Some(vec![all.clone()]));
        assert_eq!(read("[::1]:9100,localhost:1"), Some(vec![tcp("::1", 9100), tcp("localhost", 1)]));
        assert_eq!(read("[fe80::1%eth0]:9100"), Some(vec![tcp("fe80::1%eth0", 9100)]));
        let unix = || ListenAddress::Unix("/run/e.sock".into());
        assert_eq!(read("unix:/run/e.sock, unix:///run/e.sock"), Some(vec![unix(), unix()]));
        for bad in [
            "",
            "9100",
            "[::1%]:9100",
            ":0",
            ":x",
            ":70000",
            "::1:9100",
            "[::1:9100",
            "[x]:1",
            "unix:e.sock",
            "vsock://:1",
            "a b:1",
            ":1,",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
