//! Wire segments of a GSO or GRO super-packet.

/// `gso_size` of an skb whose segments have their own sizes (`GSO_BY_FRAGS`, include/linux/skbuff.h).
const GSO_BY_FRAGS: u32 = 0xffff;

/// How many packets on the wire a super-packet stands for.
///
/// `gso_segs` is what the kernel says; it is 0 where a driver or guest gave only the size. `payload` is the length
/// behind all headers.
#[inline(always)]
#[must_use]
pub fn wire_segments(gso_segs: u32, gso_size: u32, payload: u32) -> u32 {
    if gso_segs > 1 {
        return gso_segs;
    }
    if gso_size == 0 || gso_size == GSO_BY_FRAGS || payload <= gso_size {
        return 1;
    }
    payload.div_ceil(gso_size)
}

#[cfg(test)]
mod tests {
    use super::wire_segments;

    #[test]
    fn counts_segments() {
        assert_eq!(wire_segments(0, 0, 1448), 1);
        assert_eq!(wire_segments(5, 1448, 6000), 5);
        assert_eq!(wire_segments(0, 1448, 1448), 1);
        assert_eq!(wire_segments(0, 1448, 1449), 2);
        assert_eq!(wire_segments(0, 0xffff, 70_000), 1);
        assert_eq!(wire_segments(1, 1000, 2500), 3);
    }
}
