//! Aligned columns for human readers.

use std::fmt;

/// Spaces between two columns.
const COLUMN_GAP: usize = 2;

/// A wider cell overlaps the next columns of its own row instead of moving them in all rows.
const MAX_CELL: usize = 60;

/// Cells of this length or less share a line where there is no room for columns.
const SHORT_CELL: usize = 16;

/// Rows of cells, and lines between them that do not affect the columns.
#[derive(Debug, Clone)]
pub struct TextTable {
    indent: usize,
    rows: Vec<Row>,
    /// Number of cells at the start of a row that identify it.
    names: usize,
    /// The last cell explains the previous one, unless it starts with this text.
    usual: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum Row {
    Cells(Vec<String>),
    Line(String),
}

impl TextTable {
    /// Creates a table whose lines are indented by `indent` spaces.
    pub fn new(indent: usize, header: &[&str]) -> Self {
        let header = header.iter().map(|cell| (*cell).to_string()).collect();
        Self { indent, rows: vec![Row::Cells(header)], names: 1, usual: None }
    }

    /// The first `names` cells identify a row, instead of only the first.
    pub fn named_by(self, names: usize) -> Self {
        Self { names, ..self }
    }

    /// The last column explains the previous one; an explanation that starts with `usual` is left out where there is
    /// little room.
    pub fn explained_unless(self, usual: &'static str) -> Self {
        Self { usual: Some(usual), ..self }
    }

    /// Formats it in columns, or, if these are wider than the screen, as a block for each row.
    pub fn fitted(&self, screen: Option<usize>) -> String {
        let columns =
            self.widths(usize::MAX).iter().map(|width| width + COLUMN_GAP).sum::<usize>() + self.indent;
        match screen {
            Some(screen) if columns > screen + COLUMN_GAP => self.blocks(screen),
            _ => self.columns(screen),
        }
    }

    /// Formats it in columns. Text lines between the rows are wrapped.
    fn columns(&self, screen: Option<usize>) -> String {
        let widths = self.widths(MAX_CELL);
        let mut text = String::new();
        for row in &self.rows {
            match row {
                Row::Line(about) => {
                    wrap(about, self.indent + 4, screen.unwrap_or(usize::MAX), &mut text);
                }
                Row::Cells(cells) => {
                    let mut line = " ".repeat(self.indent);
                    for (width, cell) in widths.iter().zip(cells) {
                        line.push_str(cell);
                        line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + COLUMN_GAP));
                    }
                    text.push_str(line.trim_end());
                    text.push('\n');
                }
            }
        }
        text
    }

    /// The width of each column, by its cells that are no wider than `widest`.
    fn widths(&self, widest: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                let size = cell.chars().count();
                *width = if size > widest { *width } else { size.max(*width) };
            }
        }
        widths
    }

    /// One block for each row with a name, the nameless rows that follow it, and the lines about it.
    fn blocks(&self, screen: usize) -> String {
        let mut rows = self.rows.iter().peekable();
        let Some(Row::Cells(header)) = rows.next() else { return String::new() };
        let mut text = String::new();
        let mut block: Vec<&[String]> = Vec::new();
        while let Some(row) = rows.next() {
            match row {
                Row::Line(line) => wrap(line, self.indent + 4, screen, &mut text),
                Row::Cells(cells) => {
                    block.push(cells);
                    let goes_on = |next: &&Row| matches!(next, Row::Cells(next) if next.first().is_some_and(String::is_empty));
                    if !rows.peek().is_some_and(goes_on) {
                        self.block(header, &block, screen, &mut text);
                        block.clear();
                    }
                }
            }
        }
        text
    }

    fn block(&self, header: &[String], rows: &[&[String]], screen: usize, to: &mut String) {
        let names: Vec<_> = rows[0].iter().take(self.names).map(String::as_str).collect();
        wrap(&names.join(" "), self.indent, screen, to);
        let (mut short, mut long) = (Vec::new(), Vec::new());
        let explained = header.len() - usize::from(self.usual.is_some());
        for (column, title) in header.iter().enumerate().take(explained).skip(self.names) {
            let title = title.to_lowercase();
            let cells = rows.iter().filter_map(|row| Some((*row, row.get(column)?)));
            let cells: Vec<_> = cells.filter(|(_, cell)| !cell.is_empty()).collect();
            if let [(_, cell)] = cells[..]
                && cell.chars().count() < SHORT_CELL
                && column + 1 < explained
            {
                short.push(format!("{title} {cell}"));
                continue;
            }
            for (row, cell) in cells {
                let more = self.usual.filter(|_| column + 1 == explained).and_then(|usual| {
                    row.get(explained).filter(|more| !more.is_empty() && !more.starts_with(usual))
                });
                let more = more.map(|more| format!("; {more}")).unwrap_or_default();
                long.push(format!("{title} {cell}{more}"));
            }
        }
        if !short.is_empty() {
            wrap(&short.join(", "), self.indent + 2, screen, to);
        }
        long.iter().for_each(|line| wrap(line, self.indent + 2, screen, to));
    }

    /// Adds a row; missing cells at its end are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row::Cells(cells.into_iter().collect()));
    }

    /// Adds text about the row above, indented below it.
    pub fn line(&mut self, text: impl Into<String>) {
        self.rows.push(Row::Line(text.into()));
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.columns(None))
    }
}

/// Wraps lines to the width of the screen, as far as words allow.
pub(crate) fn wrapped(text: &str, screen: Option<usize>) -> String {
    let Some(screen) = screen else { return text.to_owned() };
    let mut to = String::new();
    text.lines().for_each(|line| wrap(line, 0, screen, &mut to));
    to
}

/// Appends lines no longer than the screen, as far as words allow. Continuation lines are indented by two more columns.
pub(crate) fn wrap(text: &str, indent: usize, screen: usize, to: &mut String) {
    let mut length = 0;
    for word in text.split(' ') {
        let size = word.chars().count();
        if length == 0 {
            to.push_str(&" ".repeat(indent));
            length = indent;
        } else if length.saturating_add(1 + size) > screen {
            to.push('\n');
            to.push_str(&" ".repeat(indent + 2));
            length = indent + 2;
        } else {
            to.push(' ');
            length += 1;
        }
        to.push_str(word);
        length += size;
    }
    to.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_rows_become_blocks() {
        let mut table =
            TextTable::new(2, &["PROBE", "SITES", "ARGUMENTS", "METRIC", "IN"]).explained_unless("kernel");
        let row = |cells: [&str; 5]| cells.map(str::to_string);
        table.row(row(["p:one", "1", "peer = arg1", "counter a_total{peer}", "kernel: all of it"]));
        table.row(row([
            "",
            "",
            "height = arg2",
            "gauge b",
            "user: a glob that is long enough to be wrapped",
        ]));
        table.line("note: one");
        table.row(row(["p:two", "0", "", "", ""]));
        let wide = table.to_string();
        assert_eq!(table.fitted(None), wide);
        let widest = wide.lines().map(str::len).max().unwrap();
        assert_eq!(table.fitted(Some(widest)), wide);
        assert_eq!(
            table.fitted(Some(40)),
            "  p:one\n    sites 1\n    arguments peer = arg1\n    arguments height = arg2\n    metric counter \
             a_total{peer}\n    metric gauge b; user: a glob that is\n      long enough to be wrapped\n      note: \
             one\n  p:two\n    sites 0\n"
        );
    }

    #[test]
    fn lines_between_rows_are_wrapped() {
        let mut table = TextTable::new(2, &["NAME", "N"]);
        table.row(["p:one".to_owned(), "1".to_owned()]);
        table.line("cannot be used: because of something long");
        let columns = "  NAME   N\n  p:one  1\n";
        assert_eq!(
            table.fitted(Some(30)),
            format!("{columns}      cannot be used: because\n        of something long\n")
        );
        assert_eq!(wrapped("a line of words\n\nb", Some(10)), "a line of\n  words\n\nb\n");
        assert_eq!(wrapped("a line of words\n", None), "a line of words\n");
    }

    #[test]
    fn overlong_word_is_not_split() {
        let mut text = String::new();
        wrap("a bbbbbbbbbb c", 1, 6, &mut text);
        assert_eq!(text, " a\n   bbbbbbbbbb\n   c\n");
    }

    #[test]
    fn columns_fit_their_widest_cell_without_trailing_space() {
        let mut table = TextTable::new(2, &["NAME", "N"]);
        table.row(["é".to_string(), "10".to_string(), "last".to_string()]);
        table.line("about it");
        table.row(["longer".to_string()]);
        assert_eq!(table.to_string(), "  NAME    N\n  é       10  last\n      about it\n  longer\n");
    }

    #[test]
    fn overlong_cell_does_not_widen_its_column() {
        let mut table = TextTable::new(0, &["NAME", "N"]);
        let long = "x".repeat(MAX_CELL + 1);
        table.row([long.clone(), "1".to_string()]);
        table.row(["short".to_string(), "2".to_string()]);
        assert_eq!(table.to_string(), format!("NAME   N\n{long}  1\nshort  2\n"));
        assert!(table.fitted(Some(MAX_CELL)).starts_with(&format!("{long}\n")));
    }
}
