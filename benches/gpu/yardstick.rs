//! The peaks of a wgpu adapter: a hand-tuned product of two F32 matrices of 1024x1024
//! (`benches/yardstick/matmul_f32.wgsl`), copies within device memory, and copies to it.

use std::time::Instant;

use wgpu::util::DeviceExt;

const N: u64 = 1024;
const MATRIX: u64 = N * N * 4;
/// Bytes of the copies.
const COPY: u64 = 128 << 20;

/// TFLOP/s of the product (NaN without `multiplies`: it is tuned for drivers that compute on the
/// processor), GB/s within the device (reads and writes counted), and GB/s to it: the best of
/// several runs.
pub fn measure(ordinal: usize, multiplies: bool) -> (f64, f64, f64) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    // Counted as the backend counts them.
    let kind = |a: &wgpu::Adapter| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::Cpu => 3,
        _ => 2,
    };
    adapters.sort_by_key(|a| (kind(a), a.get_info().backend != wgpu::Backend::Vulkan));
    let adapter = &adapters[ordinal];
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: wgpu::Features::IMMEDIATES
            | (wgpu::Features::SUBGROUP & adapter.features()),
        required_limits: adapter.limits(),
        ..Default::default()
    }))
    .expect("the adapter opens");
    let best = |f: &mut dyn FnMut()| {
        f();
        let once = |f: &mut dyn FnMut()| {
            let start = Instant::now();
            f();
            device.poll(wgpu::PollType::wait_indefinitely()).expect("runs");
            start.elapsed().as_secs_f64()
        };
        (0..5).map(|_| once(f)).fold(f64::INFINITY, f64::min)
    };

    let teraflops = if multiplies { product(&device, &queue, &best) } else { f64::NAN };
    let buffer = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: COPY,
            usage,
            mapped_at_creation: false,
        })
    };
    let (from, to) = (buffer(wgpu::BufferUsages::COPY_SRC), buffer(wgpu::BufferUsages::COPY_DST));
    let upload = buffer(wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC);
    let copy = |from: &wgpu::Buffer| {
        best(&mut || {
            let mut encoder = device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(from, 0, &to, 0, COPY);
            queue.submit([encoder.finish()]);
        })
    };
    let (within, up) = (copy(&from), copy(&upload));
    (teraflops, 2.0 * COPY as f64 / within / 1e9, COPY as f64 / up / 1e9)
}

/// TFLOP/s of the product of two matrices.
fn product(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    best: &dyn Fn(&mut dyn FnMut()) -> f64,
) -> f64 {
    // SAFETY: the shader accesses only its buffers, whose sizes match the given dimensions.
    let module = unsafe {
        device.create_shader_module_trusted(
            wgpu::include_wgsl!("../yardstick/matmul_f32.wgsl"),
            wgpu::ShaderRuntimeChecks {
                bounds_checks: false,
                force_loop_bounding: false,
                ..wgpu::ShaderRuntimeChecks::checked()
            },
        )
    };
    let entry = |binding| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: false },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let group_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: None,
        entries: &[entry(0), entry(1), entry(2)],
    });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&group_layout)],
        immediate_size: 16,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    });
    let values: Vec<f32> = (0..N * N).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
    let buffers: Vec<wgpu::Buffer> = (0..3)
        .map(|_| {
            device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: None,
                contents: bytemuck::cast_slice(&values),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            })
        })
        .collect();
    assert!(buffers.iter().all(|b| b.size() == MATRIX));
    let entries: Vec<_> = buffers
        .iter()
        .enumerate()
        .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.as_entire_binding() })
        .collect();
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &group_layout,
        entries: &entries,
    });
    let groups = 512u32;
    let params = [0u32, groups, N as u32, N as u32];
    let seconds = best(&mut || {
        let mut encoder = device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.set_immediates(0, bytemuck::cast_slice(&params));
            pass.dispatch_workgroups(groups, 1, 1);
        }
        queue.submit([encoder.finish()]);
    });
    2.0 * (N * N * N) as f64 / seconds / 1e12
}
