//! A plot as an SVG file: lines over a horizontal axis. Does not know what was measured.

use std::fmt::Write as _;
use std::path::PathBuf;

/// One line: its name and its points.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// A value that has no place on the horizontal axis: a dashed line at its height.
    pub level: Option<(String, f64)>,
}

/// The texts of a plot.
pub struct Texts<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

const SIZE: (f64, f64) = (720.0, 420.0);
/// Left, top, right and bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 44.0, 170.0, 52.0);
/// Distinct for most people who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Writes `NAME.svg` into the directory that `FLYWHEEL_PLOTS` names, or into `target/plots`, and says
/// where on stderr. `doubling`: each step of the horizontal axis doubles the value.
pub fn plot(name: &str, texts: &Texts, doubling: bool, lines: &[Line]) {
    let dir = std::env::var_os("FLYWHEEL_PLOTS").map_or_else(|| PathBuf::from("target/plots"), PathBuf::from);
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join(format!("{name}.svg"));
    std::fs::write(&file, svg(texts, doubling, lines)).unwrap();
    eprintln!("a plot is in {}", file.display());
}

fn svg(texts: &Texts, doubling: bool, lines: &[Line]) -> String {
    let scale = |x: f64| if doubling { x.log2() } else { x };
    let xs: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x)).collect();
    let levels = lines.iter().filter_map(|line| line.level.as_ref().map(|(_, y)| *y));
    let top =
        lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)).chain(levels).fold(0.0, f64::max);
    let (left, right) = xs.iter().fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
    let step = tidy(top / 5.0);
    let top = (top / step).ceil() * step;
    let (width, height) = (SIZE.0 - MARGIN.0 - MARGIN.2, SIZE.1 - MARGIN.1 - MARGIN.3);
    let at_x = |x: f64| MARGIN.0 + (scale(x) - scale(left)) / (scale(right) - scale(left)).max(1e-9) * width;
    let at_y = |y: f64| MARGIN.1 + (1.0 - y / top) * height;
    let end = MARGIN.0 + width;

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        SIZE.0, SIZE.1
    );
    let text = |x: f64, y: f64, anchor: &str, more: &str, words: &str| {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{words}</text>\n")
    };
    out += &text(MARGIN.0, 24.0, "start", "font-size=\"15\"", texts.title);
    out += &text(MARGIN.0 + width / 2.0, SIZE.1 - 12.0, "middle", "", texts.x);
    let turned = format!("transform=\"rotate(-90 16 {:.1})\"", MARGIN.1 + height / 2.0);
    out += &text(16.0, MARGIN.1 + height / 2.0, "middle", &turned, texts.y);
    for n in 0..=(top / step).round() as u32 {
        let value = f64::from(n) * step;
        let y = at_y(value);
        let _ = writeln!(out, "<path d=\"M{:.1} {y:.1}H{end:.1}\" stroke=\"#dddddd\"/>", MARGIN.0);
        out += &text(MARGIN.0 - 8.0, y + 4.0, "end", "", &number(value));
    }
    let mut ticks = xs;
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for x in ticks {
        out += &text(at_x(x), MARGIN.1 + height + 18.0, "middle", "", &number(x));
    }
    for (n, line) in lines.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for point in &points {
            let (x, y) = point.split_once(',').unwrap();
            let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let mut row = MARGIN.1 + 14.0 + 40.0 * n as f64;
        let fill = format!("fill=\"{colour}\"");
        out += &text(end + 14.0, row, "start", &fill, &line.name);
        if let Some((name, y)) = &line.level {
            let _ = writeln!(
                out,
                "<path d=\"M{:.1} {:.1}H{end:.1}\" stroke=\"{colour}\" stroke-dasharray=\"5 4\"/>",
                MARGIN.0,
                at_y(*y)
            );
            row += 16.0;
            out += &text(end + 14.0, row, "start", &fill, &format!("- - {name}"));
        }
    }
    out + "</svg>\n"
}

/// The next larger of 1, 2, 5, 10, 20, …
fn tidy(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|n| *n >= step).unwrap_or(step)
}

fn number(value: f64) -> String {
    if value >= 10_000.0 && value % 1_000.0 == 0.0 {
        format!("{},000", value / 1_000.0)
    } else {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}
