//! Fuzzes the packet parser: `cargo xtask fuzz`.
//!
//! An input is two bytes of what the kernel tells beside a frame, then the frame.

#![no_main]

#[path = "../../tests/parser/frames.rs"]
mod frames;
#[path = "../../tests/parser/invariants.rs"]
mod invariants;
#[path = "../../tests/parser/reference.rs"]
mod reference;

use std::{env, fs, path::Path};

use invariants::{Facts, Link, check, check_common};
use libfuzzer_sys::{Corpus, fuzz_target};

/// Names the folder that the catalogue's frames are written to, for the fuzzer to begin with.
const SEEDS: &str = "ORB8_FUZZ_SEEDS";

fuzz_target!(
    init: {
        if let Some(folder) = env::var_os(SEEDS) {
            write_seeds(Path::new(&folder));
        }
    },
    |input: &[u8]| -> Corpus {
        let [facts, linear, frame @ ..] = input else { return Corpus::Reject };
        let link = match facts >> 2 & 3 {
            0 | 1 => Link::Ethernet,
            2 => Link::Raw(0x0800),
            _ => Link::Raw(0x86dd),
        };
        let facts = Facts { link, stripped: facts & 1 != 0, gso: facts & 2 != 0 };
        let packet = check(frame, facts);
        if link == Link::Ethernet && !facts.stripped && !facts.gso {
            reference::agree(frame, &packet);
        }
        check_common(frame, usize::from(*linear), facts);
        Corpus::Keep
    }
);

fn write_seeds(folder: &Path) {
    for case in frames::all() {
        assert_eq!(
            check(&case.frame, Facts::ETHERNET),
            case.expected,
            "{}",
            case.name
        );
        for (kind, facts, skip) in [
            ("", 0, 0),
            ("-gso", 2, 0),
            ("-tag", 1, 0),
            ("-raw4", 8, 14),
            ("-raw6", 12, 14),
        ] {
            let input = [&[facts, u8::MAX], &case.frame[skip..]].concat();
            let path = folder.join(format!("{}{kind}", case.name));
            fs::write(&path, input)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        }
    }
}
