//! What wgpu does not report of an adapter, asked from Vulkan.

/// Memory of an adapter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heap {
    pub bytes: u64,
    /// Bytes that this process may still take.
    pub free_bytes: Option<u64>,
}

/// The largest heap of device memory, if the interface is Vulkan.
#[cfg(not(target_vendor = "apple"))]
pub(super) fn heap(raw: &wgpu::Adapter) -> Option<Heap> {
    use ash::vk;
    // SAFETY: the handle is used for two queries, and neither kept nor destroyed.
    let adapter = unsafe { raw.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    let device = adapter.raw_physical_device();
    let reports = has_extension(instance, device, ash::ext::memory_budget::NAME);
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if reports {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: the physical device belongs to this instance, which lives as long as the adapter; the
    // chain contains the one structure that the extension, which is available, allows. wgpu
    // requests Vulkan 1.1 or the extension of this call.
    unsafe { instance.get_physical_device_memory_properties2(device, &mut properties) };
    let memory = properties.memory_properties;
    let (bytes, largest) = (0..memory.memory_heap_count as usize)
        .filter(|&i| memory.memory_heaps[i].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .map(|i| (memory.memory_heaps[i].size, i))
        .max()?;
    let free_bytes = reports
        .then(|| budget.heap_budget[largest].saturating_sub(budget.heap_usage[largest]).min(bytes));
    Some(Heap { bytes, free_bytes })
}

/// Whether the adapter has an instruction for `dot4I8Packed`, if the interface is Vulkan.
#[cfg(not(target_vendor = "apple"))]
pub(super) fn int8_products(raw: &wgpu::Adapter) -> Option<bool> {
    use ash::vk;
    // SAFETY: as in `heap`.
    let adapter = unsafe { raw.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    let device = adapter.raw_physical_device();
    // SAFETY: the physical device belongs to this instance, which lives as long as the adapter.
    let version = unsafe { instance.get_physical_device_properties(device) }.api_version;
    if version < vk::API_VERSION_1_3
        && !has_extension(instance, device, ash::khr::shader_integer_dot_product::NAME)
    {
        return Some(false);
    }
    let mut products = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut products);
    // SAFETY: as above; the chain contains a structure of the version or the extension that is
    // available. wgpu requests Vulkan 1.1 or the extension of this call.
    unsafe { instance.get_physical_device_properties2(device, &mut properties) };
    Some(products.integer_dot_product4x8_bit_packed_signed_accelerated != 0)
}

#[cfg(not(target_vendor = "apple"))]
fn has_extension(
    instance: &ash::Instance,
    device: ash::vk::PhysicalDevice,
    name: &std::ffi::CStr,
) -> bool {
    // SAFETY: both callers pass a physical device of this instance, which lives as long as their
    // adapter.
    let extensions =
        unsafe { instance.enumerate_device_extension_properties(device) }.unwrap_or_default();
    extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name))
}

#[cfg(target_vendor = "apple")]
pub(super) fn heap(_raw: &wgpu::Adapter) -> Option<Heap> {
    None
}

#[cfg(target_vendor = "apple")]
pub(super) fn int8_products(_raw: &wgpu::Adapter) -> Option<bool> {
    None
}
