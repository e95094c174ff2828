//! Images on the page: references, masks that are painted, margins, control images.

use fantoccini::actions::{InputSource, MOUSE_BUTTON_LEFT, MouseActions, PointerAction};
use fantoccini::key::Key;
use serde_json::json;

use super::page::{Tab, in_browser, jobs, newest};
use super::{Server, conditions, drawn_by_command, masks, references};

/// Chooses the image to start from.
async fn start_from(tab: &Tab, path: &str) {
    tab.find("#file").await.send_keys(path).await.unwrap();
    tab.click("#start-from").await;
}

#[test]
fn reference_images_are_added_sent_and_kept() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let model = references::klein(folder.path());
        let file = |name: &str, width, height| {
            let path = folder.path().join(name);
            references::picture(&path, width, height);
            path.display().to_string()
        };
        let (first, second) = (file("first.png", 96, 64), file("second.png", 64, 80));
        let data = folder.path().join("data");
        let server = Server::start(&data, &["--model", model.to_str().unwrap()]);
        let tab = Tab::open(&driver, &server, 1280, false).await;
        tab.find("#add-reference").await;
        for path in [&first, &second] {
            tab.find("#reference-file").await.send_keys(path).await.unwrap();
        }
        tab.until("document.querySelectorAll('.ref img').length === 2").await;
        tab.until("document.querySelector('.cost').innerText.includes('96 × 64')").await;
        tab.fill("#prompt", "a red fox").await;
        tab.fill("#steps", "2").await;
        tab.photograph("page-references.png").await;
        tab.draw().await;
        tab.thumbs(1).await;
        let job = jobs(&server).remove(0);
        let seed = job["seed_text"].as_str().unwrap();
        let options = ["a red fox", "--steps", "2", "--seed", seed, "--model"];
        let files = ["--reference", &first, "--reference", &second];
        let drawn = drawn_by_command(
            folder.path(),
            &[&options[..], &[model.to_str().unwrap()], &files].concat(),
        );
        assert!(newest(&server) == drawn);
        // Another visit draws it again, without the files being chosen again.
        tab.click(".ref button").await;
        assert!(tab.draw_again(&server).await == drawn);
        tab.client.close().await.unwrap();
    });
}

/// Draws a line with the mouse across the middle of an element.
async fn stroke(tab: &Tab, css: &str) {
    let element = tab.find(css).await;
    let to = |x: f64| PointerAction::MoveToElement {
        element: element.clone(),
        duration: Some(std::time::Duration::from_millis(50)),
        x,
        y: 0.0,
    };
    let line = MouseActions::new("mouse".into())
        .then(to(-60.0))
        .then(PointerAction::Down { button: MOUSE_BUTTON_LEFT })
        .then(to(60.0))
        .then(PointerAction::Up { button: MOUSE_BUTTON_LEFT });
    tab.client.perform_actions(line).await.unwrap();
}

#[test]
fn a_mask_is_painted_sent_and_kept() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let pictures = masks::Pictures::new(128, 96);
        let data = folder.path().join("data");
        let server = Server::start(&data, &[]);
        for (width, dark) in [(390, true), (1280, false)] {
            let tab = Tab::open(&driver, &server, width, dark).await;
            if width < 500 {
                tab.click(".settings > summary").await;
            }
            start_from(&tab, &pictures.path("photo")).await;
            tab.click(".part > summary").await;
            // The message at the edge goes away.
            tab.until("!document.querySelector('.toast')").await;
            tab.click("#paint-mask").await;
            // What is painted is counted in pixels of the image.
            let opaque = "(() => { const c = document.querySelector('#mask-canvas'); \
                const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
                return d.filter((v, i) => i % 4 === 3 && v > 127).length })()";
            tab.find("#mask-canvas").await;
            tab.until("document.querySelector('#mask-canvas').clientWidth > 100").await;
            stroke(&tab, "#mask-canvas").await;
            let painted = tab.eval(opaque).await.as_u64().unwrap();
            assert!((100..6000).contains(&painted), "{painted} pixels");
            tab.click("#mask-invert").await;
            let rest = tab.eval(opaque).await.as_u64().unwrap();
            // Pixels at the edge of a stroke are neither.
            assert!((128 * 96 - painted).abs_diff(rest) < 200, "{painted} and {rest}");
            tab.click("#mask-clear").await;
            assert_eq!(tab.eval(opaque).await, 0);
            tab.click("#mask-undo").await;
            tab.click("#mask-undo").await;
            // It is drawn again in one piece.
            let undone = tab.eval(opaque).await.as_u64().unwrap();
            assert!(undone.abs_diff(painted) < 100, "{painted} and {undone}");
            tab.click("#mask-erase").await;
            stroke(&tab, "#mask-canvas").await;
            assert!(tab.eval(opaque).await.as_u64().unwrap() < painted / 2);
            // From the keyboard: the brush is where the mouse left it.
            tab.click("#mask-paint").await;
            let keys = format!("{} ", char::from(Key::Left).to_string().repeat(12));
            tab.find("#mask-canvas").await.send_keys(&keys).await.unwrap();
            assert!(tab.eval(opaque).await.as_u64().unwrap() > 30);
            tab.photograph(&format!("page-mask-{width}.png")).await;
            tab.click("#mask-done").await;
            tab.until("document.querySelector('.veil')").await;
            tab.fill("#steps", "2").await;
            tab.fill("#mask-blur", "1").await;
            tab.until("document.querySelector('.cost').innerText.includes('128 × 96')").await;
            tab.photograph(&format!("page-part-{width}.png")).await;
            tab.draw().await;
            tab.thumbs(1).await;
            let job = jobs(&server).remove(0);
            let id = job["id"].as_str().unwrap();
            let mask = data.join("inputs").join(format!("{id}-mask"));
            let (photo, seed) = (pictures.path("photo"), job["seed_text"].as_str().unwrap());
            let drawn = drawn_by_command(
                folder.path(),
                &[
                    "a fox, 3D style, on a blue background",
                    "--steps",
                    "2",
                    "--seed",
                    seed,
                    "-i",
                    &photo,
                    "--strength",
                    "0.75",
                    "--mask-blur",
                    "1",
                    "--mask",
                    mask.to_str().unwrap(),
                ],
            );
            assert!(server.image(id) == drawn);
            // Another visit draws it again, without the image or the mask being given again.
            assert!(tab.draw_again(&server).await == drawn);
            tab.click("#copy").await;
            tab.until("document.querySelectorAll('#copy-dialog textarea').length === 3").await;
            let text = tab.eval("document.querySelector('#copy-dialog textarea').value").await;
            let text = text.as_str().unwrap();
            assert!(text.contains("--init-img input.png --mask mask.png --mask-blur 1"), "{text}");
            tab.client.close().await.unwrap();
        }
    });
}

#[test]
fn margins_and_transparent_pixels_are_painted() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let pictures = masks::Pictures::new(128, 96);
        let server = Server::start(&folder.path().join("data"), &[]);
        let tab = Tab::open(&driver, &server, 1280, true).await;
        tab.fill("#steps", "2").await;
        start_from(&tab, &pictures.path("photo")).await;
        tab.click(".part > summary").await;
        tab.fill("#add-left", "32").await;
        // Nothing of the margins is there to start from.
        tab.until("document.querySelector('#strength').value === '1'").await;
        tab.until("document.querySelector('.cost').innerText.includes('160 × 96')").await;
        tab.photograph("page-margins.png").await;
        tab.draw().await;
        tab.thumbs(1).await;
        let job = jobs(&server).remove(0);
        assert_eq!(job["request"]["outpaint"], "32,0,0,0");
        assert_eq!(
            (&job["outputs"][0]["width"], &job["request"]["strength"]),
            (&json!(160), &json!(1.0))
        );
        tab.fill("#add-left", "").await;
        tab.until("document.querySelector('.shapes')").await;
        start_from(&tab, &pictures.path("clear")).await;
        tab.until("document.querySelector('.veil')").await;
        tab.draw().await;
        tab.thumbs(2).await;
        let found = image::load_from_memory(&newest(&server)).unwrap().to_rgb8();
        let clear = image::open(pictures.path("clear")).unwrap().to_rgba8();
        for (x, y, pixel) in clear.enumerate_pixels().filter(|(.., pixel)| pixel.0[3] == 255) {
            assert_eq!(pixel.0[..3], found.get_pixel(x, y).0, "{x}, {y}");
        }
        tab.client.close().await.unwrap();
    });
}

#[test]
fn a_control_image_is_sent_to_the_model_that_needs_one() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let pictures = masks::Pictures::new(96, 64);
        let path = folder.path().join("flux1-canny-dev.safetensors");
        conditions::small_flux1(&path, 128);
        let model = path.to_str().unwrap();
        let server = Server::start(&folder.path().join("data"), &["--model", model]);
        let tab = Tab::open(&driver, &server, 1280, false).await;
        tab.until("document.querySelector('.cost.bad')?.innerText.includes('control image')").await;
        tab.find("#control-file").await.send_keys(&pictures.path("photo")).await.unwrap();
        tab.find(".refs img").await;
        tab.fill("#steps", "2").await;
        tab.other_shape().await;
        tab.fill("#width", "96").await;
        tab.fill("#height", "64").await;
        tab.until("document.querySelector('.cost').innerText.includes('96 × 64')").await;
        tab.photograph("page-control.png").await;
        tab.fill("#prompt", "a fox in the snow").await;
        tab.draw().await;
        tab.thumbs(1).await;
        let job = jobs(&server).remove(0);
        let (seed, photo) = (job["seed_text"].as_str().unwrap(), pictures.path("photo"));
        let options = ["a fox in the snow", "--steps", "2", "--size", "96x64", "--seed", seed];
        let drawn = drawn_by_command(
            folder.path(),
            &[&options[..], &["--control", &photo, "--model", model]].concat(),
        );
        assert!(newest(&server) == drawn);
        tab.client.close().await.unwrap();
    });
}
