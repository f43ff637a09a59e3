//! Why the exporter ended.

use std::error::Error;
use std::{fmt, io};

use crate::http::HttpError;
use crate::kernel::KernelError;
use crate::net::NetworkError;
use crate::pins::PinError;
use crate::slow::SlowError;

/// Why the exporter ended.
#[derive(Debug)]
pub enum RunError {
    Kernel(KernelError),
    Http(HttpError),
    Network(NetworkError),
    Pins(PinError),
    Slow(SlowError),
    /// The operation that failed, and why.
    Io(&'static str, io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Kernel(err) => err.fmt(f),
            RunError::Http(err) => err.fmt(f),
            RunError::Network(err) => err.fmt(f),
            RunError::Pins(err) => err.fmt(f),
            RunError::Slow(err) => err.fmt(f),
            RunError::Io(what, err) => write!(f, "failed to {what}: {err}"),
        }
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RunError::Kernel(err) => err.source(),
            RunError::Http(err) => err.source(),
            RunError::Network(err) => err.source(),
            RunError::Pins(err) => err.source(),
            RunError::Slow(err) => err.source(),
            RunError::Io(_, err) => Some(err),
        }
    }
}

impl From<KernelError> for RunError {
    fn from(error: KernelError) -> Self {
        RunError::Kernel(error)
    }
}

impl From<PinError> for RunError {
    fn from(error: PinError) -> Self {
        RunError::Pins(error)
    }
}

impl From<SlowError> for RunError {
    fn from(error: SlowError) -> Self {
        RunError::Slow(error)
    }
}

impl From<HttpError> for RunError {
    fn from(error: HttpError) -> Self {
        RunError::Http(error)
    }
}

/// Maps the error of an operation with this name.
pub(crate) fn failed_to(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |err| RunError::Io(what, err)
}
