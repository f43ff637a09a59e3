//! Loads the configuration: reads it, checks it with the files that it names, and plans it.

use std::sync::Arc;

use hyper::header::{HeaderName, HeaderValue};

use crate::config::endpoint::{self, PemSource, TlsSettings, Web};
use crate::config::model::Settings;
use crate::config::{self, Diagnostics, Overrides, Place};
use crate::http::{Clients, Credentials, HttpError, Pem, Secured, Tls, TlsOptions, check_user};
use crate::plan::{Plan, plan_draft};
use crate::slow;

/// A usable certificate, and warnings about it.
pub(crate) type LoadedTls = (Tls, Vec<String>);

/// A valid configuration, with what was loaded to check it.
pub(crate) struct CheckedConfig {
    pub loaded: config::LoadedConfig,
    pub plan: Plan,
    pub tls: Option<LoadedTls>,
}

/// Reads the configuration and plans it, or reports every error.
pub(crate) fn load(overrides: &Overrides) -> Result<CheckedConfig, Diagnostics> {
    load_keeping(overrides, |_| {})
}

/// As [`load`]; `keep` may revert settings that can no longer change.
pub(crate) fn load_keeping(
    overrides: &Overrides,
    keep: impl FnOnce(&mut Settings),
) -> Result<CheckedConfig, Diagnostics> {
    let mut draft = config::read(overrides, &config::environment());
    let tls = refuse_unusable(&draft.settings().web, |at, text| draft.error(at, text));
    if let Some(webhook) = &draft.settings().slow_events.webhook
        && let Err(err) = slow::receiver(webhook)
    {
        draft.error(&webhook.at, err.to_string());
    }
    keep(draft.settings_mut());
    let (loaded, plan) = plan_draft(draft)?;
    Ok(CheckedConfig { loaded, plan, tls })
}

/// How the endpoints are secured, and warnings about it. Users of `previous` with unchanged passwords stay
/// authenticated.
///
/// # Errors
/// If the credentials are unusable.
pub(crate) fn secured(
    web: &Web,
    tls: Option<LoadedTls>,
    previous: Option<&Secured>,
) -> Result<(Secured, Vec<String>), HttpError> {
    let (tls, advice) = tls.unzip();
    let mut warnings = advice.unwrap_or_default();
    let auth = if web.users.is_empty() {
        None
    } else {
        let users = web.users.iter().map(|user| (user.username.as_str(), user.password.as_str()));
        Some(Credentials::new(users, previous.and_then(|previous| previous.auth.as_ref()))?)
    };
    if web.rate_limit.is_some_and(|rate| rate.burst == 0) {
        warnings.push(
            "rate_limit has no burst, so that every request is refused; set burst: 1 or more".to_owned(),
        );
    }
    // Both were checked when they were read.
    let header = |(name, value): &(&'static str, String)| {
        Some((HeaderName::try_from(*name).ok()?, HeaderValue::try_from(value).ok()?))
    };
    let headers = web.headers.iter().filter_map(header).collect();
    let writers = web.writers.clone().into();
    Ok((Secured { auth, writers, tls: tls.map(Arc::new), headers, rate: web.rate_limit }, warnings))
}

fn options_of(settings: &TlsSettings, http2: bool) -> TlsOptions {
    TlsOptions {
        certificate: pem_of(&settings.cert, "`cert`"),
        key: pem_of(&settings.key, "`key`"),
        clients: Clients {
            demand: settings.client_auth,
            authority: settings.client_ca.as_ref().map(|ca| pem_of(ca, CLIENT_CA)),
            allowed_names: settings.client_allowed_sans.clone(),
        },
        tls12: settings.versions.tls12,
        tls13: settings.versions.tls13,
        cipher_suites: settings.cipher_suites.clone(),
        ignore_client_order: settings.prefer_server_cipher_suites,
        groups: settings.curves.clone(),
        http2,
    }
}

const CLIENT_CA: &str = "`client_ca`";

fn pem_of(pem: &endpoint::PemSetting, name: &str) -> Pem {
    match &pem.source {
        PemSource::File(path) => Pem::File(path.clone()),
        PemSource::Text(text) => Pem::Text { name: name.into(), text: text.clone() },
    }
}

/// Reports certificates and passwords that the HTTP server would reject, in its own words. Returns the certificate.
pub(crate) fn refuse_unusable(web: &Web, report: impl Fn(&Place, String)) -> Option<LoadedTls> {
    let load = |settings: &TlsSettings| {
        let unusable = |err: &HttpError| report(place_of(err, settings), err.to_string());
        let (tls, mut warnings) = Tls::load(options_of(settings, web.http2)).inspect_err(unusable).ok()?;
        warnings.extend(settings.left_out.iter().cloned());
        Some((tls, warnings))
    };
    let tls = web.tls.as_ref().and_then(load);
    for user in &web.users {
        if let Err(err) = check_user(&user.username, &user.password) {
            report(&user.at, err.to_string());
        }
    }
    tls
}

/// The setting that causes the error.
fn place_of<'s>(error: &HttpError, settings: &'s TlsSettings) -> &'s Place {
    let HttpError::Tls(error) = error else { return &settings.at };
    let ca = settings.client_ca.as_ref().filter(|ca| error.path() == Some(pem_of(ca, CLIENT_CA).name()));
    match ca {
        Some(ca) => &ca.at,
        None => &settings.cert.at,
    }
}
