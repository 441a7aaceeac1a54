//! The functions that are traced, and what their arguments are. Adding one to the table is all that it takes.
//!
//! Signatures are those of cuda.h and cuda_runtime_api.h (CUDA 12).

use orb8_common::cuda::{cookie, kind};

use super::Mode;

/// A library of NVIDIA's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Library {
    /// `libcuda.so`, which comes with the driver.
    Driver,
    /// `libcudart.so`, which comes with programs, and calls the driver's.
    Runtime,
}

impl Library {
    /// Its name in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "libcuda",
            Self::Runtime => "libcudart",
        }
    }
}

/// What a function does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Allocates device memory: `(address *, bytes)`.
    Allocate,
    /// Frees it: `(address)`.
    Free,
    /// Copies: `(to, from, bytes)`.
    Copy,
    /// Starts a kernel.
    Launch,
    /// Waits for the device.
    Synchronize,
}

/// A function that is traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    /// Its name, and that of its symbol.
    pub name: &'static str,
    /// Where it is.
    pub library: Library,
    /// What it does.
    pub kind: Kind,
    /// Suffix of the symbol that programs use which were compiled for a default stream per thread.
    per_thread: &'static str,
}

const fn function(library: Library, kind: Kind, name: &'static str, per_thread: &'static str) -> Function {
    Function {
        name,
        library,
        kind,
        per_thread,
    }
}

/// All of them; a function's number is its place.
pub const FUNCTIONS: &[Function] = &[
    function(Library::Driver, Kind::Allocate, "cuMemAlloc_v2", ""),
    function(Library::Driver, Kind::Free, "cuMemFree_v2", ""),
    function(Library::Driver, Kind::Launch, "cuLaunchKernel", "_ptsz"),
    function(Library::Driver, Kind::Copy, "cuMemcpy", "_ptds"),
    function(Library::Driver, Kind::Copy, "cuMemcpyAsync", "_ptsz"),
    function(Library::Driver, Kind::Copy, "cuMemcpyHtoD_v2", "_ptds"),
    function(Library::Driver, Kind::Copy, "cuMemcpyHtoDAsync_v2", "_ptsz"),
    function(Library::Driver, Kind::Copy, "cuMemcpyDtoH_v2", "_ptds"),
    function(Library::Driver, Kind::Copy, "cuMemcpyDtoHAsync_v2", "_ptsz"),
    function(Library::Driver, Kind::Copy, "cuMemcpyDtoD_v2", "_ptds"),
    function(Library::Driver, Kind::Copy, "cuMemcpyDtoDAsync_v2", "_ptsz"),
    function(Library::Driver, Kind::Synchronize, "cuStreamSynchronize", "_ptsz"),
    function(Library::Driver, Kind::Synchronize, "cuCtxSynchronize", ""),
    function(Library::Runtime, Kind::Allocate, "cudaMalloc", ""),
    function(Library::Runtime, Kind::Free, "cudaFree", ""),
    function(Library::Runtime, Kind::Launch, "cudaLaunchKernel", "_ptsz"),
    function(Library::Runtime, Kind::Copy, "cudaMemcpy", "_ptds"),
    function(Library::Runtime, Kind::Copy, "cudaMemcpyAsync", "_ptsz"),
    function(Library::Runtime, Kind::Synchronize, "cudaDeviceSynchronize", ""),
];

const _: () = assert!(FUNCTIONS.len() <= cookie::FUNCTION as usize + 1);

impl Function {
    /// The function that a record is of.
    #[must_use]
    pub fn of_record(number: u32) -> Option<&'static Self> {
        FUNCTIONS.get(number as usize)
    }

    /// Whether a symbol is this function's.
    #[must_use]
    pub fn has_symbol(&self, symbol: &[u8]) -> bool {
        let rest = symbol.strip_prefix(self.name.as_bytes());
        rest.is_some_and(|rest| {
            rest.is_empty() || !self.per_thread.is_empty() && rest == self.per_thread.as_bytes()
        })
    }

    /// Whether its return is traced: to know whether an allocation succeeded, or how any call ended. Where return
    /// addresses are not on the stack, also to know when a call of the runtime library ends.
    #[must_use]
    pub const fn is_followed_to_its_return(&self, mode: Mode) -> bool {
        matches!(mode, Mode::Latency)
            || matches!(self.kind, Kind::Allocate)
            || cfg!(not(target_arch = "x86_64")) && matches!(self.library, Library::Runtime)
    }

    /// Whether [`Calls::bytes`](orb8_common::cuda::Calls) says something about it.
    #[must_use]
    pub const fn has_bytes(&self) -> bool {
        matches!(self.kind, Kind::Allocate | Kind::Free | Kind::Copy)
    }

    /// The cookie of its attachment to the file in `slot`.
    pub(super) fn cookie(&self, number: usize, slot: usize, mode: Mode) -> u64 {
        let (kind, bytes) = match self.kind {
            Kind::Allocate => (kind::ALLOCATE, 1),
            Kind::Free => (kind::FREE, 0),
            Kind::Copy => (kind::COPY, 2),
            Kind::Launch | Kind::Synchronize => (kind::PLAIN, 0),
        };
        let returns = if self.is_followed_to_its_return(mode) {
            cookie::RETURNS
        } else {
            0
        };
        cookie::PRESENT
            | number as u64 & cookie::FUNCTION
            | kind << cookie::KIND_SHIFT
            | bytes << cookie::BYTES_SHIFT
            | returns
            | (slot as u64 & cookie::FILE) << cookie::FILE_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_of_one_function() {
        for function in FUNCTIONS {
            for symbol in [
                function.name.to_owned(),
                format!("{}{}", function.name, function.per_thread),
            ] {
                let of: Vec<_> = FUNCTIONS
                    .iter()
                    .filter(|it| it.has_symbol(symbol.as_bytes()))
                    .map(|it| it.name)
                    .collect();
                assert_eq!(of, [function.name], "{symbol}");
            }
        }
        for other in [
            "cuMemAlloc",
            "cuMemcpyHtoD_v2_ptsz",
            "cudaMallocHost",
            "cudaMemcpy2D",
            "",
        ] {
            assert!(
                FUNCTIONS.iter().all(|it| !it.has_symbol(other.as_bytes())),
                "{other}"
            );
        }
    }

    #[test]
    fn counting_costs_a_return_only_where_it_must() {
        let returns = |mode| {
            FUNCTIONS
                .iter()
                .filter(|it| it.is_followed_to_its_return(mode))
                .count()
        };
        assert_eq!(returns(Mode::Latency), FUNCTIONS.len());
        if cfg!(target_arch = "x86_64") {
            assert_eq!(returns(Mode::Counts), 2);
        }
    }
}
