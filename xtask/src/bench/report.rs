//! The report: one table of targets, and tables of details.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

/// What is collected while sections run.
#[derive(Default)]
pub(super) struct Report {
    /// What follows `cargo xtask bench` to make it again.
    arguments: &'static str,
    targets: Vec<[String; 4]>,
    details: String,
}

impl Report {
    /// A report that `cargo xtask bench` makes with these arguments.
    pub(super) fn of(arguments: &'static str) -> Self {
        Self {
            arguments,
            ..Self::default()
        }
    }

    /// The command that makes it again.
    fn command(&self) -> String {
        format!("cargo xtask bench {}", self.arguments)
            .trim_end()
            .to_owned()
    }

    /// A target that is met or, for `reason`, not.
    pub(super) fn verdict(&mut self, what: &str, target: &str, measured: &str, met: bool, reason: &str) {
        let verdict = if met {
            "met".to_owned()
        } else {
            format!("**missed**: {reason}")
        };
        eprintln!("  {what}: {measured} (target {target}): {verdict}");
        self.targets
            .push([what.to_owned(), target.to_owned(), measured.to_owned(), verdict]);
    }

    /// A target that could not be measured.
    pub(super) fn not_measured(&mut self, what: &str, target: &str, why: &str) {
        self.verdict(what, target, "not measured", false, why);
    }

    /// A table of details.
    pub(super) fn table(&mut self, title: &str, about: &str, head: &[&str], rows: Vec<Vec<String>>) {
        let _ = write!(self.details, "### {title}\n\n{about}\n\n");
        row(&mut self.details, head.iter().copied());
        row(&mut self.details, head.iter().map(|_| "---"));
        for cells in rows {
            row(&mut self.details, cells.iter().map(String::as_str));
        }
        self.details.push('\n');
    }

    /// The report as Markdown.
    pub(super) fn markdown(&self, quick: bool) -> String {
        let mut text = String::new();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown CPU", |(_, name)| name.trim());
        let hypervisor = if cpuinfo.contains(" hypervisor ") {
            ", virtual machine"
        } else {
            ""
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let _ = write!(
            text,
            "Measured on {} with Linux {}, {cpu}, {cpus} CPUs{hypervisor}, commit {}. {}Reproduce with `{}` as \
             root (it needs iproute2, clang-22 and libbpf-dev).\n\n",
            output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            kernel.trim(),
            output(
                "git",
                &[
                    "-C",
                    env!("CARGO_MANIFEST_DIR"),
                    "describe",
                    "--always",
                    "--dirty"
                ]
            ),
            if quick { "A quick run: noisier. " } else { "" },
            self.command(),
        );
        row(&mut text, ["what", "target", "measured", "verdict"].into_iter());
        row(&mut text, ["---"; 4].into_iter());
        for cells in &self.targets {
            row(&mut text, cells.iter().map(String::as_str));
        }
        text.push_str(if self.arguments.is_empty() {
            "\n## Details\n\n"
        } else {
            "\n"
        });
        text.push_str(&self.details);
        text
    }

    /// Puts the report between the markers of a file, which is made if there is none.
    ///
    /// # Errors
    /// If it has no markers, or cannot be written.
    pub(super) fn write(&self, file: &Path, quick: bool) -> Result<()> {
        let (begin, end) = (
            format!("<!-- {}: begin -->", self.command()),
            format!("<!-- {}: end -->", self.command()),
        );
        let old = match fs::read_to_string(file) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                format!("# Performance\n\n{begin}\n{end}\n")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let parts = old
            .split_once(&begin)
            .and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) =
            parts.with_context(|| format!("{} lacks the lines {begin} and {end}", file.display()))?;
        let text = self.markdown(quick);
        fs::write(
            file,
            format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim_end()),
        )
        .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn row<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>) {
    text.push('|');
    for cell in cells {
        // A line break or a bar would end the cell.
        let _ = write!(text, " {} |", cell.replace('|', "\\|").replace('\n', " "));
    }
    text.push('\n');
}

fn output(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(
            || "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
}
