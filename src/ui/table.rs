//! Tables without lines: columns two spaces apart, numbers at the right.

use super::style::{Line, Paint, Tone};
use super::text;

/// A cell with its tone.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub tone: Tone,
}

impl Cell {
    /// A cell with this text, which is made fit for one line.
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// How a table is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Colours.
    pub paint: Paint,
    /// All columns but the first at the right, for numbers.
    pub right: bool,
    /// Spaces before each line.
    pub indent: usize,
}

/// The columns that the widest line takes.
pub fn width(headers: &[&str], rows: &[Vec<Cell>], layout: Layout) -> usize {
    let columns = columns(headers, rows);
    layout.indent + columns.iter().sum::<usize>() + 2 * columns.len().saturating_sub(1)
}

fn columns(headers: &[&str], rows: &[Vec<Cell>]) -> Vec<usize> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0).max(headers.len());
    let widest = |at: usize| {
        let cells =
            rows.iter().filter_map(|row| row.get(at)).map(|cell| text::width(&text::clean(&cell.text)));
        cells.chain(headers.get(at).map(|header| text::width(header))).max().unwrap_or(0)
    };
    (0..count).map(widest).collect()
}

/// The table as lines, each with a newline; no line ends with spaces. Without headers there is no line
/// for them.
pub fn table(headers: &[&str], rows: &[Vec<Cell>], layout: Layout) -> String {
    let columns = columns(headers, rows);
    let heading: Vec<_> = headers.iter().map(|header| Cell::new(Tone::Dim, *header)).collect();
    let mut out = String::new();
    for row in (!heading.is_empty()).then_some(&heading).into_iter().chain(rows) {
        let mut line = Line::new().with(Tone::Plain, &" ".repeat(layout.indent));
        for (at, cell) in row.iter().enumerate() {
            let clean = text::clean(&cell.text);
            let space = " ".repeat(columns[at].saturating_sub(text::width(&clean)));
            let gap = if at == 0 { "" } else { "  " };
            let last = at + 1 == row.len();
            line = line.with(Tone::Plain, gap);
            line = match (layout.right && at > 0, last) {
                (true, _) => line.with(Tone::Plain, &space).with(cell.tone, &clean),
                (false, true) => line.with(cell.tone, &clean),
                (false, false) => line.with(cell.tone, &clean).with(Tone::Plain, &space),
            };
        }
        out.push_str(line.paint(layout.paint).trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_width_of_a_character() {
        let layout = Layout { paint: Paint { color: false, unicode: true }, right: false, indent: 0 };
        let rows = vec![vec!["sërver".into(), "running".into()], vec!["日本".into(), "off".into()]];
        let text = table(&["NAME", "STATE"], &rows, layout);
        assert_eq!(text, "NAME    STATE\nsërver  running\n日本    off\n");
        assert_eq!(width(&["NAME", "STATE"], &rows, layout), 15);
        let right = Layout { right: true, ..layout };
        assert_eq!(table(&[], &rows, right), "sërver  running\n日本        off\n");
    }
}
