//! All programs in one file, which is whichever it is called as: `orb8-agent`, `orb8-server` or `orb8`.
//!
//! They share most of their code, so that the image is half as large as with three files.

use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let called = env::args_os().next().unwrap_or_default();
    match Path::new(&called).file_name().and_then(|name| name.to_str()) {
        Some("orb8-agent") => orb8_agent::main(),
        Some("orb8-server") => orb8_server::main(),
        Some("orb8") => orb8_cli::main(),
        _ => {
            eprintln!("orb8: this file is called as orb8-agent, orb8-server or orb8");
            ExitCode::from(2)
        }
    }
}
