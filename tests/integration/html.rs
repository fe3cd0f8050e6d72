//! `report.html` in a browser: three widths, light and dark, hostile names, print; and what its text must hold.
//!
//! One headless Chromium looks at every page and width in frames of a page of its own, once for each scheme.

use bench_core::SCHEMA_VERSION;
use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_report::{ReportInputs, ReportPaths, RunInput, rebuild};
use serde_json::Value;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const HOSTILE: [&str; 5] = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror=\"window.pwned = 2\">'\"&amp;{{ 7 * 7 }}",
    "\u{202e}evil\u{2066} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{644}\u{63a}\u{629}",
    "a-very-long-name-without-any-place-to-break-it-that-goes-on-for-much-longer-than-a-phone-is-wide-4bit-gguf",
    "line\nbreak\u{2028}and\u{0}null `$(id)`",
];

fn row(run: &str, model: &str, prompt: u32, (metric, scope, stat): (Metric, &str, &str), value: f64) -> Row {
    let def = metric.def();
    Row {
        run_id: run.into(),
        target: "engine".into(),
        model: model.into(),
        prompt_tokens: prompt,
        output_tokens: 64,
        batch: 1,
        load: "batch".into(),
        concurrency: None,
        request_rate: None,
        metric: def.key,
        scope: scope.into(),
        unit: def.unit,
        stat: stat.into(),
        value: Some(value),
        ci_low: Some(value * 0.95),
        ci_high: Some(value * 1.07),
        instrument_error: None,
        ci_method: Some("order_statistic"),
        n: 30,
        missing: 0,
        missing_reason: String::new(),
        bounded: Some(true),
        success_rate: Some(1.0),
        token_source: "token_ids",
        verdict: "VALID",
        verdict_reason: String::new(),
        client_verdict: String::new(),
        schema_version: SCHEMA_VERSION,
    }
}

/// Every view has figures; values differ from cell to cell in no order.
fn cell(run: &str, model: &str, prompt: u32) -> Vec<Row> {
    let shift = 1.0 + f64::from(prompt % 97) / 50.0 + model.len() as f64 / 40.0;
    [
        ((Metric::Ttft, "", "p50"), 46.1),
        ((Metric::Ttft, "", "p95"), 61.7),
        ((Metric::Tpot, "", "mean"), 25.02),
        ((Metric::Itl, "", "p99"), 31.0),
        ((Metric::DecodeRate, "", "p50"), 39.9),
        ((Metric::E2el, "", "p50"), 1611.0),
        ((Metric::SystemTokenRate, "", "value"), 36.0),
        ((Metric::KvRetained, "", "p50"), 3.0e6),
        ((Metric::KvTheory, "", "value"), 2.9e6),
        ((Metric::PeakBytes, "process", "max"), 5.0e9),
        ((Metric::JoulesPerToken, "gpu_board", "mean"), 2.5),
        ((Metric::JoulesPerToken, "cpu_package", "mean"), 0.5),
        ((Metric::AvgPower, "gpu_board", "mean"), 300.0),
        ((Metric::ActiveParameters, "", "value"), 3.6e9),
        ((Metric::ApeDecode, "", "value"), 11.0),
        ((Metric::RooflineLimit, "", "value"), 80.0),
        ((Metric::RooflineRatio, "", "value"), 0.5),
    ]
    .into_iter()
    .map(|(what, value)| row(run, model, prompt, what, value * shift))
    .collect()
}

fn run(study: &str, stamp: &str, models: &[&str]) -> RunInput {
    let run_id = format!("{}-{stamp}-0123abcd", if study.is_ascii() { study } else { "x" });
    let cells = models.iter().flat_map(|m| [128, 512, 2048].map(|prompt| cell(&run_id, m, prompt)));
    RunInput {
        rows: cells.flatten().collect(),
        run_id,
        study_name: study.into(),
        machine: "Example CPU, 2 cores, 8 GiB".into(),
        plan_hash: "0123abcd".into(),
        ..RunInput::default()
    }
}

/// Two studies, one with names that attack the page and half of its cells INVALID.
fn hostile() -> ReportInputs {
    let mut bad = run("<b>study</b> \u{5e9} & \"co\"", "20260102T030405Z", &HOSTILE);
    for row in bad.rows.iter_mut().filter(|r| r.prompt_tokens > 128) {
        row.verdict = "INVALID";
        row.verdict_reason = format!("output length 60.0 instead of 64 {}", HOSTILE[1]);
        row.client_verdict = "client_bound: <i>stall</i>".into();
    }
    bad.notes = vec![HOSTILE[0].into()];
    let many: Vec<String> = (0..24).map(|i| format!("org/model-{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    ReportInputs {
        runs: vec![bad, run("many", "20260102T030405Z", &many), run("many", "20250102T030405Z", &["old"])],
        left_out: vec![format!("older-run: schema_version 1, this is {SCHEMA_VERSION} {}", HOSTILE[0])],
    }
}

fn page_of(inputs: &ReportInputs, folder: &Path) -> String {
    let files = rebuild(inputs, &ReportPaths::under(folder)).unwrap();
    fs::read_to_string(files.page.unwrap()).unwrap()
}

/// The results of a mock study that was really run, and what the command printed.
fn mock_run(folder: &Path) -> (PathBuf, String) {
    fs::create_dir_all(folder).unwrap();
    let study = folder.join("mock.toml");
    let toml = "[run]\nname = \"mock\"\nrepeats = 20\n[target]\nkind = \"mock\"\n[[models]]\nid = \"a\"\n[[models]]\n\
                id = \"b\"\n[workload]\nprompt_tokens = [16, 64]\noutput_tokens = [8]\n";
    fs::write(&study, toml).unwrap();
    let path = |name: &str| folder.join(name).into_os_string();
    let mut args: Vec<OsString> = vec!["ossbench".into(), "run".into(), study.into_os_string()];
    for (flag, name) in [("--results", "results"), ("--figs", "figs"), ("--tables", "tables")] {
        args.extend([flag.into(), path(name)]);
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bench_cli::run(args, &mut out, &mut err);
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&err));
    (folder.join("results"), String::from_utf8(out).unwrap())
}

#[test]
fn hostile_names_are_text_and_what_was_left_out_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let page = page_of(&hostile(), folder.path());
    assert_eq!(page.matches("<script").count(), 1, "only the page's own");
    for live in ["<img src=x", "<b>study", "<i>stall", "\u{202e}", "\u{2028}", "\u{0}"] {
        assert!(!page.contains(live), "{live:?} came through");
    }
    assert!(page.contains("{{ 7 * 7 }}"), "a template in a name is text");
    let says = [
        "older-run",
        "1 earlier run of this study",
        "in 10 of 15 cells",
        "client_bound",
        "n = 30",
        "5 of 15 cells",
    ];
    for said in says {
        assert!(page.contains(said), "{said:?} is not said");
    }
    assert!(!page.contains("No energy source"), "there is one");
    assert_eq!(page, page_of(&hostile(), folder.path()), "the same bytes");
}

#[test]
fn every_link_of_a_run_leads_to_a_file_and_its_page_is_named_last() {
    let folder = tempfile::tempdir().unwrap();
    let (results, out) = mock_run(folder.path());
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("page") && last.ends_with("report.html"), "{out}");
    let page = fs::read_to_string(results.join("report.html")).unwrap();
    let links: Vec<&str> =
        page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let to_raw = links.iter().filter(|l| l.contains("round-00")).count();
    assert!(to_raw >= 8, "two rounds of four cells, {links:?}");
    for link in links.iter().filter(|l| !l.starts_with('#')) {
        assert!(!link.contains(':'), "{link} leaves the folder");
        assert!(results.join(link).exists(), "{link} leads nowhere");
    }
    for said in
        ["Two models", "4 cells", "All 4 cells are VALID", "No model ran", "seed 42", "did not ask for it"]
    {
        assert!(page.contains(said), "{said:?} is not said");
    }
}

#[test]
fn ten_thousand_cells_make_a_page_that_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let models: Vec<String> = (0..3400).map(|i| format!("m{i}")).collect();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let mut large = run("large", "20260102T030405Z", &models);
    // Metrics without a figure: drawing is not what is tested.
    large.rows.retain(|r| matches!(r.metric, "e2el_ms" | "itl_ms"));
    let page = page_of(&ReportInputs { runs: vec![large], ..ReportInputs::default() }, folder.path());
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    assert!(page.contains("The first 500 of 10200 rows") && page.contains("wide_latency.csv"));
}

/// The browser: named, or found; `None` where there is none.
fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("OSSBENCH_CHROMIUM").filter(|v| !v.is_empty()) {
        return Some(named.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium-headless-shell", "chromium", "google-chrome"];
    names.iter().find_map(|name| std::env::split_paths(&folders).map(|f| f.join(name)).find(|p| p.is_file()))
}

/// What the browser printed on standard output; its own messages must not hold one of the page.
fn browse(browser: &Path, profile: &Path, flags: &[String], page: &Path) -> String {
    let always = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"];
    let (out, err) = (profile.with_extension("out"), profile.with_extension("err"));
    let mut child = Command::new(browser)
        .args(always)
        .args(["--enable-logging=stderr", "--force-device-scale-factor=1"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(flags)
        .arg(format!("file://{}", page.display()))
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let mut waited = 0;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if waited < 1200 => std::thread::sleep(Duration::from_millis(50)),
            None => {
                child.kill().unwrap();
                panic!(
                    "{} did not end within a minute: {}",
                    browser.display(),
                    fs::read_to_string(err).unwrap()
                );
            }
        }
        waited += 1;
    };
    let (out, err) = (fs::read(out).unwrap(), fs::read(err).unwrap());
    let messages = String::from_utf8_lossy(&err).into_owned();
    assert!(status.success(), "{status}: {messages}");
    let of_page: Vec<&str> = messages.lines().filter(|l| l.contains("CONSOLE")).collect();
    assert!(of_page.is_empty(), "the page says on the console: {of_page:?}");
    String::from_utf8_lossy(&out).into_owned()
}

/// A copy of the page that checks itself, in a frame `width` wide.
fn checked_copy(page: &str, name: &str, width: u32) -> String {
    let head = "<script>window.errorsOfPage = [];\
        addEventListener('error', (e) => errorsOfPage.push(String(e.message)), true);\
        addEventListener('securitypolicyviolation', (e) => errorsOfPage.push(e.violatedDirective + ' ' + e.blockedURI));\
        for (const k of ['error', 'warn']) console[k] = (...a) => errorsOfPage.push(a.join(' '));</script>";
    let open = format!("<html lang=\"en\" data-check=\"{name}\" data-width=\"{width}\">");
    let end = format!("<script>{}</script>\n</body>", include_str!("html_check.js"));
    let copy = page.replacen("<html lang=\"en\">", &open, 1).replacen("<head>", &format!("<head>{head}"), 1);
    let (before, after) = copy.rsplit_once("</body>").unwrap();
    format!("{before}{end}{after}")
}

const WIDTHS: [u32; 3] = [1280, 768, 360];

/// A page with every page in a frame of every width, which gathers what they find.
fn frames(folder: &Path, pages: &[(&str, &str)]) -> PathBuf {
    let mut html = String::from(
        "<!doctype html><meta name=\"color-scheme\" content=\"light dark\"><pre id=\"found\"></pre><script>\
         const found = []; onmessage = (e) => { found.push(e.data); \
         document.getElementById('found').textContent = encodeURIComponent(JSON.stringify(found)); };</script>\n",
    );
    for (name, page) in pages {
        for width in WIDTHS {
            let file = format!("{name}-{width}.html");
            fs::write(folder.join(&file), checked_copy(page, &format!("{name} {width}"), width)).unwrap();
            let style = format!("width:{width}px;height:900px;border:0");
            writeln!(html, "<iframe src=\"{file}\" style=\"{style}\"></iframe>").unwrap();
        }
    }
    let path = folder.join("frames.html");
    fs::write(&path, html).unwrap();
    path
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn found_in(dom: &str) -> Vec<Value> {
    let encoded = dom.split("<pre id=\"found\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    serde_json::from_str(&percent_decoded(encoded.unwrap_or_else(|| panic!("no result in {dom}")))).unwrap()
}

/// Nothing is wrong with one page at one width.
fn judge(found: &Value, dark: bool) {
    let name = &found["name"];
    assert_eq!(found["dark"], dark, "{name}: the scheme that was asked for");
    for none in ["problems", "errors", "requests"] {
        assert_eq!(found[none], serde_json::json!([]), "{name}, dark {dark}: {none}");
    }
    assert_eq!(found["injected"], false, "{name}: a name ran as a script");
    let least = found["contrast"]["least"].as_f64().unwrap();
    assert!(least >= 4.5, "{name}, dark {dark}: contrast {least:.2} of {}", found["contrast"]["of"]);
    assert!(found["texts"].as_u64().unwrap() > 50, "{name}: {}", found["texts"]);
    let marks = found["marks"].as_array().unwrap();
    assert!(marks.len() >= 2 && marks.iter().all(|m| m.as_u64() > Some(0)), "{name}: marks {marks:?}");
    assert!(found["hits"].as_u64() > Some(0), "{name}: no value to point at");
    assert!(found["sorted"].as_u64() >= Some(4), "{name}: {} columns sorted", found["sorted"]);
    let tips = found["tips"].as_array().unwrap();
    let says = |word: &str| tips.iter().any(|t| t.as_str().unwrap().contains(word));
    assert!(tips.len() >= 3 && says("n = ") && says("95 % interval") && says("(ms)"), "{name}: {tips:?}");
}

/// Different colours of a picture, as the browser itself reads it; and whether it is dark.
fn look_at(browser: &Path, folder: &Path, pictures: &[PathBuf]) -> Vec<(u64, f64)> {
    let html = "<!doctype html><pre id=\"found\"></pre><script>const found = []; const seen = (image) => {\
        const c = document.createElement('canvas'); c.width = image.width; c.height = image.height;\
        const g = c.getContext('2d'); g.drawImage(image, 0, 0); const colors = new Set(); let sum = 0;\
        const d = g.getImageData(0, 0, c.width, c.height).data;\
        for (let i = 0; i < d.length; i += 4) { colors.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); sum += d[i + 1]; }\
        found.push([colors.size, sum / (d.length / 4)]); };\n\
        addEventListener('load', () => { for (const i of document.images) seen(i);\
        document.getElementById('found').textContent = encodeURIComponent(JSON.stringify(found)); });</script>\n";
    let mut html = html.to_owned();
    for picture in pictures {
        let bytes = base64(&fs::read(picture).unwrap());
        writeln!(html, "<img src=\"data:image/png;base64,{bytes}\">").unwrap();
    }
    let page = folder.join("look.html");
    fs::write(&page, html).unwrap();
    let dom = browse(browser, &folder.join("look"), &["--dump-dom".into()], &page);
    found_in(&dom).iter().map(|f| (f[0].as_u64().unwrap(), f[1].as_f64().unwrap())).collect()
}

fn base64(bytes: &[u8]) -> String {
    let digit =
        |bits: u32| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[bits as usize & 63];
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(*chunk.get(i).unwrap_or(&0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            text.push(if i <= chunk.len() { char::from(digit(bits >> (18 - 6 * i))) } else { '=' });
        }
    }
    text
}

#[test]
fn a_browser_finds_nothing_wrong() {
    let Some(browser) = chromium() else {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "no Chromium in CI: install chromium-headless-shell, or name one in OSSBENCH_CHROMIUM"
        );
        println!(
            "skipped: no Chromium; install one (`apt-get install chromium-headless-shell`), or name it in \
             OSSBENCH_CHROMIUM"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let hostile = page_of(&hostile(), folder.path());
    let (results, _) = mock_run(&at("mock"));
    let mock = fs::read_to_string(results.join("report.html")).unwrap();
    let frames = frames(folder.path(), &[("hostile", &hostile), ("mock", &mock)]);
    let report = folder.path().join("results/report.html");
    let mut shots = Vec::new();
    for (scheme, dark) in [("preferredColorScheme=0", true), ("preferredColorScheme=1", false)] {
        let profile = at(scheme);
        let flags = |more: &[&str]| -> Vec<String> {
            let scheme = format!("--blink-settings={scheme}");
            std::iter::once(scheme).chain(more.iter().map(ToString::to_string)).collect()
        };
        let dump = flags(&["--dump-dom", "--window-size=1400,1000", "--virtual-time-budget=20000"]);
        let found = found_in(&browse(&browser, &profile, &dump, &frames));
        assert_eq!(found.len(), 2 * WIDTHS.len(), "a frame did not answer: {found:?}");
        for one in &found {
            judge(one, dark);
        }
        let shot = at(&format!("{dark}.png"));
        let to = format!("--screenshot={}", shot.display());
        browse(&browser, &profile, &flags(&[&to, "--window-size=1280,2000"]), &report);
        shots.push(shot);
    }
    let looks = look_at(&browser, folder.path(), &shots);
    println!("colours and mean green of the screenshots, dark and light: {looks:?}");
    assert!(looks.len() == 2 && looks.iter().all(|l| l.0 > 50), "a blank page: {looks:?}");
    assert!(looks[0].1 < 80.0 && looks[1].1 > 180.0, "dark is dark and light is light: {looks:?}");
    let pdf = at("report.pdf");
    let to = format!("--print-to-pdf={}", pdf.display());
    browse(&browser, &at("print"), &[to, "--no-pdf-header-footer".into()], &report);
    let pdf = fs::read(pdf).unwrap();
    let count = |what: &[u8]| pdf.windows(what.len()).filter(|w| *w == what).count();
    let pages = count(b"/Type /Page") - count(b"/Type /Pages");
    assert!(pdf.starts_with(b"%PDF") && pages >= 2, "{pages} pages in {} bytes", pdf.len());
}
