//! Listening sockets, TCP and Unix, opened here or by the service manager.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, fs};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::deferred::accept_at_first_byte;
use super::error::HttpError;
use super::route::LocalPeer;

/// The backlog of connections not yet accepted, silent ones included: the default of net.core.somaxconn, which limits it.
const BACKLOG: i32 = 4096;

/// How long a client may be silent before its connection is accepted, in seconds. Until then it holds no slot, so any number
/// of silent clients costs the others nothing.
const SILENCE: i32 = 5;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on an address. Port 0 selects a free port. An address that no interface has yet (during boot, for
    /// example) is bound anyway and works once an interface has it: see [`has_address`].
    ///
    /// # Errors
    /// [`HttpError::Bind`], whose text names the address and says what to do.
    pub fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let fail = |source| HttpError::Bind { address, source };
        let listener = match TcpListener::bind(address) {
            Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => bind_freely(address),
            other => other,
        };
        let listener = listener.map_err(fail)?;
        // The standard library's backlog is 128.
        SockRef::from(&listener).listen(BACKLOG).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Listener::Tcp(listener))
    }

    /// Listens on the address of a host, or on all addresses of this machine.
    ///
    /// # Errors
    /// See [`Listener::bind`]; also if the host cannot be resolved.
    pub fn bind_host(host: Option<&str>, port: u16) -> Result<Self, HttpError> {
        let Some(host) = host else {
            // Dual-stack, or IPv4 only if this machine has no IPv6. If the port is in use, binding fails rather than
            // falling back to IPv4 alone.
            return match Self::bind((Ipv6Addr::UNSPECIFIED, port).into()) {
                Err(HttpError::Bind { source, .. }) if source.kind() != io::ErrorKind::AddrInUse => {
                    Self::bind((Ipv4Addr::UNSPECIFIED, port).into())
                }
                bound => bound,
            };
        };
        let unknown = |source| HttpError::Host { host: host.to_owned(), source };
        let mut found: Vec<_> = (host, port).to_socket_addrs().map_err(unknown)?.collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        let none = || unknown(io::Error::other("it has no address"));
        Self::bind(*found.first().ok_or_else(none)?)
    }

    /// Listens on all IPv6 addresses of this machine, but not on IPv4.
    ///
    /// # Errors
    /// See [`Listener::bind`].
    pub fn bind_ipv6(port: u16) -> Result<Self, HttpError> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = bind_by(address, |socket| socket.set_only_v6(true));
        let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map(Listener::Tcp).map_err(|source| HttpError::Bind { address, source })
    }

    /// Listens on a Unix socket. A stale socket file without a listener is replaced.
    ///
    /// # Errors
    /// [`HttpError::BindUnix`].
    pub fn bind_unix(path: &Path) -> Result<Self, HttpError> {
        let fail = |source| HttpError::BindUnix { path: path.to_owned(), source };
        let is_socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
        if is_socket
            && let Err(err) = UnixStream::connect(path)
            && err.kind() == io::ErrorKind::ConnectionRefused
        {
            fs::remove_file(path).map_err(fail)?;
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Listener::Unix(listener))
    }

    /// Like [`Listener::bind_unix`], but the socket is accessible to its owner only, and a missing directory is
    /// created. Must be called before threads are spawned.
    ///
    /// # Errors
    /// [`HttpError::BindUnix`].
    pub fn bind_control(path: &Path) -> Result<Self, HttpError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
            let made = fs::create_dir(directory);
            made.map_err(|source| HttpError::BindUnix { path: path.to_owned(), source })?;
        }
        // The file never has another mode, not even briefly.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = Self::bind_unix(path);
        rustix::process::umask(before);
        listener
    }

    /// Takes over a socket that another process opened.
    ///
    /// # Errors
    /// [`HttpError::Inherited`] if it is not a listening stream socket.
    pub fn inherited(socket: OwnedFd) -> Result<Self, HttpError> {
        let socket = Socket::from(socket);
        let listens =
            socket.is_listener().and_then(|listens| Ok(listens && socket.r#type()? == Type::STREAM));
        if !listens.map_err(HttpError::Inherited)? {
            return Err(HttpError::Inherited(io::Error::other("it does not listen for streams")));
        }
        socket.set_nonblocking(true).map_err(HttpError::Inherited)?;
        match socket.domain().map_err(HttpError::Inherited)? {
            Domain::UNIX => Ok(Listener::Unix(OwnedFd::from(socket).into())),
            _ => Ok(Listener::Tcp(socket.into())),
        }
    }

    /// Returns the listening address, which determines who can connect; `None` for a Unix socket, where the file's
    /// permissions do.
    pub fn address(&self) -> Option<IpAddr> {
        self.socket_address().map(|address| address.ip())
    }

    /// Returns the listening address with its port.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }
}

/// The address as in a URL, or the path of a Unix socket.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("?"),
            },
            Listener::Unix(listener) => {
                let path = path_of(listener).unwrap_or_default();
                write!(f, "unix:{}", path.display())
            }
        }
    }
}

fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    Some(listener.local_addr().ok()?.as_pathname()?.to_owned())
}

/// Binds with IP_FREEBIND, see ip(7).
fn bind_freely(address: SocketAddr) -> io::Result<TcpListener> {
    bind_by(address, |socket| match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true),
        SocketAddr::V6(_) => socket.set_freebind_v6(true),
    })
}

fn bind_by(address: SocketAddr, prepare: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    prepare(&socket)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether an interface of this machine has the address, or it is the unspecified address.
pub fn has_address(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// A [`Listener`] registered with the reactor.
pub(super) enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Accepting {
    pub(super) fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => {
                // Without it, silent clients take slots and are evicted.
                let _ = accept_at_first_byte(listener.as_fd(), SILENCE);
                Accepting::Tcp(tokio::net::TcpListener::from_std(listener)?)
            }
            Listener::Unix(listener) => Accepting::Unix(tokio::net::UnixListener::from_std(listener)?),
        })
    }

    /// Accepts the next connection and returns its peer.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Accepting::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Peer { address: peer.ip(), local: None }))
            }
            Accepting::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred().ok();
                let local = process.map(|process| LocalPeer { uid: process.uid(), pid: process.pid() });
                Ok((Stream::Unix(stream), Peer { address: Ipv4Addr::LOCALHOST.into(), local }))
            }
        }
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// The loopback address for clients of a Unix socket.
    pub(super) address: IpAddr,
    /// Unix sockets only: the process that opened the other end.
    pub(super) local: Option<LocalPeer>,
}

/// A connection.
pub(super) enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Stream {
    /// Sends data without delay, and times out if the client's side does not take it for `write`.
    pub(super) fn prepare(&self, write: Duration) {
        if let Stream::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
            // Also limits how long the kernel keeps unsent data of a response after the connection was closed.
            let _ = SockRef::from(stream).set_tcp_user_timeout(Some(write));
        }
    }

    /// Peeks at the first byte; returns `None` at the end of the stream.
    pub(super) async fn peek(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let n = match self {
            Stream::Tcp(stream) => stream.peek(&mut first).await?,
            Stream::Unix(stream) => {
                let peek = || {
                    let (_, n) = rustix::net::recv(stream, &mut first, rustix::net::RecvFlags::PEEK)?;
                    Ok(n)
                };
                stream.async_io(Interest::READABLE, peek).await?
            }
        };
        Ok((n > 0).then_some(first[0]))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_stale_sockets_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("e.sock");
        let first = Listener::bind_unix(&path).unwrap();
        assert_eq!(first.to_string(), format!("unix:{}", path.display()));
        let taken = Listener::bind_unix(&path).unwrap_err().to_string();
        assert!(taken.contains("in use") && taken.contains("e.sock"), "{taken}");
        drop(first);
        drop(Listener::bind_unix(&path).unwrap());
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        Listener::bind_unix(&file).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn control_socket_is_private_to_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let _listener = Listener::bind_control(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn port_taken_on_ipv6_does_not_fall_back_to_ipv4() {
        // Another program may use the same port on IPv4, if only for a connection, and a busy machine nearly all of them:
        // of many ports, one is free.
        let is_of_ipv6_alone = || {
            let taken = Listener::bind_ipv6(0).unwrap();
            let port = taken.socket_address().unwrap().port();
            let error = Listener::bind_host(None, port).unwrap_err().to_string();
            assert!(error.contains(&format!("[::]:{port}: the address is in use")), "{error}");
            Listener::bind((Ipv4Addr::UNSPECIFIED, port).into()).is_ok()
        };
        assert!((0..500).any(|_| is_of_ipv6_alone()));
    }

    #[test]
    fn only_listening_sockets_are_inherited() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let inherited = Listener::inherited(listening.into()).unwrap();
        assert_eq!(inherited.to_string(), address.to_string());
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        Listener::inherited(datagrams.into()).unwrap_err();
        let (one, _other) = UnixStream::pair().unwrap();
        Listener::inherited(one.into()).unwrap_err();
    }

    #[test]
    fn host_name_is_resolved() {
        let local = Listener::bind_host(Some("localhost"), 0).unwrap();
        assert!(local.address().unwrap().is_loopback());
        assert!(Listener::bind_host(None, 0).unwrap().address().unwrap().is_unspecified());
        let unknown = Listener::bind_host(Some("no-such-host.invalid"), 1).unwrap_err().to_string();
        assert!(unknown.contains("no-such-host.invalid"), "{unknown}");
    }
}
