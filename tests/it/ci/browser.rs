//! The report of a session in a real browser: its layout at 500 pixels, in dark mode and on paper,
//! and that a hostile label stays text. Left out where Chromium is not installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::nix::PrivateNix;

/// A label that is markup, a script, and has a mark that turns the direction of writing.
const LABEL: &str = "<script>top.hacked=1</script><img src=x onerror=top.hacked=1>\u{202e}\"'&<b>bold";

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut all = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    let found = all.find(|program| program.is_file());
    if found.is_none() {
        eprintln!("skipped: Chromium is not installed");
    }
    found
}

struct Browser {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Browser {
    fn run(&self, arguments: &[&str], page: &Path) -> String {
        let mut command = Command::new(&self.program);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.arg(format!("--user-data-dir={}", self.dir.path().join("profile").display()));
        command.env("HOME", self.dir.path()).args(arguments).arg(format!("file://{}", page.display()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Measures a page in a frame of this width: a script beside the frame looks into it.
    fn measure(&self, page: &str, width: u32, arguments: &[&str]) -> Value {
        let quoted = page.replace('&', "&amp;").replace('"', "&quot;");
        let outer = format!(
            r#"<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:900px" srcdoc="{quoted}"></iframe><pre id="out"></pre>
<script>frame.onload = () => {{
  const page = frame.contentDocument, style = (element) => frame.contentWindow.getComputedStyle(element);
  const wide = [...page.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > {width} + 1);
  out.textContent = JSON.stringify({{
    scroll: page.documentElement.scrollWidth, room: page.documentElement.clientWidth, wide: wide.map((e) => e.outerHTML.slice(0, 200)),
    title: page.querySelector("h1").textContent, scripts: page.scripts.length, images: page.images.length,
    bold: page.querySelectorAll("h1 *").length, hacked: window.hacked === 1, color: style(page.body).color,
    rows: page.querySelectorAll("tbody tr").length,
  }});
}}</script>"#
        );
        let file = self.dir.path().join("outer.html");
        std::fs::write(&file, outer).unwrap();
        let dom = self.run(&[&["--virtual-time-budget=5000", "--dump-dom"], arguments].concat(), &file);
        let text = dom.rsplit_once("<pre id=\"out\">").unwrap().1.split("</pre>").next().unwrap();
        let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

#[test]
fn the_report_fits_a_narrow_screen_a_dark_one_and_paper() {
    let Some(program) = chromium() else { return };
    let browser = Browser { program, dir: tempfile::tempdir().unwrap() };
    let daemon = Daemon::embedded();
    let session = daemon.session(&["--label", LABEL]);
    for n in 0..6 {
        daemon
            .nix
            .build(&PrivateNix::shell(&format!("{}-{n}", "very-long-name".repeat(12)), "echo $name > $out"));
    }
    let report = browser.dir.path().join("report.html");
    daemon.end(&session, &["--report", report.to_str().unwrap()]);
    let page = std::fs::read_to_string(&report).unwrap();

    let narrow = browser.measure(&page, 500, &[]);
    // Nothing is wider than the room beside the scroll bar.
    assert_eq!((&narrow["scroll"], &narrow["wide"]), (&narrow["room"], &serde_json::json!([])), "{narrow}");
    assert!(narrow["rows"].as_u64() >= Some(6), "{narrow}");
    let wide = browser.measure(&page, 1200, &[]);
    assert_eq!((&wide["scroll"], &wide["wide"]), (&wide["room"], &serde_json::json!([])), "{wide}");
    // The label is text.
    for (key, expected) in [("scripts", 0), ("images", 0), ("bold", 0)] {
        assert_eq!(narrow[key], expected, "{key}: {narrow}");
    }
    assert_eq!(narrow["hacked"], false, "{narrow}");
    let title = narrow["title"].as_str().unwrap();
    assert!(title.starts_with("<script>top.hacked=1</script><img") && !title.contains('\u{202e}'), "{title}");
    // In dark mode the text is light.
    let dark = browser.measure(&page, 500, &["--blink-settings=preferredColorScheme=0"]);
    assert_eq!((&narrow["color"], &dark["color"]), (&"rgb(0, 0, 0)".into(), &"rgb(255, 255, 255)".into()));
    // On paper.
    let paper = browser.dir.path().join("report.pdf");
    browser.run(&["--no-pdf-header-footer", &format!("--print-to-pdf={}", paper.display())], &report);
    let paper = std::fs::read(paper).unwrap();
    assert!(paper.starts_with(b"%PDF-") && paper.len() > 5000, "{} bytes", paper.len());
}
