//! Prints answers one after the other: tables with what is to be said below them, or data on stdout and words on
//! stderr.

use prost_types::Timestamp;
use unicode_width::UnicodeWidthStr as _;

use crate::{
    args::FlowForm,
    ledger::Losses,
    output::Output,
    render::footer,
    terminal::{self, Style},
    timestamp,
};

/// Lines beside the rows of a table that is drawn anew: titles, totals, losses, and the cursor's.
const REDRAW_OTHERS: u16 = 8;
/// Moves the cursor home and clears what is below.
const REDRAW: &str = "\x1b[H\x1b[J";

/// The end of an answer.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// That not all is shown, if it is so.
    pub(crate) cut: Option<String>,
    /// Totals and span, a line; empty if unknown.
    pub(crate) totals: String,
    /// What is to be said though nothing is missing.
    pub(crate) notes: Vec<String>,
    pub(crate) losses: Losses,
    /// Until when is counted.
    pub(crate) to: Option<Timestamp>,
}

/// Where answers go.
#[derive(Debug)]
pub(crate) struct Printer {
    pub(crate) output: Output,
    pub(crate) style: Style,
    form: FlowForm,
    watch: bool,
    /// Whether each answer takes the place of the one before.
    pub(crate) redraws: bool,
    /// Lines beside the rows of a table that is drawn anew, as many as there were the last time.
    others: u16,
    /// Whether any answer lost something.
    pub(crate) partial: bool,
    /// What was told on stderr, so that a watch says it once.
    told: Vec<String>,
}

impl Printer {
    /// Answers on stdout; with `watch` one after the other, which tables on a terminal draw in place.
    pub(crate) fn new(form: FlowForm, watch: bool) -> Self {
        let style = Style::of_stdout();
        Self {
            output: Output::stdout(),
            style,
            form,
            watch,
            redraws: watch && is_table(form) && style.terminal,
            others: REDRAW_OTHERS,
            partial: false,
            told: Vec::new(),
        }
    }

    /// How many rows fit where a table is drawn anew.
    pub(crate) fn room(&self) -> u32 {
        Style::rows_beside(self.others)
    }

    /// The window may have been resized.
    pub(crate) fn fit(&mut self) {
        if self.redraws {
            self.style = Style::of_stdout();
        }
    }

    /// Ends an answer: the table, where one is asked, and what is to be said of it.
    pub(crate) async fn close(&mut self, table: String, end: End) -> anyhow::Result<()> {
        self.partial |= !end.losses.is_none();
        if !is_table(self.form) {
            self.output.flush().await?;
            let sentences = end.losses.sentences.into_iter().chain(end.cut).chain(end.notes);
            sentences.for_each(|sentence| self.tell(sentence));
            return Ok(());
        }
        let foot = |style: &Style| {
            format!(
                "\n{}{}{}{}",
                footer::notes(end.cut.as_slice()),
                end.totals,
                footer::notes(&end.notes),
                footer::losses(&end.losses, style)
            )
        };
        let mut text = String::new();
        let mut table = table;
        if self.redraws {
            text.push_str(REDRAW);
            // What does not fit would scroll the titles away.
            let plain = Style {
                colours: false,
                ..self.style
            };
            self.others = screen_lines(&foot(&plain), self.style.width).saturating_add(2);
            let room = self.room() as usize + 1;
            table = table.split_inclusive('\n').take(room).collect();
        } else if self.watch {
            text.push_str(&format!("--- {}\n", timestamp::date_clock(end.to.as_ref())));
        }
        text.push_str(&table);
        text.push_str(&foot(&self.style));
        self.output.write(text).await?;
        Ok(())
    }

    /// An answer that is one line, because there is nothing to show: beside data it goes to stderr. What the answer
    /// misses follows.
    pub(crate) async fn only(&mut self, line: String, losses: Losses) -> anyhow::Result<()> {
        self.partial |= !losses.is_none();
        if !is_table(self.form) {
            self.output.flush().await?;
            self.tell(line);
            losses
                .sentences
                .into_iter()
                .for_each(|sentence| self.tell(sentence));
            return Ok(());
        }
        let redraw = if self.redraws { REDRAW } else { "" };
        let missing = if losses.is_none() {
            String::new()
        } else {
            footer::losses(&losses, &self.style)
        };
        let text = format!("{redraw}{}{missing}", footer::notes(&[line]));
        self.output.write(text).await?;
        Ok(())
    }

    /// Beside data for programs, words for people go to stderr, each once.
    fn tell(&mut self, sentence: String) {
        if !self.told.contains(&sentence) {
            terminal::say(&format!("orb8: {sentence}"));
            self.told.truncate(100);
            self.told.insert(0, sentence);
        }
    }
}

/// Whether the form is one for people.
pub(crate) const fn is_table(form: FlowForm) -> bool {
    matches!(form, FlowForm::Table | FlowForm::Wide)
}

/// Lines of a terminal that `text` takes, long ones being wrapped.
fn screen_lines(text: &str, width: usize) -> u16 {
    let lines = text
        .lines()
        .map(|line| line.width().div_ceil(width.max(1)).max(1))
        .sum::<usize>();
    u16::try_from(lines).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_count() {
        assert_eq!(screen_lines("\nabcd\nabcde\n", 4), 1 + 1 + 2);
        assert_eq!(screen_lines("", 0), 0);
    }
}
