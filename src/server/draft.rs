//! What a client asks for, in the form that all APIs have in common, and the parts of requests that
//! several of them have.

use axum::body::Bytes;
use serde_json::Value;

use super::access::hash;
use super::fault::Fault;
use super::job::{Lane, hex};
use super::masks::DraftMask;
use super::webhook::Webhook;
use crate::pipeline::images::{DEFAULT_QUALITY, Format, check_reference, image_size};
use crate::pipeline::request::{self, Image, MAX_REFERENCES, Mask, Request};

/// The largest image of a client, in pixels. It is checked before the image is decoded.
pub const MAX_INPUT_PIXELS: u64 = 16_000_000;
/// Every FLUX model has tokens of 16 x 16 pixels; the worker checks again.
pub const TOKEN: usize = 16;
/// The longest text that is sent back, in bytes.
const MAX_ECHOED: usize = 64 << 10;

/// The request of a client, in the form that all APIs have in common.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The request; what it leaves out is the model's default.
    pub request: Request,
    /// The name of a model.
    pub model: Option<String>,
    /// The file of an image to start from.
    pub input: Option<Bytes>,
    /// Its width and height, from [`Draft::measure`].
    pub input_size: Option<(usize, usize)>,
    /// What is repainted of it.
    pub mask: Option<DraftMask>,
    /// The file of a control image.
    pub control: Option<Bytes>,
    /// Its width and height, from [`Draft::measure`].
    pub control_size: Option<(usize, usize)>,
    /// The files of style images.
    pub styles: Vec<Bytes>,
    /// How many style images there are, from [`Draft::measure`].
    pub style_count: usize,
    /// The files of the images that its ControlNets see, in their order.
    pub controlnet_images: Vec<Bytes>,
    /// The files of reference images.
    pub references: Vec<Bytes>,
    /// Width and height of each, from [`Draft::measure`].
    pub reference_sizes: Vec<(usize, usize)>,
    /// The format of the images.
    pub format: Format,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// The API through which it comes.
    pub dialect: &'static str,
    /// The client's idempotency key.
    pub idempotency: Option<String>,
    /// How urgent it is.
    pub lane: Lane,
    /// The id of the job, from [`client_id`]; otherwise it is drawn.
    pub id: Option<String>,
    /// What the API needs to describe the job later: see [`JobSpec::echo`].
    pub echo: Value,
    /// The address to call when the job is over.
    pub webhook: Option<Webhook>,
}

/// The id of the job of `owner` that a client of `dialect` calls `name`. The names of one client
/// are of no use to another.
pub fn client_id(dialect: &str, owner: &str, name: &str) -> String {
    hex(&hash(&format!("{dialect}\0{owner}\0{name}"))[..16])
}

impl Draft {
    /// A request for PNG files with the default model.
    pub fn new(request: Request, dialect: &'static str) -> Self {
        Draft {
            request,
            model: None,
            input: None,
            input_size: None,
            mask: None,
            control: None,
            control_size: None,
            styles: Vec::new(),
            style_count: 0,
            controlnet_images: Vec::new(),
            references: Vec::new(),
            reference_sizes: Vec::new(),
            format: Format::Png,
            quality: DEFAULT_QUALITY,
            dialect,
            idempotency: None,
            lane: Lane::Normal,
            id: None,
            echo: Value::Null,
            webhook: None,
        }
    }

    /// Reads the sizes of its images. None of them is decoded.
    ///
    /// # Errors
    /// 422 for files that are not images or too large.
    pub fn measure(&mut self) -> Result<(), Fault> {
        let size = |bytes: &Bytes, name: &str| {
            let (width, height) = size_of(bytes, name)?;
            Ok::<_, Fault>((width as usize, height as usize))
        };
        if let Some(input) = &self.input {
            self.input_size = Some(size(input, "image")?);
        }
        if let Some(control) = &self.control {
            self.control_size = Some(size(control, "control")?);
        }
        let seen = self.controlnet_images.iter().map(|image| (image, "controlnets"));
        let seen = seen.chain(self.styles.iter().map(|style| (style, "styles")));
        seen.map(|(image, name)| size(image, name)).try_for_each(|size| size.map(drop))?;
        if !self.styles.is_empty() {
            self.style_count = self.styles.len();
        }
        if !self.references.is_empty() {
            let sizes = self.references.iter().map(|bytes| size(bytes, "references"));
            self.reference_sizes = sizes.collect::<Result<_, Fault>>()?;
        }
        Ok(())
    }

    /// Adds a style image with its strength, 1 if there is none.
    pub fn add_style(&mut self, image: Bytes, strength: Option<f32>) {
        let strengths = &mut self.request.style_strengths;
        if strength.is_some() || !strengths.is_empty() {
            strengths.resize(self.styles.len(), 1.0);
            strengths.push(strength.unwrap_or(1.0));
        }
        self.styles.push(image);
    }

    /// Whether a part of the image to start from is kept.
    pub fn is_masked(&self) -> bool {
        self.mask.is_some() || self.request.outpaint.is_some()
    }

    /// Checks its images before any of them is decoded.
    ///
    /// # Errors
    /// 422.
    pub fn check_images(&self) -> Result<(), Fault> {
        // Their pixels do not matter.
        let image = |&(width, height): &(usize, usize)| Image { width, height, rgb: Vec::new() };
        let mut request = self.request.clone();
        request.init = self.input_size.as_ref().map(image);
        request.styles = vec![image(&(1, 1)); self.style_count];
        request.mask = self.mask.as_ref().map(|mask| {
            let (width, height) = mask.size;
            Mask { width, height, values: vec![u8::from(mask.repainted.is_some())] }
        });
        request.check()?;
        if let (Some((width, height)), Some(margins)) = (self.input_size, request.outpaint) {
            let [left, top, right, bottom] = margins.sides();
            let pixels = (width + left + right) as u64 * (height + top + bottom) as u64;
            if pixels > MAX_INPUT_PIXELS {
                let most = MAX_INPUT_PIXELS / 1_000_000;
                let message = format!("outpaint: expected at most {most} million pixels in all");
                return Err(Fault::invalid("outpaint", message));
            }
        }
        let count = self.reference_sizes.len();
        if count > MAX_REFERENCES {
            let expected = format!("at most {MAX_REFERENCES} images: found {count}");
            return Err(Fault::invalid("references", format!("references: expected {expected}")));
        }
        Ok(())
    }

    /// Checks that a model can read its reference images, other than FLUX.1 Kontext, which reads
    /// any.
    ///
    /// # Errors
    /// 422.
    pub fn check_references(&self) -> Result<(), Fault> {
        for &(width, height) in &self.reference_sizes {
            check_reference(&Image { width, height, rgb: Vec::new() })
                .map_err(|e| Fault::from(e).parameter("references"))?;
        }
        Ok(())
    }
}

/// Checks that `bytes` are an image that can be read and is not too large, before it is decoded.
///
/// # Errors
/// 422.
pub fn check_image(bytes: &[u8]) -> Result<(), Fault> {
    size_of(bytes, "image").map(drop)
}

/// Width and height of the image `bytes`, which is the value of `parameter`.
///
/// # Errors
/// 422 if it cannot be read or is too large.
pub fn size_of(bytes: &[u8], parameter: &str) -> Result<(u32, u32), Fault> {
    image_size(bytes, MAX_INPUT_PIXELS).map_err(|e| Fault::from(e).parameter(parameter))
}

/// `WIDTHxHEIGHT`; `None` for `auto`.
///
/// # Errors
/// 422.
pub fn parse_size(text: &str) -> Result<Option<(usize, usize)>, Fault> {
    if text == "auto" || text.is_empty() {
        return Ok(None);
    }
    let read = || {
        let (width, height) = text.split_once(['x', 'X', '\u{d7}'])?;
        Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
    };
    read().map(Some).ok_or_else(|| {
        let limits = format!("multiples of {TOKEN} from {TOKEN} to {}", request::MAX_SIDE);
        Fault::invalid("size", format!("size: expected auto, or WIDTHxHEIGHT in {limits}"))
    })
}

/// The bytes of an image in base64, bare or as a data URI. Nothing is ever fetched.
///
/// # Errors
/// 422.
pub fn parse_image(parameter: &str, text: &str) -> Result<Bytes, Fault> {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
    let refused = |expected: &str| {
        Err(Fault::invalid(parameter, format!("{parameter}: expected {expected}")))
    };
    let text = text.trim();
    if text.starts_with("http://") || text.starts_with("https://") || text.starts_with("file:") {
        return refused("the image itself: this server fetches no addresses");
    }
    let encoded = match text.strip_prefix("data:") {
        Some(rest) => match rest.split_once(";base64,") {
            Some((_, encoded)) => encoded,
            None => return refused("a data URI with base64"),
        },
        None => text,
    };
    let clean: String = encoded.chars().filter(|c| !c.is_whitespace()).collect();
    match BASE64_STANDARD.decode(&clean).or_else(|_| BASE64_URL_SAFE.decode(&clean)) {
        Ok(bytes) => Ok(bytes.into()),
        Err(_) => refused("an image in base64, or a data URI"),
    }
}

/// `value` without the images in it, for [`JobSpec::echo`]: they are large, and are kept already.
pub fn without_images(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() > MAX_ECHOED || text.starts_with("data:") => Value::Null,
        Value::Array(list) => list.iter().map(without_images).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), without_images(value))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f36_images_are_inline_and_addresses_are_not_fetched() {
        assert_eq!(parse_image("image", "aGk=").unwrap(), &b"hi"[..]);
        assert_eq!(parse_image("image", " data:image/png;base64,aG\nk= ").unwrap(), &b"hi"[..]);
        for bad in ["http://127.0.0.1/x.png", "https://x", "file:///etc/passwd", "data:x,y", "%%"] {
            let fault = parse_image("image", bad).unwrap_err();
            assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some("image")), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_and_never_rounded() {
        assert_eq!(parse_size("1024x768").unwrap(), Some((1024, 768)));
        assert_eq!(parse_size("auto").unwrap(), None);
        for bad in ["1024", "-1x16", "x", "1e3x16", "16x16x16"] {
            assert_eq!(parse_size(bad).unwrap_err().status, 422, "{bad}");
        }
    }
}
