//! The device that threads share: buffers whose bytes are counted, waiting, errors.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// A submission that takes longer than this will not end.
const HANG: Duration = Duration::from_secs(120);

/// Whether the device still works; shared with its callbacks.
#[derive(Default)]
pub struct Health {
    /// The first error after which nothing works.
    lost: Mutex<Option<Error>>,
    /// It does not answer: waiting for it would never end.
    pub hangs: AtomicBool,
}

impl Health {
    /// # Errors
    /// The first error after which nothing works.
    pub fn alive(&self) -> Result<()> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e.clone()),
            None => Ok(()),
        }
    }

    /// Keeps the first error: what follows is its consequence.
    pub fn fail(&self, e: Error) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
    }
}

/// Bytes of all buffers, now and at most.
#[derive(Default)]
pub struct Held {
    now: AtomicU64,
    most: AtomicU64,
}

impl Held {
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

/// A buffer that is freed when it is dropped.
pub struct Buffer {
    pub raw: wgpu::Buffer,
    held: Arc<Held>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // wgpu keeps the memory until queued work that uses it is done.
        self.held.now.fetch_sub(self.raw.size(), Ordering::Relaxed);
        self.raw.destroy();
    }
}

/// The handles that threads share.
#[derive(Clone)]
pub struct Shared {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub health: Arc<Health>,
    pub held: Arc<Held>,
    pub name: Arc<str>,
}

impl Shared {
    pub fn new(device: wgpu::Device, queue: wgpu::Queue, name: &str) -> Shared {
        let health = Arc::new(Health::default());
        let name: Arc<str> = name.into();
        let (lost, at) = (health.clone(), name.clone());
        device.set_device_lost_callback(move |reason, message| {
            // wgpu gives up a device whose memory does not suffice for a call.
            if message.to_lowercase().contains("out of memory") {
                return lost.fail(out_of_memory().at(&at));
            }
            let what = match reason {
                wgpu::DeviceLostReason::Destroyed => "the GPU was given up",
                _ => "the GPU was lost",
            };
            lost.fail(lost_error(what, &message).at(&at));
        });
        let (errors, at) = (health.clone(), name.clone());
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            errors.fail(translate(&e).at(&at))
        }));
        Shared { device, queue, health, held: Arc::default(), name }
    }

    /// A buffer of `bytes` bytes.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) if the device has no memory for it.
    pub fn buffer(&self, bytes: u64, usage: wgpu::BufferUsages, label: &str) -> Result<Buffer> {
        self.health.alive()?;
        let size = bytes.next_multiple_of(16).max(16);
        let most = self.device.limits().max_buffer_size;
        if size > most {
            return Err(Error::memory("a buffer is larger than this adapter takes")
                .at(&self.name)
                .found(format!("{size} bytes for {label}"))
                .expected(format!("at most {most}")));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        let failed = pollster::block_on(internal.pop()).or(pollster::block_on(memory.pop()));
        if let Some(e) = failed {
            self.health.alive()?;
            return Err(translate(&e).at(&self.name).found(format!("{size} bytes for {label}")));
        }
        self.health.alive()?;
        let now = self.held.now.fetch_add(size, Ordering::Relaxed) + size;
        self.held.most.fetch_max(now, Ordering::Relaxed);
        Ok(Buffer { raw, held: self.held.clone() })
    }

    /// Maps a whole buffer, which no queued work uses.
    pub fn map(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Result<()> {
        const ASKED: u8 = 0;
        const MAPPED: u8 = 1;
        const REFUSED: u8 = 2;
        let state = Arc::new(AtomicU8::new(ASKED));
        let answer = state.clone();
        buffer.slice(..).map_async(mode, move |r| {
            answer.store(if r.is_ok() { MAPPED } else { REFUSED }, Ordering::Release);
        });
        // The callback runs in the next poll, of this or another thread.
        loop {
            match state.load(Ordering::Acquire) {
                MAPPED => return Ok(()),
                REFUSED => {
                    // Mapping fails only if the device is lost. The next poll reports the device's
                    // own error, so poll before `fail`.
                    let _ = self.device.poll(wgpu::PollType::Poll);
                    self.health.fail(
                        lost_error("the GPU was lost", "a buffer could not be mapped")
                            .at(&self.name),
                    );
                    return self.health.alive();
                }
                _ => {
                    let _ = self.device.poll(wgpu::PollType::Poll);
                    self.health.alive()?;
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Waits until `submission` is done.
    pub fn wait(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        self.wait_until(Some(submission))
    }

    /// Waits until all work that any thread has submitted is done, and destroyed buffers are freed.
    pub fn wait_for_all(&self) -> Result<()> {
        self.wait_until(None)
    }

    fn wait_until(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let poll = wgpu::PollType::Wait { submission_index, timeout: Some(HANG) };
        match self.device.poll(poll) {
            Ok(_) => {}
            Err(wgpu::PollError::Timeout) => {
                self.health.hangs.store(true, Ordering::Relaxed);
                let for_long = format!("nothing for {} seconds", HANG.as_secs());
                self.health.fail(lost_error("the GPU does not answer", &for_long).at(&self.name));
            }
            Err(e) => {
                self.health.fail(lost_error("the GPU was lost", &e.to_string()).at(&self.name))
            }
        }
        self.health.alive()
    }
}

fn lost_error(what: &str, message: &str) -> Error {
    let e = Error::device(what)
        .try_("run again; if it repeats, update the GPU's driver, or {device=cpu}");
    if message.is_empty() { e } else { e.found(message) }
}

fn out_of_memory() -> Error {
    Error::memory("out of device memory")
        .try_("a smaller {vram}, a smaller image, or close other programs that use the GPU")
}

/// Converts an error of wgpu.
pub fn translate(e: &wgpu::Error) -> Error {
    match e {
        wgpu::Error::OutOfMemory { .. } => out_of_memory(),
        wgpu::Error::Validation { description, .. } => {
            Error::device("wgpu rejected a call as invalid")
                .found(one_line(description))
                .try_("{device=cpu}; and please report it")
        }
        wgpu::Error::Internal { description, .. } => Error::device("the GPU's driver failed")
            .found(one_line(description))
            .try_("update the driver, or {device=cpu}"),
    }
}

/// `text` without line breaks.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
