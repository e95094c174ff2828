//! Cuts the latents of an image into equal overlapping tiles, and blends what the autoencoder makes
//! of them.

use crate::pipeline::request::Image;

/// The edge of the largest tile in latent pixels (1024 image pixels at factor 8). The usual sizes
/// of FLUX.1 are decoded in one piece, since the normalisation and the attention of the autoencoder
/// see a whole tile. The size is fixed, so that the pixels of an image do not depend on the memory
/// budget; only a budget that is too small even for this size gets smaller tiles, with a warning.
const TILE: usize = 128;

/// The edges of the largest tile that are tried, in latent pixels, the preferred one first.
const TILES: [usize; 7] = [TILE, 96, 64, 48, 32, 24, 16];

/// The least overlap of neighbouring tiles, in latent pixels: the blend hides the seam there.
const OVERLAP: usize = 16;

/// Tiles along one axis: the start of each, and the length that all have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cuts {
    starts: Vec<usize>,
    len: usize,
}

/// Covers `extent` (even) with the fewest tiles of at most `most`. Lengths and starts are even
/// because a token is 2 x 2 latent pixels.
fn cuts(extent: usize, most: usize, overlap: usize) -> Cuts {
    if extent <= most {
        return Cuts { starts: vec![0], len: extent };
    }
    let n = (extent - overlap).div_ceil(most - overlap);
    let len = ((extent + (n - 1) * overlap).div_ceil(n)).next_multiple_of(2);
    let starts = (0..n).map(|i| (i * (extent - len) / (n - 1)) & !1).collect();
    Cuts { starts, len }
}

/// How a plane of latents is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    rows: Cuts,
    cols: Cuts,
    /// How far neighbouring tiles overlap at least, in latent pixels.
    pub overlap: usize,
    /// The tiles are smaller than usual because of the budget: the pixels may differ slightly from
    /// those of a larger budget.
    pub reduced: bool,
}

impl Tiling {
    fn new(height: usize, width: usize, most: usize) -> Self {
        let overlap = OVERLAP.min((most / 3) & !1);
        let (rows, cols) = (cuts(height, most, overlap), cuts(width, most, overlap));
        Tiling { rows, cols, overlap, reduced: most < TILE }
    }

    /// The ways to cut a plane of `height x width` latent pixels, the preferred one first.
    pub fn candidates(height: usize, width: usize) -> impl Iterator<Item = Tiling> {
        TILES.into_iter().map(move |most| Tiling::new(height, width, most))
    }

    /// Tiles in the plane.
    pub fn count(&self) -> usize {
        self.rows.starts.len() * self.cols.starts.len()
    }

    /// The corners of all tiles, (top, left) in latent pixels.
    pub fn corners(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let row = |&top| self.cols.starts.iter().map(move |&left| (top, left));
        self.rows.starts.iter().flat_map(row)
    }

    /// Height and width of every tile in latent pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.rows.len, self.cols.len)
    }
}

/// Gathers tiles into one plane of `height x width` pixels with `channels` interleaved values. The
/// weight of a tile falls towards the edges that it shares with a neighbour.
pub struct Canvas {
    height: usize,
    width: usize,
    channels: usize,
    sum: Vec<f32>,
    weight: Vec<f32>,
}

impl Canvas {
    /// An empty plane.
    pub fn new(height: usize, width: usize, channels: usize) -> Self {
        Canvas {
            height,
            width,
            channels,
            sum: vec![0.0; height * width * channels],
            weight: vec![0.0; height * width],
        }
    }

    /// Adds a tile of `tile_height x tile_width` at (`top`, `left`); it fades over `overlap` pixels
    /// at edges inside the plane.
    pub fn add(
        &mut self,
        tile: &[f32],
        (top, left): (usize, usize),
        (tile_height, tile_width): (usize, usize),
        overlap: usize,
    ) {
        assert_eq!(tile.len(), tile_height * tile_width * self.channels);
        let ramp = |i: usize, len: usize, before: bool, after: bool| {
            let rise = |d: usize| ((d as f32 + 0.5) / overlap.max(1) as f32).min(1.0);
            (if before { rise(i) } else { 1.0 }) * (if after { rise(len - 1 - i) } else { 1.0 })
        };
        for y in 0..tile_height {
            let wy = ramp(y, tile_height, top > 0, top + tile_height < self.height);
            for x in 0..tile_width {
                let w = wy * ramp(x, tile_width, left > 0, left + tile_width < self.width);
                let at = (top + y) * self.width + left + x;
                self.weight[at] += w;
                let from = (y * tile_width + x) * self.channels;
                for c in 0..self.channels {
                    self.sum[at * self.channels + c] += w * tile[from + c];
                }
            }
        }
    }

    /// The blended plane, `height * width * channels` values.
    pub fn finish(mut self) -> Vec<f32> {
        for (values, w) in self.sum.chunks_exact_mut(self.channels).zip(&self.weight) {
            values.iter_mut().for_each(|v| *v /= w);
        }
        self.sum
    }
}

/// Latents (`height x width x channels`, channels last) as tokens of 2 x 2 pixels: `(h/2 * w/2) x
/// 4c`, channel slowest, then row, then column.
pub fn pack(latents: &[f32], height: usize, width: usize, channels: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(latents.len());
    for y in (0..height).step_by(2) {
        for x in (0..width).step_by(2) {
            for c in 0..channels {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    out.push(latents[((y + dy) * width + x + dx) * channels + c]);
                }
            }
        }
    }
    out
}

/// The inverse of [`pack`].
pub fn unpack(tokens: &[f32], height: usize, width: usize, channels: usize) -> Vec<f32> {
    let mut out = vec![0.0; tokens.len()];
    let mut next = tokens.iter();
    for y in (0..height).step_by(2) {
        for x in (0..width).step_by(2) {
            for c in 0..channels {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    out[((y + dy) * width + x + dx) * channels + c] =
                        *next.next().expect("as many as pixels");
                }
            }
        }
    }
    out
}

/// The tokens of a tile: rows `top..` and columns `left..` (even, in latent pixels) of a packed
/// plane that is `width` latent pixels wide and has `token` values per token.
pub fn crop_tokens(
    tokens: &[f32],
    width: usize,
    token: usize,
    (top, left): (usize, usize),
    (height, tile_width): (usize, usize),
) -> Vec<f32> {
    let mut out = Vec::with_capacity(height * tile_width / 4 * token);
    for y in top / 2..(top + height) / 2 {
        let from = (y * (width / 2) + left / 2) * token;
        out.extend_from_slice(&tokens[from..from + tile_width / 2 * token]);
    }
    out
}

/// The pixels of a tile as values from -1 to 1. `size` is the tile's height and width, all numbers
/// in image pixels.
pub fn crop_pixels(
    image: &Image,
    (top, left): (usize, usize),
    (height, width): (usize, usize),
) -> Vec<f32> {
    let row = |y: usize| {
        let from = (y * image.width + left) * 3;
        image.rgb[from..from + width * 3].iter().map(|&b| f32::from(b) / 255.0 * 2.0 - 1.0)
    };
    (top..top + height).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_with_overlap_and_stay_even() {
        for extent in (2..600).step_by(2) {
            for (most, overlap) in [(96, 16), (64, 16), (24, 8)] {
                let c = cuts(extent, most, overlap);
                assert!(c.len <= most && c.len.is_multiple_of(2), "{extent}: {c:?}");
                assert_eq!(*c.starts.last().unwrap() + c.len, extent);
                assert_eq!(c.starts[0], 0);
                for pair in c.starts.windows(2) {
                    assert!(
                        pair[1] % 2 == 0 && pair[0] + c.len >= pair[1] + overlap - 2,
                        "{extent}: {c:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn tiles_of_a_plane_blend_back_into_it() {
        let (h, w, ch) = (52, 70, 3);
        let plane: Vec<f32> = (0..h * w * ch).map(|i| ((i * 7919) % 1000) as f32).collect();
        let mut canvas = Canvas::new(h, w, ch);
        let (rows, cols) = (cuts(h, 24, 8), cuts(w, 24, 8));
        for &top in &rows.starts {
            for &left in &cols.starts {
                let tile: Vec<f32> = (0..rows.len)
                    .flat_map(|y| plane[((top + y) * w + left) * ch..][..cols.len * ch].to_vec())
                    .collect();
                canvas.add(&tile, (top, left), (rows.len, cols.len), 8);
            }
        }
        for (a, b) in canvas.finish().iter().zip(&plane) {
            assert!((a - b).abs() < 1e-3 * (1.0 + b.abs()), "{a} against {b}");
        }
    }

    #[test]
    fn packing_goes_back_and_forth_and_crops() {
        let (h, w, c) = (6, 8, 5);
        let plane: Vec<f32> = (0..h * w * c).map(|i| i as f32).collect();
        let tokens = pack(&plane, h, w, c);
        assert_eq!(tokens[..8], [0.0, 5.0, 40.0, 45.0, 1.0, 6.0, 41.0, 46.0]);
        assert_eq!(unpack(&tokens, h, w, c), plane);
        let crop = crop_tokens(&tokens, w, 4 * c, (2, 4), (4, 2));
        let expect: Vec<f32> = (2..6)
            .flat_map(|y| {
                (4..6).flat_map(move |x| (0..c).map(move |ch| ((y * 8 + x) * 5 + ch) as f32))
            })
            .collect();
        assert_eq!(unpack(&crop, 4, 2, c), expect);
    }
}
