//! The checks of a request that need no model.

use super::controlnet::ControlNetChoice;
use super::limits::{
    MAX_CONTROLNETS, MAX_LORA_STRENGTH, MAX_LORAS, MAX_PROMPT_BYTES, MAX_SIDE, MAX_STYLE_STRENGTH,
};
use super::prompt::LoraChoice;
use super::settings::{MAX_STYLES, Request};
use super::{Image, Margins};
use crate::error::{Error, Result};

impl Request {
    /// Checks everything that can be checked without a model, so that all front ends refuse the
    /// same requests. Nothing is rounded or clamped.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument), with the parameter's name as its place.
    pub fn check(&self) -> Result<()> {
        self.check_values()?;
        if self.strength.is_some() && self.init.is_none() {
            return Err(Error::argument("a strength needs an image to start from")
                .at_parameter("strength")
                .try_("give the image, or leave the strength out"));
        }
        self.check_mask()?;
        self.check_styles()
    }

    fn check_styles(&self) -> Result<()> {
        let (count, strengths) = (self.styles.len(), self.style_strengths.len());
        if strengths != 0 && strengths != count {
            return Err(Error::argument(
                "there is another number of style images than of their strengths, which an image \
                 that was drawn with styles contains",
            )
            .at_parameter("style")
            .found(format!("{count} style images"))
            .expected(strengths)
            .try_("give the same style images, in the same order"));
        }
        if count > MAX_STYLES {
            return Err(Error::argument("too many style images")
                .at_parameter("style")
                .found(count)
                .expected(format!("at most {MAX_STYLES}")));
        }
        Ok(())
    }

    fn check_mask(&self) -> Result<()> {
        let given = [
            ("mask", self.mask.is_some()),
            ("outpaint", self.outpaint.is_some()),
            ("mask_blur", self.mask_blur.is_some()),
            ("mask_padding", self.mask_padding.is_some()),
        ];
        let Some((name, _)) = given.into_iter().find(|(_, given)| *given) else { return Ok(()) };
        let Some(init) = &self.init else {
            return Err(Error::argument("a mask needs the image that it is a part of")
                .at_parameter(name)
                .try_("name that image with {init}"));
        };
        if !self.is_masked() {
            return Err(Error::argument("there is no mask")
                .at_parameter(name)
                .try_("{mask} with an image in which white is repainted"));
        }
        if let Some(mask) = &self.mask {
            let size = |w: usize, h: usize| format!("{w}x{h}");
            if (mask.width, mask.height) != (init.width, init.height) {
                return Err(Error::argument("the mask has another size than its image")
                    .at_parameter("mask")
                    .found(size(mask.width, mask.height))
                    .expected(size(init.width, init.height))
                    .try_("scale the mask to the size of the image"));
            }
            if self.outpaint.is_none() && mask.values.iter().all(|v| *v == 0) {
                return Err(Error::argument("the mask is empty, so nothing would be repainted")
                    .at_parameter("mask")
                    .found("only black pixels")
                    .expected("white where the image is repainted"));
            }
        }
        match self.outpaint {
            Some(margins) => check_margins(margins, init),
            None => Ok(()),
        }
    }

    /// The part of [`check`](Request::check) that does not need the image to start from.
    pub(crate) fn check_values(&self) -> Result<()> {
        check_prompt("prompt", self.prompt.as_str())?;
        check_prompt("negative", self.negative.as_deref().unwrap_or_default())?;
        self.check_ranges()?;
        let limits = 0.0..=MAX_STYLE_STRENGTH;
        if let Some(strength) = self.style_strengths.iter().find(|s| !limits.contains(s)) {
            return Err(Error::argument("the strength of a style image is out of range")
                .at_parameter("style")
                .found(strength)
                .expected(format!("0 to {MAX_STYLE_STRENGTH}")));
        }
        if let Some(scheduler) = &self.scheduler {
            scheduler.check().map_err(|why| {
                Error::argument("the scheduler config cannot be used")
                    .at_parameter("scheduler")
                    .found(why)
            })?;
        }
        if let Some(only) = self.only
            && only >= self.count.unwrap_or(1)
        {
            return Err(Error::argument("the batch has no image of this number")
                .at("only")
                .found(only)
                .expected(format!("0 to {}", self.count.unwrap_or(1) - 1)));
        }
        self.prompt.check()?;
        self.check_controlnets()?;
        self.check_loras()
    }

    /// The images are checked with the model: they are not among recorded settings.
    fn check_controlnets(&self) -> Result<()> {
        if self.controlnets.len() > MAX_CONTROLNETS {
            return Err(Error::argument("too many ControlNets")
                .at_parameter("controlnet")
                .found(self.controlnets.len())
                .expected(format!("at most {MAX_CONTROLNETS}")));
        }
        self.controlnets.iter().try_for_each(ControlNetChoice::check)
    }

    fn check_loras(&self) -> Result<()> {
        let negative = super::Prompt::from(self.negative.as_deref().unwrap_or_default());
        negative.check()?;
        if !negative.loras().is_empty() {
            return Err(Error::argument(
                "the negative prompt names a LoRA, which has no effect there",
            )
            .at_parameter("negative")
            .try_("put the tag in the prompt, with a negative strength to reverse it"));
        }
        let count = self.loras.len() + self.prompt.loras().len();
        if count > MAX_LORAS {
            return Err(Error::argument("too many LoRAs")
                .at_parameter("lora")
                .found(count)
                .expected(format!("at most {MAX_LORAS}")));
        }
        let limits = -MAX_LORA_STRENGTH..=MAX_LORA_STRENGTH;
        let strengths = |l: &LoraChoice| [l.strength, l.text_strength.unwrap_or(0.0)];
        let inside = |l: &&LoraChoice| strengths(l).iter().all(|s| limits.contains(s));
        match self.loras.iter().find(|l| !inside(l)) {
            Some(lora) => Err(Error::argument("the strength of a LoRA is out of range")
                .at_message(lora.place())
                .found(lora.plain_strengths())
                .expected(format!("-{MAX_LORA_STRENGTH} to {MAX_LORA_STRENGTH}"))),
            None => Ok(()),
        }
    }
}

/// The image with its margins must be one that can be drawn at all.
fn check_margins(margins: Margins, init: &Image) -> Result<()> {
    let refused = |e: Error| Err(e.at_parameter("outpaint").found(margins));
    if margins == Margins::default() {
        return refused(
            Error::argument("nothing is added to the image")
                .expected("a number above 0 on one side at least"),
        );
    }
    let [left, top, right, bottom] = margins.sides();
    let side = |own: usize, a: usize, b: usize| own.saturating_add(a).saturating_add(b);
    let (width, height) = (side(init.width, left, right), side(init.height, top, bottom));
    match width.max(height) <= 2 * MAX_SIDE {
        true => Ok(()),
        false => refused(
            Error::argument("the image with its margins is too large")
                .expected(format!("at most {} pixels a side", 2 * MAX_SIDE)),
        ),
    }
}

fn check_prompt(name: &str, prompt: &str) -> Result<()> {
    if prompt.len() > MAX_PROMPT_BYTES {
        return Err(Error::argument("the prompt is too long")
            .at_parameter(name)
            .found(format!("{} bytes", prompt.len()))
            .expected(format!("at most {MAX_PROMPT_BYTES}"))
            .try_("shorten it: the model reads some 2,500 bytes at most"));
    }
    // Line breaks and tabs count as spaces. Other control characters have no meaning in a prompt,
    // and the files that settings are written to cannot hold them.
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match prompt.char_indices().find(|&(_, c)| control(c)) {
        None => Ok(()),
        Some((at, c)) => Err(Error::argument("the prompt contains a control character")
            .at_parameter(name)
            .found(format!("U+{:04X} at byte {at}", c as u32))
            .try_("remove the character")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mask;
    use super::super::limits::*;
    use super::*;

    fn refused(change: impl Fn(&mut Request)) -> String {
        let mut request = Request::default();
        change(&mut request);
        let error = request.check().expect_err("accepted");
        assert_eq!(error.kind(), crate::error::Kind::Argument);
        error.to_string()
    }

    fn pixel() -> Image {
        Image { width: 1, height: 1, rgb: vec![0; 3] }
    }

    #[test]
    fn defaults_and_limits_are_accepted() {
        Request::default().check().unwrap();
        let request = Request::new("a".repeat(MAX_PROMPT_BYTES))
            .negative("tab\tand\r\nbreak")
            .count(MAX_COUNT)
            .steps(MAX_STEPS)
            .seed(u64::MAX)
            .guidance(0.0)
            .cfg_scale(MAX_SCALE)
            .init(pixel())
            .strength(1.0);
        request.clone().size(1024, MAX_SIDE).check().unwrap();
        request.size(MAX_SIDE, MAX_SIDE).check().unwrap();
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for v in [0, 1, 15, 4112, usize::MAX] {
            assert!(refused(|r| r.width = Some(v)).starts_with("width: "));
            assert!(refused(|r| r.height = Some(v)).starts_with("height: "));
        }
        for v in [0, 1001, usize::MAX] {
            assert!(refused(|r| r.steps = Some(v)).contains("1 to 1000"));
            assert!(refused(|r| r.count = Some(v)).contains("1 to 64"));
        }
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1, 100.1] {
            assert!(refused(|r| r.guidance = Some(v)).starts_with("guidance: "));
            assert!(refused(|r| r.cfg_scale = Some(v)).starts_with("cfg_scale: "));
            let from = |r: &mut Request| (r.init, r.strength) = (Some(pixel()), Some(v));
            assert!(refused(from).contains("0 to 1"));
        }
        assert!(refused(|r| r.prompt = "a".repeat(1 << 20).into()).contains("1048576 bytes"));
        assert!(refused(|r| r.prompt = "a\0b".into()).contains("U+0000 at byte 1"));
        assert!(refused(|r| r.negative = Some("\u{1b}[2J".to_string())).starts_with("negative: "));
        // A terminal may take U+009B for ESC [.
        for c1 in ["a\u{9b}31mb", "\u{80}", "\u{9d}0;x\u{9c}", "\u{7f}"] {
            assert!(refused(|r| r.prompt = c1.into()).contains("control character"), "{c1:?}");
        }
        assert!(refused(|r| r.only = Some(1)).starts_with("only: "));
        assert!(refused(|r| (r.count, r.only) = (Some(4), Some(4))).contains("0 to 3"));
    }

    #[test]
    fn masks_need_their_image_in_the_same_size() {
        let mask =
            |width, height, value| Mask { width, height, values: vec![value; width * height] };
        let with = |mask: Mask| {
            move |r: &mut Request| {
                (r.init, r.mask) = (Some(pixel()), Some(mask.clone()));
            }
        };
        assert!(refused(|r| r.mask = Some(mask(1, 1, 255))).starts_with("mask: "));
        assert!(refused(|r| r.mask_blur = Some(2.0)).starts_with("mask_blur: "));
        assert!(refused(with(mask(2, 1, 255))).contains("2x1"));
        assert!(refused(with(mask(1, 1, 0))).contains("empty"));
        let margins = |margins: &'static str| {
            move |r: &mut Request| {
                (r.init, r.outpaint) = (Some(pixel()), Some(margins.parse().unwrap()));
            }
        };
        assert!(refused(margins("0,0,0,0")).starts_with("outpaint: "));
        assert!(refused(margins("9000,0,0,0")).contains("too large"));
        let padded = |r: &mut Request| (r.init, r.mask_padding) = (Some(pixel()), Some(3));
        assert!(refused(padded).contains("no mask"));
        let mut request = Request::default();
        with(mask(1, 1, 1))(&mut request);
        request.check().unwrap();
    }

    #[test]
    fn loras_and_strengths_that_cannot_be_used_are_refused() {
        assert!(refused(|r| r.strength = Some(0.5)).starts_with("strength: "));
        assert!(refused(|r| r.prompt = "<lora:x:nan>".into()).contains("<lora:x:nan>"));
        assert!(refused(|r| r.negative = Some("<lora:x>".into())).starts_with("negative: "));
        assert!(
            refused(|r| r.loras = vec![super::super::LoraChoice::new("x", 101.0)]).contains("101")
        );
        let tags = "<lora:x>".repeat(MAX_LORAS + 1);
        assert!(refused(|r| r.prompt = tags.as_str().into()).contains("65"));
    }
}
