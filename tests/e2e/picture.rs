//! The picture of a terminal at the README's top, drawn from a session that a test has seen.

const LINE: usize = 21;
const MARGIN: usize = 20;

/// Two colours for light pages and two for dark ones: whoever looks at it has said which.
const HEAD: &str = "<style>
rect { fill: #f6f8fa; stroke: #d0d7de }
text { font: 14px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #57606a; white-space: pre }
.typed { fill: #1f2328; font-weight: bold }
@media (prefers-color-scheme: dark) {
rect { fill: #161b22; stroke: #30363d }
text { fill: #a5b0bc }
.typed { fill: #f0f6fc }
}
</style>
";

pub(crate) fn of(session: &str) -> String {
    let lines: Vec<&str> = session.lines().collect();
    let columns = lines.iter().map(|line| line.chars().count()).max();
    // A character of this size is at most 8.7 wide.
    let width = columns.unwrap() * 87 / 10 + 2 * MARGIN;
    let height = lines.len() * LINE + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>A server, a second start that is refused, status and stop</title>\n\
         {HEAD}<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
        width - 1,
        height - 1,
    );
    for (number, line) in lines.into_iter().enumerate() {
        let typed = if line.starts_with("$ ") {
            " class=\"typed\""
        } else {
            ""
        };
        let text = line.replace('&', "&amp;").replace('<', "&lt;");
        let y = MARGIN + 15 + number * LINE;
        if !text.is_empty() {
            svg += &format!(
                "<text x=\"{MARGIN}\" y=\"{y}\"{typed} xml:space=\"preserve\">{text}</text>\n"
            );
        }
    }
    svg + "</svg>\n"
}
