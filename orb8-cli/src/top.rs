//! The live view: owners and their peers by traffic (`model` holds what is known, `view` draws it), or owners and
//! their calls (`calls`, `calls_view`); `plain` prints both where there is no terminal.

pub(crate) mod calls;
pub(crate) mod calls_view;
pub(crate) mod model;
pub(crate) mod plain;
pub(crate) mod screen;
pub(crate) mod view;

use self::{calls::Calls, model::Model};
use crate::args::PaneArg;

/// Both panes, of which one is shown.
#[derive(Debug)]
pub(crate) struct Panes {
    pub(crate) shown: PaneArg,
    pub(crate) network: Model,
    pub(crate) calls: Calls,
}

impl Panes {
    /// The other pane.
    pub(crate) const fn switch(&mut self) {
        self.shown = match self.shown {
            PaneArg::Network => PaneArg::Syscalls,
            PaneArg::Syscalls => PaneArg::Network,
        };
    }

    /// Whether the pane that is shown stands still.
    pub(crate) const fn is_paused(&self) -> bool {
        match self.shown {
            PaneArg::Network => self.network.paused,
            PaneArg::Syscalls => self.calls.paused,
        }
    }

    /// Does what a key asks.
    pub(crate) fn act(&mut self, action: model::Action, page_rows: usize) {
        match self.shown {
            PaneArg::Network => self.network.act(action, page_rows),
            PaneArg::Syscalls => self.calls.act(action, page_rows),
        }
    }

    /// Says why the last refresh of the pane that is shown failed.
    pub(crate) fn trouble(&mut self, why: String) {
        match self.shown {
            PaneArg::Network => self.network.trouble = Some(why),
            PaneArg::Syscalls => self.calls.trouble = Some(why),
        }
    }
}
