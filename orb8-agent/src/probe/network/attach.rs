//! Attaches the classifiers to one interface, both sides or none.
//!
//! tcx links where the kernel has them (Linux 6.6): at the head of the chain, by interface index, gone with their
//! descriptor. Elsewhere clsact filters, which outlive the process that made them; [`sweep`] removes what an agent
//! that was killed has left.

use std::{
    io, mem,
    os::{
        fd::{AsFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

use aya::programs::{
    ProgramError, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
};

use super::load::{ETHERNET, LoadError, NetworkPrograms, RAW};
use crate::bpf::link::{TcxSide, attach_tcx};

/// How classifiers are attached to an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// tcx links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

impl Mechanism {
    /// Name for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Whether frames of the interface begin with an Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// They do.
    Ethernet,
    /// They begin with the IP header.
    Raw,
}

/// Why an interface is not observed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// tcx refused the link.
    #[error("tcx refused the program: {0}")]
    Tcx(#[source] io::Error),
    /// clsact refused qdisc or filter.
    #[error("clsact refused the program: {0}")]
    Clsact(#[source] ProgramError),
    /// The qdisc could not be made.
    #[error("cannot add a clsact qdisc: {0}")]
    Qdisc(#[source] TcError),
    /// The name belongs to another interface by now.
    #[error("it was replaced by another interface while the programs were being attached")]
    Replaced,
    /// A program is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Both classifiers, attached; dropping it detaches them.
#[derive(Debug)]
pub struct Attachment(Links);

#[derive(Debug)]
enum Links {
    Tcx([OwnedFd; 2]),
    Clsact([SchedClassifierLink; 2]),
    #[cfg(test)]
    None,
}

impl Attachment {
    /// Nothing attached, for tests of what keeps attachments.
    #[cfg(test)]
    pub(crate) const fn none() -> Self {
        Self(Links::None)
    }

    /// How it is attached.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        match self.0 {
            Links::Tcx(_) => Mechanism::Tcx,
            Links::Clsact(_) => Mechanism::Clsact,
            #[cfg(test)]
            Links::None => Mechanism::Tcx,
        }
    }

    /// Forgets the attachment to an interface that is gone: its filters went with it, and its index may be another
    /// interface's by now.
    pub fn forget(self) {
        match self.0 {
            Links::Tcx(links) => drop(links),
            Links::Clsact(links) => mem::forget(links),
            #[cfg(test)]
            Links::None => {}
        }
    }
}

/// Attaches both classifiers to the interface.
///
/// # Errors
/// [`AttachError`]; then nothing is attached.
pub fn attach(
    programs: &mut NetworkPrograms,
    ifindex: u32,
    name: &str,
    framing: Framing,
    mechanism: Mechanism,
) -> Result<Attachment, AttachError> {
    let [ingress, egress] = match framing {
        Framing::Ethernet => ETHERNET,
        Framing::Raw => RAW,
    };
    match mechanism {
        Mechanism::Tcx => {
            let mut link = |program, side| {
                let program = programs.classifier(program)?;
                let fd = program.fd().map_err(AttachError::Clsact)?;
                attach_tcx(fd.as_fd(), ifindex, side).map_err(AttachError::Tcx)
            };
            Ok(Attachment(Links::Tcx([
                link(ingress, TcxSide::Ingress)?,
                link(egress, TcxSide::Egress)?,
            ])))
        }
        Mechanism::Clsact => {
            match tc::qdisc_add_clsact(name) {
                Err(error) if !is_exists(&error) => return Err(AttachError::Qdisc(error)),
                _ => {}
            }
            let mut link = |program, side| {
                let program = programs.classifier(program)?;
                // Priority 0: the kernel puts the filter before all others.
                let id = program
                    .attach_with_options(name, side, TcAttachOptions::Netlink(NlOptions::default()))
                    .map_err(AttachError::Clsact)?;
                program.take_link(id).map_err(AttachError::Clsact)
            };
            let links = [
                link(ingress, TcAttachType::Ingress)?,
                link(egress, TcAttachType::Egress)?,
            ];
            // Filters are attached by name; a name may have moved on.
            if nix::net::if_::if_nametoindex(name).ok() != Some(ifindex) {
                return Err(AttachError::Replaced);
            }
            Ok(Attachment(Links::Clsact(links)))
        }
    }
}

fn is_exists(error: &TcError) -> bool {
    matches!(error, TcError::AlreadyAttached) || error.to_string().contains("File exists") || {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        let mut found = false;
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                found |= io.raw_os_error() == Some(libc::EEXIST);
            }
            source = error.source();
        }
        found
    }
}

/// Held while clsact filters of this process may exist, so that no other one takes them for leftovers. Abstract
/// sockets belong to a network namespace, as filters do, and end with their process.
#[derive(Debug)]
pub struct ClsactGuard(Option<UnixListener>);

/// Removes clsact filters that an agent which was killed has left on `interfaces`, unless another one is alive.
///
/// # Errors
/// If the guarding socket cannot be made for another reason than that it exists.
pub fn sweep<'a>(interfaces: impl IntoIterator<Item = &'a str>) -> io::Result<(ClsactGuard, usize)> {
    let address = SocketAddr::from_abstract_name(b"orb8/clsact")?;
    let guard = match UnixListener::bind_addr(&address) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok((ClsactGuard(None), 0)),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for interface in interfaces {
        for ([ingress, egress], _) in [(ETHERNET, ()), (RAW, ())] {
            for (program, side) in [(ingress, TcAttachType::Ingress), (egress, TcAttachType::Egress)] {
                // Not found is the rule.
                removed += usize::from(tc::qdisc_detach_program(interface, side, program).is_ok());
            }
        }
    }
    Ok((ClsactGuard(Some(guard)), removed))
}

impl ClsactGuard {
    /// Whether this process is the one that may sweep.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.0.is_some()
    }
}
