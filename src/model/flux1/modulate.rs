//! The modulation of every block for every step.

use super::config::FluxConfig;
use super::linear;
use crate::dtype::DType;
use crate::op::{Epilogue, Program, Recorder, Silu, TimestepEmbed};
use crate::tensor::Tensor;

/// The modulation vectors of `rows` = steps x prompts, step slowest.
///
/// Inputs: `timestep` (rows x 1, from 0 to 1), `guidance` (rows x 1, if the model has it), `pooled`
/// (rows x pooled). Output: `modulation` (rows x [`FluxConfig::modulation_cols`]), in the order of
/// the blocks: six vectors for the image and six for the text of each double block, three of each
/// single block, shift and scale of the final layer.
pub fn modulate(c: &FluxConfig, rows: usize, act: DType) -> Program {
    record(c, rows, act, "modulate", c.modulation_cols())
}

/// The same called `name`, of `cols` columns: all of [`FluxConfig::modulation_cols`], or those of
/// the blocks.
pub(super) fn record(c: &FluxConfig, rows: usize, act: DType, name: &str, cols: usize) -> Program {
    let h = c.hidden;
    let mut r = Recorder::new(name);
    let timestep = r.input("timestep", rows, 1, DType::F32);
    let guidance = c.guidance.then(|| r.input("guidance", rows, 1, DType::F32));
    let pooled = r.input("pooled", rows, c.pooled, act);
    let out = r.output("modulation", rows, cols, act);

    // `MLPEmbedder`; the result is added to `sum` if there is one.
    let mlp = |r: &mut Recorder, scope: &str, x: Tensor, sum: Option<Tensor>| {
        r.scope(scope);
        let hidden = r.temp(rows, h, act);
        let name = format!("{scope}.in_layer");
        linear(r, "in_layer", x.all(), &name, Epilogue::Silu, hidden.all());
        let vec = sum.unwrap_or_else(|| r.temp(rows, h, act));
        let epilogue = sum.map_or(Epilogue::None, |residual| Epilogue::Add { residual });
        let name = format!("{scope}.out_layer");
        linear(r, "out_layer", hidden.all(), &name, epilogue, vec.all());
        vec
    };
    let embed = |r: &mut Recorder, scope: &str, t: Tensor| {
        r.scope(scope);
        let sinusoids = r.temp(rows, c.time_dim, act);
        r.push("embed", TimestepEmbed { t, out: sinusoids });
        sinusoids
    };
    let t = embed(&mut r, "time_in", timestep);
    let vec = mlp(&mut r, "time_in", t, None);
    if let Some(guidance) = guidance {
        let g = embed(&mut r, "guidance_in", guidance);
        mlp(&mut r, "guidance_in", g, Some(vec));
    }
    mlp(&mut r, "vector_in", pooled, Some(vec));
    r.scope("vec");
    r.push("silu", Silu { x: vec, out: vec });

    let mut col = 0;
    let mut lin = |r: &mut Recorder, scope: String, label: &str, name: String, vectors: usize| {
        r.scope(scope);
        let part = out.columns(col, vectors * h);
        linear(r, label, vec.all(), &name, Epilogue::None, part);
        col += vectors * h;
    };
    for i in 0..c.depth_double {
        for stream in ["img", "txt"] {
            let name = format!("double_blocks.{i}.{stream}_mod.lin");
            lin(&mut r, format!("double.{i}"), &format!("{stream}.mod"), name, 6);
        }
    }
    for i in 0..c.depth_single {
        lin(&mut r, format!("single.{i}"), "mod", format!("single_blocks.{i}.modulation.lin"), 3);
    }
    if cols == c.modulation_cols() {
        lin(&mut r, "final".into(), "mod", "final_layer.adaLN_modulation.1".into(), 2);
    }
    r.finish()
}
