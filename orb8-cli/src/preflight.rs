//! The machine's findings, from the agent's own checks: what `doctor` says is what the agent goes by.

use orb8_proto::v1::Check;

/// Looks at the machine.
///
/// # Errors
/// If it could not be looked at.
pub(crate) fn run() -> anyhow::Result<Vec<Check>> {
    // WIRE: Ok(orb8_agent::preflight::run())
    anyhow::bail!("this build has no checks inside")
}
