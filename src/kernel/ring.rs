//! Events that programs write into a ring buffer.

use std::cell::RefCell;
use std::rc::Rc;

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};

/// A ring buffer that is read on request.
pub(super) struct EventRing<T> {
    ring: RingBuffer<'static>,
    taken: Rc<RefCell<Vec<T>>>,
}

impl<T: 'static> EventRing<T> {
    /// `decode` decodes a record; `None` if it is not an event.
    ///
    /// # Errors
    /// From the kernel.
    pub fn new(map: &MapHandle, decode: fn(&[u8]) -> Option<T>) -> libbpf_rs::Result<Self> {
        let taken = Rc::new(RefCell::new(Vec::new()));
        let sink = taken.clone();
        let mut builder = RingBufferBuilder::new();
        builder.add(map, move |record| {
            sink.borrow_mut().extend(decode(record));
            0
        })?;
        Ok(Self { ring: builder.build()?, taken })
    }

    /// The events since the previous call.
    pub fn take(&mut self) -> Vec<T> {
        // Fails only if a callback does.
        let _ = self.ring.consume();
        self.taken.take()
    }
}
