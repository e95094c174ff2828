//! Images of a graph, and what nodes do to them before they are drawn over.

use std::sync::Arc;

use axum::body::Bytes;

use super::masks::GraphMask;
use crate::pipeline::images::{Filter, Format, decode, encode, fit, stretched};
use crate::pipeline::request::{Image, Margins, Mask};
use crate::server::fault::Fault;
use crate::server::masks::decoding;

/// The most changes of one image, and of one mask.
pub const MAX_CHANGES: usize = 32;

/// An image that a client sent, with the changes that nodes make.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The file that was sent.
    pub bytes: Bytes,
    /// Its size after all changes.
    pub size: (u32, u32),
    /// In the order of the nodes, each with the size after it.
    changes: Vec<(PictureChange, (u32, u32))>,
    /// Pixels that are added on its sides.
    pub margins: Option<Margins>,
    /// Its edges are meant.
    pub is_edges: bool,
    /// A node filled the part that is repainted, which is not done here.
    pub is_filled: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum PictureChange {
    /// Cut around its centre to the shape of the new size, and scaled.
    Fit,
    /// Scaled without a cut.
    Stretch(Filter),
    /// A part, from this column and row on.
    Crop(u32, u32),
    Invert,
    /// Another image over a part of it.
    Cover(Arc<Cover>),
}

/// An image over another one.
#[derive(Debug, PartialEq)]
struct Cover {
    source: Picture,
    /// Where it is seen, in the size of the source; `None` is everywhere.
    mask: Option<GraphMask>,
    /// Its first column and row in the other one.
    at: (u32, u32),
}

impl Picture {
    /// The image in a file of this size.
    pub fn new(bytes: Bytes, size: (u32, u32)) -> Picture {
        let (margins, is_edges, is_filled) = (None, false, false);
        Picture { bytes, size, changes: Vec::new(), margins, is_edges, is_filled }
    }

    /// An image of one colour.
    ///
    /// # Errors
    /// If it has no pixels.
    pub fn plain((width, height): (u32, u32), color: [u8; 3]) -> Result<Picture, Fault> {
        let (w, h) = (width as usize, height as usize);
        let image = Image { width: w, height: h, rgb: color.repeat(w * h) };
        Ok(Picture::new(encode(&image, Format::Png, 100, "")?.into(), (width, height)))
    }

    fn changed(mut self, change: PictureChange, size: (u32, u32)) -> Picture {
        self.changes.push((change, size));
        Picture { size, ..self }
    }

    /// Scaled to a size, of which it has the shape, or around its centre.
    pub fn fitted(self, size: (u32, u32)) -> Picture {
        if self.size == size { self } else { self.changed(PictureChange::Fit, size) }
    }

    /// Scaled to a size, each side by its own factor.
    pub fn stretched(self, size: (u32, u32), filter: Filter) -> Picture {
        if self.size == size { self } else { self.changed(PictureChange::Stretch(filter), size) }
    }

    /// A part of it, which begins at this column and row.
    pub fn cropped(self, at: (u32, u32), size: (u32, u32)) -> Picture {
        if self.size == size { self } else { self.changed(PictureChange::Crop(at.0, at.1), size) }
    }

    /// With the opposite colours.
    pub fn inverted(self) -> Picture {
        let size = self.size;
        self.changed(PictureChange::Invert, size)
    }

    /// With `source` over it where `mask` is white.
    pub fn covered(self, source: Picture, mask: Option<GraphMask>, at: (u32, u32)) -> Picture {
        let size = self.size;
        self.changed(PictureChange::Cover(Arc::new(Cover { source, mask, at })), size)
    }

    /// Whether it was put together from several images.
    pub fn is_covered(&self) -> bool {
        self.changes.iter().any(|(change, _)| matches!(change, PictureChange::Cover(_)))
    }

    /// Whether it shows the same part of the same image with the same margins, in any size.
    pub fn shows_same(&self, other: &Picture) -> bool {
        let is_scale = |change: &PictureChange| {
            matches!(change, PictureChange::Fit | PictureChange::Stretch(_))
        };
        let shown = |picture: &Picture| {
            let changes = picture.changes.iter().filter(|(change, _)| !is_scale(change));
            changes.cloned().collect::<Vec<_>>()
        };
        self.bytes == other.bytes
            && (self.margins, self.is_edges) == (other.margins, other.is_edges)
            && shown(self) == shown(other)
    }

    /// The number of its changes, with those of an image over it and of that image's mask.
    fn change_count(&self) -> usize {
        let of_cover = |(change, _): &(PictureChange, (u32, u32))| match change {
            PictureChange::Cover(cover) => {
                cover.source.change_count() + cover.mask.as_ref().map_or(0, GraphMask::change_count)
            }
            _ => 0,
        };
        self.changes.len() + self.changes.iter().map(of_cover).sum::<usize>()
    }

    /// Whether it has more changes than are made for one image.
    pub fn is_overdone(&self) -> bool {
        self.change_count() > MAX_CHANGES
    }

    /// Whether it is the sent image but for its size, cut around its centre once.
    pub fn is_fitted_only(&self) -> bool {
        self.changes.len() <= 1
            && self.changes.iter().all(|(change, _)| matches!(change, PictureChange::Fit))
    }

    /// The file of it, with all changes.
    ///
    /// # Errors
    /// For a file that is damaged, and 503 if many others are being read.
    pub fn file(&self) -> Result<Bytes, Fault> {
        if self.changes.is_empty() {
            return Ok(self.bytes.clone());
        }
        // Masks are read before: they wait for the same lock.
        let covers = self.changes.iter().filter_map(|(change, _)| match change {
            PictureChange::Cover(cover) => Some(cover.mask.as_ref().map(GraphMask::pixels)),
            _ => None,
        });
        let masks: Vec<Option<Mask>> =
            covers.map(Option::transpose).collect::<Result<_, Fault>>()?;
        let _alone = decoding()?;
        let image = self.pixels(masks.into_iter())?;
        Ok(encode(&image, Format::Png, 100, "")?.into())
    }

    /// Its pixels; `masks` are those of its covers.
    fn pixels(&self, mut masks: impl Iterator<Item = Option<Mask>>) -> Result<Image, Fault> {
        let mut image = decode(&self.bytes)?;
        for (change, size) in &self.changes {
            let (width, height) = (size.0 as usize, size.1 as usize);
            match change {
                PictureChange::Fit => image = fit(&image, width, height),
                PictureChange::Stretch(filter) => {
                    image = stretched(&image, width, height, *filter);
                }
                PictureChange::Crop(x, y) => {
                    image = cropped(&image, (*x as usize, *y as usize), (width, height));
                }
                PictureChange::Invert => image.rgb.iter_mut().for_each(|v| *v = 255 - *v),
                PictureChange::Cover(cover) => {
                    let source = cover.source.pixels(std::iter::empty())?;
                    cover.put(&source, masks.next().flatten().as_ref(), &mut image);
                }
            }
        }
        Ok(image)
    }
}

impl Cover {
    fn put(&self, source: &Image, mask: Option<&Mask>, onto: &mut Image) {
        let (x, y) = (self.at.0 as usize, self.at.1 as usize);
        let columns = source.width.min(onto.width.saturating_sub(x));
        let rows = source.height.min(onto.height.saturating_sub(y));
        for row in 0..rows {
            for column in 0..columns {
                let seen = mask.map_or(255, |mask| {
                    let (w, h) = (mask.width, mask.height);
                    mask.values[row * h / source.height * w + column * w / source.width]
                });
                let (seen, hidden) = (u32::from(seen), u32::from(255 - seen));
                let old = 3 * ((y + row) * onto.width + x + column);
                let new = 3 * (row * source.width + column);
                for c in 0..3 {
                    let sum = u32::from(source.rgb[new + c]) * seen
                        + u32::from(onto.rgb[old + c]) * hidden;
                    onto.rgb[old + c] = ((sum + 127) / 255) as u8;
                }
            }
        }
    }
}

/// The part of `image` that begins at a column and a row, and is in it.
pub fn cropped(image: &Image, (x, y): (usize, usize), (width, height): (usize, usize)) -> Image {
    let rows = image.rgb.chunks_exact(3 * image.width).skip(y).take(height);
    let rgb = rows.flat_map(|row| &row[3 * x..3 * (x + width)]).copied().collect();
    Image { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(size: (u32, u32)) -> Picture {
        let rgb = (0..size.0 * size.1).flat_map(|i| [i as u8, 9, 200]).collect();
        let image = Image { width: size.0 as usize, height: size.1 as usize, rgb };
        Picture::new(encode(&image, Format::Png, 90, "").unwrap().into(), size)
    }

    fn red(picture: &Picture) -> Vec<u8> {
        let image = decode(&picture.file().unwrap()).unwrap();
        assert_eq!((image.width as u32, image.height as u32), picture.size);
        image.rgb.chunks_exact(3).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn a_picture_is_changed_only_where_a_node_says_so() {
        let whole = picture((4, 3));
        assert_eq!(whole.file().unwrap(), whole.bytes);
        assert_eq!(whole.clone().fitted((4, 3)).file().unwrap(), whole.bytes);
        assert_eq!(red(&whole.clone().cropped((1, 1), (2, 2))), [5, 6, 9, 10]);
        assert_eq!(red(&whole.clone().cropped((1, 1), (2, 2)).inverted()), [250, 249, 246, 245]);
        let plain = Picture::plain((40, 20), [9, 8, 7]).unwrap();
        assert_eq!(red(&plain.stretched((16, 16), Filter::Lanczos)), [9; 256]);
        let fitted = whole.clone().fitted((2, 2));
        assert!(fitted.is_fitted_only() && !fitted.clone().fitted((4, 2)).is_fitted_only());
        assert!(whole.shows_same(&fitted) && !whole.shows_same(&whole.clone().inverted()));
    }

    #[test]
    fn a_picture_covers_another_one_where_its_mask_is_white() {
        let whole = picture((4, 3));
        let green = Picture::plain((2, 2), [255, 255, 0]).unwrap();
        let covered = whole.clone().covered(green.clone(), None, (3, 1));
        assert_eq!(red(&covered), [0, 1, 2, 3, 4, 5, 6, 255, 8, 9, 10, 255]);
        assert!(covered.is_covered() && !whole.is_covered());
        let busy = (0..20).fold(green.clone(), |picture, _| picture.inverted());
        assert!(!busy.is_overdone() && !covered.is_overdone());
        let twice = (0..12).fold(whole.clone(), |picture, _| picture.inverted());
        assert!(twice.covered(busy, None, (0, 0)).is_overdone());
        let mask = GraphMask::plain((2, 2), 0.0).unwrap();
        assert_eq!(red(&whole.clone().covered(green, Some(mask), (0, 0))), red(&whole));
    }
}
