//! What was lost, in sentences: the end of every answer.

use orb8_fleet::called;
use orb8_proto::v1::{LedgerRow, NodeAnswer};

use crate::{humanise, query};

/// What an answer misses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// A sentence each; none if nothing was lost.
    pub(crate) sentences: Vec<String>,
}

impl Losses {
    /// Of an answer that came without a summary.
    pub(crate) fn unknown() -> Self {
        Self {
            sentences: vec!["the answer ended without its summary: it may be partial".to_owned()],
        }
    }

    /// Of an answer: who is missing in it, then what each node lost and has to say; `many`: with the nodes' names.
    pub(crate) fn of_nodes(nodes: &[NodeAnswer], many: bool) -> Self {
        let mut losses = Self {
            sentences: query::missing(nodes),
        };
        for node in nodes {
            let of_one = Self {
                sentences: node
                    .ledger
                    .iter()
                    .filter_map(sentence)
                    .chain(node.notes.iter().cloned())
                    .collect(),
            };
            if many {
                losses.add(&called(&node.name), of_one);
            } else {
                losses.sentences.extend(of_one.sentences);
            }
        }
        losses
    }

    /// Of a ledger's rows.
    pub(crate) fn of_ledger(rows: &[LedgerRow]) -> Self {
        if rows.is_empty() {
            return Self {
                sentences: vec![query::NO_LEDGER.to_owned()],
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
        assert!(!Losses::unknown().is_none());
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
        let noted = NodeAnswer {
            name: "n1".into(),
            notes: vec!["n".into()],
            ..NodeAnswer::default()
        };
        assert_eq!(
            Losses::of_nodes(std::slice::from_ref(&noted), false).sentences,
            ["n"]
        );
        assert_eq!(Losses::of_nodes(&[noted], true).sentences, ["node n1: n"]);
    }
}
