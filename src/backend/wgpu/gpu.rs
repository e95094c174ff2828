//! The device behind the backend: buffers whose bytes are counted, pipelines, and dispatches recorded, submitted and waited for.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::launch::{BINDINGS, BufferId, Dispatch, Grid, PARAMS_BYTES, Shader, Window};
use crate::error::{Error, Result};

/// What a submission should take at most: short enough that no watchdog ends it (Windows waits 2 s), a screen stays smooth and a run can be cancelled.
const SUBMISSION_SECONDS: f64 = 0.1;
/// Operations a second that a device is taken to do until it has been seen at work: what the slowest GPUs do.
const FIRST_RATE: f64 = 5e10;
/// Bind groups that are kept: more than a step of FLUX has.
const MOST_GROUPS: usize = 4096;
/// Dispatches of one submission at most.
const MOST_DISPATCHES: usize = 256;
/// Submissions that the device may be behind.
const MOST_BEHIND: usize = 3;
/// A submission that takes longer than this will not end.
const HANG: Duration = Duration::from_secs(120);
/// Workgroups along one dimension.
const ACROSS: u64 = 65_535;

/// Whether the device still answers; shared with its callbacks.
#[derive(Default)]
pub struct Health {
    /// The first thing that went wrong for good.
    lost: Mutex<Option<Error>>,
    /// It does not even answer: who waits for it waits for ever.
    pub hangs: AtomicBool,
}

impl Health {
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

/// Bytes of the buffers that live.
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

/// A buffer that is given back when it is dropped.
pub struct Buffer {
    pub raw: wgpu::Buffer,
    held: Arc<Held>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Queued work keeps what it uses until it is done.
        self.held.now.fetch_sub(self.raw.size(), Ordering::Relaxed);
        self.raw.destroy();
    }
}

/// What threads share: makes and counts buffers, waits, knows whether the device lives.
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
            // wgpu gives a device up that has no memory for what it was told to do.
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

    /// A buffer of `bytes`; an error if the device has no room for it.
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

    /// Maps a whole buffer that nothing queued uses any more.
    pub fn map(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Result<()> {
        const ASKED: u8 = 0;
        const MAPPED: u8 = 1;
        const REFUSED: u8 = 2;
        let state = Arc::new(AtomicU8::new(ASKED));
        let answer = state.clone();
        buffer.slice(..).map_async(mode, move |r| {
            answer.store(if r.is_ok() { MAPPED } else { REFUSED }, Ordering::Release);
        });
        // The answer comes at the next poll, or at that of another thread.
        loop {
            match state.load(Ordering::Acquire) {
                MAPPED => return Ok(()),
                REFUSED => {
                    // Only a lost device does so; the word of it comes at a poll.
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

    /// Waits until everything is done that any thread has submitted, and what was destroyed is given back.
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
        .try_("run again; if it stays so, update the GPU's driver, or --device cpu");
    if message.is_empty() { e } else { e.found(message) }
}

fn out_of_memory() -> Error {
    Error::memory("out of device memory")
        .try_("a smaller --vram, a smaller picture, or close other programs that use the GPU")
}

/// wgpu's error as ours.
pub fn translate(e: &wgpu::Error) -> Error {
    match e {
        wgpu::Error::OutOfMemory { .. } => out_of_memory(),
        wgpu::Error::Validation { description, .. } => {
            Error::device("the GPU's interface refused a call")
                .found(one_line(description))
                .try_("--device cpu; and please report it")
        }
        wgpu::Error::Internal { description, .. } => Error::device("the GPU's driver failed")
            .found(one_line(description))
            .try_("update the driver, or --device cpu"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A dispatch with everything looked up.
struct Recorded {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    params: Vec<u8>,
    across: u32,
    down: u32,
}

type PipelineKey = (&'static str, Vec<(&'static str, u64)>);

/// A point in the queue.
struct Behind {
    submission: wgpu::SubmissionIndex,
    work: u64,
}

pub struct Gpu {
    pub shared: Shared,
    group_layout: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
    pipelines: HashMap<PipelineKey, wgpu::ComputePipeline>,
    groups: HashMap<Vec<Option<Window>>, wgpu::BindGroup>,
    buffers: Vec<Option<Buffer>>,
    /// Bound where a shader reads nothing.
    nothing: Buffer,
    recorded: Vec<Recorded>,
    work: u64,
    behind: VecDeque<Behind>,
    /// When the device was last seen to finish something, with more to do.
    last_done: Option<Instant>,
    /// Operations a second, measured.
    rate: f64,
    /// Dispatches so far.
    pub dispatched: u64,
    /// Operations of one submission, however fast the device is.
    pub most_work: u64,
}

impl Gpu {
    pub fn new(shared: Shared) -> Result<Gpu> {
        let device = &shared.device;
        let entries: Vec<_> = (0..BINDINGS as u32)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                // All of them writable: operands lie in one buffer, whose use within a dispatch must be one.
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: false },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let group_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("operands"),
            entries: &entries,
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("operands and params"),
            bind_group_layouts: &[Some(&group_layout)],
            immediate_size: PARAMS_BYTES as u32,
        });
        let nothing = shared.buffer(256, wgpu::BufferUsages::STORAGE, "nothing")?;
        shared.health.alive()?;
        Ok(Gpu {
            group_layout,
            layout,
            pipelines: HashMap::new(),
            groups: HashMap::new(),
            buffers: Vec::new(),
            nothing,
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

    /// Takes a buffer in.
    pub fn add(&mut self, buffer: Buffer) -> BufferId {
        self.buffers.push(Some(buffer));
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// Gives a buffer up. Nothing queued may use it.
    pub fn remove(&mut self, id: BufferId) {
        self.groups.clear();
        self.buffers[id.0 as usize] = None;
    }

    pub fn raw(&self, id: BufferId) -> &wgpu::Buffer {
        &self.buffers[id.0 as usize].as_ref().expect("buffers are used while they live").raw
    }

    /// Compiles `shader` with `constants`, once.
    fn pipeline(
        &mut self,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
    ) -> Result<wgpu::ComputePipeline> {
        let key = (
            shader.name,
            constants.iter().map(|(name, v)| (*name, v.to_bits())).collect::<Vec<_>>(),
        );
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let device = &self.shared.device;
        let scopes = [
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
        ]
        .map(|filter| device.push_error_scope(filter));
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.name),
            source: wgpu::ShaderSource::Wgsl(shader.text().into()),
        };
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: false,
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: the shaders are ours, and no input makes a loop of theirs endless; they compute addresses within their windows from `Params`, which the
        // families make from shapes that were checked when the program was recorded.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(shader.name),
            layout: Some(&self.layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        let mut failed = None;
        for scope in scopes.into_iter().rev() {
            failed = failed.or(pollster::block_on(scope.pop()));
        }
        self.shared.health.alive()?;
        if let Some(e) = failed {
            let e = match &e {
                wgpu::Error::OutOfMemory { .. } => translate(&e),
                _ => Error::device("the GPU's driver refuses a shader")
                    .found(one_line(&e.to_string()))
                    .try_("update the driver; --kernel chooses another shader (see `flux-fast doctor`), --device cpu needs none"),
            };
            return Err(e.at(shader.name).at(&self.shared.name));
        }
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn group(&mut self, windows: &[Option<Window>]) -> wgpu::BindGroup {
        // The places of weights that pass change from run to run.
        if self.groups.len() >= MOST_GROUPS {
            self.groups.clear();
        }
        if let Some(group) = self.groups.get(windows) {
            return group.clone();
        }
        let entries: Vec<_> = (0..BINDINGS)
            .map(|i| {
                let (buffer, offset, size) = match windows.get(i).copied().flatten() {
                    Some(w) => (self.raw(w.buffer), w.offset, wgpu::BufferSize::new(w.bytes)),
                    None => (&self.nothing.raw, 0, None),
                };
                let resource =
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
                wgpu::BindGroupEntry { binding: i as u32, resource }
            })
            .collect();
        let group = self.shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.group_layout,
            entries: &entries,
        });
        self.groups.insert(windows.to_vec(), group.clone());
        group
    }

    /// Queues a dispatch, in pieces where it is long.
    pub fn dispatch(&mut self, d: &Dispatch) -> Result<()> {
        debug_assert_eq!(d.params.len(), d.shader.params_bytes, "{}", d.shader.name);
        if d.groups == 0 {
            return Ok(());
        }
        self.dispatched += 1;
        let pipeline = self.pipeline(d.shader, &d.constants)?;
        let group = self.group(&d.buffers);
        let groups = u32::try_from(d.groups).map_err(|_| {
            Error::memory("an operation is too large for this backend")
                .try_("a smaller picture, or fewer at a time (-n)")
                .at(d.shader.name)
                .found(format!("{} workgroups", d.groups))
        })?;
        let each = (d.work / d.groups).max(1);
        let mut first = 0u64;
        while first < d.groups {
            let room = self.most_work().saturating_sub(self.work);
            let left = d.groups - first;
            // What nearly fits goes whole; what is begun does at least a piece worth starting.
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

    /// Gives the device what is recorded, and waits until it is not far behind.
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
        // How long it took is known only where it was waited for, and it began when the one before it ended.
        let waited = now.duration_since(asked) > Duration::from_micros(200);
        if let Some(began) = self.last_done
            && waited
            && work > 0
        {
            let seconds = now.duration_since(began).as_secs_f64().max(1e-6);
            // Up by half at most in one step, down at once.
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

    /// Forgets what was recorded and not submitted.
    pub fn discard(&mut self) {
        self.recorded.clear();
        self.work = 0;
    }

    /// Copies `bytes` from a host-visible buffer to another, behind all that is queued; or the other way round.
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

/// Workgroups in two dimensions, of which the first has at most 65,535; some may be too many.
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
