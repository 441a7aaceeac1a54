//! The `orb8` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    orb8_cli::main()
}
