//! The live view: owners and their peers by traffic (`model` holds what is known, `view` draws it), owners and their
//! calls (`calls`, `calls_view`), or GPUs and their holders (`gpus`, `gpus_view`); `plain` prints all of them where there
//! is no terminal.

pub(crate) mod calls;
pub(crate) mod calls_view;
pub(crate) mod gpus;
pub(crate) mod gpus_view;
pub(crate) mod model;
pub(crate) mod plain;
pub(crate) mod screen;
pub(crate) mod view;

use ratatui::Frame;

use self::{calls::Calls, gpus::Gpus, model::Model, view::Look};
use crate::{args::PaneArg, terminal::Style};

/// What all panes can.
pub(crate) trait Pane {
    /// Whether it stands still.
    fn is_paused(&self) -> bool;
    /// Does what a key asks.
    fn act(&mut self, action: model::Action, page_rows: usize);
    /// Says why the last refresh failed.
    fn trouble(&mut self, why: String);
    /// Draws the whole screen; `agent`: who answers.
    fn draw(&self, frame: &mut Frame<'_>, agent: &str, look: &Look);
    /// What is shown where there is no terminal.
    fn text(&self, style: &Style) -> String;
}

macro_rules! pane {
    ($pane:ty, $draw:path, $text:path) => {
        impl Pane for $pane {
            fn is_paused(&self) -> bool {
                self.paused
            }

            fn act(&mut self, action: model::Action, page_rows: usize) {
                Self::act(self, action, page_rows);
            }

            fn trouble(&mut self, why: String) {
                self.trouble = Some(why);
            }

            fn draw(&self, frame: &mut Frame<'_>, agent: &str, look: &Look) {
                $draw(frame, self, agent, look);
            }

            fn text(&self, style: &Style) -> String {
                $text(self, style)
            }
        }
    };
}

pane!(Model, view::draw, plain::render);
pane!(Calls, calls_view::draw, plain::render_calls);
pane!(Gpus, gpus_view::draw, plain::render_gpus);

/// All panes, of which one is shown.
#[derive(Debug)]
pub(crate) struct Panes {
    pub(crate) shown: PaneArg,
    pub(crate) network: Model,
    pub(crate) calls: Calls,
    pub(crate) gpus: Gpus,
}

impl Panes {
    /// Shows the next pane.
    pub(crate) const fn switch(&mut self) {
        self.shown = match self.shown {
            PaneArg::Network => PaneArg::Syscalls,
            PaneArg::Syscalls => PaneArg::Gpu,
            PaneArg::Gpu => PaneArg::Network,
        };
    }

    /// The pane that is shown.
    pub(crate) fn pane(&self) -> &dyn Pane {
        match self.shown {
            PaneArg::Network => &self.network,
            PaneArg::Syscalls => &self.calls,
            PaneArg::Gpu => &self.gpus,
        }
    }

    /// As [`Panes::pane`].
    pub(crate) fn pane_mut(&mut self) -> &mut dyn Pane {
        match self.shown {
            PaneArg::Network => &mut self.network,
            PaneArg::Syscalls => &mut self.calls,
            PaneArg::Gpu => &mut self.gpus,
        }
    }
}
