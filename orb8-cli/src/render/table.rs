//! Columns that fit a width.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::{
    sanitise,
    terminal::{Style, Tone},
};

/// Between columns.
const GAP: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A column's title and how far it may shrink.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    title: &'static str,
    align: Align,
    /// Least width in a table that must fit; `None`: never cut.
    min: Option<usize>,
    /// Whether what is cut keeps its end: of pods' names, the beginning says what it is and the end which one.
    keeps_end: bool,
}

impl Column {
    /// A column of workloads' names, cut in the middle to no less than `min` where the table must fit.
    pub(crate) const fn workload(title: &'static str, min: usize) -> Self {
        Self {
            keeps_end: true,
            ..Self::name(title, min)
        }
    }

    /// A column of names, cut to no less than `min` where the table must fit.
    pub(crate) const fn name(title: &'static str, min: usize) -> Self {
        Self {
            title,
            align: Align::Left,
            min: Some(min),
            keeps_end: false,
        }
    }

    /// Text that is never cut.
    pub(crate) const fn text(title: &'static str) -> Self {
        Self {
            title,
            align: Align::Left,
            min: None,
            keeps_end: false,
        }
    }

    /// A number, never cut.
    pub(crate) const fn number(title: &'static str) -> Self {
        Self {
            title,
            align: Align::Right,
            min: None,
            keeps_end: false,
        }
    }
}

/// One value, free of control characters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl AsRef<str>) -> Self {
        Self::toned(text, Tone::Plain)
    }

    pub(crate) fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self {
            text: sanitise::line(text.as_ref()).into_owned(),
            tone,
        }
    }
}

/// Rows under titles.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// Leaves out columns of these titles that have no value in any row, so that names have more room.
    pub(crate) fn without_empty(mut self, titles: &[&str]) -> Self {
        for index in (0..self.columns.len()).rev() {
            let empty = self.rows.iter().all(|row| row[index].text.is_empty());
            if empty && titles.contains(&self.columns[index].title) {
                self.columns.remove(index);
                for row in &mut self.rows {
                    row.remove(index);
                }
            }
        }
        self
    }

    /// Adds a row, which has a cell for each column.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let mut cells = cells.into();
        cells.resize_with(self.columns.len(), Cell::default);
        self.rows.push(cells);
    }

    /// As text, a line a row; no wider than `width` as far as the columns may shrink.
    pub(crate) fn render(&self, width: Option<usize>, style: &Style) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let titles: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::toned(column.title, Tone::Strong))
            .collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            self.render_row(row, &widths, style, &mut text);
        }
        text
    }

    fn render_row(&self, row: &[Cell], widths: &[usize], style: &Style, text: &mut String) {
        // Spaces are put off, so that no line ends in them.
        let mut pending = 0;
        for (index, ((column, cell), &width)) in self.columns.iter().zip(row).zip(widths).enumerate() {
            let shown = if column.keeps_end {
                fit_ends(&cell.text, width, style.ellipsis())
            } else {
                fit(&cell.text, width, style.ellipsis())
            };
            let pad = width.saturating_sub(shown.width());
            pending += if index > 0 { self.gap(index) } else { 0 };
            if column.align == Align::Right {
                pending += pad;
            }
            if !shown.is_empty() {
                text.extend(std::iter::repeat_n(' ', std::mem::take(&mut pending)));
                text.push_str(&style.paint(&shown, cell.tone));
            }
            if column.align == Align::Left {
                pending += pad;
            }
        }
        text.push('\n');
    }

    /// One space around columns without a title (arrows), two otherwise.
    fn gap(&self, index: usize) -> usize {
        if self.columns[index].title.is_empty() || self.columns[index - 1].title.is_empty() {
            1
        } else {
            GAP
        }
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|index| {
                let cells = self.rows.iter().map(|row| row[index].text.width());
                cells
                    .chain([self.columns[index].title.width()])
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let gaps: usize = (1..self.columns.len()).map(|index| self.gap(index)).sum();
        let mut excess = limit.map_or(0, |limit| {
            (widths.iter().sum::<usize>() + gaps).saturating_sub(limit)
        });
        // The widest gives first, so that short names stay whole.
        while excess > 0 {
            let widest = (0..widths.len())
                .filter(|&index| self.columns[index].min.is_some_and(|min| widths[index] > min))
                .max_by_key(|&index| widths[index]);
            let Some(widest) = widest else { break };
            widths[widest] -= 1;
            excess -= 1;
        }
        widths
    }
}

/// Characters that are kept of a name's end: `-x2x4k`.
const TAIL: usize = 6;
/// Least width of which a part is given to the end.
const TAIL_FROM: usize = 13;

/// `text`, cut in its middle with an ellipsis to at most `width` columns; narrow ones as [`fit`] does it.
pub(crate) fn fit_ends(text: &str, width: usize, ellipsis: char) -> String {
    // Of a port and what it is for, the beginning says it all.
    if text.width() <= width || width < TAIL_FROM || text.starts_with(':') {
        return fit(text, width, ellipsis);
    }
    let mut used = 0;
    let mut tail: Vec<char> = text
        .chars()
        .rev()
        .take_while(|c| {
            used += c.width().unwrap_or_default();
            used <= TAIL
        })
        .collect();
    tail.reverse();
    let tail: String = tail.into_iter().collect();
    let mut cut = fit(text, width - tail.width(), ellipsis);
    cut.push_str(&tail);
    cut
}

/// `text`, cut with an ellipsis to at most `width` columns.
pub(crate) fn fit(text: &str, width: usize, ellipsis: char) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = ellipsis.width().unwrap_or(1);
    let mut cut = String::new();
    for c in text.chars() {
        used += c.width().unwrap_or_default();
        if used > width {
            break;
        }
        cut.push(c);
    }
    if width > 0 {
        cut.push(ellipsis);
    }
    cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STYLE: Style = Style::PIPED;

    #[test]
    fn widest_names_are_cut_first() {
        let mut table = Table::new([Column::name("A", 3), Column::name("B", 3), Column::number("N")]);
        table.row([Cell::new("abcdefghij"), Cell::new("xy"), Cell::new("12")]);
        assert_eq!(table.render(Some(14), &STYLE), "A       B    N\nabcde…  xy  12\n");
    }

    #[test]
    fn pods_keep_their_beginning_and_their_end() {
        assert_eq!(
            fit_ends("shop/cart-7d9f8b6c5d-x2x4k", 16, '…'),
            "shop/cart…-x2x4k"
        );
        assert_eq!(fit_ends("shop/cart-0", 16, '…'), "shop/cart-0");
        assert_eq!(fit_ends("shop/cart-7d9f8b6c5d-x2x4k", 10, '…'), "shop/cart…");
    }

    proptest! {
        #[test]
        fn fits_where_names_may_shrink(a in any::<String>(), b in any::<String>(), n in any::<u16>()) {
            let mut table = Table::new([Column::name("A", 3), Column::text(""), Column::name("B", 3), Column::number("N")]);
            table.row([Cell::new(a), Cell::new("→"), Cell::new(b), Cell::new(n.to_string())]);
            for line in table.render(Some(30), &STYLE).lines() {
                prop_assert!(line.width() <= 30, "{line:?}");
                prop_assert!(!line.contains(sanitise::is_hostile));
            }
        }

        #[test]
        fn cut_text_is_no_wider(text in any::<String>(), width in 0_usize..40) {
            prop_assert!(fit(&sanitise::line(&text), width, '…').width() <= width);
            prop_assert!(fit_ends(&sanitise::line(&text), width, '…').width() <= width);
        }
    }
}
