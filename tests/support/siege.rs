//! Clients of a server that requires a password: a scraper, and attackers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use socket2::{Domain, Socket, Type};

/// A server on this machine, and one of its users.
#[derive(Debug, Clone, Copy)]
pub struct Besieged<'a> {
    pub port: u16,
    pub user: &'a str,
    pub password: &'a str,
    /// The timeout for a response.
    pub patience: Duration,
}

/// Makes one connection of an attacker; the number differs for each connection.
pub type Besieger = fn(Besieged<'_>, Ipv4Addr, u32) -> std::io::Result<()>;

impl Besieged<'_> {
    pub fn connect(self, from: Ipv4Addr) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).into())?;
        socket.set_read_timeout(Some(self.patience))?;
        Ok(socket.into())
    }

    pub fn authorization(self, password: &str) -> String {
        format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{}:{password}", self.user)))
    }

    /// Requests the metrics; returns the status once the whole response has been received.
    pub fn ask(self, stream: &mut TcpStream, password: &str) -> std::io::Result<u16> {
        self.request(stream, "GET /metrics", password)
    }

    /// The same, with another method and path.
    pub fn request(self, stream: &mut TcpStream, what: &str, password: &str) -> std::io::Result<u16> {
        // Sent in a single write: the rest of a request sent in two could arrive too late.
        let request = format!("{what} HTTP/1.1\r\nHost: x\r\n{}\r\n", self.authorization(password));
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let head = loop {
            let mut some = [0; 8192];
            let n = stream.read(&mut some)?;
            if n == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&some[..n]);
            if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = length.and_then(|length| length.parse::<usize>().ok()) {
            let mut rest = vec![0; (head + length).saturating_sub(answer.len())];
            stream.read_exact(&mut rest)?;
        } else {
            // Chunked; the last chunk is empty.
            while !answer.ends_with(b"\r\n0\r\n\r\n") {
                let mut some = [0; 65536];
                let n = stream.read(&mut some)?;
                if n == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                answer.extend_from_slice(&some[..n]);
            }
        }
        text.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(|| ErrorKind::InvalidData.into())
    }
}

/// Guesses a password. Every guess is different, so that no result is cached.
pub fn guess(besieged: Besieged<'_>, from: Ipv4Addr, number: u32) -> std::io::Result<()> {
    besieged.ask(&mut besieged.connect(from)?, &format!("guess {number}")).map(drop)
}

pub fn connect_and_say_nothing(besieged: Besieged<'_>, from: Ipv4Addr, _: u32) -> std::io::Result<()> {
    let stream = besieged.connect(from)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let _ = (&stream).read(&mut [0; 1]);
    Ok(())
}

/// Sends the right password, and reads the response byte by byte.
pub fn read_slowly(besieged: Besieged<'_>, from: Ipv4Addr, _: u32) -> std::io::Result<()> {
    let mut stream = besieged.connect(from)?;
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{}\r\n", besieged.authorization(besieged.password));
    stream.write_all(request.as_bytes())?;
    for _ in 0..20 {
        stream.read_exact(&mut [0; 1])?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub fn send_noise(besieged: Besieged<'_>, from: Ipv4Addr, number: u32) -> std::io::Result<()> {
    let mut stream = besieged.connect(from)?;
    let noise: Vec<u8> =
        (0..500u32).map(|n| (n.wrapping_mul(number | 1).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    stream.write_all(&noise)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let _ = stream.read(&mut [0; 64]);
    Ok(())
}

/// Returns `n` other addresses of this machine.
pub fn others(n: u8) -> Vec<Ipv4Addr> {
    (1..=n).map(|n| Ipv4Addr::new(127, 0, 1, n)).collect()
}
