//! One row of the loss ledger.

use orb8_proto::v1;

/// What passed a stage of a probe family: `filtered` was left out on purpose, `lost` was lost, everything else was counted.
/// `advice` (what a loss means, and what to do) is only given where something was lost.
pub(crate) fn row(
    family: &str,
    stage: &str,
    unit: &str,
    [seen, filtered, lost]: [u64; 3],
    advice: &str,
) -> v1::LedgerRow {
    v1::LedgerRow {
        family: family.to_owned(),
        stage: stage.to_owned(),
        unit: unit.to_owned(),
        seen,
        counted: seen.saturating_sub(filtered).saturating_sub(lost),
        filtered,
        lost,
        lost_bytes: 0,
        advice: if lost == 0 {
            String::new()
        } else {
            advice.to_owned()
        },
    }
}
