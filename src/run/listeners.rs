//! The listening sockets.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use crate::blocking;
use crate::config::endpoint::{Listen, ListenAddress};
use crate::config::model::Settings;
use crate::http::{HttpError, Listener};
use crate::net::NetworkConfig;
use crate::service;

/// The sockets, bound before privileges are dropped.
#[derive(Debug)]
pub struct Listeners {
    pub(super) metrics: Vec<Listener>,
    pub(super) health: Listener,
    /// The control socket and its path, if there is something to control.
    pub(super) control: Option<(PathBuf, Result<Listener, HttpError>)>,
}

impl Listeners {
    /// Binds all of them. Sockets that the service manager has stored are taken over.
    ///
    /// # Errors
    /// If one of them cannot be bound, except for the control socket.
    pub fn bind(settings: &Settings, network: Option<&NetworkConfig>) -> Result<Self, HttpError> {
        let at = |port| SocketAddr::new(settings.bind, port);
        let mut ports = vec![at(settings.health_port)];
        ports.extend(matches!(settings.listen, Listen::Port).then_some(at(settings.metrics_port)));
        let mut kept = service::StoredSockets::take(&ports);
        let mut bind = |port| {
            let listener = kept.listener(at(port), Listener::inherited, Listener::bind)?;
            if let Listener::Tcp(tcp) = &listener {
                service::keep(at(port), tcp.as_fd());
            }
            Ok(listener)
        };
        let mut health = None;
        let metrics = match &settings.listen {
            Listen::Port => vec![bind(settings.metrics_port)?],
            Listen::Addresses(addresses) => addresses
                .iter()
                .map(|address| match address {
                    ListenAddress::Tcp { port, .. } if address.is_ipv6_beside(addresses) => {
                        Listener::bind_ipv6(*port)
                    }
                    ListenAddress::Tcp { host, port } => Listener::bind_host(host.as_deref(), *port),
                    ListenAddress::Unix(path) => Listener::bind_unix(path),
                })
                .collect::<Result<_, _>>()?,
            Listen::Inherited => {
                let mut metrics = Vec::new();
                for (name, socket) in service::sockets().map_err(HttpError::Inherited)? {
                    let listener = Listener::inherited(socket)?;
                    if name == "health" { health = Some(listener) } else { metrics.push(listener) }
                }
                metrics
            }
        };
        let health = health.map_or_else(|| bind(settings.health_port), Ok)?;
        let block = network.and_then(|network| network.block.as_ref());
        let control = block.map(|block| {
            let path = blocking::socket(Some(block), settings.metrics_port);
            let listener = Listener::bind_control(&path);
            (path, listener)
        });
        Ok(Self { metrics, health, control })
    }

    /// The ports that other machines can reach.
    pub(super) fn ports(&self) -> Vec<u16> {
        let all = self.metrics.iter().chain([&self.health]).filter_map(Listener::socket_address);
        let mut ports: Vec<u16> =
            all.filter(|address| !address.ip().is_loopback()).map(|address| address.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}
