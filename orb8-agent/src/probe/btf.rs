//! Offsets of members of the kernel's structures, from its BTF.
//!
//! aya reads BTF too, but keeps members to itself. Layout: Documentation/bpf/btf.rst.

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
/// Bit of a type's info: members' offsets have a bit-field size in their high byte.
const KIND_FLAG: u32 = 1 << 31;

/// Offset in bytes of `member` in the first `structure` of that name that has it. `None` if there is none, it is a
/// bit-field, or `btf` is not BTF in this machine's byte order.
pub(crate) fn member_offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = word(btf, 4)? as usize;
    let section = |offset: u32, len: u32| {
        let from = header.checked_add(offset as usize)?;
        btf.get(from..from.checked_add(len as usize)?)
    };
    let types = section(word(btf, 8)?, word(btf, 12)?)?;
    let strings = section(word(btf, 16)?, word(btf, 20)?)?;
    let is = |name: u32, wanted: &str| {
        let name = strings.get(name as usize..).unwrap_or_default();
        name.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = 0;
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, len) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        at += 12;
        if kind == STRUCT && is(name, structure) {
            for i in 0..len {
                let entry = at + 12 * i;
                if !is(word(types, entry)?, member) {
                    continue;
                }
                let bits = word(types, entry + 8)?;
                let (size, bits) = if info & KIND_FLAG == 0 {
                    (0, bits)
                } else {
                    (bits >> 24, bits & 0xff_ffff)
                };
                return (size == 0 && bits.is_multiple_of(8)).then_some(bits / 8);
            }
        }
        at += following(kind, len)?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

/// Bytes that follow a type of this kind.
fn following(kind: u32, len: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward declaration, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array; structure, union, section, enumeration of 64 bits.
        3 => 12,
        4 | 5 | 15 | 19 => 12 * len,
        // Enumeration, function prototype.
        6 | 13 => 8 * len,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An integer, then a structure `s` of two of them: `a` at 0, `b` at 4.
    fn example() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0";
        let types: Vec<u32> = vec![
            1,
            1 << 24,
            4,
            32, // int
            5,
            4 << 24 | 2,
            8,
            7,
            1,
            0,
            9,
            1,
            32, // struct s { int a; int b; }
        ];
        let mut btf = Vec::new();
        btf.extend(MAGIC.to_ne_bytes());
        btf.extend([1, 0]);
        for value in [
            24,
            0,
            4 * types.len() as u32,
            4 * types.len() as u32,
            strings.len() as u32,
        ] {
            btf.extend(value.to_ne_bytes());
        }
        btf.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        btf.extend(strings);
        btf
    }

    #[test]
    fn members_are_found_by_name() {
        let btf = example();
        assert_eq!(member_offset(&btf, "s", "a"), Some(0));
        assert_eq!(member_offset(&btf, "s", "b"), Some(4));
        assert_eq!(member_offset(&btf, "s", "c"), None);
        assert_eq!(member_offset(&btf, "t", "a"), None);
        assert_eq!(member_offset(b"", "s", "a"), None);
    }

    #[test]
    fn the_kernels_own_is_understood() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return;
        };
        assert!(member_offset(&btf, "task_struct", "thread_info").is_some());
        assert!(member_offset(&btf, "task_struct", "tgid").is_some());
    }

    proptest! {
        #[test]
        fn nothing_is_too_wild(at in 0..100_usize, byte: u8, len in 0..120_usize) {
            let mut btf = example();
            let last = btf.len() - 1;
            btf[at.min(last)] = byte;
            btf.truncate(len);
            let _ = member_offset(&btf, "s", "b");
        }
    }
}
