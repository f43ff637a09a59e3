//! A webhook: events are sent to a receiver by HTTP, signed, and again until it takes them.
//!
//! Who has an event puts it in the [`Outbox`], which is bounded and never waited for. One thread sends what is in it. Each event is
//! sent, dropped or waiting: `events = sent + dropped + waiting`. Nothing here knows what the events are.

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

/// The thread that sends, and what waits for it. Dropping it tries to send the rest for a moment.
#[derive(Debug, Default)]
pub(crate) struct Webhook {
    outbox: Arc<Outbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Webhook {
    /// Who gets events from now on, also those that wait.
    pub fn set(&self, receiver: Option<Receiver>) {
        self.outbox.set(receiver);
    }

    /// Begins to send, if there is somebody to send to.
    ///
    /// # Errors
    /// If there is no thread, or not what it needs.
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
            // A name that is still being looked up is not waited for.
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
