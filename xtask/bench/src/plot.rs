//! A bar for each row: the server's CPU time for one request, on a logarithmic scale.

use std::fmt::Write as _;

const BAR: usize = 18;
const LEFT: usize = 250;
const WIDTH: usize = 520;
/// Of one decade each. The last is what making an RSA-4096 key takes.
const TICKS: [f64; 7] = [1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0];

/// `rows`: name, microseconds.
pub fn render(rows: &[(&str, f64)]) -> String {
    let longest = TICKS[TICKS.len() - 1].log10();
    let position = |value: f64| LEFT as f64 + value.max(1.0).log10() / longest * WIDTH as f64;
    let height = rows.len() * (BAR + 6) + 50;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"16\">server CPU per request, µs (logarithmic)</text>\n",
        LEFT + WIDTH + 90
    );
    for tick in TICKS {
        let x = position(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.0}\" x2=\"{x:.0}\" y1=\"24\" y2=\"{}\" stroke=\"#ccc\"/>\
             <text x=\"{x:.0}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{tick}</text>",
            height - 22,
            height - 8
        );
    }
    for (number, (name, value)) in rows.iter().enumerate() {
        let y = 28 + number * (BAR + 6);
        let end = position(*value);
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.0}\" height=\"{BAR}\" fill=\"#47a\"/>\
             <text x=\"{:.0}\" y=\"{}\">{value:.1}</text>",
            LEFT - 6,
            y + 13,
            (end - LEFT as f64).max(1.0),
            end + 4.0,
            y + 13
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_bar_and_names_are_text() {
        let svg = render(&[("a<b", 10.0), ("c", 0.0)]);
        assert_eq!(svg.matches("fill=\"#47a\"").count(), 2);
        assert!(svg.contains("a&lt;b") && svg.contains("width=\"87\"") && svg.ends_with("</svg>\n"));
    }
}
