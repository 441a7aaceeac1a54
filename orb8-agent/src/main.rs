//! The `orb8-agent` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    orb8_agent::main()
}
