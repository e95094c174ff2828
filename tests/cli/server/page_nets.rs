//! ControlNets and style images on the page.

use fantoccini::key::Key;

use super::conditions::StyleServer;
use super::controlnets::Nets;
use super::page::{Tab, in_browser, jobs};

/// Ten steps of a slider down.
async fn lower(tab: &Tab, css: &str) {
    let keys = char::from(Key::Left).to_string().repeat(10);
    tab.find(css).await.send_keys(&keys).await.unwrap();
}

/// Draws at this size with two steps and seed 7 from now on.
async fn set_numbers(tab: &Tab, width: &str, height: &str) {
    // The page renders once more when it knows the server.
    tab.until("document.querySelector('.cost').innerText.includes('of memory')").await;
    let all = format!("{}a", char::from(Key::Control));
    tab.find("#prompt").await.send_keys(&all).await.unwrap();
    tab.find("#prompt").await.send_keys("a fox").await.unwrap();
    tab.fill("#steps", "2").await;
    tab.fill("#seed", "7").await;
    tab.other_shape().await;
    tab.fill("#width", width).await;
    tab.fill("#height", height).await;
}

#[test]
fn controlnets_are_picked_sent_and_kept() {
    in_browser(async |driver| {
        let nets = Nets::new();
        let server = nets.server(&[]);
        let photo = nets.pictures.path("photo");
        let net = format!("union.safetensors:{photo}:0.5:0-0.9,mode=depth");
        let drawn = nets.drawn(&[&net], &["--size", "96x64"]);
        for (width, dark) in [(390, true), (1280, false)] {
            let tab = Tab::open(&driver, &server, width, dark).await;
            if width < 500 {
                tab.click(".settings > summary").await;
            }
            set_numbers(&tab, "96", "64").await;
            let select = tab.find("#add-controlnet").await;
            select.select_by_label("union.safetensors").await.unwrap();
            // Neither its mode nor its image is known.
            tab.until("document.querySelector('.cost.bad')?.innerText.includes('canny')").await;
            let mode = tab.find("#net-mode-0").await;
            mode.select_by_label("depth").await.unwrap();
            tab.until("document.querySelector('.cost').innerText.includes('96 × 64')").await;
            tab.draw().await;
            tab.until("document.querySelector('.toast')?.innerText.includes('Open the image')")
                .await;
            tab.find("#net-file-0").await.send_keys(&photo).await.unwrap();
            tab.find(".net img").await;
            // Everything else from the keyboard.
            lower(&tab, "#net-strength-0").await;
            tab.until("document.querySelector('#net-strength-0').value === '0.5'").await;
            tab.fill("#net-until-0", "90").await;
            tab.eval("document.querySelector('.nets').scrollIntoView()").await;
            let overflow = "document.documentElement.scrollWidth > innerWidth";
            assert_eq!(tab.eval(overflow).await, false, "wider than the window");
            tab.photograph(&format!("page-controlnet-{width}.png")).await;
            tab.draw().await;
            tab.thumbs(1).await;
            let job = jobs(&server).remove(0);
            assert!(server.image(job["id"].as_str().unwrap()) == drawn, "{}", job["request"]);
            // Another visit draws it again, without the image being given again.
            assert!(tab.draw_again(&server).await == drawn, "again");
            tab.click("#load").await;
            tab.until("document.querySelector('#net-mode-0')?.value === 'depth'").await;
            tab.until("document.querySelector('#net-until-0').value === '90'").await;
            if width < 500 {
                tab.client.close().await.unwrap();
                continue;
            }
            tab.find(".net img").await;
            tab.click("#copy").await;
            tab.until("document.querySelectorAll('#copy-dialog textarea').length === 3").await;
            let texts =
                "[...document.querySelectorAll('#copy-dialog textarea')].map((t) => t.value)";
            let texts: Vec<String> = serde_json::from_value(tab.eval(texts).await).unwrap();
            let option = "--controlnet union.safetensors:controlnet-1.png:0.5:0-0.9,mode=depth";
            assert!(texts[1].contains(option), "{}", texts[1]);
            std::fs::copy(&photo, nets.path().join("controlnet-1.png")).unwrap();
            let mut shell = std::process::Command::new("sh");
            let shell = shell.arg("-ec").arg(&texts[2]).current_dir(nets.path()).output().unwrap();
            assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
            let name = texts[2].rsplit_once("-o ").unwrap().1;
            assert!(std::fs::read(nets.path().join(name)).unwrap() == drawn, "curl");
            tab.client.close().await.unwrap();
        }
    });
}

#[test]
fn style_images_are_added_sent_and_kept() {
    in_browser(async |driver| {
        let styled = StyleServer::start();
        let (server, photo) = (&styled.server, styled.pictures.path("photo"));
        let style = format!("{photo}:0.5");
        let options = ["a fox", "--steps", "2", "--seed", "7", "--size", "96x64", "--style"];
        let drawn = styled.drawn(&[&options[..], &[&style]].concat());
        let tab = Tab::open(&driver, server, 1280, true).await;
        set_numbers(&tab, "96", "64").await;
        tab.find("#add-style").await;
        tab.find("#style-file").await.send_keys(&photo).await.unwrap();
        tab.find(".style img").await;
        lower(&tab, "#style-strength-0").await;
        tab.until("document.querySelector('#style-strength-0').value === '0.5'").await;
        tab.until("document.querySelector('.cost').innerText.includes('96 × 64')").await;
        tab.eval("document.querySelector('.styles').scrollIntoView()").await;
        tab.photograph("page-style.png").await;
        tab.draw().await;
        tab.thumbs(1).await;
        let job = jobs(server).remove(0);
        assert!(server.image(job["id"].as_str().unwrap()) == drawn, "{}", job["request"]);
        assert!(tab.draw_again(server).await == drawn, "again");
        tab.client.close().await.unwrap();
    });
}
