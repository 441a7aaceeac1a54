//! What this machine lets orb8 do, found out before anything is loaded: each finding with a verdict, what was
//! found and what to do about it.
//!
//! [`Facts`] asks the machine, [`findings`](Preflight::findings) judge the facts. Nothing here needs rights:
//! without them, what could not be looked at is said.

pub mod facts;
pub mod feature;
mod judge;
pub mod mount;

use std::path::{Path, PathBuf};

use orb8_proto::v1;

pub use facts::{Capability, Facts, KernelVersion};
pub use feature::{Feature, Features, Support};

/// What a finding means for orb8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Runs without something.
    Degraded,
    /// Can't run.
    Fatal,
}

impl From<Verdict> for v1::Verdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Ok => Self::Ok,
            Verdict::Degraded => Self::Degraded,
            Verdict::Fatal => Self::Fatal,
        }
    }
}

/// One finding about the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was looked at, in a word: `kernel`, `cgroup2`, `tcx`.
    pub name: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub found: String,
    /// What to do; empty if there is nothing to do.
    pub advice: String,
}

impl From<Finding> for v1::Check {
    fn from(finding: Finding) -> Self {
        Self {
            name: finding.name.to_owned(),
            verdict: v1::Verdict::from(finding.verdict).into(),
            found: finding.found,
            advice: finding.advice,
        }
    }
}

/// All that was found about a machine.
#[derive(Clone, Debug)]
pub struct Preflight {
    /// What was asked of the machine.
    pub facts: Facts,
    /// What it means, the essential first.
    pub findings: Vec<Finding>,
}

impl Preflight {
    /// Looks at this machine. Takes a few milliseconds; loads and forgets some tiny programs, attaches nothing.
    #[must_use]
    pub fn run() -> Self {
        let facts = Facts::of(Path::new("/"));
        Self {
            findings: judge::judge(&facts),
            facts,
        }
    }

    /// The gravest verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.findings
            .iter()
            .map(|finding| finding.verdict)
            .max()
            .unwrap_or(Verdict::Ok)
    }

    /// What the kernel was seen to be able to do.
    #[must_use]
    pub fn features(&self) -> Features {
        Features::from_facts(&self.facts)
    }

    /// Where the cgroup2 hierarchy is mounted, if it is.
    #[must_use]
    pub fn cgroup2(&self) -> Option<PathBuf> {
        self.facts.cgroup2.as_ref().map(|cgroup2| cgroup2.path.clone())
    }
}

/// The findings about this machine, as the protocol has them.
#[must_use]
pub fn run() -> Vec<v1::Check> {
    Preflight::run().findings.into_iter().map(Into::into).collect()
}
