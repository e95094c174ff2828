//! A thread that waits for the disk, so that the arithmetic does not.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};
use crate::tensor::HostPart;

/// Weights named ahead; beyond that a request is dropped, for reading further ahead than this only evicts what is needed sooner.
const AHEAD: usize = 256;

pub(super) struct Prefetcher {
    queue: Option<SyncSender<HostPart>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    pub(super) fn new() -> Result<Prefetcher> {
        let (queue, wanted) = sync_channel::<HostPart>(AHEAD);
        let thread = Builder::new()
            .name("prefetch".into())
            .spawn(move || {
                for part in wanted {
                    part.source.will_need(part.range());
                }
            })
            .map_err(|e| Error::device(format!("could not start the prefetch thread: {e}")).at("cpu"))?;
        Ok(Prefetcher { queue: Some(queue), thread: Some(thread) })
    }

    /// Asks for `part`, after everything asked for before. A full queue forgets the request: the first use reads the part itself.
    pub(super) fn want(&self, part: &HostPart) {
        if let Some(queue) = &self.queue {
            match queue.try_send(part.clone()) {
                Ok(()) | Err(TrySendError::Full(_)) | Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        // The closed queue ends the thread's loop.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::tensor::{ByteSource, Scale};
    use std::ops::Range;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Recorded(Mutex<Vec<Range<usize>>>);

    impl ByteSource for Recorded {
        fn bytes(&self) -> &[u8] {
            &[]
        }
        fn will_need(&self, range: Range<usize>) {
            self.0.lock().unwrap().push(range);
        }
    }

    #[test]
    fn parts_are_wanted_in_the_order_they_were_named() {
        let source = Arc::new(Recorded::default());
        let prefetcher = Prefetcher::new().unwrap();
        for i in 0..10 {
            prefetcher.want(&HostPart {
                source: source.clone(),
                offset: 100 * i,
                rows: 1,
                cols: 5,
                dtype: DType::BF16,
                scale: Scale::One,
            });
        }
        drop(prefetcher);
        let seen = source.0.lock().unwrap().clone();
        assert_eq!(seen, (0..10).map(|i| 100 * i..100 * i + 10).collect::<Vec<_>>());
    }
}
