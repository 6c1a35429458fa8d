//! Bar charts of ratios, one panel below the other, on a logarithmic axis: twice as much is as far up as half is down.

use std::fmt::Write;

use super::figures::short;

/// One panel.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) groups: Vec<Bars>,
}

/// A group of bars, one per subject.
pub(crate) struct Bars {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
}

/// Told apart also by those who see few colours.
const COLOURS: [&str; 4] = ["#0b5394", "#8a8a8a", "#e69138", "#a61c00"];
const PANEL: f64 = 170.0;
const TOP: f64 = 64.0;
const LEFT: f64 = 64.0;
const BAR: f64 = 26.0;
const GAP: f64 = 34.0;
/// Room for the title above and the names below the bars.
const MARGIN: f64 = 46.0;

/// The picture, as the text of an SVG file.
pub(crate) fn draw(heading: &str, subjects: &[&str], panels: &[Chart]) -> String {
    let most = panels.iter().map(|panel| panel.groups.len()).max().unwrap_or(0);
    let group = BAR * subjects.len() as f64 + GAP;
    let width = (LEFT + group * most as f64 + 20.0).max(560.0);
    let height = TOP + (PANEL + MARGIN) * panels.len() as f64;
    let mut out = String::new();
    let mut put = |text: &str| out.push_str(text);
    put(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    ));
    put(&format!("<text x=\"{LEFT}\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{heading}</text>\n"));
    for (number, subject) in subjects.iter().enumerate() {
        let x = LEFT + 130.0 * number as f64;
        put(&format!(
            "<rect x=\"{x}\" y=\"36\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            COLOURS[number % 4]
        ));
        put(&format!("<text x=\"{}\" y=\"46\">{subject}</text>\n", x + 17.0));
    }
    for (number, panel) in panels.iter().enumerate() {
        let top = TOP + (PANEL + MARGIN) * number as f64;
        put(&draw_panel(panel, top, width, group));
    }
    out.push_str("</svg>\n");
    out
}

fn draw_panel(panel: &Chart, top: f64, width: f64, group: f64) -> String {
    let values =
        || panel.groups.iter().flat_map(|bars| bars.values.iter().copied()).filter(|value| *value > 0.0);
    // Whole powers of two, so that the axis has readable marks.
    let low = values().map(f64::log2).fold(-1.0, f64::min).floor();
    let high = values().map(f64::log2).fold(1.0, f64::max).ceil();
    let step = ((high - low) / 6.0).ceil().max(1.0);
    // And one of the marks is at one.
    let low = (low / step).floor() * step;
    let (above, below) = (top + 26.0, top + PANEL);
    let y =
        |value: f64| below - (value.max(1e-9).log2().clamp(low, high) - low) / (high - low) * (below - above);
    let mut out =
        format!("<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>\n", top + 12.0, panel.title);
    let mut mark = low;
    while mark <= high {
        let (at, value) = (y(mark.exp2()), mark.exp2());
        let colour = if mark == 0.0 { "#333" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/>",
            width - 10.0
        );
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">×{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(value)
        );
        mark += step;
    }
    for (number, bars) in panel.groups.iter().enumerate() {
        let left = LEFT + group * number as f64 + GAP / 2.0;
        for (place, value) in bars.values.iter().enumerate() {
            out.push_str(&draw_bar(left + BAR * place as f64, y(1.0), y(*value), COLOURS[place % 4], *value));
        }
        let middle = left + (group - GAP) / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            below + 16.0,
            bars.name
        );
    }
    out
}

/// A bar from the height of one to that of its value, which is written beyond its end.
fn draw_bar(x: f64, one: f64, at: f64, colour: &str, value: f64) -> String {
    let (upper, tall) = (one.min(at), (one - at).abs().max(1.0));
    let label = if at <= one { at - 3.0 } else { at + 11.0 };
    format!(
        "<rect x=\"{:.1}\" y=\"{upper:.1}\" width=\"{}\" height=\"{tall:.1}\" fill=\"{colour}\"/>\n\
         <text x=\"{:.1}\" y=\"{label:.1}\" text-anchor=\"middle\" font-size=\"9\">{}</text>\n",
        x + 1.0,
        BAR - 2.0,
        x + BAR / 2.0,
        short(value)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_up_or_down_from_one() {
        let groups = vec![Bars { name: "load", values: vec![0.5, 1.0, 4.0] }];
        let svg = draw("heading", &["a", "b", "c"], &[Chart { title: "panel".into(), groups }]);
        let heights: Vec<f64> = svg
            .split("<rect ")
            .filter(|rect| rect.contains(&format!("width=\"{}\"", BAR - 2.0)))
            .filter_map(|rect| rect.split("height=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(heights.len(), 3);
        assert!(
            (heights[2] / heights[0] - 2.0).abs() < 0.02,
            "two powers up are twice one down: {heights:?}"
        );
        for text in ["heading", "panel", "load", ">a<", ">c<"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
