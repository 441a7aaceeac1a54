//! How a command ends: exit codes and what is said on stderr.

use std::{io, process::ExitCode};

use crate::terminal;

/// The answer could not be had.
pub(crate) const FAILED: u8 = 1;
/// What was typed makes no sense.
pub(crate) const USAGE: u8 = 2;
/// With `--strict`: something was lost, or the answer is partial.
pub(crate) const PARTIAL: u8 = 3;
/// Stopped by SIGINT before there was an answer, as shells count.
pub(crate) const INTERRUPTED: u8 = 130;

/// How a command that did not fail ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// All is said.
    Done,
    /// The answer was given, but the verdict is bad (`doctor`).
    Failed,
    /// The answer was given, is partial, and `--strict` was asked.
    Partial,
}

impl Outcome {
    /// [`Outcome::Partial`] if the answer is partial and the user wants to know by exit code.
    pub(crate) const fn of(partial: bool, strict: bool) -> Self {
        if partial && strict {
            Self::Partial
        } else {
            Self::Done
        }
    }
}

/// What was typed makes no sense: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A signal came before there was an answer: exit code 130, and nothing to say.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Says on stderr what failed, and gives the exit code. A reader that closed its pipe has what it wants.
pub(crate) fn code(result: anyhow::Result<Outcome>) -> ExitCode {
    let error = match result {
        Ok(Outcome::Done) => return ExitCode::SUCCESS,
        Ok(Outcome::Failed) => return ExitCode::from(FAILED),
        Ok(Outcome::Partial) => return ExitCode::from(PARTIAL),
        Err(error) => error,
    };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    if error.downcast_ref::<Interrupted>().is_some() {
        return ExitCode::from(INTERRUPTED);
    }
    terminal::say(&format!("orb8: error: {error:#}"));
    if error.downcast_ref::<Usage>().is_some() {
        terminal::say("For more information, try `orb8 --help`.");
        return ExitCode::from(USAGE);
    }
    ExitCode::from(FAILED)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            && cause.downcast_ref::<tonic::transport::Error>().is_none()
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn closed_pipe_is_success_and_usage_is_two() {
        let broken = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert_eq!(code(broken.map(|()| Outcome::Done)), ExitCode::SUCCESS);
        assert_eq!(code(Err(Usage("x".into()).into())), ExitCode::from(USAGE));
        assert_eq!(code(Err(anyhow::anyhow!("x"))), ExitCode::from(FAILED));
        assert_eq!(code(Ok(Outcome::of(true, true))), ExitCode::from(PARTIAL));
        assert_eq!(code(Ok(Outcome::of(true, false))), ExitCode::SUCCESS);
    }
}
