//! What nodes behind the decoder do to a drawn image. It is done when a client fetches the image:
//! the job's own file stays as it was drawn.

use axum::body::Bytes;
use serde::{Deserialize, Serialize};

use crate::pipeline::images::{
    Filter, Format, ImageFile, MaskMarks, decode, encode, encode_with_alpha, stretched,
};
use crate::server::fault::Fault;
use crate::server::masks::decoding;

use super::graph::cropped;

/// The most pixels of a finished image.
const MAX_PIXELS: u64 = 64_000_000;
/// What stands between the name of a drawn image and the number of an output of its graph.
const MARK: char = '~';

/// A step that finishes a drawn image. `A` is the opacity of its pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish<A> {
    /// Scaled to this width and height.
    Scale(u32, u32),
    /// A part of it: first column and row, width and height.
    Crop(u32, u32, u32, u32),
    /// A gray PNG of the image's size: black pixels become transparent.
    Alpha(A),
}

/// The steps of an output while its graph is read: with the file of the opacity.
pub type Finishing = Vec<Finish<Bytes>>;

/// The steps of an output in the job: with the name of the upload that has the opacity.
pub type Finished = Vec<Finish<String>>;

/// The size of an image of `size` after a step; `None` if it is too large, or if the step is not
/// one for it.
pub fn size_after(size: (u32, u32), step: &Finish<Bytes>) -> Option<(u32, u32)> {
    match step {
        Finish::Scale(width, height) => {
            let pixels = u64::from(*width) * u64::from(*height);
            (1..=MAX_PIXELS).contains(&pixels).then_some((*width, *height))
        }
        Finish::Crop(x, y, width, height) => {
            let is_inside = x + width <= size.0 && y + height <= size.1;
            (is_inside && *width > 0 && *height > 0).then_some((*width, *height))
        }
        Finish::Alpha(_) => Some(size),
    }
}

/// `steps` with the name that `keep` gives each opacity.
///
/// # Errors
/// Those of `keep`.
pub fn kept(
    steps: &Finishing,
    mut keep: impl FnMut(&Bytes) -> Result<String, Fault>,
) -> Result<Finished, Fault> {
    let each = steps.iter().map(|step| {
        Ok(match step {
            Finish::Scale(width, height) => Finish::Scale(*width, *height),
            Finish::Crop(x, y, width, height) => Finish::Crop(*x, *y, *width, *height),
            Finish::Alpha(png) => Finish::Alpha(keep(png)?),
        })
    });
    each.collect()
}

/// The name of the drawn image `file` as output number `output` of its graph has finished it.
pub fn finished_name(file: &str, output: usize) -> String {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    format!("{stem}{MARK}{output}.png")
}

/// The beginning of the name of the drawn image in the name of a finished one, and the number of
/// the output; `None` for other names.
pub fn parse_name(name: &str) -> Option<(&str, usize)> {
    let (stem, output) = name.strip_suffix(".png")?.rsplit_once(MARK)?;
    Some((stem, output.parse().ok()?))
}

/// The drawn image in `file` after `steps`, as a PNG; `alpha` returns the opacity of a name.
///
/// # Errors
/// 410 if an opacity is not there any more, 500 for a damaged file, 503 if many images are being
/// read, and those of `alpha`.
pub fn finish(
    file: &[u8],
    steps: &Finished,
    alpha: impl Fn(&str) -> Result<Option<Bytes>, Fault>,
) -> Result<Vec<u8>, Fault> {
    // It may come from another machine: nobody waits meanwhile.
    let mut png = None;
    for step in steps {
        if let Finish::Alpha(name) = step {
            png = Some(alpha(name)?.ok_or_else(crate::server::wait::expired)?);
        }
    }
    let _alone = decoding()?;
    let mut image = decode(file)?;
    for step in steps {
        match step {
            Finish::Scale(width, height) => {
                let (width, height) = (*width as usize, *height as usize);
                image = stretched(&image, width, height, Filter::Lanczos);
            }
            Finish::Crop(x, y, width, height) => {
                let part = [*x, *y, *width, *height].map(|side| side as usize);
                image = cropped(&image, (part[0], part[1]), (part[2], part[3]));
            }
            Finish::Alpha(_) => {}
        }
    }
    Ok(match png {
        Some(png) => {
            let mask = ImageFile::of(png.to_vec())?.mask_by(MaskMarks::Channel(0))?;
            encode_with_alpha(&image, &mask)?
        }
        None => encode(&image, Format::Png, 100, "")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::images::encode_mask;
    use crate::pipeline::request::{Image, Mask};

    #[test]
    fn a_drawn_image_is_cut_and_becomes_transparent() {
        let rgb = (0..8 * 6).flat_map(|i| [i as u8, 1, 2]).collect();
        let image = Image { width: 8, height: 6, rgb };
        let file = encode(&image, Format::Png, 100, "").unwrap();
        let mask = Mask { width: 2, height: 2, values: vec![0, 255, 7, 9] };
        let mask = Bytes::from(encode_mask(&mask).unwrap());
        let steps = vec![Finish::Crop(4, 3, 2, 2), Finish::Alpha(mask.clone())];
        assert_eq!(size_after((8, 6), &steps[0]), Some((2, 2)));
        assert_eq!(size_after((5, 6), &steps[0]), None);
        let steps = kept(&steps, |_| Ok("x".into())).unwrap();
        let written = serde_json::to_value(&steps).unwrap();
        assert_eq!(written, serde_json::json!([{"crop": [4, 3, 2, 2]}, {"alpha": "x"}]));
        let steps: Finished = serde_json::from_value(written).unwrap();
        let png = finish(&file, &steps, |_| Ok(Some(mask.clone()))).unwrap();
        let found = image::load_from_memory(&png).unwrap().into_rgba8().into_raw();
        assert_eq!(found, [28, 1, 2, 0, 29, 1, 2, 255, 36, 1, 2, 7, 37, 1, 2, 9]);
        assert_eq!(finish(&file, &steps, |_| Ok(None)).unwrap_err().status, 410);
    }

    #[test]
    fn finished_images_have_names_of_their_own() {
        let name = finished_name("abc-1.jpg", 2);
        assert_eq!((name.as_str(), parse_name(&name)), ("abc-1~2.png", Some(("abc-1", 2))));
        assert_eq!(parse_name("abc-1.png"), None);
    }
}
