//! Aligned columns for people.

use std::fmt;

/// Space between two columns.
const GAP: usize = 2;

/// Rows of cells, and lines between them that keep out of the columns.
#[derive(Debug, Clone)]
pub struct Table {
    indent: usize,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
enum Row {
    Cells(Vec<String>),
    Line(String),
}

impl Table {
    /// A table whose lines begin after `indent` spaces.
    pub fn new(indent: usize, header: &[&str]) -> Self {
        let header = header.iter().map(|cell| (*cell).to_string()).collect();
        Self { indent, rows: vec![Row::Cells(header)] }
    }

    /// Adds a row; cells that are missing at its end are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row::Cells(cells.into_iter().collect()));
    }

    /// Adds text that belongs to the row above, indented under it.
    pub fn line(&mut self, text: impl Into<String>) {
        self.rows.push(Row::Line(text.into()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            match row {
                Row::Line(text) => line.push_str(&format!("    {text}")),
                Row::Cells(cells) => {
                    for (width, cell) in widths.iter().zip(cells) {
                        line.push_str(cell);
                        line.push_str(&" ".repeat(width - cell.chars().count() + GAP));
                    }
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_trails() {
        let mut table = Table::new(2, &["NAME", "N"]);
        table.row(["é".to_string(), "10".to_string(), "last".to_string()]);
        table.line("about it");
        table.row(["longer".to_string()]);
        assert_eq!(table.to_string(), "  NAME    N\n  é       10  last\n      about it\n  longer\n");
    }
}
