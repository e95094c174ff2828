//! Compiled shaders.

use std::collections::HashMap;

use super::device::{Shared, one_line, translate};
use super::launch::{PARAMS_BYTES, Shader};
use crate::error::{Error, Result};

/// A shader, and the values of its constants.
type Key = (&'static str, Vec<(&'static str, u64)>);

/// All shaders that were used, compiled.
pub(super) struct Pipelines {
    layout: wgpu::PipelineLayout,
    compiled: HashMap<Key, wgpu::ComputePipeline>,
}

impl Pipelines {
    pub fn new(shared: &Shared, operands: &wgpu::BindGroupLayout) -> Pipelines {
        let layout = shared.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("operands and params"),
            bind_group_layouts: &[Some(operands)],
            immediate_size: PARAMS_BYTES as u32,
        });
        Pipelines { layout, compiled: HashMap::new() }
    }

    /// `shader` with `constants`; compiles it the first time.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind::Device) if the driver refuses it.
    pub fn get(
        &mut self,
        shared: &Shared,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
    ) -> Result<wgpu::ComputePipeline> {
        let bits = constants.iter().map(|(name, v)| (*name, v.to_bits())).collect::<Vec<_>>();
        let key = (shader.name, bits);
        if let Some(pipeline) = self.compiled.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.compile(shared, shader, constants)?;
        self.compiled.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn compile(
        &self,
        shared: &Shared,
        shader: &'static Shader,
        constants: &[(&'static str, f64)],
    ) -> Result<wgpu::ComputePipeline> {
        let device = &shared.device;
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
        // SAFETY: the shaders are ours, and no input makes their loops endless. They compute
        // addresses within their windows from `Params`, which are made from shapes that were
        // checked when the program was recorded.
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
        shared.health.alive()?;
        match failed {
            None => Ok(pipeline),
            Some(e) => Err(refused(&e).at(shader.name).at(&shared.name)),
        }
    }
}

fn refused(e: &wgpu::Error) -> Error {
    match e {
        wgpu::Error::OutOfMemory { .. } => translate(e),
        _ => {
            Error::device("the GPU's driver refuses a shader").found(one_line(&e.to_string())).try_(
                "update the driver; {kernel} chooses another shader (see {:doctor}), \
                 {device=cpu} needs none",
            )
        }
    }
}
