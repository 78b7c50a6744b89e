//! Columns that line up, without borders, so that the output can be cut, grepped and pasted.

/// Whether to colour. Never when the output isn't a terminal, or `NO_COLOR` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Colour,
    Plain,
}

/// What a colour is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Quiet,
    Good,
    Warn,
    Bad,
}

impl Paint {
    #[must_use]
    pub fn on(stream: &impl std::io::IsTerminal) -> Self {
        if stream.is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    #[must_use]
    pub fn apply(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Self::Plain, _) | (_, Tone::Plain) => return text.to_owned(),
            (Self::Colour, Tone::Quiet) => 2,
            (Self::Colour, Tone::Good) => 32,
            (Self::Colour, Tone::Warn) => 33,
            (Self::Colour, Tone::Bad) => 31,
        };
        if text.is_empty() { String::new() } else { format!("\x1b[{code}m{text}\x1b[0m") }
    }
}

#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    #[must_use]
    pub fn plain(text: impl Into<String>) -> Self {
        Self::toned(text, Tone::Plain)
    }

    #[must_use]
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

/// Rows under a header.
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    #[must_use]
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|name| Cell::toned(*name, Tone::Quiet)).collect()] }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|at| self.rows.iter().filter_map(|row| row.get(at)).map(width).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, column) in row.iter().zip(&widths) {
                line.push_str(&paint.apply(cell.tone, &cell.text));
                line.push_str(&" ".repeat(column - width(cell) + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn width(cell: &Cell) -> usize {
    cell.text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let mut table = Table::new(&["NAME", "STATE", "PID"]);
        table.row(vec![
            Cell::plain("asd-1"),
            Cell::toned("running", Tone::Good),
            Cell::plain("12"),
        ]);
        table.row(vec![Cell::plain("a"), Cell::toned("down", Tone::Bad), Cell::plain("-")]);
        let plain = table.render(Paint::Plain);
        assert_eq!(plain, "NAME   STATE    PID\nasd-1  running  12\na      down     -\n");
        let coloured = table.render(Paint::Colour);
        assert!(coloured.contains("\x1b[31mdown\x1b[0m     -"), "{coloured:?}");
    }
}
