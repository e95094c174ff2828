//! Parts of requests and answers that several APIs have.

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart};
use axum::http::{HeaderMap, Request, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::{self, Margins};
use crate::server::body::Whole;
use crate::server::draft::{Draft, parse_image, size_of};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::Output;
use crate::server::masks::DraftMask;
use crate::server::model_names::tool_of;
use crate::server::state::{Server, blocking};

/// The file of an image as an answer.
pub fn image(bytes: Vec<u8>, name: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, type_of(name)),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable"),
    ];
    (headers, bytes).into_response()
}

/// The media type of a file by its name.
pub fn type_of(name: &str) -> &'static str {
    let format = name.rsplit_once('.').and_then(|(_, extension)| Format::parse(extension));
    content_type(format.unwrap_or(Format::Png))
}

/// The media type of a format.
pub fn content_type(format: Format) -> &'static str {
    match format {
        Format::Png => "image/png",
        Format::Jpeg => "image/jpeg",
        Format::WebP => "image/webp",
        Format::Bmp => "image/bmp",
        Format::Tiff => "image/tiff",
    }
}

/// The message of a fault together with its hint.
pub fn sentence(fault: &Fault) -> String {
    match &fault.hint {
        Some(hint) => format!("{} (try: {hint})", fault.message),
        None => fault.message.clone(),
    }
}

/// Marks of further fields inside a prompt, which clients of stable-diffusion.cpp's server send on
/// every path.
const EXTRA: (&str, &str) = ("<sd_cpp_extra_args>", "</sd_cpp_extra_args>");

/// A prompt without the fields that were inside it, and these fields.
pub type Split = (String, Map<String, Value>);

/// Cuts the fields out of a prompt; `None` if there are none in it.
///
/// # Errors
/// 422 if they are not an object.
pub fn split_extra(prompt: &str) -> Result<Option<Split>, Fault> {
    let Some((before, rest)) = prompt.split_once(EXTRA.0) else { return Ok(None) };
    let wrong = || Fault::invalid("prompt", "prompt: the fields in it are not a JSON object");
    let (inside, after) = rest.split_once(EXTRA.1).ok_or_else(wrong)?;
    let extra = serde_json::from_str(inside).map_err(|_| wrong())?;
    Ok(Some((format!("{before}{after}"), extra)))
}

/// The address of the server as the client knows it, without a slash at the end; without headers
/// the one that the server prints.
pub fn base(server: &Server, headers: &HeaderMap) -> String {
    match &server.options.public_url {
        Some(url) => url.trim_end_matches('/').to_string(),
        None => {
            // The host was checked before.
            let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
            format!("http://{}", host.map_or_else(|| own_address(server), str::to_string))
        }
    }
}

/// Where the server listens.
fn own_address(server: &Server) -> String {
    server.address.map_or_else(String::new, |address| address.to_string())
}

/// The absolute address of a result: a signed link.
pub fn link(server: &Server, headers: &HeaderMap, output: &Output) -> String {
    base(server, headers) + &server.links.link(&output.file, server.now())
}

/// A result inside an address.
pub fn data_uri(server: &Server, output: &Output) -> Result<String, Fault> {
    let bytes = BASE64_STANDARD.encode(server.read_result(output)?);
    Ok(format!("data:{};base64,{bytes}", type_of(&output.file)))
}

/// A form.
pub struct Form {
    /// The fields that are text.
    pub fields: Map<String, Value>,
    /// The others.
    pub files: Vec<FormFile>,
}

/// A file in a form.
pub struct FormFile {
    /// The name of its field.
    pub field: String,
    /// The name of the file, from the client.
    pub name: String,
    /// Its content.
    pub bytes: Bytes,
}

/// The parts of a form.
///
/// # Errors
/// 400.
pub async fn form(body: &Whole) -> Result<Form, Fault> {
    let unreadable = || Fault::new(400, "invalid_request", "the form cannot be read");
    let mut request = Request::new(Body::from(body.bytes.clone()));
    if let Ok(content_type) = body.content_type.parse() {
        request.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    // The body was bounded when it was read.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|_| unreadable())?;
    let mut form = Form { fields: Map::new(), files: Vec::new() };
    while let Some(part) = parts.next_field().await.map_err(|_| unreadable())? {
        let field = part.name().unwrap_or_default().to_string();
        let name = part.file_name().map(str::to_string);
        let bytes = part.bytes().await.map_err(|_| unreadable())?;
        if name.is_some() || ["image", "image[]", "mask", "file"].contains(&field.as_str()) {
            form.files.push(FormFile { field, name: name.unwrap_or_default(), bytes });
        } else {
            let text = String::from_utf8(bytes.to_vec())
                .map_err(|_| Fault::new(400, "invalid_request", "the form is not UTF-8"))?;
            form.fields.insert(field, json!(text));
        }
    }
    Ok(form)
}

/// A format by the name that a client gives it.
pub fn format(name: &str) -> Result<Format, Fault> {
    Format::parse(name).ok_or_else(|| {
        Fault::invalid("output_format", "output_format: expected png, jpeg, webp, bmp or tiff")
    })
}

/// JPEG quality, 1 to 100.
pub fn quality_of(quality: usize, parameter: &str) -> Result<u8, Fault> {
    match u8::try_from(quality) {
        Ok(quality @ 1..=100) => Ok(quality),
        _ => Err(Fault::invalid(parameter, format!("{parameter}: expected 1 to 100"))),
    }
}

/// The images of a field: a list of them, or one, each in base64 or as a data URI.
pub fn images(fields: &Fields, name: &str) -> Result<Vec<Bytes>, Fault> {
    let refused = || Fault::invalid(name, format!("{name}: expected a list of images"));
    let list = match fields.get(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let texts = list.iter().filter(|image| image.as_str() != Some(""));
    texts.map(|image| parse_image(name, image.as_str().ok_or_else(refused)?)).collect()
}

/// The image of a field, if it has one; an empty text is none.
pub fn optional_image(fields: &Fields, name: &str) -> Result<Option<Bytes>, Fault> {
    let text = fields.long_text(name)?.filter(|text| !text.is_empty());
    text.map(|text| parse_image(name, text)).transpose()
}

/// The mask of a field, if it has one, by the pixels that `marks` says.
pub fn mask(fields: &Fields, name: &str, marks: MaskMarks) -> Result<Option<DraftMask>, Fault> {
    let Some(bytes) = optional_image(fields, name)? else { return Ok(None) };
    blocking(|| DraftMask::read(name, &bytes, marks, |_| ())).map(Some)
}

/// The control image of a draft: a prepared one, which is used as it is, or a photo from which the
/// service of the client makes one. Edges are found here too; depths are not.
///
/// # Errors
/// 422, also for thresholds of edges other than the ones that are used.
pub fn set_control(
    server: &Server,
    draft: &mut Draft,
    fields: &Fields,
    [photo, prepared]: [&str; 2],
) -> Result<(), Fault> {
    for (name, used) in [("canny_low_threshold", 50.0), ("canny_high_threshold", 200.0)] {
        if fields.real(name)?.is_some_and(|given| given != used) {
            let message = format!("{name}: edges are found with a threshold of {used}");
            return Err(Fault::new(422, "unsupported", message)
                .parameter(name)
                .hint("leave it out, or send the edges themselves"));
        }
    }
    draft.control = optional_image(fields, prepared)?;
    if draft.control.is_some() {
        return Ok(());
    }
    draft.control = optional_image(fields, photo)?;
    let model = blocking(|| server.models.find(draft.model.as_deref()))?;
    let is_depth = tool_of(&model.name) == Some("depth");
    if draft.control.is_some() && is_depth && photo != prepared {
        let message = format!("{photo}: this server does not find out how far away things are");
        return Err(Fault::new(422, "unsupported", message)
            .parameter(photo)
            .hint(format!("send an image of depths, in which near is bright, as {prepared}")));
    }
    Ok(())
}

/// Adds the image of a field as one whose content and style the result has.
pub fn set_style(draft: &mut Draft, fields: &Fields, name: &str) -> Result<(), Fault> {
    if let Some(image) = optional_image(fields, name)? {
        size_of(&image, name)?;
        draft.add_style(image, fields.real("image_prompt_strength")?);
    }
    Ok(())
}

/// Sets what `fields` say about a mask, in the words of the native API.
pub fn set_mask_fields(fields: &Fields, request: &mut request::Request) -> Result<(), Fault> {
    request.mask_blur = fields.real("mask_blur")?;
    request.mask_padding = fields.whole("mask_padding")?;
    if let Some(text) = fields.text("outpaint")? {
        request.outpaint = Some(text.parse::<Margins>()?);
    }
    Ok(())
}

/// The images of a field for [`Server::edit`].
pub fn images_to_edit(fields: &Fields, name: &str) -> Result<Vec<(String, Bytes)>, Fault> {
    Ok(images(fields, name)?.into_iter().map(|bytes| (name.to_string(), bytes)).collect())
}
