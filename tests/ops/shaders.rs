//! Every WGSL shader, without an adapter: it parses and validates, translates for Vulkan, Metal and
//! DirectX 12, and matches the host's tables.

use std::collections::HashMap;

use flux_fast::backend::wgpu::{
    BINDINGS, Constants, Needs, PARAMS_BYTES, Shader, names, ops, shaders,
};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, TypeInner, back, proc};

fn all() -> Vec<(&'static Shader, Constants, Needs)> {
    let all = shaders();
    assert!(all.len() > 50, "only {} shaders", all.len());
    all
}

fn parse(shader: &Shader, needs: &Needs) -> (Module, ModuleInfo) {
    let text = shader.text();
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
    let mut capabilities = Capabilities::IMMEDIATES;
    // Only the capabilities that the shader declares.
    capabilities.set(Capabilities::SHADER_FLOAT16, needs.f16);
    capabilities.set(Capabilities::SUBGROUP, needs.subgroups.is_some());
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, needs.cooperative_matrix);
    // Packing two f16 into a word is part of WebGPU.
    capabilities |= Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    let info = validator
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}: {}", shader.name, e.emit_to_string(&text)));
    (module, info)
}

#[test]
fn bindings_parameters_and_memory_match_the_host() {
    for (shader, constants, needs) in all() {
        let name = shader.name;
        let (module, _) = parse(shader, &needs);
        let mut layouter = proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let mut bindings: HashMap<u32, naga::Handle<naga::GlobalVariable>> = HashMap::new();
        let mut params = None;
        for (handle, variable) in module.global_variables.iter() {
            match variable.space {
                AddressSpace::Storage { .. } => {
                    let at = variable
                        .binding
                        .unwrap_or_else(|| panic!("{name}: a buffer without a binding"));
                    assert_eq!(at.group, 0, "{name}");
                    assert!(
                        (at.binding as usize) < shader.buffers,
                        "{name}: binding {}",
                        at.binding
                    );
                    bindings.insert(at.binding, handle);
                    let TypeInner::Array { base, .. } = module.types[variable.ty].inner else {
                        panic!("{name}: {variable:?}")
                    };
                    assert!(
                        [4, 8, 16].contains(&layouter[base].size),
                        "{name}: elements of {} bytes",
                        layouter[base].size
                    );
                }
                AddressSpace::Immediate => params = Some(variable.ty),
                AddressSpace::WorkGroup | AddressSpace::Private => {}
                other => panic!("{name}: a variable in {other:?}"),
            }
        }
        assert!(shader.buffers <= BINDINGS && !bindings.is_empty(), "{name}");
        assert!(
            bindings.contains_key(&(shader.buffers as u32 - 1)),
            "{name}: says {} buffers",
            shader.buffers
        );

        let params = params.unwrap_or_else(|| panic!("{name}: no params"));
        let TypeInner::Struct { ref members, span } = module.types[params].inner else {
            panic!("{name}: params")
        };
        assert_eq!(span as usize, shader.params_bytes, "{name}: Params");
        assert!(
            shader.params_bytes <= PARAMS_BYTES,
            "{name}: {} bytes of Params",
            shader.params_bytes
        );
        let names: Vec<_> = members.iter().map(|m| m.name.as_deref().unwrap_or("")).collect();
        assert_eq!(names[..2], ["first", "groups"], "{name}");
        // 32-bit fields without padding, as in the host's `#[repr(C)]` struct.
        assert!(
            members.iter().enumerate().all(|(i, m)| m.offset as usize == 4 * i),
            "{name}: {members:?}"
        );

        let [entry] = &module.entry_points[..] else {
            panic!("{name}: {} entry points", module.entry_points.len())
        };
        assert_eq!((entry.name.as_str(), entry.stage), ("main", ShaderStage::Compute), "{name}");
        for (constant, _) in &constants {
            let known = module.overrides.iter().any(|(_, o)| o.name.as_deref() == Some(constant));
            assert!(known, "{name}: no override called {constant}");
        }
    }
}

/// With its constants, each shader has the workgroup size and memory of its variant, and translates
/// for every platform.
#[test]
fn they_translate_for_every_platform() {
    for (shader, constants, needs) in all() {
        let what = format!("{} {constants:?}", shader.name);
        let (module, info) = parse(shader, &needs);
        let constants = constants.iter().map(|(name, v)| (name.to_string(), *v)).collect();
        let (module, info) = back::pipeline_constants::process_overrides(
            &module,
            &info,
            Some((ShaderStage::Compute, "main")),
            &constants,
        )
        .unwrap_or_else(|e| panic!("{what}: {e}"));
        let entry = &module.entry_points[0];
        assert_eq!(entry.workgroup_size.iter().product::<u32>(), needs.threads, "{what}: threads");
        let mut layouter = proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let shared =
            module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|(_, v)| layouter[v.ty].size).sum();
        assert!(
            bytes <= needs.shared_bytes,
            "{what}: {bytes} bytes of workgroup memory, {} said",
            needs.shared_bytes
        );

        let spv = back::spv::Options { lang_version: (1, 3), ..Default::default() };
        let pipeline = back::spv::PipelineOptions {
            shader_stage: ShaderStage::Compute,
            entry_point: "main".into(),
        };
        let words = back::spv::write_vec(&module, &info, &spv, Some(&pipeline))
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(words.len() > 100, "{what}");

        let msl = back::msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            ..Default::default()
        };
        let (text, translated) =
            back::msl::write_string(&module, &info, &msl, &back::msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(
            translated.entry_point_names[0].is_ok() && text.contains("kernel"),
            "{what}: {translated:?}"
        );
        assert_eq!(declared_twice(&text), None, "{what}: in Metal's language");

        // DirectX has no cooperative matrices.
        if needs.cooperative_matrix {
            continue;
        }
        let target =
            |register| Some(back::hlsl::BindTarget { space: 9, register, ..Default::default() });
        let hlsl = back::hlsl::Options {
            shader_model: back::hlsl::ShaderModel::V6_2,
            fake_missing_bindings: true,
            immediates_target: target(0),
            special_constants_binding: target(1),
            ..Default::default()
        };
        let mut text = String::new();
        let options = back::hlsl::PipelineOptions::default();
        back::hlsl::Writer::new(&mut text, &hlsl, &options)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(text.contains("numthreads"), "{what}");
    }
}

/// A variable that naga declared twice in a function for the operands of `dot4I8Packed`.
fn declared_twice(metal: &str) -> Option<&str> {
    metal.split("\n}\n").find_map(|function| {
        let mut seen = std::collections::HashSet::new();
        let lines = function.lines().map(str::trim).filter(|l| l.starts_with("packed_char4 "));
        lines.filter_map(|l| l.split(' ').nth(1)).find(|name| !seen.insert(*name))
    })
}

/// A store to one component of a vector may write the whole vector (on Metal it does). If other
/// threads may write its other components, that is a race.
#[test]
fn no_shader_stores_components_of_shared_vectors() {
    fn stores(block: &naga::Block, found: &mut Vec<naga::Handle<naga::Expression>>) {
        use naga::Statement::*;
        for statement in block {
            match statement {
                Store { pointer, .. } => found.push(*pointer),
                Block(inner) => stores(inner, found),
                If { accept, reject, .. } => {
                    [accept, reject].into_iter().for_each(|b| stores(b, found))
                }
                Switch { cases, .. } => cases.iter().for_each(|c| stores(&c.body, found)),
                Loop { body, continuing, .. } => {
                    [body, continuing].into_iter().for_each(|b| stores(b, found))
                }
                _ => {}
            }
        }
    }
    let (mut seen, mut looked) = (std::collections::HashSet::new(), 0);
    for (shader, _, needs) in all() {
        if !seen.insert(shader.name) {
            continue;
        }
        let (module, info) = parse(shader, &needs);
        let functions = module.functions.iter().map(|(handle, f)| (f, &info[handle]));
        let entry = (&module.entry_points[0].function, info.get_entry_point(0));
        for (function, facts) in functions.chain([entry]) {
            let mut found = Vec::new();
            stores(&function.body, &mut found);
            for pointer in found {
                looked += 1;
                let inner = facts[pointer].ty.inner_with(&module.types);
                let TypeInner::ValuePointer { size: None, space, .. } = inner else { continue };
                let shared =
                    matches!(space, AddressSpace::WorkGroup | AddressSpace::Storage { .. });
                assert!(
                    !shared,
                    "{}: a store to one component of a vector in {space:?}",
                    shader.name
                );
            }
        }
    }
    assert!(looked > 100, "{looked}");
}

#[test]
fn the_last_variant_of_every_operation_needs_nothing_special() {
    for op in ops() {
        let all = names(op).unwrap();
        let (last, needs) = all.last().unwrap();
        assert!(!needs.f16 && needs.subgroups.is_none() && !needs.cooperative_matrix, "{last}");
        // The limits that WebGPU guarantees and that `adapters` requires.
        assert!(needs.threads <= 256 && needs.shared_bytes <= 16_384, "{last}: {needs:?}");
        let mut unique: Vec<_> = all.iter().map(|(name, _)| name).collect();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), all.len(), "{op}");
        assert!(all.iter().all(|(name, _)| name.starts_with(&format!("{op}_"))), "{all:?}");
    }
}
