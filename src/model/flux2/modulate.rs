//! The modulation of all blocks for every step.

use super::config::Flux2Config;
use super::linear;
use crate::dtype::DType;
use crate::op::{Epilogue, Program, Recorder, Silu, TimestepEmbed};
use crate::tensor::Tensor;

/// The modulation vectors of `rows` steps.
///
/// Inputs: `timestep` (rows x 1, from 0 to 1), `guidance` (rows x 1, if the model has it). Output:
/// `modulation` (rows x [`Flux2Config::modulation_cols`]): six vectors for the image and six for
/// the text of every double block, three of every single block, shift and scale of the final layer.
pub fn modulate(c: &Flux2Config, rows: usize, act: DType) -> Program {
    let h = c.hidden;
    let mut r = Recorder::new("modulate");
    let timestep = r.input("timestep", rows, 1, DType::F32);
    let guidance = c.guidance.then(|| r.input("guidance", rows, 1, DType::F32));
    let out = r.output("modulation", rows, c.modulation_cols(), act);

    // `MLPEmbedder` of the sinusoids; the result is added to `sum` if there is one.
    let embed = |r: &mut Recorder, scope: &str, t: Tensor, sum: Option<Tensor>| {
        r.scope(scope);
        let sinusoids = r.temp(rows, c.time_dim, act);
        r.push("embed", TimestepEmbed { t, out: sinusoids });
        let hidden = r.temp(rows, h, act);
        let name = format!("{scope}.in_layer");
        linear(r, "in_layer", sinusoids.all(), &name, Epilogue::Silu, hidden.all());
        let vec = sum.unwrap_or_else(|| r.temp(rows, h, act));
        let epilogue = sum.map_or(Epilogue::None, |residual| Epilogue::Add { residual });
        let name = format!("{scope}.out_layer");
        linear(r, "out_layer", hidden.all(), &name, epilogue, vec.all());
        vec
    };
    let vec = embed(&mut r, "time_in", timestep, None);
    if let Some(guidance) = guidance {
        embed(&mut r, "guidance_in", guidance, Some(vec));
    }
    r.scope("vec");
    r.push("silu", Silu { x: vec, out: vec });

    let mut col = 0;
    for (scope, name, vectors) in [
        ("double.img", "double_stream_modulation_img.lin", 6),
        ("double.txt", "double_stream_modulation_txt.lin", 6),
        ("single", "single_stream_modulation.lin", 3),
        ("final", "final_layer.adaLN_modulation.1", 2),
    ] {
        r.scope(scope);
        let part = out.columns(col, vectors * h);
        linear(&mut r, "mod", vec.all(), name, Epilogue::None, part);
        col += vectors * h;
    }
    r.finish()
}
