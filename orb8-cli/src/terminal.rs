//! What the terminal can show: width, colours, characters beyond ASCII.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use crate::sanitise;

/// Columns of what is not a terminal.
const DEFAULT_WIDTH: usize = 80;

/// How to draw on one output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Style {
    /// Whether it is a terminal.
    pub(crate) terminal: bool,
    /// Columns.
    pub(crate) width: usize,
    /// Whether ANSI colours are welcome.
    pub(crate) colours: bool,
    /// Whether the locale's encoding is UTF-8; ASCII otherwise.
    pub(crate) utf8: bool,
}

#[cfg(test)]
impl Style {
    /// No terminal, 80 columns, no colours.
    pub(crate) const PIPED: Self = Self {
        terminal: false,
        width: 80,
        colours: false,
        utf8: true,
    };
}

/// A meaning that a colour stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// Titles.
    Strong,
    /// All is well.
    Good,
    /// Look at this.
    Warn,
    /// Lost, failed.
    Bad,
    /// Less important.
    Dim,
}

impl Style {
    /// The style of this process's stdout.
    pub(crate) fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let width = if terminal {
            crossterm::terminal::size().map_or(DEFAULT_WIDTH, |(columns, _)| usize::from(columns))
        } else {
            DEFAULT_WIDTH
        };
        Self {
            terminal,
            width: if width == 0 { DEFAULT_WIDTH } else { width },
            colours: colours(
                terminal,
                env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
            ),
            utf8: locale_is_utf8(|name| env::var(name).ok()),
        }
    }

    /// Rows of data that can be drawn anew without scrolling, beside `others` lines.
    pub(crate) fn rows_beside(others: u16) -> u32 {
        let rows = crossterm::terminal::size().map_or(24, |(_, rows)| rows);
        u32::from(rows.saturating_sub(others).max(1))
    }

    /// `text` in the colour of `tone`, if colours are welcome.
    pub(crate) fn paint(&self, text: &str, tone: Tone) -> String {
        let code = match tone {
            _ if !self.colours || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// The arrow from the owner to its peer, or back.
    pub(crate) const fn arrow(&self, sent: bool) -> &'static str {
        match (self.utf8, sent) {
            (true, true) => "→",
            (true, false) => "←",
            (false, true) => "->",
            (false, false) => "<-",
        }
    }

    /// What stands for cut text.
    pub(crate) const fn ellipsis(&self) -> char {
        if self.utf8 { '…' } else { '~' }
    }

    /// Multiplication sign.
    pub(crate) const fn times(&self) -> &'static str {
        if self.utf8 { "×" } else { "x" }
    }
}

/// Whether stderr wants colours.
pub(crate) fn colours_on_stderr() -> bool {
    colours(
        io::stderr().is_terminal(),
        env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
    )
}

const fn colours(terminal: bool, no_colour: bool) -> bool {
    terminal && !no_colour
}

/// The first of the three that is set decides, as in setlocale(3).
fn locale_is_utf8(get: impl Fn(&str) -> Option<String>) -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| get(name).filter(|value| !value.is_empty()))
        .is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("utf-8") || value.contains("utf8")
        })
}

/// A line on stderr, free of control characters. That nobody reads stderr is no reason to fail.
pub(crate) fn say(line: &str) {
    // One write, so that lines of others do not come in between.
    let _ = io::stderr()
        .lock()
        .write_all(format!("{}\n", sanitise::line(line)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_colour_off_a_terminal_or_when_asked() {
        assert!(colours(true, false));
        assert!(!colours(true, true));
        assert!(!colours(false, false));
        let plain = Style {
            terminal: false,
            width: 80,
            colours: false,
            utf8: true,
        };
        assert_eq!(plain.paint("x", Tone::Bad), "x");
        assert_eq!(
            Style {
                colours: true,
                ..plain
            }
            .paint("x", Tone::Bad),
            "\x1b[31mx\x1b[0m"
        );
    }

    #[test]
    fn first_locale_variable_that_is_set_decides() {
        let of = |pairs: &'static [(&str, &str)]| {
            locale_is_utf8(|name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, v)| (*v).to_owned())
            })
        };
        assert!(of(&[("LANG", "en_US.UTF-8")]));
        assert!(of(&[("LC_ALL", ""), ("LANG", "C.utf8")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!of(&[]));
    }
}
