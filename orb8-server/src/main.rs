//! The `orb8-server` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    orb8_server::main()
}
