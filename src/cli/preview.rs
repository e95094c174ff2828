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

/// Columns and rows of the terminal.
fn window() -> (u32, u32) {
    let (columns, rows) = viuer::terminal_size();
    (u32::from(columns), u32::from(rows))
}

/// Columns and rows for `picture` so that all of it is in the window, above a line for the prompt
/// of the shell. A cell is about twice as high as wide. Nothing is enlarged beyond a pixel per
/// column.
fn cells(picture: &Image, (columns, rows): (u32, u32)) -> (u32, u32) {
    let (width, height) = (picture.width as f64, picture.height as f64);
    let room = (f64::from(columns.max(1)), 2.0 * f64::from(rows.saturating_sub(2).max(1)));
    let scale = (room.0 / width).min(room.1 / height).min(1.0);
    let whole = |cells: f64| (cells.floor() as u32).max(1);
    (whole(width * scale), whole(height * scale / 2.0))
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
        let (width, height) = cells(picture, window());
        let config = viuer::Config {
            absolute_offset: false,
            width: Some(width),
            height: Some(height),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_any_shape_fits_the_window() {
        let cells =
            |width, height, window| cells(&Image { width, height, rgb: Vec::new() }, window);
        assert_eq!(cells(1024, 1024, (80, 24)), (44, 22));
        assert_eq!(cells(1360, 768, (80, 24)), (77, 22));
        assert_eq!(cells(2048, 512, (80, 24)), (80, 10));
        assert_eq!(cells(512, 2048, (80, 24)), (11, 22));
        assert_eq!(cells(16, 16, (80, 24)), (16, 8));
        for (width, height) in [(16, 4096), (4096, 16), (1024, 1024)] {
            for window in [(1, 1), (2, 2), (3, 50), (200, 3)] {
                let (columns, rows) = cells(width, height, window);
                assert!(columns <= window.0 && rows <= window.1, "{width}x{height} {window:?}");
            }
        }
    }
}
