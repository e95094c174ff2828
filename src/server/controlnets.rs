//! ControlNets in the requests of clients: the words of their APIs, and what is checked before a
//! job is accepted.

use axum::body::Bytes;

use super::draft::Draft;
use super::fault::Fault;
use super::models::ServedModel;
use super::state::{Server, blocking};
use crate::pipeline::images::ImageFile;
use crate::pipeline::request::{ControlMode, ControlNetChoice};

/// The field of the native API.
const FIELD: &str = "controlnets";

/// Words of other programs for what an image is, with the names of [`ControlMode::NAMES`]. Those
/// of ComfyUI are whole lists.
const WORDS: [(&str, &str); 9] = [
    ("openpose", "pose"),
    ("hard edge", "canny"),
    ("canny/lineart/anime_lineart/mlsd", "canny"),
    ("canny/lineart/mlsd", "canny"),
    ("grayscale", "gray"),
    ("low-quality", "lq"),
    ("low quality", "lq"),
    ("low_quality", "lq"),
    ("tile/blur", "tile"),
];
/// Words for no mode.
const NO_MODE: [&str; 4] = ["", "auto", "unknown", "none"];

/// The mode that `text`, the value of `parameter`, means in the words of some program; `None` if it
/// says none.
///
/// # Errors
/// 422 for a kind of image that no ControlNet for FLUX.1 has as a mode.
pub fn mode_of(parameter: &str, text: &str) -> Result<Option<ControlMode>, Fault> {
    let text = text.trim().to_lowercase();
    if NO_MODE.contains(&text.as_str()) {
        return Ok(None);
    }
    let name = WORDS.iter().find(|(word, _)| *word == text).map_or(text.as_str(), |(_, n)| n);
    name.parse().map(Some).map_err(|_| {
        let expected = ControlMode::NAMES.join(", ");
        Fault::invalid(parameter, format!("{parameter}: expected {expected}, or a number"))
    })
}

impl Draft {
    /// Adds a ControlNet with the image that it sees.
    pub fn add_controlnet(&mut self, choice: ControlNetChoice, image: Bytes) {
        // Names from clients are names, never paths.
        self.request.controlnets.push(ControlNetChoice { named: true, ..choice });
        self.controlnet_images.push(image);
    }
}

impl Server {
    /// Adds a ControlNet for an API whose clients send a mode with every ControlNet. The mode is
    /// dropped if the ControlNet has none.
    ///
    /// # Errors
    /// 404 at `parameter` for a ControlNet that is not there, 422 for one that needs a mode and got
    /// none, or has no such mode.
    pub fn add_controlnet(
        &self,
        draft: &mut Draft,
        parameter: &str,
        mut choice: ControlNetChoice,
        image: Bytes,
    ) -> Result<(), Fault> {
        let inputs = blocking(|| self.models.controlnet(&choice.name));
        let inputs = inputs.map_err(|fault| fault.parameter(parameter))?;
        choice.mode = choice.mode.filter(|_| inputs.modes.is_some());
        inputs.check_mode(&choice).map_err(|e| Fault::from(e).parameter(parameter))?;
        draft.add_controlnet(choice, image);
        Ok(())
    }

    /// Checks that the ControlNets of a draft are there and suit `model`, as far as that is known
    /// without their images.
    ///
    /// # Errors
    /// 404 and 422.
    pub fn check_controlnets(&self, draft: &Draft, model: &ServedModel) -> Result<(), Fault> {
        let choices = &draft.request.controlnets;
        if choices.is_empty() {
            return Ok(());
        }
        if self.inputs(model).is_some_and(|inputs| !inputs.controlnets) {
            let message = format!("{FIELD}: ControlNets are for FLUX.1, and this model is not");
            return Err(Fault::new(422, "unsupported", message)
                .parameter(FIELD)
                .hint("use a FLUX.1 model; FLUX.2 looks at reference images"));
        }
        for choice in choices {
            let inputs = self.models.controlnet(&choice.name)?;
            inputs.check_mode(choice).map_err(|e| {
                let fault = Fault::from(e);
                let hint = match inputs.modes {
                    Some(_) => format!("the modes are {}", inputs.mode_names().join(", ")),
                    None => "leave the mode out".into(),
                };
                let message = format!("{FIELD}: {}", fault.message);
                Fault::invalid(FIELD, message).hint(hint)
            })?;
        }
        Ok(())
    }

    /// Checks that every ControlNet of a draft has its image, and the part to repaint if it reads
    /// one.
    ///
    /// # Errors
    /// 422.
    pub fn check_controlnet_images(&self, draft: &Draft) -> Result<(), Fault> {
        let (choices, images) = (&draft.request.controlnets, &draft.controlnet_images);
        if choices.len() != images.len() {
            return Err(Fault::invalid(FIELD, format!("{FIELD}: each of them needs an image")));
        }
        for (choice, image) in choices.iter().zip(images) {
            if draft.is_masked() || !self.models.controlnet(&choice.name)?.mask {
                continue;
            }
            let file = ImageFile::of(image.to_vec());
            if !file.map_err(|e| Fault::from(e).parameter(FIELD))?.has_alpha() {
                let message = format!("{FIELD}: {} repaints a part of its image", choice.name);
                return Err(Fault::invalid(FIELD, message)
                    .hint("send an image to start from with a mask, or transparent pixels"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_the_words_of_every_program() {
        let mode = |text: &str| mode_of("type", text).unwrap().map(|mode| mode.0);
        for (text, number) in [
            ("openpose", Some(4)),
            ("OpenPose", Some(4)),
            ("canny/lineart/anime_lineart/mlsd", Some(0)),
            ("Hard Edge", Some(0)),
            ("depth", Some(2)),
            ("low-quality", Some(6)),
            ("3", Some(3)),
            ("auto", None),
            ("Unknown", None),
        ] {
            assert_eq!(mode(text), number, "{text}");
        }
        let fault = mode_of("type", "segment").unwrap_err();
        assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some("type")));
    }
}
