//! `orb8 profile seccomp`: watches, and writes a profile of what was seen.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use orb8_proto::v1::{ListPodsRequest, PodStatus, SyscallMode, SyscallQuery};
use prost_types::Timestamp;
use tempfile::NamedTempFile;
use tokio::time::Instant;

use crate::{
    args::SeccompArgs,
    ends,
    exit::{Outcome, Usage},
    filter::{self, Scope},
    fleet::Fleet,
    humanise,
    output::Output,
    query::{self, Cursor, syscall::Answer},
    seccomp::Seen,
    signals::Stop,
    terminal, timestamp,
};

/// How long a standalone watch is, unless told.
const WATCH: Duration = Duration::from_mins(5);
/// How often a watch takes what was counted: well within what any agent keeps.
const STEP: Duration = Duration::from_secs(5);
/// Names of an error's list.
const NAMES: usize = 5;

pub(super) async fn run(fleet: &Fleet, args: &SeccompArgs, stop: &Stop) -> anyhow::Result<Outcome> {
    let scope = Scope::of_callers(&args.caller, fleet.namespace.as_deref());
    let query = filter::syscall::seccomp_query(args, &scope, SystemTime::now())?;
    // A file that cannot be written shows now, not after the watch.
    let file = args.output.as_deref().map(File::create).transpose()?;
    let mut watch = Watch::default();
    match args.duration.or_else(|| fleet.is_standalone().then_some(WATCH)) {
        Some(duration) => watch.follow(fleet, query, duration, stop).await?,
        None => {
            let work = query::syscall::ask(fleet, &query, &watch.cursor);
            let answer = super::unless_stopped(stop, work).await?;
            watch.take(answer);
        }
    }
    watch.is_of_one()?;
    let pods = ListPodsRequest {
        namespaces: scope.namespaces.clone(),
        pods: query_pods(args, &scope),
        workloads: args.caller.workload.clone(),
        ..ListPodsRequest::default()
    };
    let pods = known_pods(fleet, &pods).await;
    let Some(profile) = watch.seen.profile(args.log) else {
        bail!("{}", watch.nothing(args, pods.as_deref()));
    };
    let mut text = serde_json::to_string_pretty(&profile)?;
    text.push('\n');
    match file {
        Some(file) => file.write(&text)?,
        None => {
            let mut output = Output::stdout();
            output.write(text).await?;
            output.finish().await?;
        }
    }
    let said = watch.report(pods.as_deref().unwrap_or_default());
    for sentence in said.into_iter().chain(scope.note()) {
        terminal::say(&format!("orb8: {sentence}"));
    }
    if let Some(path) = &args.output {
        terminal::say(&format!("orb8: written to {}", path.display()));
    }
    let partial = !watch.losses.is_empty() || watch.seen.is_incomplete();
    Ok(Outcome::of(partial, args.strict))
}

fn query_pods(args: &SeccompArgs, scope: &Scope) -> Vec<String> {
    filter::syscall::callers(&args.caller, scope).pods
}

/// The pods that are meant, by their nodes' agents. None: no agent could say.
async fn known_pods(fleet: &Fleet, request: &ListPodsRequest) -> Option<Vec<PodStatus>> {
    if request.pods.is_empty() && request.workloads.is_empty() {
        return None;
    }
    let (answers, _) = query::pods(fleet, request).await.ok()?;
    Some(answers.into_iter().flat_map(|(_, answer)| answer.pods).collect())
}

/// What was seen, and since when.
#[derive(Debug, Default)]
struct Watch {
    seen: Seen,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// What the last answer missed: the ledger counts since the agent started.
    losses: Vec<String>,
    /// What the last answer's agents said of it.
    notes: Vec<String>,
    /// Agents that do not count.
    off: Vec<String>,
    cursor: Cursor,
}

impl Watch {
    /// Takes what is counted from now on, step by step, for `duration` or until the user has enough.
    ///
    /// # Errors
    /// If nobody answers and nothing was seen, or more than one workload is meant.
    async fn follow(
        &mut self,
        fleet: &Fleet,
        query: SyscallQuery,
        duration: Duration,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        // What was kept says whose calls are meant, before anything is waited for.
        let before = query::syscall::ask(fleet, &query, &self.cursor);
        let before = super::unless_stopped(stop, before).await?;
        if fleet.is_standalone() {
            self.take(before);
        } else {
            self.from = before.summary.as_ref().and_then(|summary| summary.to);
            self.cursor = before.cursor.clone();
            let mut kept = Self::default();
            kept.take(before);
            kept.is_of_one()?;
        }
        terminal::say(&format!(
            "orb8: watching for {} … (^C: enough)",
            humanise::seconds(duration.as_secs_f64())
        ));
        let end = Instant::now() + duration;
        let mut enough = false;
        while !enough {
            tokio::select! {
                () = tokio::time::sleep_until(end.min(Instant::now() + STEP)) => {}
                () = stop.requested() => enough = true,
            }
            enough |= Instant::now() >= end;
            match query::syscall::ask(fleet, &query, &self.cursor).await {
                Ok(answer) => {
                    self.take(answer);
                    // Where a step begins is no news.
                    self.notes.clear();
                }
                Err(error) if self.seen.calls > 0 => {
                    self.losses.push(format!("the watch ended early: {error:#}"));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.is_of_one()?;
        }
        Ok(())
    }

    /// Adds one answer.
    fn take(&mut self, answer: Answer) {
        answer.rows.iter().for_each(|row| self.seen.add(row));
        if let Some(summary) = &answer.summary {
            self.from = self.from.or(summary.from);
            self.to = summary.to.or(self.to);
        }
        self.off = answer
            .modes
            .iter()
            .filter(|agent| agent.mode == SyscallMode::Off)
            .map(|agent| agent.name.clone())
            .collect();
        self.losses = answer.losses.sentences;
        self.notes = answer.notes;
        self.losses.extend(self.off.iter().map(|name| {
            format!("{name} counts no calls: mode `off` (`orb8 syscall-mode counts` switches it on)")
        }));
        self.cursor = answer.cursor;
    }

    /// # Errors
    /// If calls of more than one workload were seen: a profile is for one.
    fn is_of_one(&self) -> Result<(), Usage> {
        let workloads: Vec<&str> = self.seen.workloads.iter().map(String::as_str).collect();
        if workloads.len() <= 1 {
            return Ok(());
        }
        let more = workloads.len().saturating_sub(NAMES);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Err(Usage(format!(
            "a profile is for one workload, and {} match: {}{more}; name one (--workload NAMESPACE/KIND/NAME, \
             --pod NAMESPACE/NAME, --owner NAME)",
            workloads.len(),
            workloads[..workloads.len().min(NAMES)].join(", ")
        )))
    }

    /// Why there is nothing to write.
    fn nothing(&self, args: &SeccompArgs, pods: Option<&[PodStatus]>) -> anyhow::Error {
        let why = if !self.off.is_empty() {
            format!(
                "{} counts no calls: mode `off` (`orb8 syscall-mode counts` switches it on)",
                self.off.join(", ")
            )
        } else if self.seen.calls > 0 {
            "only calls without a name were seen".to_owned()
        } else {
            match pods {
                Some([]) => {
                    "no such pod is known (`orb8 pods -A` lists them); one that started a moment ago has no \
                             name yet: try again, or watch with --duration"
                        .to_owned()
                }
                Some(pods) if args.caller.container.is_empty() => {
                    let name = |pod: &PodStatus| ends::qualified(&pod.namespace, &pod.name);
                    let names: Vec<String> = pods.iter().take(NAMES).map(name).collect();
                    format!(
                        "{} made no calls{}; watch longer, with --duration",
                        names.join(", "),
                        self.span()
                    )
                }
                _ => format!(
                    "nobody of that name made calls{} (`orb8 syscalls` shows who did); watch longer, with --duration",
                    self.span()
                ),
            }
        };
        anyhow!("no profile is written: {why}")
    }

    /// ` in 5 min (03:04:05 to 03:09:05 UTC)`; nothing if it is unknown.
    fn span(&self) -> String {
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            return String::new();
        };
        format!(
            " in {} ({} to {} UTC)",
            humanise::seconds(timestamp::seconds_between(from, to)),
            timestamp::clock(Some(from), 0),
            timestamp::clock(Some(to), 0)
        )
    }

    /// What the profile rests on, a sentence each.
    fn report(&self, pods: &[PodStatus]) -> Vec<String> {
        let seen = &self.seen;
        let workload = seen.workloads.first().map_or("", String::as_str);
        let in_pods = match seen.pods.len() {
            0 => String::new(),
            n => format!(" in {}", humanise::counted(n as u64, "pod", "pods")),
        };
        let mut said = vec![format!(
            "{workload}: {} of {} calls, by {}{in_pods}{}",
            humanise::counted(seen.kinds() as u64, "kind", "kinds"),
            humanise::count(seen.calls),
            humanise::counted(seen.containers() as u64, "container", "containers"),
            self.span(),
        )];
        said.push(format!(
            "allowed beside them: {} that a container's start needs (runc, Go runtime, C library)",
            humanise::counted(seen.added() as u64, "call", "calls")
        ));
        let names = seen.container_names();
        if names.len() > 1 {
            said.push(format!(
                "it serves {} containers ({}); --container makes a closer one for each",
                names.len(),
                names.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
        let began_after = |name: &String| {
            pods.iter()
                .filter(|pod| ends::qualified(&pod.namespace, &pod.name) == *name)
                .any(|pod| match (&pod.started, &self.from) {
                    (Some(started), Some(from)) => timestamp::is_after(started, from),
                    _ => false,
                })
        };
        if seen.pods.is_empty() || !seen.pods.iter().all(began_after) {
            said.push(
                "the watch did not see its start: what it calls only then may be missing (start it again while \
                 watching)"
                    .to_owned(),
            );
        }
        said.extend(seen.notes());
        said.extend(self.notes.iter().cloned());
        if self.losses.is_empty() {
            said.push("no call was lost".to_owned());
        }
        said.extend(self.losses.iter().cloned());
        said
    }
}

/// A file that appears when it is complete.
#[derive(Debug)]
struct File {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl File {
    /// # Errors
    /// If the directory takes no file.
    fn create(path: &Path) -> anyhow::Result<Self> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".orb8-profile-")
            // As any other new file: the umask takes what it takes.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)
            // Not with the temporary file's name, which says nothing to the user.
            .map_err(|error| anyhow!("writing {}: {}", path.display(), error.kind()))?;
        Ok(Self {
            temporary,
            path: path.to_owned(),
        })
    }

    /// # Errors
    /// If it cannot be written; an earlier file of that name is unharmed then.
    fn write(mut self, text: &str) -> anyhow::Result<()> {
        use std::io::Write as _;
        let failed = || format!("writing {}", self.path.display());
        self.temporary.write_all(text.as_bytes()).with_context(failed)?;
        self.temporary.as_file().sync_all().with_context(failed)?;
        self.temporary
            .persist(&self.path)
            .map_err(|error| error.error)
            .with_context(|| format!("writing {}", self.path.display()))?;
        Ok(())
    }
}
