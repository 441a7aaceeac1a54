//! Serves files as dcgm-exporter's page.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use orb8_fake_dcgm::{Exporter, Fault, Page};

/// A dcgm-exporter that serves the page it is told to.
#[derive(Parser)]
#[command(name = "orb8-fake-dcgm")]
struct Options {
    /// Address and port to listen at
    #[arg(long, default_value = "127.0.0.1:9400", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// File with the page, read for each request; several are served in turn, and the last from then on
    #[arg(long, required = true, value_name = "FILE")]
    page: Vec<PathBuf>,
    /// How to misbehave, such as slow=5, gzip, truncated=1000, gzip-bomb=1000000000, status=500 (the README has them all)
    #[arg(long, default_value = "none")]
    fault: Fault,
}

fn main() -> ExitCode {
    let options = Options::parse();
    for page in &options.page {
        if let Err(error) = std::fs::File::open(page) {
            eprintln!("orb8-fake-dcgm: cannot read {}: {error}", page.display());
            return ExitCode::FAILURE;
        }
    }
    let pages = options.page.into_iter().map(Page::File).collect();
    match Exporter::start(options.listen, pages) {
        Ok(exporter) => {
            exporter.fault(options.fault);
            println!("{}", exporter.url());
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("orb8-fake-dcgm: cannot listen at {}: {error}", options.listen);
            ExitCode::FAILURE
        }
    }
}
