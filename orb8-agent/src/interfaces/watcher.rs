//! The thread that follows interfaces.

use std::{
    collections::HashSet,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    Change, InterfaceError,
    link::{Link, default_route, read_link},
    table::Table,
};
use crate::netlink::Socket;

/// Multicast groups (include/uapi/linux/rtnetlink.h).
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
/// Notifications handled before changes are handed on.
const BATCH: usize = 256;

/// Sizes of a watcher's queues.
#[derive(Clone, Copy, Debug)]
pub struct WatcherOptions {
    /// Bytes of the kernel's queue of notifications. One takes some 2 KiB there.
    pub receive_buffer: i32,
    /// Batches of changes that wait for the reader; beyond it, the kernel's queue fills.
    pub batches: usize,
}

impl Default for WatcherOptions {
    fn default() -> Self {
        Self {
            receive_buffer: 4 << 20,
            batches: 64,
        }
    }
}

/// Follows the interfaces of the network namespace in which it was made, until dropped.
#[derive(Debug)]
pub struct InterfaceWatcher {
    batches: mpsc::Receiver<Result<Vec<Change>, InterfaceError>>,
    /// Ends the thread when dropped.
    _stop: UnixStream,
}

impl InterfaceWatcher {
    /// Subscribes, and starts the thread. What is there comes as [`Change::Added`] from the first
    /// [`InterfaceWatcher::next`].
    ///
    /// # Errors
    /// If the kernel refuses netlink sockets, or no thread can be started.
    pub fn new() -> Result<Self, InterfaceError> {
        Self::with_options(&WatcherOptions::default())
    }

    /// As [`InterfaceWatcher::new`].
    ///
    /// # Errors
    /// As [`InterfaceWatcher::new`].
    pub fn with_options(options: &WatcherOptions) -> Result<Self, InterfaceError> {
        let error = |action| move |source| InterfaceError::Netlink { action, source };
        // Subscribed before the first list is asked for, so that no change falls in between.
        let events = Socket::subscribe(
            libc::NETLINK_ROUTE,
            &[RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE],
            options.receive_buffer,
            &links_and_default_routes(),
        )
        .map_err(error("subscribe to interface changes"))?;
        let requests = Socket::open(libc::NETLINK_ROUTE).map_err(error("open a route socket"))?;
        let (stop, stopped) = UnixStream::pair().map_err(InterfaceError::Thread)?;
        let (sender, batches) = mpsc::channel(options.batches.max(1));
        let worker = Worker {
            events,
            requests,
            table: Table::default(),
            lost: true,
            routes_changed: true,
            moved: HashSet::new(),
        };
        thread::Builder::new()
            .name("orb8-interfaces".to_owned())
            .spawn(move || worker.run(&stopped, &sender))
            .map_err(InterfaceError::Thread)?;
        Ok(Self { batches, _stop: stop })
    }

    /// The next changes, in order. Cancel safe.
    ///
    /// # Errors
    /// If the kernel stops to answer; the watcher has ended then.
    pub async fn next(&mut self) -> Result<Vec<Change>, InterfaceError> {
        self.batches.recv().await.ok_or(InterfaceError::Ended)?
    }
}

/// A socket filter (classic BPF) that drops notifications of routes other than default routes: a router makes
/// thousands of them.
fn links_and_default_routes() -> [libc::sock_filter; 7] {
    let statement = |code: u32, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let equal = |k, jt, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    // Loads are in network order, the message's type is in host order.
    let kind = |kind: u16| u32::from(kind.to_be());
    [
        // nlmsghdr.nlmsg_type
        statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 4),
        equal(kind(libc::RTM_NEWROUTE), 1, 0),
        equal(kind(libc::RTM_DELROUTE), 0, 2),
        // rtmsg.rtm_dst_len
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 17),
        equal(0, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

struct Worker {
    events: Socket,
    requests: Socket,
    table: Table,
    /// Notifications were lost: list everything.
    lost: bool,
    routes_changed: bool,
    /// Interfaces whose other end may have moved.
    moved: HashSet<u32>,
}

impl Worker {
    fn run(mut self, stopped: &UnixStream, sender: &mpsc::Sender<Result<Vec<Change>, InterfaceError>>) {
        loop {
            let mut changes = Vec::new();
            let mut result = self.read(&mut changes);
            if result.is_ok() {
                result = self.catch_up(&mut changes);
            }
            if !changes.is_empty() && sender.blocking_send(Ok(changes)).is_err() {
                return;
            }
            if let Err(error) = result {
                // A reader that is gone does not want to know.
                let _ = sender.blocking_send(Err(error));
                return;
            }
            let mut fds = [
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    let _ = sender.blocking_send(Err(InterfaceError::Netlink {
                        action: "wait for interface changes",
                        source: errno.into(),
                    }));
                    return;
                }
                Ok(_) if fds[0].any().unwrap_or(true) => return,
                Ok(_) => {}
            }
        }
    }

    /// Takes what waits.
    fn read(&mut self, changes: &mut Vec<Change>) -> Result<(), InterfaceError> {
        for _ in 0..BATCH {
            let messages = match self.events.notification() {
                Ok(None) => break,
                Ok(Some(messages)) => messages,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    debug!("interface notifications were lost, listing all interfaces");
                    self.lost = true;
                    continue;
                }
                Err(source) => {
                    return Err(InterfaceError::Netlink {
                        action: "read interface changes",
                        source,
                    });
                }
            };
            for message in messages {
                match message.kind {
                    libc::RTM_NEWLINK if !self.lost => {
                        let Some(link) = read_link(message.payload) else {
                            continue;
                        };
                        self.routes_changed |= self.table.carries_default(link.interface.ifindex);
                        self.table.seen(link, changes);
                    }
                    libc::RTM_DELLINK if !self.lost => {
                        let Some(link) = read_link(message.payload) else {
                            continue;
                        };
                        self.moved.extend(self.table.partners(link.interface.ifindex));
                        self.table.gone(&link, changes);
                    }
                    libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.routes_changed = true,
                    // After a loss, what waits is older than the list which will be asked for.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Asks for what notifications do not tell.
    fn catch_up(&mut self, changes: &mut Vec<Change>) -> Result<(), InterfaceError> {
        let error = |action| move |source| InterfaceError::Netlink { action, source };
        if self.lost {
            self.lost = false;
            self.moved.clear();
            // Default routes first, so that an interface has its role from the beginning; and again below, for those
            // whose number was another's.
            self.routes_changed = true;
            let defaults = self.default_routes().map_err(error("list default routes"))?;
            self.table.routes(defaults, changes);
            let links = self.links().map_err(error("list interfaces"))?;
            self.table.listed(links, changes);
        }
        for ifindex in std::mem::take(&mut self.moved) {
            let mut request = vec![0; 16];
            request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
            let link = self
                .requests
                .request(libc::RTM_GETLINK, &request, |message| read_link(message.payload));
            // As a rule it is gone as well, and its own notification says so.
            if let Ok(Some(link)) = link {
                self.table.seen(link, changes);
            }
        }
        if self.routes_changed {
            self.routes_changed = false;
            let defaults = self.default_routes().map_err(error("list default routes"))?;
            self.table.routes(defaults, changes);
        }
        Ok(())
    }

    fn links(&mut self) -> io::Result<Vec<Link>> {
        // struct ifinfomsg of zeros: all.
        self.requests
            .dump(libc::RTM_GETLINK, &[0; 16], |message| read_link(message.payload))
    }

    fn default_routes(&mut self) -> io::Result<HashSet<u32>> {
        let mut interfaces = HashSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // struct rtmsg; the kernel filters by table (≥ 4.20) and type.
            let mut request = [0; 12];
            request[0] = family as u8;
            request[4] = libc::RT_TABLE_MAIN;
            request[7] = libc::RTN_UNICAST;
            let found = self.requests.dump(libc::RTM_GETROUTE, &request, |message| {
                let interfaces = default_route(message.payload);
                (!interfaces.is_empty()).then_some(interfaces)
            });
            match found {
                Ok(found) => interfaces.extend(found.into_iter().flatten()),
                // No such table in this namespace yet, or no IPv6 in this kernel.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(interfaces)
    }
}
