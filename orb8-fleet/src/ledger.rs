//! What a reader must know of one member's losses.

use orb8_proto::v1::LedgerRow;

/// The rows of a ledger that lost something or do not add up, and the notes; that there was no ledger is a note too.
pub(crate) fn trimmed(ledger: &[LedgerRow], notes: &[String]) -> (Vec<LedgerRow>, Vec<String>) {
    let mut notes = notes.to_vec();
    if ledger.is_empty() {
        notes.push("the agent sent no loss ledger: what was lost is unknown".to_owned());
    }
    let rows = ledger.iter().filter(|row| !is_clean(row)).cloned().collect();
    (rows, notes)
}

fn is_clean(row: &LedgerRow) -> bool {
    row.lost == 0 && u128::from(row.seen) == u128::from(row.counted) + u128::from(row.filtered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_is_told_and_silence_is_wrong() {
        let row = |seen, counted, lost| LedgerRow {
            seen,
            counted,
            lost,
            ..LedgerRow::default()
        };
        let (rows, notes) = trimmed(&[row(1, 1, 0), row(2, 1, 1), row(3, 1, 0)], &["n".to_owned()]);
        assert_eq!((rows.len(), notes.len()), (2, 1));
        assert_eq!(trimmed(&[], &[]).1.len(), 1);
    }
}
