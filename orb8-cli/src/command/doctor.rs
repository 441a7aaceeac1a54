//! `orb8 doctor`.

use std::io::{self, Write as _};

use crate::{
    args::{DoctorArgs, Report},
    exit::Outcome,
    preflight,
    render::checks,
    terminal::Style,
};

/// Prints the findings. [`Outcome::Failed`] if the probes can't run.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Outcome> {
    let checks = preflight::run();
    let style = Style::of_stdout();
    let text = match args.output {
        Report::Json => checks::json(&checks)?,
        Report::Table => format!(
            "{}\n{}\n",
            checks::text(&checks, &style),
            checks::verdict(&checks)
        ),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if checks::can_run(&checks) {
        Outcome::Done
    } else {
        Outcome::Failed
    })
}
