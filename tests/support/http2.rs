//! An HTTP/2 client that sends individual frames, including those that no library would send.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// The TLS configuration shared by the clients of a server.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Trusts the authority in this PEM file.
    pub fn in_authority(file: &Path) -> Trust {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(file).expect("read an authority");
        certificates.for_each(|one| roots.add(one.expect("a certificate")).expect("an authority"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().expect("versions of TLS");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Trust(Arc::new(config))
    }
}

/// A connection that has sent its preface.
pub struct Http2 {
    stream: StreamOwned<ClientConnection, TcpStream>,
    next: u32,
}

impl Http2 {
    /// Sends the connection preface. `settings` are pairs of identifier and value.
    pub fn begin(socket: TcpStream, trust: &Trust, settings: &[(u16, u32)]) -> Result<Http2> {
        let name = "localhost".try_into().expect("a name");
        let client = ClientConnection::new(trust.0.clone(), name).map_err(std::io::Error::other)?;
        let mut all = Http2 { stream: StreamOwned::new(client, socket), next: 1 };
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        first.extend(frame(SETTINGS, 0, 0, &payload));
        all.send(&first)?;
        Ok(all)
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Returns the number of the next stream.
    pub fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// Requests /metrics; returns the status once the whole response has been received.
    pub fn ask(&mut self, authorization: &str) -> Result<u16> {
        let number = self.stream();
        self.send(&frame(HEADERS, END_STREAM | END_HEADERS, number, &request(authorization)))?;
        let mut status = None;
        loop {
            let (kind, flags, stream, payload) = self.frame()?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload))?,
                GOAWAY => return Err(ErrorKind::ConnectionAborted.into()),
                RST_STREAM if stream == number => return Err(ErrorKind::ConnectionReset.into()),
                HEADERS if stream == number => status = Some(status_of(&payload)?),
                DATA if !payload.is_empty() => {
                    let more = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
                    let both = [frame(WINDOW_UPDATE, 0, 0, &more), frame(WINDOW_UPDATE, 0, number, &more)];
                    // No update for the stream once it has ended.
                    self.send(&both[..if flags & END_STREAM == 0 { 2 } else { 1 }].concat())?;
                }
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && stream == number && flags & END_STREAM != 0 {
                return status.ok_or_else(|| ErrorKind::InvalidData.into());
            }
        }
    }

    /// Reads the next frame: its type, flags, stream and payload.
    fn frame(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok((head[3], head[4], stream, payload))
    }

    /// Reads until the server closes the connection or the socket's timeout expires.
    pub fn wait(&mut self) {
        while self.frame().is_ok() {}
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Returns the header fields of a request for /metrics (RFC 7541): indexed fields from the static table where there are
/// any, the others as literals without indexing.
pub fn request(authorization: &str) -> Vec<u8> {
    let text = |to: &mut Vec<u8>, text: &str| {
        assert!(text.len() < 127, "a short text");
        to.push(u8::try_from(text.len()).expect("a short text"));
        to.extend(text.as_bytes());
    };
    // :method GET, :scheme https, :path, :authority, authorization.
    let mut fields = vec![0x82, 0x87, 0x04];
    text(&mut fields, "/metrics");
    fields.push(0x01);
    text(&mut fields, "localhost");
    fields.extend([0x0f, 23 - 15]);
    text(&mut fields, authorization);
    fields
}

/// Decodes `:status`, which comes first: only values in the static table.
fn status_of(fields: &[u8]) -> Result<u16> {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match fields {
        [0x88..=0x8e, ..] => Ok(STATIC[usize::from(fields[0] - 0x88)]),
        // Values such as 401 and 429 are Huffman-coded literals, which are not decoded.
        _ => Ok(0),
    }
}
