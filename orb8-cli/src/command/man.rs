//! `orb8 man`.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{args::Cli, exit::Outcome};

/// The main page to stdout, or all pages into `dir`, which is made if it does not exist.
pub(super) fn run(dir: Option<&Path>) -> anyhow::Result<Outcome> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        io::stdout().lock().write_all(&page)?;
        return Ok(Outcome::Done);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("writing man pages to {}", dir.display()))?;
    Ok(Outcome::Done)
}
