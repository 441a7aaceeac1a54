//! Calls by number and by name. Numbers are the kernel's, names those of the crate `syscalls`, which makes its tables
//! from the kernel's headers.

use std::{borrow::Cow, collections::HashMap, fmt, sync::LazyLock};

use orb8_common::syscall::{NUMBERS, OUT_OF_RANGE, abi};
use orb8_proto::v1;

/// Which table a call's number is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Abi {
    /// x86-64.
    X86_64,
    /// 32-bit calls on x86-64.
    I386,
    /// x86-64 with 32-bit pointers; its bit is not part of the number here.
    X32,
    /// arm64.
    Arm64,
    /// 32-bit calls on arm64.
    Arm,
}

impl Abi {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::X86_64, Self::I386, Self::X32, Self::Arm64, Self::Arm];
    /// Those of this machine, its own first.
    pub const HERE: &'static [Self] = if cfg!(target_arch = "aarch64") {
        &[Self::Arm64, Self::Arm]
    } else {
        &[Self::X86_64, Self::I386, Self::X32]
    };

    /// The machine's own.
    #[must_use]
    pub const fn native() -> Self {
        Self::HERE[0]
    }

    /// From a record's number, one of [`abi`]; `None` if this machine has no such ABI.
    #[must_use]
    pub fn from_record(number: u32) -> Option<Self> {
        let index = match number {
            abi::NATIVE => 0,
            abi::COMPAT => 1,
            abi::X32 => 2,
            _ => return None,
        };
        Self::HERE.get(index).copied()
    }

    /// The number of a record: one of [`abi`].
    #[must_use]
    pub const fn in_record(self) -> u32 {
        match self {
            Self::X86_64 | Self::Arm64 => abi::NATIVE,
            Self::I386 | Self::Arm => abi::COMPAT,
            Self::X32 => abi::X32,
        }
    }

    /// Its name in filters and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::I386 => "i386",
            Self::X32 => "x32",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|abi| abi.name() == text)
    }
}

impl From<Abi> for v1::SyscallAbi {
    fn from(abi: Abi) -> Self {
        match abi {
            Abi::X86_64 => Self::X8664,
            Abi::I386 => Self::I386,
            Abi::X32 => Self::X32,
            Abi::Arm64 => Self::Arm64,
            Abi::Arm => Self::Arm,
        }
    }
}

/// A system call: a number of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Call {
    /// The table.
    pub abi: Abi,
    /// The number in it, below [`NUMBERS`]; or [`Call::UNKNOWN`].
    pub number: u16,
}

impl Call {
    /// Calls that were counted for their cgroup, but not by number: their caller had no room.
    pub const UNKNOWN: u16 = u16::MAX;

    /// The call of a record.
    #[must_use]
    pub fn from_record(abi: u32, number: u32) -> Option<Self> {
        let number = u16::try_from(number)
            .ok()
            .filter(|&number| usize::from(number) < NUMBERS)
            .unwrap_or(OUT_OF_RANGE as u16);
        Some(Self {
            abi: Abi::from_record(abi)?,
            number,
        })
    }

    /// Calls of which the number is not known.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            abi: Abi::native(),
            number: Self::UNKNOWN,
        }
    }

    /// Whether its number is one of its table's range.
    #[must_use]
    pub const fn has_number(self) -> bool {
        (self.number as usize) < OUT_OF_RANGE
    }

    /// Its name in its table, if that has one.
    #[must_use]
    pub fn known_name(self) -> Option<&'static str> {
        TABLES[self.abi as usize].get(usize::from(self.number)).copied()?
    }

    /// Its name without the ABI: `#N` for a number without a name, `#invalid` for numbers beyond every table, `other` for
    /// calls whose number is not known.
    #[must_use]
    pub fn name(self) -> Cow<'static, str> {
        match self.known_name() {
            Some(name) => name.into(),
            None if self.number == Self::UNKNOWN => "other".into(),
            None if !self.has_number() => "#invalid".into(),
            None => format!("#{}", self.number).into(),
        }
    }

    /// All calls of this machine that have this name: of each ABI that has it.
    #[must_use]
    pub fn named(name: &str) -> Vec<Self> {
        Abi::HERE.iter().filter_map(|&abi| Self::of(abi, name)).collect()
    }

    /// The call of a name in a table.
    #[must_use]
    pub fn of(abi: Abi, name: &str) -> Option<Self> {
        let number = *NUMBERS_BY_NAME[abi as usize].get(name)?;
        Some(Self { abi, number })
    }

    /// The calls that a text means: `openat` (of each ABI), `i386:openat`, `59`, `#59` or `i386:11`.
    ///
    /// # Errors
    /// [`CallError`], with the nearest name.
    pub fn parse(text: &str) -> Result<Vec<Self>, CallError> {
        let text = text.trim();
        let (abi, name) = match text.split_once(':') {
            Some((abi, name)) => {
                let known = Abi::parse(abi).filter(|abi| Abi::HERE.contains(abi));
                (Some(known.ok_or_else(|| CallError::abi(text, abi))?), name)
            }
            None => (None, text),
        };
        let digits = name.strip_prefix('#').unwrap_or(name);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = digits
                .parse::<u16>()
                .ok()
                .filter(|&number| usize::from(number) < OUT_OF_RANGE)
                .ok_or_else(|| CallError::Number(text.to_owned()))?;
            let abi = abi.unwrap_or(Abi::native());
            return Ok(vec![Self { abi, number }]);
        }
        let found = match abi {
            Some(abi) => Self::of(abi, name).into_iter().collect(),
            None => Self::named(name),
        };
        if found.is_empty() {
            return Err(CallError::Name {
                name: text.to_owned(),
                nearest: nearest(abi, name),
            });
        }
        Ok(found)
    }
}

/// With its ABI before it where that is not the machine's own.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.abi != Abi::native() {
            write!(f, "{}:", self.abi.name())?;
        }
        f.write_str(&self.name())
    }
}

/// Why a text means no call.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// No table of this machine has the name.
    #[error(
        "there is no system call `{name}`{}; allowed: a name such as openat, one of an ABI such as {}:openat, or a number",
        nearest.as_ref().map(|nearest| format!(" (did you mean `{nearest}`?)")).unwrap_or_default(),
        Abi::HERE[1].name()
    )]
    Name {
        /// As it was given.
        name: String,
        /// A name like it.
        nearest: Option<String>,
    },
    /// Not a number of a call.
    #[error("`{0}` is not the number of a system call (0 to {last})", last = OUT_OF_RANGE - 1)]
    Number(String),
    /// Not an ABI of this machine.
    #[error("`{abi}` in `{text}` is not an ABI of this machine; allowed: {allowed}")]
    Abi {
        /// As it was given.
        text: String,
        /// The part before the colon.
        abi: String,
        /// Those of this machine.
        allowed: String,
    },
}

impl CallError {
    fn abi(text: &str, abi: &str) -> Self {
        let names: Vec<_> = Abi::HERE.iter().map(|abi| abi.name()).collect();
        Self::Abi {
            text: text.to_owned(),
            abi: abi.to_owned(),
            allowed: names.join(", "),
        }
    }
}

fn nearest(abi: Option<Abi>, name: &str) -> Option<String> {
    // Longer than any name: no slip.
    if name.len() > 48 {
        return None;
    }
    let tables = match abi {
        Some(abi) => vec![abi],
        None => Abi::HERE.to_vec(),
    };
    let (distance, nearest) = tables
        .iter()
        .flat_map(|&abi| NUMBERS_BY_NAME[abi as usize].keys())
        .map(|&known| (strsim::damerau_levenshtein(name, known), known))
        .min()?;
    (distance <= 3 && distance < nearest.len()).then(|| nearest.to_owned())
}

type Table = Vec<Option<&'static str>>;

static TABLES: LazyLock<[Table; 5]> = LazyLock::new(|| Abi::ALL.map(table));

static NUMBERS_BY_NAME: LazyLock<[HashMap<&'static str, u16>; 5]> = LazyLock::new(|| {
    Abi::ALL.map(|abi| {
        TABLES[abi as usize]
            .iter()
            .enumerate()
            .filter_map(|(number, name)| Some((name.as_ref().copied()?, number as u16)))
            .collect()
    })
});

fn table(abi: Abi) -> Table {
    (0..OUT_OF_RANGE)
        .map(|number| match abi {
            Abi::X86_64 => ::syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
            Abi::I386 => ::syscalls::x86::Sysno::new(number).map(|call| call.name()),
            // Its own calls, from 512 on, are in no table of the crate.
            Abi::X32 => ::syscalls::x86_64::Sysno::new(number)
                .filter(|_| number < 512)
                .map(|call| call.name()),
            Abi::Arm64 => ::syscalls::aarch64::Sysno::new(number).map(|call| call.name()),
            Abi::Arm => ::syscalls::arm::Sysno::new(number).map(|call| call.name()),
        })
        // `break` is a word of Rust's.
        .map(|name| name.map(|name| name.strip_prefix("r#").unwrap_or(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(abi: Abi, number: u16) -> String {
        Call { abi, number }.name().into_owned()
    }

    #[test]
    fn each_table_is_its_own() {
        assert_eq!(name(Abi::X86_64, 59), "execve");
        assert_eq!(name(Abi::I386, 11), "execve");
        assert_eq!(name(Abi::Arm64, 221), "execve");
        assert_eq!(name(Abi::Arm, 11), "execve");
        assert_eq!(name(Abi::X32, 257), "openat");
        // x32's execve.
        assert_eq!(name(Abi::X32, 520), "#520");
        assert_eq!(name(Abi::X86_64, 520), "#520");
        assert_eq!(name(Abi::X86_64, OUT_OF_RANGE as u16), "#invalid");
        assert_eq!(Call::unknown().name(), "other");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_text_means_the_calls_that_it_says() {
        let call = |abi, number| Call { abi, number };
        assert_eq!(
            Call::parse("openat"),
            Ok(vec![
                call(Abi::X86_64, 257),
                call(Abi::I386, 295),
                call(Abi::X32, 257)
            ])
        );
        assert_eq!(Call::parse(" i386:openat "), Ok(vec![call(Abi::I386, 295)]));
        assert_eq!(Call::parse("socketcall"), Ok(vec![call(Abi::I386, 102)]));
        assert_eq!(Call::parse("59"), Ok(vec![call(Abi::X86_64, 59)]));
        assert_eq!(Call::parse("x32:#520"), Ok(vec![call(Abi::X32, 520)]));
        let error = |text| Call::parse(text).unwrap_err().to_string();
        assert!(
            error("opennat").contains("did you mean `openat`?"),
            "{}",
            error("opennat")
        );
        assert!(!error("zzzzzzzzzz").contains("did you mean"));
        assert!(error("arm64:openat").contains("allowed: x86_64, i386, x32"));
        assert!(error("575").contains("0 to 574") && error("99999999").contains("0 to 574"));
        assert!(Call::parse("").is_err() && Call::parse(":").is_err() && Call::parse("#").is_err());
    }

    #[test]
    fn what_is_shown_reads_back() {
        for &abi in Abi::HERE {
            for number in 0..OUT_OF_RANGE as u16 {
                let call = Call { abi, number };
                let parsed = Call::parse(&call.to_string()).unwrap();
                assert!(parsed.contains(&call), "{call}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}|[a-z0-9]{1,5}:#?[a-z0-9_]{0,12}") {
            let _ = Call::parse(&text);
        }

        #[test]
        fn records_have_a_call_or_none(abi: u32, number: u32) {
            if let Some(call) = Call::from_record(abi % 4, number) {
                prop_assert_eq!(call.abi.in_record(), abi % 4);
                prop_assert!(usize::from(call.number) < NUMBERS);
            }
        }
    }
}
