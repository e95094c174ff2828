//! Dispatches: recorded, submitted in portions, waited for.
//!
//! A submission is kept short by the measured speed of the device, and a long dispatch is cut into
//! several.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::bindings::Bindings;
use super::device::{Buffer, Shared};
use super::launch::{BufferId, Dispatch, Grid};
use super::pipelines::Pipelines;
use crate::error::{Error, Result};

/// Seconds that a submission should take at most: short enough that no watchdog ends it (Windows
/// waits 2 s), a screen stays smooth, and a run can be cancelled.
const SUBMISSION_SECONDS: f64 = 0.1;
/// Operations per second that are assumed until the speed was measured: the slowest GPUs do as
/// many.
const FIRST_RATE: f64 = 5e10;
/// Dispatches of one submission at most.
const MOST_DISPATCHES: usize = 256;
/// Submissions that the device may be behind.
const MOST_BEHIND: usize = 3;
/// Workgroups along one dimension at most.
const ACROSS: u64 = 65_535;

/// A dispatch, ready to be encoded.
struct Recorded {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    params: Vec<u8>,
    across: u32,
    down: u32,
}

/// A submission that the device has not finished, and its operations.
struct Behind {
    submission: wgpu::SubmissionIndex,
    work: u64,
}

/// The queue of one backend.
pub(super) struct Submitter {
    pub shared: Shared,
    bindings: Bindings,
    pipelines: Pipelines,
    recorded: Vec<Recorded>,
    /// Operations of `recorded`.
    work: u64,
    behind: VecDeque<Behind>,
    /// When the device last finished a submission while more were queued.
    last_done: Option<Instant>,
    /// Operations per second, measured.
    rate: f64,
    /// Dispatches so far.
    pub dispatched: u64,
    /// Operations of one submission at most, however fast the device is.
    pub most_work: u64,
}

impl Submitter {
    pub fn new(shared: Shared) -> Result<Submitter> {
        let bindings = Bindings::new(&shared)?;
        let pipelines = Pipelines::new(&shared, &bindings.layout);
        shared.health.alive()?;
        Ok(Submitter {
            bindings,
            pipelines,
            recorded: Vec::new(),
            work: 0,
            behind: VecDeque::new(),
            last_done: None,
            rate: FIRST_RATE,
            dispatched: 0,
            most_work: u64::MAX,
            shared,
        })
    }

    /// Takes ownership of a buffer, and returns its number.
    pub fn add(&mut self, buffer: Buffer) -> BufferId {
        self.bindings.add(buffer)
    }

    /// Frees a buffer. Nothing queued may use it.
    pub fn remove(&mut self, id: BufferId) {
        self.bindings.remove(id);
    }

    /// The buffer with the number `id`.
    pub fn buffer(&self, id: BufferId) -> &wgpu::Buffer {
        self.bindings.buffer(id)
    }

    /// Records a dispatch, cut into several if it is long. Submits when enough is recorded.
    pub fn dispatch(&mut self, d: &Dispatch) -> Result<()> {
        debug_assert_eq!(d.params.len(), d.shader.params_bytes, "{}", d.shader.name);
        if d.groups == 0 {
            return Ok(());
        }
        self.dispatched += 1;
        let pipeline = self.pipelines.get(&self.shared, d.shader, &d.constants)?;
        let group = self.bindings.group(&self.shared, &d.buffers);
        let groups = u32::try_from(d.groups).map_err(|_| {
            Error::memory("an operation is too large for this backend")
                .try_("a smaller image, or fewer images at a time ({count})")
                .at(d.shader.name)
                .found(format!("{} workgroups", d.groups))
        })?;
        let each = (d.work / d.groups).max(1);
        let mut first = 0u64;
        while first < d.groups {
            let room = self.most_work().saturating_sub(self.work);
            let left = d.groups - first;
            // Submit first if less than a quarter would fit: small pieces are not worth a dispatch.
            let count = (room / each).max(1).min(left);
            if (count < left && self.work > 0 && count * 4 < left)
                || self.recorded.len() >= MOST_DISPATCHES
            {
                self.submit()?;
                continue;
            }
            let (across, down) = fold(count);
            let mut params = d.params.clone();
            let grid =
                Grid { first: first as u32, groups: (first + count).min(u64::from(groups)) as u32 };
            params[..size_of::<Grid>()].copy_from_slice(bytemuck::bytes_of(&grid));
            self.recorded.push(Recorded {
                pipeline: pipeline.clone(),
                group: group.clone(),
                params,
                across,
                down,
            });
            self.work += count * each;
            first += count;
            if self.work >= self.most_work() {
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Operations of one submission.
    fn most_work(&self) -> u64 {
        ((self.rate * SUBMISSION_SECONDS) as u64).min(self.most_work)
    }

    /// Submits what is recorded, and waits until the device is not far behind.
    pub fn submit(&mut self) -> Result<()> {
        self.shared.health.alive()?;
        if self.recorded.is_empty() {
            return Ok(());
        }
        let mut encoder =
            self.shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for r in self.recorded.drain(..) {
                pass.set_pipeline(&r.pipeline);
                pass.set_bind_group(0, &r.group, &[]);
                pass.set_immediates(0, &r.params);
                pass.dispatch_workgroups(r.across, r.down, 1);
            }
        }
        let submission = self.shared.queue.submit([encoder.finish()]);
        self.shared.health.alive()?;
        if self.behind.is_empty() {
            self.last_done = Some(Instant::now());
        }
        self.behind.push_back(Behind { submission, work: std::mem::take(&mut self.work) });
        while self.behind.len() > MOST_BEHIND {
            self.wait_for_one()?;
        }
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<()> {
        let Some(Behind { submission, work }) = self.behind.pop_front() else { return Ok(()) };
        let asked = Instant::now();
        self.shared.wait(submission)?;
        let now = Instant::now();
        // The time is known only if there was something to wait for; a submission begins when the
        // one before it ends.
        let waited = now.duration_since(asked) > Duration::from_micros(200);
        if let Some(began) = self.last_done
            && waited
            && work > 0
        {
            let seconds = now.duration_since(began).as_secs_f64().max(1e-6);
            // Up by half at most in one step, down without limit.
            self.rate = (work as f64 / seconds).min(1.5 * self.rate).clamp(1e8, 1e15);
        }
        self.last_done = Some(now);
        Ok(())
    }

    /// Waits until nothing is queued.
    pub fn finish(&mut self) -> Result<()> {
        self.submit()?;
        while !self.behind.is_empty() {
            self.wait_for_one()?;
        }
        self.shared.health.alive()
    }

    /// Drops what was recorded and not submitted.
    pub fn discard(&mut self) {
        self.recorded.clear();
        self.work = 0;
    }

    /// Copies `bytes` bytes from one buffer to another, after all queued work.
    pub fn copy(
        &mut self,
        from: &wgpu::Buffer,
        from_at: u64,
        to: &wgpu::Buffer,
        to_at: u64,
        bytes: u64,
    ) -> Result<wgpu::SubmissionIndex> {
        self.submit()?;
        let mut encoder =
            self.shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(from, from_at, to, to_at, bytes);
        let submission = self.shared.queue.submit([encoder.finish()]);
        self.shared.health.alive()?;
        Ok(submission)
    }
}

/// `groups` workgroups in two dimensions of at most 65,535; there can be a few more.
fn fold(groups: u64) -> (u32, u32) {
    let down = groups.div_ceil(ACROSS);
    (groups.div_ceil(down) as u32, down as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_grids_hold_all_workgroups_and_few_more() {
        for groups in [1, 2, 65_535, 65_536, 65_537, 1_000_003, 4_294_836_225] {
            let (across, down) = fold(groups);
            let all = u64::from(across) * u64::from(down);
            assert!(
                across <= 65_535 && down <= 65_535 && all >= groups,
                "{groups}: {across} x {down}"
            );
            assert!(all - groups < u64::from(down), "{groups}: {across} x {down}");
        }
    }
}
