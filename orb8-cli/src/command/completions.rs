//! `orb8 completions`.

use std::io::{self, Write as _};

use clap::CommandFactory as _;

use crate::{args::Cli, exit::Outcome};

pub(super) fn run(shell: clap_complete::Shell) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "orb8", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Outcome::Done)
}
