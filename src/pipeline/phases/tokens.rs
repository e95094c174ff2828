//! Packed tokens: how the transformer orders latents.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_goes_back_and_forth() {
        let (h, w, c) = (6, 8, 5);
        let plane: Vec<f32> = (0..h * w * c).map(|i| i as f32).collect();
        let tokens = pack(&plane, h, w, c);
        assert_eq!(tokens[..8], [0.0, 5.0, 40.0, 45.0, 1.0, 6.0, 41.0, 46.0]);
        assert_eq!(unpack(&tokens, h, w, c), plane);
    }
}
