//! The page, in a real browser. Without `chromedriver` and Chromium these tests are skipped and say
//! so, unless `FLUX_FAST_TEST_BROWSER` is set.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use super::{PATIENCE, Server, wait_for};

/// A driver of a browser. Both are killed when it goes out of scope.
pub struct Driver {
    child: Child,
    url: String,
}

impl Driver {
    fn start() -> Option<Driver> {
        let child = Command::new("chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) => {
                let must = std::env::var_os("FLUX_FAST_TEST_BROWSER").is_some();
                assert!(!must, "chromedriver cannot be started: {e}");
                eprintln!("SKIPPED: chromedriver cannot be started: {e}");
                return None;
            }
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        std::thread::spawn(move || lines.for_each(drop));
        let url = format!("http://127.0.0.1:{}", port.expect("the port of chromedriver"));
        Some(Driver { child, url })
    }

    /// A browser with a window of this width.
    async fn browser(&self, width: u32, dark: bool) -> Client {
        let mut options = json!({"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            format!("--window-size={width},900"),
        ]});
        if dark {
            options["args"].as_array_mut().unwrap().push(json!("--force-dark-mode"));
        }
        if width < 500 {
            // Windows are not that narrow.
            options["mobileEmulation"] =
                json!({"deviceMetrics": {"width": width, "height": 844, "pixelRatio": 2}});
        }
        if Path::new("/usr/bin/chromium").exists() {
            options["binary"] = json!("/usr/bin/chromium");
        }
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let capabilities = json!({
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
        });
        builder.capabilities(capabilities.as_object().unwrap().clone());
        builder.connect(&self.url).await.unwrap()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        Command::new("kill").args(["-KILL", "--", &group]).status().ok();
        self.child.wait().ok();
    }
}

/// What a test does with the page.
pub struct Tab {
    pub client: Client,
}

impl Tab {
    pub async fn open(driver: &Driver, server: &Server, width: u32, dark: bool) -> Tab {
        let client = driver.browser(width, dark).await;
        client.goto(&format!("http://{}/", server.address)).await.unwrap();
        Tab { client }
    }

    pub async fn find(&self, css: &str) -> fantoccini::elements::Element {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await;
        found.unwrap_or_else(|e| panic!("{css}: {e}"))
    }

    pub async fn click(&self, css: &str) {
        let element = self.find(css).await;
        element.click().await.unwrap_or_else(|e| panic!("{css}: {e}"));
    }

    /// The value of an expression.
    pub async fn eval(&self, expression: &str) -> Value {
        self.client.execute(&format!("return {expression}"), Vec::new()).await.unwrap()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        let since = std::time::Instant::now();
        while self.eval(&format!("Boolean({expression})")).await != true {
            if since.elapsed() > PATIENCE {
                let page = self.eval("document.body.innerText").await;
                panic!("waited too long for {expression}; the page shows: {page}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Replaces the text of a field.
    pub async fn fill(&self, css: &str, text: &str) {
        // With keys, as a person does it. The page does not notice what the driver's own command
        // erases, and writes the value again if it renders before the first key.
        let all = format!("{}a{}", char::from(Key::Control), char::from(Key::Null));
        let field = self.find(css).await;
        let keys =
            if text.is_empty() { char::from(Key::Backspace).to_string() } else { text.into() };
        field.send_keys(&(all + &keys)).await.unwrap();
    }

    /// Shows the fields of width and height. A click with the mouse misses the button if the page
    /// moves it just then, when an image above it arrives.
    pub async fn other_shape(&self) {
        let button = "document.querySelector('.shapes .chip:last-child')";
        self.until(&format!("document.querySelector('#width') || ({button}.click(), false)")).await;
    }

    pub async fn draw(&self) {
        let keys = format!("{}{}", char::from(Key::Control), char::from(Key::Enter));
        self.find("#prompt").await.send_keys(&keys).await.unwrap();
    }

    pub async fn thumbs(&self, count: usize) {
        self.until(&format!("document.querySelectorAll('.thumb').length === {count}")).await;
    }

    /// Reloads the page, draws the newest image again without giving its input again, and returns
    /// the file. The history has one image before.
    pub async fn draw_again(&self, server: &Server) -> Vec<u8> {
        self.client.refresh().await.unwrap();
        self.thumbs(1).await;
        self.click("#again").await;
        self.thumbs(2).await;
        newest(server)
    }

    /// Saves a picture of the page where tests are asked for pictures.
    pub async fn photograph(&self, name: &str) {
        if let Some(folder) = std::env::var_os("FLUX_FAST_TEST_PICTURES") {
            let png = self.client.screenshot().await.unwrap();
            std::fs::write(Path::new(&folder).join(name), png).unwrap();
        }
    }
}

pub fn in_browser(test: impl AsyncFnOnce(Driver)) {
    let Some(driver) = Driver::start() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(driver));
}

pub fn jobs(server: &Server) -> Vec<Value> {
    server.get("/api/v2/jobs").json()["jobs"].as_array().unwrap().clone()
}

/// The image of the newest job.
pub fn newest(server: &Server) -> Vec<u8> {
    server.image(jobs(server)[0]["id"].as_str().unwrap())
}

#[test]
fn the_page_draws_and_its_history_survives_a_reload() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(&folder.path().join("data"), &[]);
        let tab = Tab::open(&driver, &server, 1280, false).await;
        // What the run will cost, before it starts.
        tab.until("document.querySelector('.cost').innerText.includes('of memory')").await;
        tab.photograph("page-first.png").await;
        // Untouched, it draws.
        tab.draw().await;
        tab.find(".shown img").await;
        tab.thumbs(1).await;
        let first = jobs(&server).remove(0);
        assert_eq!((&first["status"], jobs(&server).len()), (&json!("succeeded"), 1));
        // The policy of the page lets no script read the image, so its size must do.
        tab.until("document.querySelector('.shown img').naturalWidth === 128").await;

        tab.client.refresh().await.unwrap();
        tab.thumbs(1).await;
        tab.click("#other-seed").await;
        tab.thumbs(2).await;
        let [second, _] = jobs(&server).try_into().unwrap();
        assert_ne!(second["seed_text"], first["seed_text"]);
        tab.photograph("page-history.png").await;

        // The curl of the page draws the same image.
        tab.click("#copy").await;
        tab.until("document.querySelectorAll('#copy-dialog textarea').length === 3").await;
        let texts = "[...document.querySelectorAll('#copy-dialog textarea')].map((t) => t.value)";
        let texts: Vec<String> = serde_json::from_value(tab.eval(texts).await).unwrap();
        assert!(texts[0].starts_with("flux-fast 'a fox, 3D style"), "{}", texts[0]);
        let shell = Command::new("sh").arg("-ec").arg(&texts[2]).current_dir(&folder).output();
        let shell = shell.unwrap();
        assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
        let name = texts[2].rsplit_once("-o ").unwrap().1;
        let file = folder.path().join(name);
        assert!(std::fs::read(&file).unwrap() == server.image(second["id"].as_str().unwrap()));
        tab.click("#copy-dialog header button").await;

        // A file gives its settings back.
        tab.find("#file").await.send_keys(file.to_str().unwrap()).await.unwrap();
        tab.until("document.querySelector('#use-settings:enabled')").await;
        tab.photograph("page-settings.png").await;
        tab.click("#use-settings").await;
        // The page renders some time after a click.
        tab.until(&format!("document.querySelector('#seed').value === {}", second["seed_text"]))
            .await;
        // The same settings give the same image.
        tab.draw().await;
        tab.thumbs(3).await;
        let again = jobs(&server).remove(0);
        let image = |job: &Value| server.image(job["id"].as_str().unwrap());
        assert!(image(&again) == image(&second));
        tab.client.close().await.unwrap();
    });
}

#[test]
fn the_page_shows_progress_the_queue_and_refusals_and_cancels() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), &[]);
        let tab = Tab::open(&driver, &server, 1280, false).await;
        tab.fill("#steps", "1000").await;
        tab.fill("#count", "8").await;
        tab.draw().await;
        tab.until("/^Step \\d+ of 1000/.test(document.querySelector('.status')?.innerText)").await;
        tab.until("document.querySelector('.live img')?.naturalWidth > 0").await;
        // Another waits behind it, and both survive a reload.
        tab.draw().await;
        tab.until("document.querySelector('.queue .place')?.innerText.startsWith('Next')").await;
        tab.photograph("page-live.png").await;
        tab.client.refresh().await.unwrap();
        tab.until("document.querySelector('.queue .place')").await;
        tab.click(".queue button").await;
        tab.until("!document.querySelector('.queue')").await;
        tab.click("#cancel").await;
        tab.until("!document.querySelector('.live')").await;
        assert!(jobs(&server).iter().all(|job| job["status"] == "canceled"));
        assert_eq!(jobs(&server).len(), 2);

        // What cannot be drawn is said before it is sent.
        tab.fill("#steps", "0").await;
        tab.until("document.querySelector('.cost.bad')?.innerText.includes('Steps')").await;
        tab.draw().await;
        tab.until("document.querySelector('.failed b')?.innerText.includes('Steps')").await;
        tab.client.close().await.unwrap();
    });
}

#[test]
fn the_page_asks_for_a_key_and_fits_a_phone_in_the_dark() {
    in_browser(async |driver| {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), &["--key", "sesame"]);
        let tab = Tab::open(&driver, &server, 390, true).await;
        tab.fill("#key", "wrong").await;
        tab.click("#key-dialog button[type=submit]").await;
        tab.until("document.querySelector('#key-dialog')?.innerText.includes('not know')").await;
        tab.fill("#key", "sesame").await;
        tab.click("#key-dialog button[type=submit]").await;
        tab.until("document.querySelector('.cost').innerText.includes('of memory')").await;
        tab.click("#draw").await;
        tab.thumbs(1).await;
        tab.photograph("page-phone.png").await;
        // The window of a phone becomes as wide as the page.
        let width = "document.documentElement.scrollWidth";
        assert_eq!(tab.eval(width).await, 390, "the page is wider than the screen");
        let settings = "document.querySelector('.settings')";
        assert_eq!(tab.eval(&format!("{settings}.open")).await, false);
        // Colours can be chosen.
        let ground = "getComputedStyle(document.body).backgroundColor";
        tab.until("document.querySelector('#theme')").await;
        for (theme, color) in [("light", "rgb(247, 245, 242)"), ("dark", "rgb(20, 19, 18)")] {
            tab.click("#theme").await;
            tab.until(&format!("document.documentElement.dataset.theme === '{theme}'")).await;
            tab.until(&format!("{ground} === '{color}'")).await;
        }
        // The key is remembered.
        tab.client.refresh().await.unwrap();
        tab.until("document.querySelector('.cost').innerText.includes('of memory')").await;
        tab.client.close().await.unwrap();
    });
}

#[test]
fn browsers_get_the_page_with_its_policy_and_programs_get_facts() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--key", "sesame"]);
    let html = [("Accept", "text/html,*/*;q=0.8")];
    let page = server.request("GET", "/", &html, b"");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self' 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let tag = page.header("etag").unwrap();
    let again = [html[0], ("If-None-Match", tag)];
    let again = server.request("GET", "/", &again, b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(server.get("/page/app.js").status, 200);
    assert_eq!(server.get("/page/../Cargo.toml").status, 404);
    // Everything else wants the key.
    assert_eq!(server.get("/").status, 401);
    assert_eq!(server.post("/api/v2/plan", &json!({})).status, 401);
    let key = [("Authorization", "Bearer sesame")];
    let facts = server.request("GET", "/", &key, b"").json();
    assert_eq!(facts["name"], "flux-fast");
    // The page of this server may send requests, that of another may not.
    let foreign = [html[0], ("Origin", "http://evil.example")];
    assert_eq!(server.request("GET", "/", &foreign, b"").status, 403);
}

#[test]
fn a_plan_says_what_a_request_costs_and_why_it_cannot_be_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let plan = server.post("/api/v2/plan", &json!({})).json();
    assert_eq!((&plan["width"], &plan["model"]), (&json!(128), &json!("flux-tiny")), "{plan}");
    let peak = |plan: &Value| plan["peak_bytes"].as_u64().unwrap();
    assert!(peak(&plan) > 1 << 20 && plan["seconds"].as_f64().unwrap() > 0.0, "{plan}");
    let of = |request: Value| server.post("/api/v2/plan", &json!({"request": request}));
    let large = of(json!({"prompt": "a fox", "size": "512x512", "steps": 3, "count": 2})).json();
    assert_eq!((&large["steps"], &large["count"]), (&json!(3), &json!(2)));
    assert!(peak(&large) > peak(&plan));
    // A strength stands for an image.
    let programs = |plan: &Value| plan["phases"].as_array().unwrap().len();
    assert!(programs(&of(json!({"strength": 0.5})).json()) > programs(&plan));
    for (request, status, parameter) in [
        (json!({"steps": 0}), 422, "steps"),
        (json!({"width": 100}), 422, "width"),
        (json!({"model": "none"}), 404, "model"),
        (json!({"loras": ["none"]}), 404, "loras"),
    ] {
        let answer = of(request);
        assert_eq!(
            (answer.status, &answer.json()["error"]["parameter"]),
            (status, &json!(parameter))
        );
    }
    // While a job runs, what is known is said at once, and the rest when the job is over.
    let id = server.submit(super::endless());
    server.wait(&id, &["running"]);
    assert_eq!(of(json!({"size": "512x512", "steps": 3, "count": 2})).json()["count"], 2);
    let unknown = of(json!({"steps": 77}));
    assert_eq!((unknown.status, unknown.header("retry-after")), (503, Some("2")));
    server.post(&format!("/api/v2/jobs/{id}/cancel"), &json!({}));
    let known = wait_for("the plan", || {
        let answer = of(json!({"steps": 77}));
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(known["steps"], 77);
    // A budget that is too small is refused with the one that is enough.
    let server = Server::start(&folder.path().join("small"), &["--ram", "400M"]);
    let answer = server.post("/api/v2/plan", &json!({"size": "2048x2048", "count": 8}));
    assert_eq!(answer.status, 507, "{}", answer.text());
}

#[test]
fn the_settings_of_an_image_are_read_without_drawing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let seed = u64::MAX.to_string();
    let id = server.submit(json!({"prompt": "a fox", "steps": 2, "seed": seed}));
    let image = server.image(&id);
    let found = server.request("POST", "/api/v2/settings", &[], &image).json();
    assert_eq!((&found["program"], &found["model"]), (&json!("flux-fast"), &json!("flux-tiny")));
    assert_eq!((&found["seed_text"], &found["settings"]["steps"]), (&json!(seed), &json!(2)));
    assert_eq!(found["settings"]["prompt"], "a fox");
    let plain = include_bytes!("../../../assets/readme.png");
    let none = server.request("POST", "/api/v2/settings", &[], plain);
    assert_eq!((none.status, &none.json()["error"]["code"]), (422, &json!("no_settings")));
    for bad in [&b""[..], b"not an image", &image[..100]] {
        let status = server.request("POST", "/api/v2/settings", &[], bad).status;
        assert!(status == 400 || status == 422, "{status}");
    }
}
