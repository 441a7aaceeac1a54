//! Filters of calls, checked once and then matched against owners and calls.

use std::collections::BTreeSet;

use orb8_proto::v1;

use super::{
    call::{Call, CallError},
    category::Category,
    errno::{self, ErrnoError},
};
use crate::{
    identity::{cgroup::CgroupName, owner::Owner},
    store::{Filter, QueryError, UID, is_called},
};

/// What is wrong with a query about calls. Each message says what is allowed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallQueryError {
    /// Names of owners, or times.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A call that there is not.
    #[error(transparent)]
    Call(#[from] CallError),
    /// An error that there is not.
    #[error(transparent)]
    Errno(#[from] ErrnoError),
    /// A category that there is not.
    #[error("`{0}` is not a category of system calls; allowed: {allowed}", allowed = categories())]
    Category(String),
    /// A grouping that there is not.
    #[error(
        "grouping {0} is not known to this agent; allowed: 1 pod, 2 container, 3 syscall, 4 workload, 5 category, 6 node"
    )]
    Group(i32),
    /// A sort order that there is not.
    #[error("sort order {0} is not known to this agent; allowed: 0 count, 1 errors, 2 time, 3 p99")]
    Sort(i32),
    /// A kind of answer that there is not.
    #[error("kind {0} is not known to this agent; allowed: 0 all, 1 new, 2 anomalies")]
    Kind(i32),
    /// Changes are of single calls.
    #[error("changes are told call by call: add the grouping by syscall (3), or leave the grouping out")]
    ChangesByCall,
    /// Changes are of calls, not of how they end.
    #[error("changes are told of calls, however they end: leave `errnos` out of the filter")]
    ChangesByErrno,
    /// An event is told when its call is entered.
    #[error("events tell that a call is entered, not how it ends: leave `errnos` out of the filter")]
    EventsByErrno,
    /// Sampling of all calls.
    #[error("sampling needs to know of which calls: name them in `syscalls` or `categories` of the filter")]
    SampleWhat,
    /// Sampling that is none.
    #[error("sampling of one in {0} calls is more than one in {MAX_SAMPLING}")]
    Sampling(u32),
    /// None of the calls would ever be told.
    #[error(
        "none of the calls in the filter is told one by one ({told}): ask for every so many-th of them with \
         `syscall_sampling`, or add them to the setting syscall_events"
    )]
    NeverTold {
        /// Those that are.
        told: String,
    },
}

/// Fewer events than one in so many calls say nothing.
pub(super) const MAX_SAMPLING: u32 = 1_000_000;
/// Values of a filter, all lists together.
const MAX_VALUES: usize = 1024;

fn categories() -> String {
    let names: Vec<_> = Category::ALL.iter().map(|category| category.name()).collect();
    names.join(", ")
}

/// A checked filter.
#[derive(Debug)]
pub(crate) struct CallFilter {
    ends: Filter,
    asks_for_ends: bool,
    containers: Vec<String>,
    owners: Vec<String>,
    calls: BTreeSet<Call>,
    categories: Vec<Category>,
    errnos: BTreeSet<u16>,
}

impl CallFilter {
    /// Reads a filter; none: everything.
    ///
    /// # Errors
    /// If a value makes no sense; the error names it, and what is allowed.
    pub(crate) fn new(filter: Option<&v1::SyscallFilter>) -> Result<Self, CallQueryError> {
        let default = v1::SyscallFilter::default();
        let v1::SyscallFilter {
            namespaces,
            pods,
            workloads,
            containers,
            owners,
            syscalls,
            categories,
            errnos,
        } = filter.unwrap_or(&default);
        let lists = [
            ("namespaces", namespaces),
            ("pods", pods),
            ("workloads", workloads),
            ("containers", containers),
            ("owners", owners),
            ("syscalls", syscalls),
            ("categories", categories),
            ("errnos", errnos),
        ];
        let named = lists
            .iter()
            .flat_map(|(_, list)| *list)
            .filter(|value| !value.starts_with(UID))
            .count();
        if named > MAX_VALUES {
            return Err(QueryError::TooMany(named).into());
        }
        for (name, list) in lists {
            if list.iter().any(|value| value.trim().is_empty()) {
                return Err(QueryError::Empty(name).into());
            }
        }
        let ends = v1::FlowFilter {
            namespaces: namespaces.clone(),
            pods: pods.clone(),
            workloads: workloads.clone(),
            ..v1::FlowFilter::default()
        };
        let trimmed =
            |list: &[String]| -> Vec<String> { list.iter().map(|value| value.trim().to_owned()).collect() };
        let mut calls = BTreeSet::new();
        for text in syscalls {
            calls.extend(Call::parse(text)?);
        }
        let ends = Filter::new(Some(&ends))?;
        Ok(Self {
            asks_for_ends: ends.asks_for_owners(),
            ends,
            containers: trimmed(containers),
            owners: trimmed(owners),
            calls,
            categories: categories
                .iter()
                .map(|text| {
                    let text = text.trim();
                    Category::parse(text).ok_or_else(|| CallQueryError::Category(text.to_owned()))
                })
                .collect::<Result<_, _>>()?,
            errnos: errnos
                .iter()
                .map(|text| errno::parse(text))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether an owner meets all conditions on owners. Cost: linear in the filter.
    pub(crate) fn matches_owner(&self, owner: &Owner) -> bool {
        (!self.asks_for_ends || self.ends.matches_owner(owner))
            && (self.containers.is_empty()
                || self.containers.iter().any(|wanted| is_container(owner, wanted)))
            && (self.owners.is_empty()
                || self.owners.iter().any(|wanted| {
                    is_called(owner, wanted) || wanted.starts_with('/') && owner.cgroup.starts_with(wanted)
                }))
    }

    /// Whether a call meets all conditions on calls.
    pub(crate) fn matches_call(&self, call: Call) -> bool {
        (self.calls.is_empty() || self.calls.contains(&call))
            && (self.categories.is_empty() || self.categories.contains(&Category::of(call)))
    }

    /// Whether it asks for certain calls.
    pub(crate) fn names_calls(&self) -> bool {
        !self.calls.is_empty() || !self.categories.is_empty()
    }

    /// Whether it names this call, rather than its category.
    pub(crate) fn names_number(&self, call: Call) -> bool {
        self.calls.contains(&call)
    }

    /// The errors that it asks for; none: it does not.
    pub(crate) const fn errnos(&self) -> &BTreeSet<u16> {
        &self.errnos
    }
}

/// A container goes by its name, or at least four digits of the beginning of its id.
fn is_container(owner: &Owner, wanted: &str) -> bool {
    owner.container == wanted
        || wanted.len() >= 4
            && CgroupName::is_container_id(&owner.container)
            && owner.container.starts_with(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            unit: "web.service".to_owned(),
            container: "0123456789abcdef".repeat(4),
            cgroup: "/system.slice/web.service/c".to_owned(),
            ..Owner::default()
        }
    }

    fn filter(set: impl FnOnce(&mut v1::SyscallFilter)) -> Result<CallFilter, CallQueryError> {
        let mut filter = v1::SyscallFilter::default();
        set(&mut filter);
        CallFilter::new(Some(&filter))
    }

    #[test]
    fn owners_go_by_any_of_their_names() {
        for name in [
            "web",
            "web.service",
            "/system.slice",
            "/system.slice/web.service/c",
        ] {
            let filter = filter(|filter| filter.owners = vec![name.to_owned()]).unwrap();
            assert!(filter.matches_owner(&owner()), "{name}");
        }
        for name in ["we", "/system.slice/x", "system.slice"] {
            let filter = filter(|filter| filter.owners = vec![name.to_owned()]).unwrap();
            assert!(!filter.matches_owner(&owner()), "{name}");
        }
        let container = |name: &str| filter(|filter| filter.containers = vec![name.to_owned()]).unwrap();
        assert!(container("0123").matches_owner(&owner()));
        assert!(!container("012").matches_owner(&owner()) && !container("1234").matches_owner(&owner()));
        assert!(CallFilter::new(None).unwrap().matches_owner(&owner()));
    }

    #[test]
    fn calls_meet_every_condition() {
        let read = Call::parse("read").unwrap()[0];
        let both = filter(|filter| {
            filter.syscalls = vec!["read".to_owned(), "connect".to_owned()];
            filter.categories = vec!["network".to_owned()];
        })
        .unwrap();
        assert!(!both.matches_call(read) && both.matches_call(Call::parse("connect").unwrap()[0]));
        assert!(CallFilter::new(None).unwrap().matches_call(Call::unknown()));
    }

    #[test]
    fn each_mistake_says_what_is_allowed() {
        let text = |result: Result<CallFilter, CallQueryError>| result.unwrap_err().to_string();
        let one = |text: &str| vec![text.to_owned()];
        let wrong = text(filter(|filter| filter.syscalls = one("reed")));
        assert!(
            wrong.contains("`reed`") && wrong.contains("did you mean `read`?"),
            "{wrong}"
        );
        let wrong = text(filter(|filter| filter.categories = one("files")));
        assert!(
            wrong.contains("`files`") && wrong.contains("file, network, memory"),
            "{wrong}"
        );
        let wrong = text(filter(|filter| filter.errnos = one("ENOWHERE")));
        assert!(
            wrong.contains("`ENOWHERE`") && wrong.contains("1 to 4095"),
            "{wrong}"
        );
        for set in [
            (|filter| filter.pods = vec![" ".to_owned()]) as fn(&mut v1::SyscallFilter),
            |filter| filter.owners = vec![String::new()],
            |filter| filter.syscalls = vec![String::new()],
            |filter| filter.containers = vec!["x".to_owned(); MAX_VALUES + 1],
        ] {
            let wrong = text(filter(set));
            assert!(wrong.contains("filter"), "{wrong}");
        }
    }
}
