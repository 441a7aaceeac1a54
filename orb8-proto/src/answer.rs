//! Answers of many messages.

use tonic::codegen::BoxStream;

/// The messages of a streamed answer, as they come.
pub type Responses<T> = BoxStream<T>;

/// Items by at most `most` (at least one), in their order: what goes into one message each. Nothing is copied.
pub fn batches<T>(items: Vec<T>, most: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = items.into_iter();
    std::iter::from_fn(move || {
        let batch: Vec<T> = rest.by_ref().take(most.max(1)).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out_and_no_batch_is_empty() {
        let of = |items: Vec<u8>, most| batches(items, most).collect::<Vec<_>>();
        assert_eq!(of(vec![1, 2, 3, 4, 5], 2), [vec![1, 2], vec![3, 4], vec![5]]);
        assert_eq!(of(vec![1, 2], 2), [vec![1, 2]]);
        assert_eq!(of(vec![1], 0), [vec![1]]);
        assert!(of(Vec::new(), 2).is_empty());
    }
}
