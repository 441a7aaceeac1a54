//! The machine's findings, from the agent's own checks: what `doctor` says is what the agent goes by.

use orb8_proto::v1::Check;

/// Looks at the machine: a few milliseconds; attaches nothing.
pub(crate) fn run() -> Vec<Check> {
    orb8_agent::preflight::run()
}
