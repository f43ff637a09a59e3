//! Errors that occur while setting up the server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::tls_error::TlsError;

/// Why the endpoint cannot be set up. Displayed as a whole sentence for the operator.
#[derive(Debug)]
pub enum HttpError {
    /// A listener's address cannot be bound.
    Bind { address: SocketAddr, source: io::Error },
    /// A host to listen on cannot be resolved.
    Host { host: String, source: io::Error },
    /// A Unix socket cannot be bound.
    BindUnix { path: PathBuf, source: io::Error },
    /// A socket passed by the service manager cannot be used.
    Inherited(io::Error),
    /// A bound listener cannot be registered with the runtime.
    Listener(io::Error),
    /// A part of the server ended unexpectedly: a bug in the exporter or in its report callback.
    Stopped,
    /// The certificate or the key is unusable.
    Tls(TlsError),
    /// A user name or password is unusable; the message does not contain them.
    Credentials(String),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, source } => {
                write!(f, "cannot listen on {address}: ")?;
                let port = address.port();
                match source.kind() {
                    io::ErrorKind::AddrInUse => write!(
                        f,
                        "the address is in use; `ss -ltnp 'sport = :{port}'` shows by which process; stop it \
                         or choose another port"
                    ),
                    io::ErrorKind::PermissionDenied => {
                        write!(f, "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE")
                    }
                    io::ErrorKind::AddrNotAvailable => write!(
                        f,
                        "no interface of this machine has the address {}; `ip address` lists its addresses",
                        address.ip()
                    ),
                    _ => write!(f, "{source}"),
                }
            }
            Self::Host { host, source } => {
                write!(f, "cannot listen on {host}: {source}; use an address of this machine")
            }
            Self::BindUnix { path, source } => {
                write!(f, "cannot listen on unix:{}: ", path.display())?;
                match source.kind() {
                    io::ErrorKind::AddrInUse => f.write_str(
                        "the path is in use: another process listens there, or it is another file",
                    ),
                    _ => write!(f, "{source}"),
                }
            }
            Self::Inherited(source) => {
                write!(
                    f,
                    "cannot use a socket of the service manager: {source}; `systemctl cat` shows the socket \
                     unit, which needs ListenStream= and Accept=no"
                )
            }
            Self::Listener(source) => write!(f, "failed to register the listening socket: {source}"),
            Self::Stopped => f.write_str("internal error: an HTTP server task exited"),
            Self::Tls(error) => error.fmt(f),
            Self::Credentials(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for HttpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. }
            | Self::Host { source, .. }
            | Self::BindUnix { source, .. }
            | Self::Inherited(source)
            | Self::Listener(source) => Some(source),
            Self::Tls(error) => error.source(),
            Self::Stopped | Self::Credentials(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: io::ErrorKind) -> String {
        HttpError::Bind { address: "127.0.0.1:9435".parse().unwrap(), source: kind.into() }.to_string()
    }

    #[test]
    fn bind_errors_name_the_address_and_a_remedy() {
        for (kind, hint) in [
            (io::ErrorKind::AddrInUse, "'sport = :9435'"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "no interface of this machine has the address 127.0.0.1;"),
        ] {
            let text = text(kind);
            assert!(text.contains("127.0.0.1:9435") && text.contains(hint), "{text}");
        }
    }
}
