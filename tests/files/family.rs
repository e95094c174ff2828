//! A second family of models, made of public [`flux_fast::spec`] data alone: its files are found,
//! recognised, read, listed, converted and changed by LoRAs next to FLUX.1's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::event::Event;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::places::{ModelKind, ModelPlaces, describe};
use flux_fast::library::{Files, ModelFiles, inspect_among, lookup, open_among, open_source_among};
use flux_fast::spec::flux1::{FLUX1, TRANSFORMER, VAE};
use flux_fast::spec::lora::{COMMON_PREFIXES, LoraLayers, LoraPrefix, LoraSpec, LoraSpelling};
use flux_fast::spec::names::{Dialect, Naming, Rename, Split};
use flux_fast::spec::{
    Component, ComponentSpec, Diffusers, Fact, Families, Family, FileNames, Fit, Role, Tokenizer,
    Variant,
};
use flux_fast::weights::dialect::recognise::recognise;
use flux_fast::weights::lora;
use flux_fast::weights::synth::{Dialect as Layout, Grid, Storage, SynthSpec, to_bytes, write};
use serde_json::json;

use super::weights::support;

static LUMEN: Family = Family {
    name: "lumen",
    title: "Lumen",
    pipeline_class: "LumenPipeline",
    undistilled: None,
    keeps_references: None,
    components: &[CORE, READER],
    add_ons: &[],
    lora: LoraSpec {
        prefixes: &[COMMON_PREFIXES, &[LoraPrefix::shared("reader_", Some(Role::Text(0))).flat()]],
        foreign: &[("double_blocks", "FLUX.1")],
        foreign_bases: &["flux"],
        widths: &[],
        other_width: "compare both",
        example: "keys such as lora_unet_stage_0_mix.lora_down.weight",
    },
};

const CORE: Component = Component(&CORE_SPEC);
const READER: Component = Component(&READER_SPEC);
const BOTH: Families = Families(&[&FLUX1, &LUMEN]);
const FLUX1_ONLY: Families = Families(&[&FLUX1]);

static CORE_SPEC: ComponentSpec = ComponentSpec {
    role: Role::Transformer,
    name: "core",
    title: "Lumen core",
    option: None,
    diffusers: Diffusers {
        folder: "core",
        python_library: "diffusers",
        class: "LumenCore",
        classes: "LumenCore*",
    },
    files: FileNames {
        folders: &["core"],
        ranks: &[&["*lumen*"], &["*"]],
        known: &[],
        not: &[],
        written: "lumen.safetensors",
    },
    comfy_prefix: "model.lumen.",
    tensors: &["entry.{weight|bias}", "stage.{}.{mix|out}.{weight|bias}", "stage.{}.gain"],
    dialects: &[
        Dialect {
            name: "Lumen Labs",
            markers: &["stage.0.mix.weight", "stage.0.out.weight"],
            requires: &[],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "diffusers",
            markers: &["stages.0.left.weight"],
            requires: &[],
            naming: Naming::Renamed(&[
                Rename::one("entry.{weight|bias}", &["embed.{weight|bias}"]),
                Rename::fused(
                    "stage.{}.mix.{weight|bias}",
                    &["stages.{}.left.{weight|bias}", "stages.{}.right.{weight|bias}"],
                    Split::Equal,
                ),
                Rename::one("stage.{}.out.{weight|bias}", &["stages.{}.to_out.{weight|bias}"]),
                Rename::one("stage.{}.gain", &["stages.{}.norm.weight"]),
            ]),
            gguf: false,
        },
    ],
    quantised: &["stage."],
    facts: &[("stages", Fact::Count("stage.")), ("width", Fact::Axis("entry.weight", 0))],
    variant: Some(Variant::Size { label: "width", tensor: "entry.weight", axis: 0 }),
    lora: LoraLayers {
        layers: &["entry", "stage.{}.mix", "stage.{}.out"],
        spellings: &[LoraSpelling::all("stage.{}.blend", "stage.{}.mix").by("Blender")],
        blocks_hint: "Lumen has two stages",
        ..LoraLayers::NONE
    },
    ..ComponentSpec::EMPTY
};

static READER_SPEC: ComponentSpec = ComponentSpec {
    role: Role::Text(0),
    name: "reader",
    title: "Lumen reader",
    option: Some("reader"),
    diffusers: Diffusers {
        folder: "reader",
        python_library: "transformers",
        class: "LumenReader",
        classes: "*Reader*",
    },
    tokenizer: Some(Tokenizer { folder: "words", sets_length: true }),
    files: FileNames {
        folders: &["text_encoders", "reader"],
        ranks: &[&["*reader*"], &["*"]],
        known: &["*lumen*reader*"],
        not: &[],
        written: "reader.safetensors",
    },
    source: Some("lumen-labs/lumen/reader.safetensors"),
    comfy_prefix: "text_encoders.reader.",
    tensors: &["words.weight", "row.{}.{up|down}.weight"],
    dialects: &[Dialect {
        name: "Lumen Labs",
        markers: &["row.0.up.weight"],
        requires: &[&["words."]],
        naming: Naming::Canonical,
        gguf: false,
    }],
    aliases: &[("embed.weight", "words.weight")],
    unused: &["head.*"],
    fit: Some(Fit { own: ("words.weight", 1), transformer: ("entry.weight", 1), divisor: 1 }),
    tables: &["words.weight"],
    facts: &[("rows", Fact::Count("row."))],
    lora: LoraLayers { layers: &["row.{}.up", "row.{}.down"], spellings: &[], ..LoraLayers::NONE },
    ..ComponentSpec::EMPTY
};

fn core() -> Vec<(Component, String, Vec<usize>)> {
    let mut tensors =
        vec![("entry.weight".to_string(), vec![8, 6]), ("entry.bias".into(), vec![8])];
    for i in 0..2 {
        tensors.push((format!("stage.{i}.mix.weight"), vec![32, 8]));
        tensors.push((format!("stage.{i}.mix.bias"), vec![32]));
        tensors.push((format!("stage.{i}.out.weight"), vec![8, 32]));
        tensors.push((format!("stage.{i}.out.bias"), vec![8]));
        tensors.push((format!("stage.{i}.gain"), vec![8]));
    }
    tensors.into_iter().map(|(name, shape)| (CORE, name, shape)).collect()
}

fn reader(width: usize) -> Vec<(Component, String, Vec<usize>)> {
    let row = |name: &str, shape| (READER, name.to_string(), shape);
    vec![
        row("words.weight", vec![20, width]),
        row("row.0.up.weight", vec![12, width]),
        row("row.0.down.weight", vec![width, 12]),
    ]
}

fn lumen(dialect: Layout, tensors: Vec<(Component, String, Vec<usize>)>) -> SynthSpec {
    let configs = json!({ "core": { "stages": 2 }, "words": { "model_max_length": 40 } });
    SynthSpec { seed: 3, tensors, grid: Grid::F32, storage: Storage::F32, dialect, configs }
}

/// Writes the model without its reader to `lumen.safetensors` in `folder`.
fn core_file(folder: &Path) -> PathBuf {
    let path = folder.join("lumen.safetensors");
    write(&lumen(Layout::Bfl, core()), &path).unwrap();
    path
}

fn places(folder: &Path) -> ModelPlaces {
    let mut places = ModelPlaces::new(&|_| None, folder, &[]);
    places.families = BOTH;
    places
}

#[test]
fn a_second_family_is_recognised_and_read_by_canonical_names() {
    let all = || core().into_iter().chain(reader(6)).collect::<Vec<_>>();
    let dir = tempfile::tempdir().unwrap();
    let layouts = [Layout::Comfy, Layout::Bfl, Layout::Diffusers { shard_bytes: None }];
    for (layout, program) in layouts.into_iter().zip(["ComfyUI", "Lumen Labs", "diffusers"]) {
        let spec = lumen(layout, all());
        let path = dir.path().join(format!("{program}.safetensors"));
        let path = if layout == Layout::Comfy { path } else { path.with_extension("folder") };
        write(&spec, &path).unwrap();
        let checkpoint = open_among(&Files::model(&path), None, BOTH).unwrap();
        assert!(std::ptr::eq(checkpoint.family, &LUMEN), "{program}");
        let weights = checkpoint.need(CORE).unwrap();
        assert!(weights.dialect().starts_with(program), "{} {program}", weights.dialect());
        for (component, name, shape) in &spec.tensors {
            let weights = checkpoint.need(*component).unwrap();
            let (rows, cols) = weights.shape(name).unwrap();
            let read = weights.get(name, 0, rows, cols).unwrap().to_f32();
            assert_eq!(read, spec.values(*component, name, shape), "{program} {name}");
        }
        assert_eq!(checkpoint.max_length(READER), Some(40), "{program}");
    }
}

#[test]
fn a_missing_component_is_named_with_its_option_and_found_by_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let model = core_file(dir.path());
    let open = |files: &Files| open_among(files, None, BOTH);
    let e = open(&Files::model(&model)).unwrap().need(READER).err().unwrap();
    assert_eq!(e.kind(), Kind::Missing);
    assert!(e.to_string().contains("the Lumen reader is missing"), "{e}");
    let hint = e.hint().unwrap();
    assert!(hint.contains("`reader`") && hint.contains("lumen-labs/lumen/reader"), "{hint}");
    let places = dir.path().join("text_encoders").display().to_string();
    assert!(e.to_string().contains(&places), "{e}");

    // A reader of another width does not fit; the right one is found, or can be given.
    let other = dir.path().join("text_encoders/reader-a.safetensors");
    write(&lumen(Layout::Bfl, reader(5)), &other).unwrap();
    assert!(open(&Files::model(&model)).unwrap().get(READER).is_none());
    let right = dir.path().join("text_encoders/reader-b.safetensors");
    write(&lumen(Layout::Bfl, reader(6)), &right).unwrap();
    let found = open(&Files::model(&model)).unwrap();
    assert_eq!(found.need(READER).unwrap().files().collect::<Vec<_>>(), [right.as_path()]);
    let given = open(&Files::model(&model).with("reader", &other)).unwrap();
    assert_eq!(given.need(READER).unwrap().files().collect::<Vec<_>>(), [other.as_path()]);
    // An option of another family is refused, and a transformer is not a reader.
    let e = open(&Files::model(&model).with("vae", &other)).err().unwrap();
    assert!(e.to_string().contains("Lumen has no such component"), "{e}");
    let e = open(&Files::model(&model).with("reader", &model)).err().unwrap();
    assert!(e.to_string().contains("holds no Lumen reader: found Lumen core"), "{e}");
}

#[test]
fn names_and_listings_know_the_second_family() {
    let dir = tempfile::tempdir().unwrap();
    let model = core_file(dir.path());
    let path = dir.path().join("reader.safetensors");
    write(&lumen(Layout::Bfl, reader(6)), &path).unwrap();
    let (kind, what) = describe(&model, BOTH);
    assert_eq!((kind, what.as_str()), (ModelKind::Model, "Lumen core, width 8, Lumen Labs, f32"));
    let (kind, what) = describe(&path, BOTH);
    assert_eq!((kind, what.as_str()), (ModelKind::Part(READER), "Lumen reader, Lumen Labs, f32"));
    assert_eq!(json!(kind), "reader");
    // FLUX.1 alone does not know it.
    assert_eq!(describe(&model, FLUX1_ONLY).0, ModelKind::Other);

    let inspection = inspect_among(&model, BOTH).unwrap();
    assert_eq!(inspection.what, "Lumen core: Lumen Labs, f32");
    let component = &inspection.components[0];
    assert_eq!(json!(component.component), "core");
    let facts = [("stages", "2".to_string()), ("width", "8".to_string())];
    assert_eq!(component.geometry.clone().into_iter().collect::<Vec<_>>(), facts);

    let files = ModelFiles {
        model: Some(model.display().to_string()),
        components: [("reader".to_string(), path.clone())].into(),
        ..ModelFiles::default()
    };
    let places = places(dir.path());
    let tell = &mut |_: Event| Ok(());
    let found = lookup::find(&files, &places, tell).unwrap();
    let checkpoint = lookup::open(found, &places, tell).unwrap().unwrap();
    assert_eq!(checkpoint.need(READER).unwrap().files().collect::<Vec<_>>(), [path.as_path()]);
}

#[test]
fn a_lora_of_the_second_family_is_bound_and_flux_loras_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open_among(&Files::model(core_file(dir.path())), None, BOTH).unwrap();
    let base = |c: Component, n: &str| checkpoint.get(c)?.shape(n);
    let file = |keys: &[(&str, [usize; 2])]| {
        let tensors: Vec<_> =
            keys.iter().map(|(key, shape)| (key.to_string(), "F32", shape.to_vec())).collect();
        let (mut bytes, data) = support::header(&tensors, json!({}));
        let ones = (0..data / 4).flat_map(|_| 1f32.to_le_bytes());
        bytes.extend(ones);
        let path = dir.path().join("lora.safetensors");
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let path = file(&[
        ("lora_unet_stage_1_mix.lora_down.weight", [2, 8]),
        ("lora_unet_stage_1_mix.lora_up.weight", [32, 2]),
        ("transformer.stages.0.right.lora_A.weight", [1, 8]),
        ("transformer.stages.0.right.lora_B.weight", [16, 1]),
        ("stage.1.blend.lora_A.weight", [1, 8]),
        ("stage.1.blend.lora_B.weight", [32, 1]),
    ]);
    let adapter = lora::open(&path, &LUMEN, &base).unwrap();
    let weights: Vec<_> = adapter.weights().collect();
    assert_eq!(weights, [(CORE, "stage.0.mix.weight"), (CORE, "stage.1.mix.weight")]);
    // `right` is the second half of the rows; two trainers' names of one layer are used once.
    let half = lora::combine(&[(&adapter, 1.0)], CORE, weights[0].1, 0..32, DType::F32);
    let b = half.unwrap().unwrap().b;
    let values: Vec<f32> =
        b.bytes().chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect();
    assert_eq!(values, [[0.0; 16], [1.0; 16]].concat());
    assert_eq!(adapter.summary.unmatched, 2);
    assert!(lora::open(&path, &FLUX1, &base).is_err());

    let survey = lora::survey(&path, BOTH).unwrap();
    assert!(std::ptr::eq(survey.family, &LUMEN) && survey.problem.is_none());
    assert_eq!(describe(&path, BOTH).0, ModelKind::Lora);
    let flux = file(&[
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", [2, 8]),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", [8, 2]),
    ]);
    assert!(std::ptr::eq(lora::survey(&flux, BOTH).unwrap().family, &FLUX1));
    let e = lora::open(&flux, &LUMEN, &base).err().unwrap();
    assert!(e.to_string().contains("found keys of FLUX.1, expected a LoRA of Lumen"), "{e}");
}

#[test]
fn a_conversion_quantises_the_matrices_that_the_second_family_lists() {
    let dir = tempfile::tempdir().unwrap();
    let spec = lumen(Layout::Comfy, core().into_iter().chain(reader(6)).collect());
    let path = dir.path().join("all.safetensors");
    write(&spec, &path).unwrap();
    let checkpoint = open_among(&Files::model(&path), None, BOTH).unwrap();
    let to = dir.path().join("fp8.safetensors");
    let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
    let report = convert(&checkpoint, Target::Fp8, &to, go_on).unwrap();
    assert_eq!((report.components, report.quantised), (vec![CORE, READER], 4));
    let again = open_among(&Files::model(&to), None, BOTH).unwrap();
    assert_eq!(again.max_length(READER), Some(40));
    let part = |name: &str, rows, cols| {
        again.need(CORE).unwrap().get(name, 0, rows, cols).unwrap().parts[0].dtype
    };
    assert_eq!(part("stage.1.mix.weight", 32, 8), DType::F8E4M3);
    assert_eq!(part("entry.weight", 8, 6), DType::F32);
    // No loader reads GGUF files of this family.
    let e = convert(&checkpoint, Target::Gguf(DType::Q8_0), &dir.path().join("x.gguf"), go_on);
    assert!(e.err().unwrap().to_string().contains("no component to convert"));
}

#[test]
fn flux1_is_still_recognised_next_to_a_second_family() {
    let spec = support::spec(Grid::F32, Storage::BF16, Layout::Comfy);
    let bytes = to_bytes(&spec).unwrap();
    let checkpoint = open_source_among(Arc::new(bytes), "m", BOTH).unwrap();
    assert!(std::ptr::eq(checkpoint.family, &FLUX1));
    assert!(checkpoint.components().eq(support::required()));
}

/// A transformer with FLUX.1's names and one layer more.
static MORE_SPEC: ComponentSpec = ComponentSpec {
    name: "more",
    dialects: &[Dialect {
        name: "More Labs",
        markers: &["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
        requires: &[&["double_blocks.0.more."], &["double_blocks.1.more."]],
        naming: Naming::Canonical,
        gguf: false,
    }],
    ..ComponentSpec::EMPTY
};
const MORE: Component = Component(&MORE_SPEC);
static MORE_FAMILY: Family = Family {
    name: "more",
    title: "More",
    pipeline_class: "",
    undistilled: None,
    keeps_references: None,
    components: &[MORE, VAE],
    add_ons: &[],
    lora: NO_LORA,
};
const NO_LORA: LoraSpec = LoraSpec {
    prefixes: &[],
    foreign: &[],
    foreign_bases: &[],
    widths: &[],
    other_width: "",
    example: "",
};

#[test]
fn the_more_specific_of_two_families_with_the_same_names_is_recognised() {
    let mut names: Vec<String> = vec!["decoder.mid.block_1.conv1.weight".into()];
    names.extend(support::list("bfl_dev.txt").into_iter().map(|(name, _)| name));
    const ORDERS: [Families; 2] =
        [Families(&[&FLUX1, &MORE_FAMILY]), Families(&[&MORE_FAMILY, &FLUX1])];
    for families in ORDERS {
        let found = |names: &[String]| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut found: Vec<_> =
                recognise(&names, families).into_iter().map(|r| r.component).collect();
            found.sort();
            found
        };
        assert_eq!(found(&names), [TRANSFORMER, VAE]);
        let mut more = names.clone();
        more.extend(["double_blocks.0.more.weight", "double_blocks.1.more.bias"].map(String::from));
        assert_eq!(found(&more), [MORE, VAE]);
    }
}
