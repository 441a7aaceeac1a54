//! What was lost, in sentences: the end of every answer.

use orb8_proto::v1::{FlowSummary, LedgerRow, SyscallSummary};

use crate::humanise;

/// What an answer misses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// A sentence each; none if nothing was lost.
    pub(crate) sentences: Vec<String>,
}

impl Losses {
    /// Of a query's answer. `None`: it came without a summary.
    pub(crate) fn of_answer(summary: Option<&FlowSummary>) -> Self {
        let Some(summary) = summary else {
            return Self {
                sentences: vec!["the answer ended without its summary: it may be partial".to_owned()],
            };
        };
        let mut losses = Self::of_ledger(&summary.ledger);
        losses.sentences.extend(summary.notes.iter().cloned());
        losses
    }

    /// Of an answer about system calls, without its notes. `None`: it came without a summary.
    pub(crate) fn of_syscalls(summary: Option<&SyscallSummary>) -> Self {
        summary.map_or_else(
            || Self::of_answer(None),
            |summary| Self::of_ledger(&summary.ledger),
        )
    }

    /// Of a ledger's rows.
    pub(crate) fn of_ledger(rows: &[LedgerRow]) -> Self {
        if rows.is_empty() {
            return Self {
                sentences: vec!["the agent sent no loss ledger: what was lost is unknown".to_owned()],
            };
        }
        Self {
            sentences: rows.iter().filter_map(sentence).collect(),
        }
    }

    /// Adds what another answer misses, told as `who`'s.
    pub(crate) fn add(&mut self, who: &str, other: Self) {
        let told = other
            .sentences
            .into_iter()
            .map(|sentence| format!("{who}: {sentence}"));
        self.sentences.extend(told);
    }

    /// Whether nothing is known to be missing.
    pub(crate) const fn is_none(&self) -> bool {
        self.sentences.is_empty()
    }
}

/// Whether seen = counted + filtered + lost.
pub(crate) fn adds_up(row: &LedgerRow) -> bool {
    u128::from(row.seen) == u128::from(row.counted) + u128::from(row.filtered) + u128::from(row.lost)
}

/// What one row lost, if it did.
fn sentence(row: &LedgerRow) -> Option<String> {
    let stage = format!("{}/{}", row.family, row.stage);
    let unit = if row.unit.is_empty() { "records" } else { &row.unit };
    if row.lost > 0 {
        let bytes = if row.lost_bytes > 0 {
            format!(" ({})", humanise::bytes(row.lost_bytes))
        } else {
            String::new()
        };
        let advice = if row.advice.is_empty() {
            String::new()
        } else {
            format!(": {}", row.advice)
        };
        return Some(format!(
            "{stage} lost {} of {} {unit}{bytes} since the agent started{advice}",
            row.lost, row.seen
        ));
    }
    (!adds_up(row)).then(|| {
        format!(
            "{stage} does not add up: {} seen, {} counted, {} filtered, {} lost {unit}",
            row.seen, row.counted, row.filtered, row.lost
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seen: u64, counted: u64, lost: u64) -> LedgerRow {
        LedgerRow {
            family: "network".into(),
            stage: "flow_map".into(),
            unit: "packets".into(),
            seen,
            counted,
            lost,
            ..LedgerRow::default()
        }
    }

    #[test]
    fn silence_is_not_nothing_lost() {
        assert!(!Losses::of_answer(None).is_none());
        assert!(!Losses::of_ledger(&[]).is_none());
        assert!(Losses::of_ledger(&[row(5, 5, 0)]).is_none());
    }

    #[test]
    fn losses_and_sums_that_are_wrong_are_told() {
        let lost = LedgerRow {
            lost_bytes: 2048,
            advice: "raise it".into(),
            ..row(10, 7, 3)
        };
        assert_eq!(
            Losses::of_ledger(&[lost]).sentences,
            ["network/flow_map lost 3 of 10 packets (2.0 KiB) since the agent started: raise it"]
        );
        assert!(Losses::of_ledger(&[row(10, 7, 0)]).sentences[0].contains("does not add up"));
        let noted = FlowSummary {
            ledger: vec![row(1, 1, 0)],
            notes: vec!["n".into()],
            ..FlowSummary::default()
        };
        assert_eq!(Losses::of_answer(Some(&noted)).sentences, ["n"]);
    }
}
