//! The terminal while `top` has it: raw mode and the alternate screen, given back in every case.

use std::io;

use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures::StreamExt as _;
use ratatui::DefaultTerminal;

use super::{
    Panes,
    model::Action,
    view::{self, Look},
};

/// The terminal. Dropping it gives the terminal back; so does a panic (ratatui's hook).
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: DefaultTerminal,
    events: EventStream,
}

/// What the user did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Act(Action),
    Quit,
    /// The window has another size: draw again.
    Redraw,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        Ok(Self {
            terminal,
            events: EventStream::new(),
        })
    }

    pub(crate) fn draw(&mut self, panes: &Panes, agent: &str, look: &Look) -> io::Result<()> {
        self.terminal
            .draw(|frame| panes.pane().draw(frame, agent, look))?;
        Ok(())
    }

    /// How far PgDn goes.
    pub(crate) fn page_rows(&self) -> usize {
        self.terminal
            .size()
            .map_or(1, |size| view::page_rows(size.height))
    }

    /// The next thing that the user does.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub(crate) async fn input(&mut self) -> io::Result<Input> {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    if let Some(input) = input(&event) {
                        return Ok(input);
                    }
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(Input::Quit),
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What a key means.
fn input(event: &Event) -> Option<Input> {
    let key = match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        Event::Resize(..) => return Some(Input::Redraw),
        _ => return None,
    };
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Input::Quit);
    }
    Some(Input::Act(match key.code {
        KeyCode::Char('q') => return Some(Input::Quit),
        KeyCode::Up | KeyCode::Char('k') => Action::Up,
        KeyCode::Down | KeyCode::Char('j') => Action::Down,
        KeyCode::PageUp => Action::PageUp,
        KeyCode::PageDown => Action::PageDown,
        KeyCode::Home | KeyCode::Char('g') => Action::Top,
        KeyCode::End | KeyCode::Char('G') => Action::Bottom,
        KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => Action::Enter,
        KeyCode::Esc | KeyCode::Backspace | KeyCode::Left | KeyCode::Char('h') => Action::Back,
        KeyCode::Char('s') => Action::Sort,
        KeyCode::Char('p' | ' ') => Action::Pause,
        KeyCode::Tab | KeyCode::BackTab => Action::Pane,
        KeyCode::Char('?') => Action::Help,
        _ => Action::Other,
    }))
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys() {
        let press = |code, modifiers| input(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(
            press(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Input::Quit)
        );
        assert_eq!(
            press(KeyCode::Char('c'), KeyModifiers::NONE),
            Some(Input::Act(Action::Other))
        );
        assert_eq!(
            press(KeyCode::Enter, KeyModifiers::NONE),
            Some(Input::Act(Action::Enter))
        );
        assert_eq!(
            press(KeyCode::Tab, KeyModifiers::NONE),
            Some(Input::Act(Action::Pane))
        );
        assert_eq!(input(&Event::Resize(80, 24)), Some(Input::Redraw));
    }
}
