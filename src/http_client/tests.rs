//! Requests to servers run by the tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

fn options() -> ClientOptions {
    ClientOptions { authority: None, identity: None, timeout: Duration::from_secs(60), most: 1000 }
}

fn answered(stream: impl Read + Write, answer: &str) -> String {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let before = head.len();
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            return head;
        }
        let line = head[before..].trim().to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let _ = stream.get_mut().write_all(answer.as_bytes());
    head + std::str::from_utf8(&body).unwrap()
}

/// Starts a server that sends `answer` to one request; joining the thread returns the request.
fn server(answer: &str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, answer) = (listener.local_addr().unwrap(), answer.to_string());
    (address, std::thread::spawn(move || answered(listener.accept().unwrap().0, &answer)))
}

fn url(address: SocketAddr, rest: &str) -> Url {
    Url::parse(&format!("http://{address}{rest}")).unwrap()
}

#[test]
fn sends_a_request_and_reads_the_response() {
    let (address, asked) = server("HTTP/1.1 201 Created\r\nETag: \"a\"\r\nContent-Length: 2\r\n\r\nok");
    let request = Request::post(url(address, "/hook?a=1"), "application/json", "{\"a\":1}")
        .with(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    let answer = Client::new(options()).send(request).unwrap();
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::CREATED, &b"ok"[..]));
    assert_eq!(answer.header(header::ETAG), Some("\"a\""));
    let asked = asked.join().unwrap();
    assert!(asked.starts_with("POST /hook?a=1 HTTP/1.1\r\n") && asked.ends_with("{\"a\":1}"), "{asked}");
    for header in ["authorization: Bearer x", "content-type: application/json", &format!("host: {address}")] {
        assert!(asked.contains(header), "{asked}");
    }
}

#[test]
fn rejects_oversized_late_truncated_or_invalid_responses() {
    let long = "x".repeat(1001);
    for (answer, expected) in [
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n{long}"), "more than 1000 bytes"),
        (
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{long}\r\n0\r\n\r\n"),
            "more than 1000",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".to_string(), "the connection failed"),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_string(), "the connection failed"),
    ] {
        let (address, asked) = server(&answer);
        let error = Client::new(options()).send(Request::get(url(address, "/"))).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        asked.join().unwrap();
    }
    // Connections are established by the kernel, but never accepted.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(ClientOptions { timeout: Duration::from_millis(50), ..options() });
    let address = silent.local_addr().unwrap();
    let error = client.send(Request::get(url(address, "/"))).unwrap_err();
    assert!(matches!(error, ClientError::Late(_)), "{error}");
    drop(silent);
    let error = Client::new(options()).send(Request::get(url(address, "/"))).unwrap_err().to_string();
    assert!(error.contains("failed to connect"), "{error}");
}

struct Issued {
    certificate: String,
    key: String,
}

/// Creates an authority and a certificate that it issued for a name.
fn issued(name: &str) -> (String, Issued) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    (authority, Issued { certificate, key: key.serialize_pem() })
}

/// Starts a server that handles one request by TLS, from clients with a certificate of this authority only.
fn tls_server(own: &Issued, clients: &str) -> (SocketAddr, JoinHandle<String>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(clients.as_bytes()).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let connection = ServerConnection::new(Arc::new(config)).unwrap();
        let stream = StreamOwned::new(connection, listener.accept().unwrap().0);
        answered(stream, "HTTP/1.1 204 No Content\r\n\r\n")
    };
    (address, std::thread::spawn(serve))
}

#[test]
fn mutual_tls_authentication() {
    let ((authority, own), (other, client)) = (issued("localhost"), issued("client"));
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let identity = Some((file("client.crt", &client.certificate), file("client.key", &client.key)));
    let (trusted, strange) = (file("ca.crt", &authority), file("other.crt", &other));
    let ask = |authority: &PathBuf, identity: Option<(PathBuf, PathBuf)>, host: &str| {
        let (address, asked) = tls_server(&own, &other);
        let url = Url::parse(&format!("https://{host}:{}/", address.port())).unwrap();
        let options = ClientOptions { authority: Some(authority.clone()), identity, ..options() };
        let answer = Client::new(options).send(Request::get(url));
        asked.join().unwrap();
        answer.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
    };
    assert_eq!(ask(&trusted, identity.clone(), "localhost"), Ok(204));
    for (authority, identity, host) in [
        (&trusted, None, "localhost"),
        (&strange, identity.clone(), "localhost"),
        (&trusted, identity.clone(), "127.0.0.1"),
    ] {
        assert!(ask(authority, identity, host).is_err());
    }
    let wrong = identity.map(|(certificate, _)| (certificate, file("wrong.key", &own.key)));
    let client = Client::new(ClientOptions { authority: Some(trusted), identity: wrong, ..options() });
    let error = client.send(Request::get(Url::parse("https://localhost:1/").unwrap())).unwrap_err();
    assert!(
        matches!(error, ClientError::Files(_)) && error.to_string().contains("does not match"),
        "{error}"
    );
}
