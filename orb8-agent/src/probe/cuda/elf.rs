//! Where a library has the functions: offsets in its file, from its dynamic symbols.
//!
//! The files are containers' own, so that nothing in them is trusted: they are read in pieces of bounded size (a mapped file
//! that its owner truncates would end the agent).

use std::{fs::File, io, os::unix::fs::FileExt as _};

use object::{
    LittleEndian,
    elf::{
        FileHeader64, PF_X, PT_LOAD, ProgramHeader64, SHN_UNDEF, SHT_DYNSYM, STT_FUNC, SectionHeader64, Sym64,
    },
    pod::{self, Pod},
    read::elf::FileHeader as _,
};

use super::function::FUNCTIONS;

type Endian = LittleEndian;
const ENDIAN: Endian = LittleEndian;

/// Bytes of a table that are read at most; NVIDIA's libraries have some 100 KiB.
const TABLE: u64 = 4 << 20;
/// Sections and segments of a file that are looked at.
const HEADERS: u16 = 1024;

/// Why a file has no functions that can be told.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read.
    #[error("cannot read its {what}: {source}")]
    Read {
        /// Which part.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("it is not a 64-bit little-endian ELF file")]
    Kind,
    /// It contradicts itself, or is larger than any real one.
    #[error("its {0} are not as a library's are")]
    Malformed(&'static str),
}

/// A piece of a file, aligned for any record.
struct Piece(Vec<u64>);

impl Piece {
    fn read(file: &File, what: &'static str, offset: u64, len: u64) -> Result<Self, ElfError> {
        if len > TABLE {
            return Err(ElfError::Malformed(what));
        }
        let mut words = vec![0_u64; (len as usize).div_ceil(8)];
        let bytes = &mut pod::bytes_of_slice_mut(&mut words)[..len as usize];
        file.read_exact_at(bytes, offset)
            .map_err(|source| ElfError::Read { what, source })?;
        Ok(Self(words))
    }

    fn records<T: Pod>(&self, count: usize, what: &'static str) -> Result<&[T], ElfError> {
        pod::slice_from_bytes(pod::bytes_of_slice(&self.0), count)
            .map(|(records, _)| records)
            .map_err(|()| ElfError::Malformed(what))
    }
}

/// The functions of a library that are traced: offset in the file and number, each offset once.
///
/// # Errors
/// [`ElfError`]. A library without any of them is no error.
pub(super) fn functions(file: &File) -> Result<Vec<(u64, usize)>, ElfError> {
    let what = "ELF header";
    let piece = Piece::read(file, what, 0, size_of::<FileHeader64<Endian>>() as u64)?;
    let header = &piece.records::<FileHeader64<Endian>>(1, what)?[0];
    if !header.is_supported() || !header.is_little_endian() {
        return Err(ElfError::Kind);
    }
    let segments = headers::<ProgramHeader64<Endian>>(
        file,
        "segments",
        header.e_phoff.get(ENDIAN),
        header.e_phnum.get(ENDIAN),
        header.e_phentsize.get(ENDIAN),
    )?;
    let segment_count = usize::from(header.e_phnum.get(ENDIAN));
    let segments = segments.records::<ProgramHeader64<Endian>>(segment_count, "segments")?;
    let sections = headers::<SectionHeader64<Endian>>(
        file,
        "sections",
        header.e_shoff.get(ENDIAN),
        header.e_shnum.get(ENDIAN),
        header.e_shentsize.get(ENDIAN),
    )?;
    let section_count = usize::from(header.e_shnum.get(ENDIAN));
    let sections = sections.records::<SectionHeader64<Endian>>(section_count, "sections")?;
    let Some(symbols) = sections
        .iter()
        .find(|section| section.sh_type.get(ENDIAN) == SHT_DYNSYM)
    else {
        return Ok(Vec::new());
    };
    let Some(names) = sections.get(symbols.sh_link.get(ENDIAN) as usize) else {
        return Err(ElfError::Malformed("dynamic symbols"));
    };
    let table = |section: &SectionHeader64<Endian>, what| {
        Piece::read(
            file,
            what,
            section.sh_offset.get(ENDIAN),
            section.sh_size.get(ENDIAN),
        )
    };
    let names_len = names.sh_size.get(ENDIAN) as usize;
    let names = table(names, "symbol names")?;
    let names = &pod::bytes_of_slice(&names.0)[..names_len];
    let count = symbols.sh_size.get(ENDIAN) as usize / size_of::<Sym64<Endian>>();
    let symbols = table(symbols, "dynamic symbols")?;
    let mut found: Vec<(u64, usize)> = symbols
        .records::<Sym64<Endian>>(count, "dynamic symbols")?
        .iter()
        .filter(|symbol| symbol.st_type() == STT_FUNC && symbol.st_shndx.get(ENDIAN) != SHN_UNDEF)
        .filter_map(|symbol| {
            let rest = names.get(symbol.st_name.get(ENDIAN) as usize..)?;
            // No name that matters is longer.
            let rest = &rest[..rest.len().min(64)];
            let name = rest.split(|&byte| byte == 0).next()?;
            let number = FUNCTIONS.iter().position(|function| function.has_symbol(name))?;
            Some((file_offset(segments, symbol.st_value.get(ENDIAN))?, number))
        })
        .collect();
    found.sort_unstable();
    // Two names of one function.
    found.dedup_by_key(|(offset, _)| *offset);
    Ok(found)
}

fn headers<T>(
    file: &File,
    what: &'static str,
    offset: u64,
    count: u16,
    size: u16,
) -> Result<Piece, ElfError> {
    if count > HEADERS || count > 0 && usize::from(size) != size_of::<T>() {
        return Err(ElfError::Malformed(what));
    }
    Piece::read(file, what, offset, u64::from(count) * u64::from(size))
}

/// Where the file has what is loaded at an address, if that is code.
fn file_offset(segments: &[ProgramHeader64<Endian>], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let within = address.checked_sub(segment.p_vaddr.get(ENDIAN))?;
        let is_code = segment.p_type.get(ENDIAN) == PT_LOAD && segment.p_flags.get(ENDIAN) & PF_X == PF_X;
        (is_code && within < segment.p_filesz.get(ENDIAN))
            .then(|| segment.p_offset.get(ENDIAN).checked_add(within))?
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// The test itself, which is an ELF file with dynamic symbols.
    fn real() -> Vec<u8> {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        bytes.truncate(1 << 20);
        bytes
    }

    #[test]
    fn a_library_without_the_functions_has_none() {
        let this = File::open("/proc/self/exe").unwrap();
        assert_eq!(functions(&this).unwrap(), []);
    }

    #[test]
    fn what_is_no_library_is_said_to_be_none() {
        assert!(matches!(functions(&file(b"")), Err(ElfError::Read { .. })));
        assert!(matches!(functions(&file(&[7; 4096])), Err(ElfError::Kind)));
        let mut huge = real();
        // e_phnum.
        huge[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(matches!(
            functions(&file(&huge)),
            Err(ElfError::Malformed("segments"))
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn no_file_makes_it_panic(
            changes in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..20),
            len in 0_usize..1 << 20,
        ) {
            let mut bytes = real();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(len.max(64));
            let _ = functions(&file(&bytes));
        }
    }
}
