//! Images that clients upload to start from.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::prompts::{Around, Id};
use super::store::{find_cached, joined, put_image, upload_key};
use crate::server::access::Owner;
use crate::server::api::shared::{form, image};
use crate::server::body::Whole;
use crate::server::draft::check_image;
use crate::server::fault::Fault;
use crate::server::state::{Server, blocking};
use crate::server::uploads::Upload;

/// The longest name of an image, in bytes.
const MAX_NAME: usize = 255;
/// How many numbers are tried for the name of an upload that exists already.
const MAX_COPIES: usize = 1000;

/// Stores an image. A name that is taken by another image gets a number, unless it may be
/// overwritten.
pub async fn upload(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let form = form(&body).await?;
    let Some(file) = form.files.into_iter().find(|file| file.field == "image") else {
        return Err(Fault::new(400, "invalid_request", "the form has no file called image"));
    };
    let text = |name: &str| form.fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let folder = text("subfolder").trim_matches('/').to_string();
    let overwrite = ["true", "1"].contains(&text("overwrite"));
    // Only the last part: some browsers send the whole path.
    let name = file.name.rsplit(['/', '\\']).next().unwrap_or_default().to_string();
    let is_name = |text: &str| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
    if name.is_empty() || !is_name(&name) || !is_name(&folder) {
        return Err(Fault::new(400, "invalid_request", "the file has no name, or a strange one"));
    }
    check_image(&file.bytes).map_err(|fault| fault.parameter("image"))?;
    let name = blocking(|| {
        let mut candidate = name.clone();
        for number in 1..MAX_COPIES {
            let key = upload_key(&joined(&folder, &candidate));
            if server.uploads().put(&owner.0, &key, &file.bytes, overwrite)? != Upload::Taken {
                return Ok(candidate);
            }
            candidate = match name.rsplit_once('.') {
                Some((stem, ending)) => format!("{stem} ({number}).{ending}"),
                None => format!("{name} ({number})"),
            };
        }
        Err(Fault::new(400, "invalid_request", "there are too many images of this name"))
    })?;
    Ok(Json(json!({"name": name, "subfolder": folder, "type": "input"})))
}

/// Puts an image under an id that the client has chosen, for `ETN_LoadImageCache`.
pub async fn put_cached(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Id,
    body: Whole,
) -> Result<StatusCode, Fault> {
    if id.len() > MAX_NAME {
        return Err(Fault::invalid("id", "id: expected a shorter one"));
    }
    check_image(&body.bytes).map_err(|fault| fault.parameter("image"))?;
    let upload = blocking(|| put_image(&server, &owner, &id, &body.bytes))?;
    Ok(if upload == Upload::New { StatusCode::CREATED } else { StatusCode::OK })
}

/// An image that was put there, or one of `ETN_SaveImageCache`.
pub async fn get_cached(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Id,
) -> Result<Response, Fault> {
    let around = Around { server: &server, owner: &owner };
    let found = blocking(|| match around.drawn(&id)? {
        None => find_cached(&server, &owner, &id),
        drawn => Ok(drawn),
    })?;
    let bytes = found.ok_or_else(|| Fault::not_found("there is no image of this id"))?;
    Ok(image(bytes.to_vec(), &id))
}
