//! Client certificates: whether one is requested, who must have issued it, and which names are allowed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::pem::Pem;
use super::system_authorities::system_authorities;
use super::tls_error::TlsError;

/// The requirements on client certificates.
#[derive(Clone, Default)]
pub struct Clients {
    pub demand: Demand,
    /// The authority that must have issued a verified certificate; the system's authorities if `None`.
    pub authority: Option<Pem>,
    /// The certificate must have one of these names; an empty list allows any.
    pub allowed_names: Vec<String>,
}

/// Whether a client certificate is required, and whether it is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Demand {
    #[default]
    None,
    /// An optional certificate, not verified.
    Request,
    /// A required certificate, not verified.
    RequireAny,
    /// An optional certificate, verified if presented.
    VerifyIfGiven,
    /// A required certificate, verified.
    RequireAndVerify,
}

impl Demand {
    /// Whether a certificate authenticates the client.
    pub(super) fn verifies(self) -> bool {
        matches!(self, Demand::VerifyIfGiven | Demand::RequireAndVerify)
    }

    fn requires(self) -> bool {
        matches!(self, Demand::RequireAny | Demand::RequireAndVerify)
    }
}

pub(super) type SharedVerifier = Arc<dyn ClientCertVerifier>;

/// Returns the verifier of client certificates, or `None` if none are requested, and warnings.
pub(super) fn verifier(
    clients: &Clients,
    provider: &Arc<CryptoProvider>,
) -> Result<(Option<SharedVerifier>, Vec<String>), TlsError> {
    let mut warnings = Vec::new();
    if clients.demand == Demand::None {
        return Ok((None, warnings));
    }
    let (mut chains, mut trusted) = (None, Vec::new());
    if clients.demand.verifies() {
        if clients.authority.is_none() {
            warnings.push(
                "client_ca_file is missing: a client certificate of any authority that this system trusts is \
                 accepted; set client_ca_file"
                    .to_owned(),
            );
        }
        let authority = clients.authority.clone().unwrap_or_else(system_authorities);
        trusted = authority.certificates("client authorities' certificates")?;
        let mut roots = RootCertStore::empty();
        // The system's bundle may contain certificates that cannot be parsed.
        let (_, refused) = roots.add_parsable_certificates(trusted.iter().cloned());
        if roots.is_empty() || (refused > 0 && clients.authority.is_some()) {
            return Err(TlsError::Authority { path: authority.name().to_owned() });
        }
        let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        chains = Some(built.map_err(|err| TlsError::Setup(Error::General(err.to_string())))?);
    }
    let verifier = Verifier {
        demand: clients.demand,
        chains,
        trusted,
        allowed_names: clients.allowed_names.clone(),
        provider: provider.clone(),
    };
    Ok((Some(Arc::new(verifier)), warnings))
}

#[derive(Debug)]
struct Verifier {
    demand: Demand,
    /// Verifies chains, if certificates are verified.
    chains: Option<SharedVerifier>,
    /// The trusted certificates, each of which is also accepted as a client certificate itself.
    trusted: Vec<CertificateDer<'static>>,
    allowed_names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Whether the certificate itself is one of the trusted ones. Self-signed client certificates are used this way:
    /// openssl marks them as CAs, and for that reason chain verification rejects them as end entities.
    fn is_trusted_itself(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.trusted.iter().any(|trusted| trusted.as_ref() == certificate.as_ref()) {
            return Ok(false);
        }
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        let for_clients = parsed.extended_key_usage().ok().flatten().is_none_or(|usage| {
            let usage = usage.value;
            usage.any || usage.client_auth
        });
        if for_clients { Ok(true) } else { Err(CertificateError::InvalidPurpose.into()) }
    }

    fn check_names(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.allowed_names.is_empty() {
            return Ok(());
        }
        let names = names_of(certificate).ok_or(CertificateError::BadEncoding)?;
        if names.iter().any(|name| self.allowed_names.contains(name)) {
            return Ok(());
        }
        Err(Error::General("the client certificate has none of the names in client_allowed_sans".to_owned()))
    }
}

/// Returns the subject alternative names that exporter-toolkit compares.
fn names_of(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let extensions = certificate.extensions().iter();
    let names = extensions.filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            Some((*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            Some(v4.or_else(|_| v6()).ok()?.to_canonical().to_string())
        }
        _ => None,
    };
    Some(names.flatten().filter_map(text).collect())
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.demand.requires()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.as_ref().map_or(&[], |chains| chains.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(chains) = &self.chains
            && !self.is_trusted_itself(end_entity, now)?
        {
            chains.verify_client_cert(end_entity, intermediates, now)?;
        }
        self.check_names(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The current time in seconds since 1970, for comparison with certificate validity.
pub(super) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        SanType, date_time_ymd,
    };
    use rustls::crypto::ring;

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client(issuer: &Authority, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["scraper.example".to_owned()]).unwrap();
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    /// Whether a certificate is accepted.
    fn passes(demand: Demand, authority: &str, names: &[&str], certificate: &CertificateDer<'_>) -> bool {
        let clients = Clients {
            demand,
            authority: Some(Pem::Text { name: "ca".into(), text: authority.to_owned() }),
            allowed_names: names.iter().map(ToString::to_string).collect(),
        };
        let provider = Arc::new(ring::default_provider());
        let (verifier, warnings) = verifier(&clients, &provider).unwrap();
        assert!(warnings.is_empty());
        verifier.unwrap().verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn accepts_only_certificates_of_the_authority() {
        let (ours, theirs) = (authority(), authority());
        let good = client(&ours, |_| {});
        let strange = client(&theirs, |_| {});
        let late = client(&ours, |params| params.not_after = date_time_ymd(2020, 1, 1));
        let server = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        let server = client(&ours, server);
        for demand in [Demand::VerifyIfGiven, Demand::RequireAndVerify] {
            assert!(passes(demand, &ours.pem(), &[], &good));
            for bad in [&strange, &late, &server] {
                assert!(!passes(demand, &ours.pem(), &[], bad));
            }
        }
        assert!(passes(Demand::RequireAny, &ours.pem(), &[], &strange));
    }

    #[test]
    fn accepts_a_trusted_self_signed_certificate() {
        let own = authority();
        assert!(passes(Demand::RequireAndVerify, &own.pem(), &[], own.der()));
        assert!(!passes(Demand::RequireAndVerify, &own.pem(), &[], authority().der()));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(2020, 1, 1);
        let late = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        assert!(!passes(Demand::RequireAndVerify, &late.pem(), &[], late.der()));
    }

    #[test]
    fn subject_names_are_compared_in_full() {
        let ours = authority();
        let certificate = client(&ours, |params| {
            params.subject_alt_names.extend([
                SanType::Rfc822Name("ops@example.org".try_into().unwrap()),
                SanType::URI("spiffe://example/scraper".try_into().unwrap()),
                SanType::IpAddress("192.0.2.7".parse().unwrap()),
                SanType::IpAddress("2001:db8::1".parse().unwrap()),
            ]);
        });
        let passes = |names: &[&str]| passes(Demand::RequireAndVerify, &ours.pem(), names, &certificate);
        for name in
            ["scraper.example", "ops@example.org", "spiffe://example/scraper", "192.0.2.7", "2001:db8::1"]
        {
            assert!(passes(&["other", name]), "{name}");
        }
        for name in ["scraper", "example", "SCRAPER.example", "192.0.2.70", ""] {
            assert!(!passes(&[name]), "{name}");
        }
    }

    #[test]
    fn client_auth_modes_map_to_the_verifier() {
        let provider = Arc::new(ring::default_provider());
        let authority = Some(Pem::Text { name: "ca".into(), text: authority().pem() });
        for (demand, mandatory) in [
            (Demand::Request, false),
            (Demand::RequireAny, true),
            (Demand::VerifyIfGiven, false),
            (Demand::RequireAndVerify, true),
        ] {
            let clients = Clients { demand, authority: authority.clone(), ..Clients::default() };
            let verifier = verifier(&clients, &provider).unwrap().0.unwrap();
            assert!(verifier.offer_client_auth());
            assert_eq!(verifier.client_auth_mandatory(), mandatory, "{demand:?}");
        }
        assert!(verifier(&Clients::default(), &provider).unwrap().0.is_none());
    }
}
