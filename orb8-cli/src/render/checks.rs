//! The findings of `doctor`.

use orb8_proto::v1::{Check, Verdict};
use serde::Serialize;

use super::flow_json;
use crate::{
    sanitise,
    terminal::{Style, Tone},
};

/// One finding, for scripts.
#[derive(Debug, Serialize)]
pub(crate) struct CheckRecord<'a> {
    name: &'a str,
    verdict: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    found: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    advice: &'a str,
}

/// All findings, for scripts.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Whether the probes can run.
    can_run: bool,
    checks: Vec<CheckRecord<'a>>,
}

/// Whether nothing keeps the probes from running.
pub(crate) fn can_run(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.verdict() == Verdict::Fatal)
}

pub(crate) fn records(checks: &[Check]) -> Vec<CheckRecord<'_>> {
    checks
        .iter()
        .map(|check| CheckRecord {
            name: &check.name,
            verdict: flow_json::short(check.verdict().as_str_name(), "VERDICT_"),
            found: &check.found,
            advice: &check.advice,
        })
        .collect()
}

/// One object.
pub(crate) fn json(checks: &[Check]) -> anyhow::Result<String> {
    flow_json::line(&Report {
        can_run: can_run(checks),
        checks: records(checks),
    })
}

/// A line each: verdict, name, what was found; and below, what to do.
pub(crate) fn text(checks: &[Check], style: &Style) -> String {
    let width = checks
        .iter()
        .map(|check| sanitise::line(&check.name).chars().count())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for check in checks {
        let (sign, ascii, tone) = match check.verdict() {
            Verdict::Ok => ("✓", "ok", Tone::Good),
            Verdict::Degraded => ("!", "!", Tone::Warn),
            Verdict::Fatal => ("✗", "x", Tone::Bad),
            Verdict::Unspecified => ("?", "?", Tone::Dim),
        };
        let sign = if style.utf8 {
            sign.to_owned()
        } else {
            format!("{ascii:<2}")
        };
        let found = sanitise::line(&check.found);
        text.push_str(&format!(
            "{} {:width$}  {found}\n",
            style.paint(&sign, tone),
            sanitise::line(&check.name)
        ));
        for advice in check.advice.lines().filter(|line| !line.is_empty()) {
            text.push_str(&format!("    {}\n", sanitise::line(advice)));
        }
    }
    text
}

/// What the findings come to.
pub(crate) fn verdict(checks: &[Check]) -> String {
    let count = |verdict| checks.iter().filter(|check| check.verdict() == verdict).count();
    let (fatal, degraded) = (count(Verdict::Fatal), count(Verdict::Degraded));
    match (fatal, degraded) {
        (0, 0) => "Everything is there: try `sudo orb8 top`.".to_owned(),
        (0, n) => format!(
            "The probes can run; {n} of {} findings cost something (!).",
            checks.len()
        ),
        (n, _) => format!(
            "The probes can't run here: {n} of {} findings must be dealt with first.",
            checks.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(verdict: Verdict, advice: &str) -> Check {
        Check {
            name: "bpf\x1bfs".into(),
            verdict: verdict.into(),
            found: "f".into(),
            advice: advice.into(),
        }
    }

    #[test]
    fn rendering() {
        let checks = [check(Verdict::Ok, ""), check(Verdict::Fatal, "mount it\nor not")];
        let style = Style {
            terminal: false,
            width: 80,
            colours: false,
            utf8: true,
        };
        assert_eq!(
            text(&checks, &style),
            "✓ bpf?fs  f\n✗ bpf?fs  f\n    mount it\n    or not\n"
        );
        let ascii = text(&checks, &Style { utf8: false, ..style });
        assert!(ascii.starts_with("ok bpf?fs  f\nx  bpf?fs"), "{ascii}");
        assert!(!can_run(&checks) && can_run(&checks[..1]));
        assert!(verdict(&checks).contains("can't run here: 1 of 2"));
        let json: serde_json::Value = serde_json::from_str(&json(&checks).unwrap()).unwrap();
        assert_eq!(
            (json["can_run"].as_bool(), json["checks"][1]["verdict"].as_str()),
            (Some(false), Some("fatal"))
        );
        assert!(json["checks"][0].get("advice").is_none());
    }
}
