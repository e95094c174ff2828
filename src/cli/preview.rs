//! `--preview`: images in the terminal.

use std::io::IsTerminal;

use super::args::How;
use super::progress::Progress;
use crate::error::{Error, Kind, Result};
use crate::pipeline::request::Image;

/// Whether the terminal knows kitty's graphics protocol, by its environment.
fn speaks_kitty() -> bool {
    let has = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v.contains(value));
    std::env::var_os("KITTY_WINDOW_ID").is_some()
        || has("TERM", "kitty")
        || has("TERM_PROGRAM", "ghostty")
}

/// Whether the terminal knows iTerm's graphics protocol, by its environment.
fn speaks_iterm() -> bool {
    std::env::var("TERM_PROGRAM")
        .is_ok_and(|v| ["iTerm.app", "WezTerm", "mintty"].contains(&v.as_str()))
}

/// Shows the images in the terminal, if stdin and stdout are one.
pub fn preview(pictures: &[Image], how: How, progress: &Progress) -> Result<()> {
    if how.json || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        progress.note("no preview: stdin and stdout are not a terminal");
        return Ok(());
    }
    for picture in pictures {
        let Some(image) = image::RgbImage::from_raw(
            picture.width as u32,
            picture.height as u32,
            picture.rgb.clone(),
        ) else {
            return Err(Error::new(Kind::Output, "the pixels of the image do not match its size"));
        };
        // By default viuer asks the terminal what it supports and waits for the answer, for ever if
        // the terminal gives none.
        let config = viuer::Config {
            absolute_offset: false,
            use_kitty: speaks_kitty(),
            use_iterm: speaks_iterm(),
            ..viuer::Config::default()
        };
        if let Err(error) = viuer::print(&image.into(), &config) {
            // The image is in its file: the run did not fail.
            progress.warning(&format!("no preview: {error}"));
            return Ok(());
        }
    }
    Ok(())
}
