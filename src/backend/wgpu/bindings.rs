//! Buffers by number, and the bind groups that show windows of them to shaders.

use std::collections::HashMap;

use super::device::{Buffer, Shared};
use super::launch::{BINDINGS, BufferId, Window};
use crate::error::Result;

/// Bind groups that are kept: more than a step of FLUX has.
const MOST_GROUPS: usize = 4096;

/// The buffers of a backend.
pub(super) struct Bindings {
    pub layout: wgpu::BindGroupLayout,
    groups: HashMap<Vec<Option<Window>>, wgpu::BindGroup>,
    buffers: Vec<Option<Buffer>>,
    /// Bound where a shader reads nothing.
    nothing: Buffer,
}

impl Bindings {
    pub fn new(shared: &Shared) -> Result<Bindings> {
        let entries: Vec<_> = (0..BINDINGS as u32)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                // All are writable: several operands can be in one buffer, and a dispatch can use a
                // buffer in one way only.
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: false },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = shared.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("operands"),
            entries: &entries,
        });
        let nothing = shared.buffer(256, wgpu::BufferUsages::STORAGE, "nothing")?;
        Ok(Bindings { layout, groups: HashMap::new(), buffers: Vec::new(), nothing })
    }

    /// Takes ownership of a buffer, and returns its number.
    pub fn add(&mut self, buffer: Buffer) -> BufferId {
        self.buffers.push(Some(buffer));
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// Frees a buffer. Nothing queued may use it.
    pub fn remove(&mut self, id: BufferId) {
        self.groups.clear();
        self.buffers[id.0 as usize] = None;
    }

    /// The buffer with the number `id`.
    pub fn buffer(&self, id: BufferId) -> &wgpu::Buffer {
        &self.buffers[id.0 as usize].as_ref().expect("buffers are used before they are freed").raw
    }

    /// The bind group of these windows, in the order of their bindings.
    pub fn group(&mut self, shared: &Shared, windows: &[Option<Window>]) -> wgpu::BindGroup {
        // The places of streamed weights change from run to run: do not keep all groups.
        if self.groups.len() >= MOST_GROUPS {
            self.groups.clear();
        }
        if let Some(group) = self.groups.get(windows) {
            return group.clone();
        }
        let entries: Vec<_> = (0..BINDINGS)
            .map(|i| {
                let (buffer, offset, size) = match windows.get(i).copied().flatten() {
                    Some(w) => (self.buffer(w.buffer), w.offset, wgpu::BufferSize::new(w.bytes)),
                    None => (&self.nothing.raw, 0, None),
                };
                let resource =
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
                wgpu::BindGroupEntry { binding: i as u32, resource }
            })
            .collect();
        let group = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.layout,
            entries: &entries,
        });
        self.groups.insert(windows.to_vec(), group.clone());
        group
    }
}
