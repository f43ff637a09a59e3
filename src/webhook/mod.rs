//! A webhook: events are sent to a receiver by HTTP, signed, and retried until it accepts them.
//!
//! Producers put events into the [`Outbox`], which is bounded and never blocks. A single thread sends them. Each event
//! is sent, dropped or waiting: `events = sent + dropped + waiting`. Nothing here depends on what the events are.

mod delivery;
mod outbox;
mod receiver;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::Builder;

use delivery::{Pace, deliver};

pub(crate) use outbox::{DROPPED, Outbox, WebhookNumbers};
pub(crate) use receiver::{Receiver, shown};

/// The sending thread and its queue. Dropping it makes a short attempt to send the rest.
#[derive(Debug, Default)]
pub(crate) struct Webhook {
    outbox: Arc<Outbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Webhook {
    /// Sets the receiver, for queued events too.
    pub fn set(&self, receiver: Option<Receiver>) {
        self.outbox.set(receiver);
    }

    /// Starts sending, if there is a receiver.
    ///
    /// # Errors
    /// If the thread or its runtime cannot be created.
    pub fn start(&self) -> io::Result<()> {
        self.start_with(Pace::default())
    }

    fn start_with(&self, pace: Pace) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() || !self.outbox.has_receiver() {
            return Ok(());
        }
        let outbox = self.outbox.clone();
        let runtime = Builder::new_current_thread().thread_name("webhook").enable_all().build()?;
        let work = move || {
            runtime.block_on(deliver(&outbox, pace));
            // Does not wait for a pending name lookup.
            runtime.shutdown_background();
        };
        *thread = Some(std::thread::Builder::new().name("webhook".to_owned()).spawn(work)?);
        Ok(())
    }

    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.outbox.end();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
