//! Runs a half of the autoencoder stage by stage, in bands of rows, where it does not fit on the
//! device as a whole.

use super::planes::StoredPlane;
use super::{Band, Draft, PlannedProgram, SharedDevice, Variant, check_finite, not_finite};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::vae::{Network, PlaneId, Stage, Window, Work};
use crate::pipeline::progress::Progress;
use crate::stream::Session;
use crate::tensor::Tensor;
use crate::weights::ComponentWeights;

/// Bytes that are copied between a file and the device at a time.
const PIECE: usize = 1 << 20;

/// Host memory that a run in bands needs, in bytes: the piece, and the statistics of two planes.
pub const HOST_BYTES: u64 = 4 << 20;

/// The programs of the stages of `net`, each in its sizes of bands, run for `images` images.
pub fn drafts<'a>(
    net: &Network,
    phase: Phase,
    weights: &'a ComponentWeights,
    optional: bool,
    images: usize,
) -> Vec<Draft<'a>> {
    let of_stage = |index: usize| {
        let net = net.clone();
        let stage = &net.stages[index];
        let sizes = net.band_sizes(stage);
        let record = move |rows: usize| {
            let stage = &net.stages[index];
            let windows = net.windows(stage, rows);
            let program = net.band(stage, rows);
            // Whole planes and statistics of an image are written before its first run only.
            let planes = net.band_inputs(stage);
            let each_run = |name| planes.iter().any(|(n, _, whole)| *n == name && !whole);
            let of_inputs = program.inputs.iter().map(|io| match each_run(io.name) {
                true => windows.len() * io.tensor.bytes(),
                false => io.tensor.bytes(),
            });
            let of_outputs = program.outputs.iter().map(|io| windows.len() * io.tensor.bytes());
            let moved = images * (of_inputs.sum::<usize>() + of_outputs.sum::<usize>());
            let band = Some(Band { rows, moved_bytes: moved as u64 });
            Variant { program, runs: images * windows.len(), band }
        };
        Draft { phase, weights, optional, variants: Box::new(sizes.into_iter().map(record)) }
    };
    (0..net.stages.len()).map(of_stage).collect()
}

/// The planes of one image, as far as they were computed and are needed.
pub struct Bands<'a> {
    net: &'a Network,
    planes: Vec<Option<StoredPlane>>,
    /// Mean and squared deviations of every plane that is normalised, by row of pixels and group.
    statistics: Vec<Vec<f32>>,
}

impl<'a> Bands<'a> {
    /// Before the first stage.
    pub fn new(net: &'a Network) -> Bands<'a> {
        let planes = net.planes.iter().map(|_| None).collect();
        Bands { net, planes, statistics: vec![Vec::new(); net.planes.len()] }
    }

    /// The plane `id`, which is made if it does not exist.
    pub fn plane(&mut self, id: PlaneId) -> Result<&mut StoredPlane> {
        if self.planes[id].is_none() {
            self.planes[id] = Some(StoredPlane::new(self.net.planes[id])?);
        }
        Ok(self.planes[id].as_mut().expect("made above"))
    }

    /// Runs all stages; `programs` are theirs. `tokens` are the packed latents, which the decoder
    /// reads and the encoder writes.
    pub fn run(
        &mut self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        tokens: &mut Vec<f32>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        assert_eq!(programs.len(), self.net.stages.len());
        for (index, planned) in programs.iter().enumerate() {
            let stage = &self.net.stages[index];
            let mut session = device.session(planned)?;
            self.stage(stage, planned, &mut session, tokens, progress)?;
            session.finish()?;
            for (id, plane) in self.planes.iter_mut().enumerate() {
                if self.net.last_reader(id) == Some(index) {
                    *plane = None;
                    self.statistics[id] = Vec::new();
                }
            }
        }
        Ok(())
    }

    fn stage(
        &mut self,
        stage: &Stage,
        planned: &PlannedProgram,
        session: &mut Session<'_>,
        tokens: &mut Vec<f32>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let (net, program) = (self.net, &planned.program);
        let size = planned.band.expect("planned in bands").rows;
        if let Work::Unpack { .. } = stage.work {
            session.write_f32(program.input("latents"), tokens)?;
        }
        if let Work::Convs { x, norm: Some(_), .. } = stage.work {
            session.write_f32(program.input("statistics"), &self.statistics[x])?;
        }
        // For attention, rows are pixels.
        let by_pixel = matches!(stage.work, Work::Attend { .. });
        let windows = net.windows(stage, size);
        for (i, window) in windows.iter().enumerate() {
            for (n, (name, id, whole)) in net.band_inputs(stage).into_iter().enumerate() {
                let tensor = program.input(name);
                let first = match (whole, n) {
                    (true, _) if i > 0 => continue,
                    (true, _) => 0,
                    (false, 0) => window.input.start,
                    (false, _) => window.output.start,
                };
                let row = self.row_bytes(id, by_pixel);
                upload(session, tensor, self.plane(id)?, first as u64 * row)?;
            }
            session.run(i + 1 < windows.len(), &mut |_, _| progress.poll())?;
            self.collect(stage, planned, session, window, by_pixel)?;
            progress.advance()?;
        }
        if let Work::Pack { .. } = stage.work {
            *tokens = session.read_f32(program.output("latents"))?;
            check_finite(tokens, session, planned)?;
        }
        Ok(())
    }

    /// Bytes of a row of the plane `id`, or of a pixel.
    fn row_bytes(&self, id: PlaneId, by_pixel: bool) -> u64 {
        let plane = &self.net.planes[id];
        (plane.row_bytes() / if by_pixel { plane.width } else { 1 }) as u64
    }

    /// Stores the values that a run computed, and checks that they are finite. Where a norm
    /// follows, its statistics are checked: they are not finite if any value is not.
    fn collect(
        &mut self,
        stage: &Stage,
        planned: &PlannedProgram,
        session: &mut Session<'_>,
        window: &Window,
        by_pixel: bool,
    ) -> Result<()> {
        let (net, program) = (self.net, &planned.program);
        let skipped = window.valid.start - window.output.start;
        for (name, id) in net.band_outputs(stage) {
            let row = self.row_bytes(id, by_pixel);
            let to = window.valid.start as u64 * row..window.valid.end as u64 * row;
            let from = skipped as u64 * row;
            if !download(session, program.output(name), from, self.plane(id)?, to)? {
                return Err(not_finite(session, planned)?);
            }
            if !net.normalised(id) {
                continue;
            }
            let found = session.read_f32(program.output("statistics"))?;
            let columns = 2 * net.groups;
            let rows = &found[skipped * columns..(skipped + window.valid.len()) * columns];
            if rows.iter().any(|v| !v.is_finite()) {
                return Err(not_finite(session, planned)?);
            }
            let statistics = &mut self.statistics[id];
            statistics.resize(net.planes[id].height * columns, 0.0);
            statistics[window.valid.start * columns..window.valid.end * columns]
                .copy_from_slice(rows);
        }
        Ok(())
    }
}

/// Fills `tensor` with the bytes of `plane` that begin at `from`.
fn upload(
    session: &mut Session<'_>,
    tensor: Tensor,
    plane: &mut StoredPlane,
    from: u64,
) -> Result<()> {
    let row = tensor.cols * tensor.dtype.size();
    let rows = (PIECE / row).clamp(1, tensor.rows);
    let mut piece = vec![0; rows * row];
    for first in (0..tensor.rows).step_by(rows) {
        let piece = &mut piece[..rows.min(tensor.rows - first) * row];
        plane.read(from + (first * row) as u64, piece)?;
        session.write_rows(tensor, first, piece)?;
    }
    Ok(())
}

/// Stores what begins at byte `from` of `tensor` as the bytes `to` of `plane`. Returns false if a
/// value of an F32 tensor (the pixels, which no norm checks) is not finite.
fn download(
    session: &mut Session<'_>,
    tensor: Tensor,
    from: u64,
    plane: &mut StoredPlane,
    to: std::ops::Range<u64>,
) -> Result<bool> {
    let row = tensor.cols * tensor.dtype.size();
    let mut finite = true;
    let (skipped, rows) = (from as usize / row, (to.end - to.start) as usize / row);
    let most = (PIECE / row).clamp(1, rows.max(1));
    let mut piece = vec![0; most * row];
    for first in (0..rows).step_by(most) {
        let piece = &mut piece[..most.min(rows - first) * row];
        session.read_rows(tensor, skipped + first, piece)?;
        plane.write(to.start + (first * row) as u64, piece)?;
        if tensor.dtype == DType::F32 {
            finite &= piece.as_chunks().0.iter().all(|b| f32::from_le_bytes(*b).is_finite());
        }
    }
    Ok(finite)
}
