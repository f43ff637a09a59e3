//! The configuration as it is used: read, checked with what it names, and planned.

use crate::config::model::{Settings, TlsFiles};
use crate::config::{self, Diagnostics, Draft, Overrides};
use crate::http::{Credentials, HttpError, Tls, TlsPaths};
use crate::plan::{Plan, plan_draft};

/// Reads the configuration and plans it, or says every mistake.
pub(crate) fn load(overrides: &Overrides) -> Result<(config::Loaded, Plan), Diagnostics> {
    load_keeping(overrides, |_| {})
}

/// As [`load`]; `keep` may set settings back that cannot change any more.
pub(crate) fn load_keeping(
    overrides: &Overrides,
    keep: impl FnOnce(&mut Settings),
) -> Result<(config::Loaded, Plan), Diagnostics> {
    let mut draft = config::read(overrides, &config::environment());
    refuse_unusable(&draft);
    keep(draft.settings_mut());
    plan_draft(draft)
}

/// Who may ask, how connections are secured, and what is unwise about it.
pub(crate) type Secured = (Option<Credentials>, Option<Tls>, Vec<String>);

/// What the settings say of who may ask and how connections are secured, and what is unwise about it.
///
/// # Errors
/// If the certificate or the credentials are unusable.
pub(crate) fn security(settings: &Settings) -> Result<Secured, HttpError> {
    let (mut tls, mut warnings) = (None, Vec::new());
    if let Some(files) = &settings.tls {
        let (loaded, unwise) = Tls::load(paths_of(files))?;
        (tls, warnings) = (Some(loaded), unwise);
    }
    let auth = settings.auth.as_ref().map(|auth| Credentials::new(&auth.username, &auth.password));
    Ok((auth.transpose()?, tls, warnings))
}

fn paths_of(files: &TlsFiles) -> TlsPaths {
    TlsPaths { certificate: files.cert.clone(), key: files.key.clone() }
}

/// Certificates and passwords that the HTTP server would refuse, in its own words.
fn refuse_unusable(draft: &Draft) {
    let settings = draft.settings();
    if let Some(files) = &settings.tls
        && let Err(err) = Tls::load(paths_of(files))
    {
        draft.error(&files.at, err.to_string());
    }
    if let Some(auth) = &settings.auth
        && let Err(err) = Credentials::new(&auth.username, &auth.password)
    {
        draft.error(&auth.at, err.to_string());
    }
}
