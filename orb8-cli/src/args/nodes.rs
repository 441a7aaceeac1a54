//! `orb8 nodes`.

use clap::{Args, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  orb8 nodes
  orb8 nodes --strict             exit code 3 if a node does not answer
  orb8 nodes -o json | jq 'select(.state != \"answered\")'

CLOCK: how far the node's clock is ahead of the server's, as heartbeats show; times in answers are
corrected by it. `-`: not known, or less than what the measurement itself may be wrong by.";

/// Options of `nodes`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct NodesArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: NodeForm,
    /// Exit code 3 if a node does not answer
    #[arg(long)]
    pub(crate) strict: bool,
}

/// Forms of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeForm {
    /// A table
    Table,
    /// A table with addresses, pods and round trips
    Wide,
    /// JSON, one object a line
    Json,
}
