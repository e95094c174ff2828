//! What the ControlNets of a request see: their images, as the models read them.

use std::borrow::Cow;

use super::controlnets;
use super::controlnets::Controlling;
use super::images::{self, Masking};
use super::loaded::acts;
use super::phases::{ControlValues, blacken};
use super::progress::{Listener, send};
use super::request::{ControlImage, Image, Mask, Settings};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::message::Message;

/// The ControlNets that act in some of the steps, with their images. Notes about all of them are
/// sent.
pub fn acting<'a>(
    all: &[Controlling],
    images: &'a [ControlImage],
    sigmas: &[f32],
    on: Listener<'_>,
) -> Result<(Vec<Controlling>, Vec<&'a ControlImage>)> {
    for control in all {
        send(on, Event::note(control.line()))?;
        if !acts(control, sigmas) {
            let name = control.choice.name.clone();
            let why = "the ControlNet {} acts in no step: its strength is 0, or its part of the \
                       steps contains no whole step";
            send(on, Event::Note(Message::with(why, [Message::plain(name)])))?;
        }
    }
    controlnets::notes(all).try_for_each(|note| send(on, Event::note(note.clone())))?;
    let acting = all.iter().zip(images).filter(|(control, _)| acts(control, sigmas));
    Ok(acting.map(|(control, image)| (control.clone(), image)).unzip())
}

/// What `controls` see, of whose images `images` are.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for a ControlNet that needs a mask and has
/// none.
pub fn seen_by_all(
    controls: &[Controlling],
    images: &[&ControlImage],
    masking: Option<&Masking>,
    settings: &Settings,
) -> Result<Vec<ControlValues>> {
    let pairs = controls.iter().zip(images);
    pairs.map(|(control, image)| seen_by(control, image, masking, settings)).collect()
}

/// The part of `image` that is drawn, in the size of the request: all of it, unless `masking` draws
/// a part of the photo to which it belongs.
pub fn drawn_part(image: &Image, masking: Option<&Masking>, settings: &Settings) -> Image {
    match masking {
        Some(masking) => masking.drawn_part(image),
        None => images::fit(image, settings.width, settings.height),
    }
}

/// What a ControlNet sees: its image in the size of the request, or the part of it that is drawn.
fn seen_by(
    control: &Controlling,
    seen: &ControlImage,
    masking: Option<&Masking>,
    settings: &Settings,
) -> Result<ControlValues> {
    let reads_mask = controlnets::reads_mask(&control.net);
    let shown = match &seen.mask {
        Some(transparent) if !reads_mask => Cow::Owned(on_white(&seen.image, transparent)),
        _ => Cow::Borrowed(&seen.image),
    };
    let mut image = drawn_part(&shown, masking, settings);
    if control.choice.edges {
        image = images::canny(&image, control.choice.thresholds.unwrap_or(images::THRESHOLDS));
    }
    let mask = match (reads_mask, masking, &seen.mask) {
        (false, ..) => None,
        (true, Some(masking), _) => Some(masking.drawn_mask()),
        (true, None, Some(mask)) => Some(images::fit_mask(mask, settings.width, settings.height)),
        (true, None, None) => {
            return Err(Error::argument("this ControlNet repaints a part of its image")
                .at_message(control.choice.place())
                .found("no mask")
                .try_(
                    "{init} and {mask}, or an image with transparent pixels for the ControlNet",
                ));
        }
    };
    if let Some(mask) = &mask {
        blacken(&mut image, mask);
    }
    Ok(ControlValues { image, mask, condition: Vec::new(), modulation: Vec::new() })
}

/// `image` before white where it is `transparent`.
fn on_white(image: &Image, transparent: &Mask) -> Image {
    let pixels = image.rgb.chunks_exact(3).zip(&transparent.values);
    let rgb = pixels.flat_map(|(pixel, t)| {
        let (t, own) = (u32::from(*t), u32::from(255 - t));
        pixel.iter().map(move |v| ((u32::from(*v) * own + 255 * t + 127) / 255) as u8)
    });
    Image { rgb: rgb.collect(), ..*image }
}
