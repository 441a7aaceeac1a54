//! Compressed pages, among them those that are much larger than they look.

use std::io::Write as _;

use flate2::{Compress, Compression, Crc, FlushCompress, write::GzEncoder};

/// All of it.
pub(crate) fn gzip(page: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Into memory: it can't fail.
    let _ = encoder.write_all(page);
    encoder.finish().unwrap_or_default()
}

/// A page that goes on with the same text again and again, in parts that cost nothing to make however often they repeat.
pub(crate) struct Bomb {
    /// With the page itself.
    pub(crate) head: Vec<u8>,
    /// What repeats.
    pub(crate) part: Vec<u8>,
    /// How often.
    pub(crate) times: u64,
    /// Check sum and size.
    pub(crate) tail: Vec<u8>,
}

impl Bomb {
    /// `page`, and `text` after it until it has at least `size` bytes.
    pub(crate) fn new(page: &[u8], text: &[u8], size: u64) -> Self {
        let times = size.saturating_sub(page.len() as u64).div_ceil(text.len() as u64);
        let mut sum = Crc::new();
        sum.update(page);
        let mut one = Crc::new();
        one.update(text);
        for _ in 0..times {
            sum.combine(&one);
        }
        // A gzip member without name and time.
        let mut head = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
        head.extend(blocks(page));
        // An empty last block; then the sum, and the size modulo 2^32.
        let mut tail = vec![3, 0];
        tail.extend(sum.sum().to_le_bytes());
        tail.extend(sum.amount().to_le_bytes());
        Self {
            head,
            part: blocks(text),
            times,
            tail,
        }
    }
}

/// Blocks that end at a byte and refer to nothing before them.
fn blocks(text: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::best(), false);
    let mut blocks = Vec::with_capacity(text.len() + 1024);
    let result = compress.compress_vec(text, &mut blocks, FlushCompress::Full);
    debug_assert!(result.is_ok() && compress.total_in() == text.len() as u64);
    blocks
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_is_compressed_is_genuine() {
        let read = |bytes: &[u8]| {
            let mut text = String::new();
            flate2::read::GzDecoder::new(bytes)
                .read_to_string(&mut text)
                .unwrap();
            text
        };
        assert_eq!(read(&gzip(b"a page\n")), "a page\n");
        let bomb = Bomb::new(b"a page\n", &b"more\n".repeat(1000), 1_000_000);
        let whole = [
            bomb.head,
            bomb.part.repeat(usize::try_from(bomb.times).unwrap()),
            bomb.tail,
        ]
        .concat();
        assert!(whole.len() < 20_000, "{}", whole.len());
        let text = read(&whole);
        assert!((1_000_000..1_005_000).contains(&text.len()));
        assert!(text.starts_with("a page\nmore\n"));
    }
}
