//! `orb8-server certgen`: makes the certificates of agents, server and operators, and renews them.
//!
//! Each run looks at what there is, leaves alone what is good, and replaces the rest; all it has to know is kept beside the
//! certificates, so that any number of runs may follow or meet each other. A certificate authority is replaced with an
//! overlap: first its successor is added to every bundle of roots, and only when all bundles have carried it for
//! `--overlap` does it sign. Its predecessor stays in the bundles until it expires.
//!
//! In Kubernetes these are Secrets of type `kubernetes.io/tls`, each with `tls.crt`, `tls.key` and `ca.crt`: `orb8-ca` (the
//! authority; also `next.crt`, `next.key` and `next.since` while it is being replaced), `orb8-agent-tls`, `orb8-server-tls`
//! and `orb8-operator-tls`; and a ConfigMap `orb8-ca` with `ca.crt`. Who runs it needs a Role in that namespace: `get`,
//! `create` and `patch` of `secrets` and `configmaps` (nothing is listed, watched or deleted).
//!
//! Secrets that cert-manager made (annotation `cert-manager.io/certificate-name`) are left alone.

mod directory;
mod secrets;
mod store;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use orb8_tls::{AGENT, OPERATOR, SERVER};
use time::OffsetDateTime;

use self::{
    directory::Directory,
    secrets::Secrets,
    store::{CA_BUNDLE, CERTIFICATE, Data, KEY, Place, Store, Stored},
};
use crate::authority::{Authority, AuthorityError, Pair, certificates, facts};

/// A run that meets another one begins anew, so often at most.
const ATTEMPTS: u32 = 8;
/// Predecessors that a bundle carries at most.
const PREDECESSORS: usize = 8;
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_SINCE: &str = "next.since";

/// What to make, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Namespace of the Secrets; without it the one that this runs in
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Write files below this directory instead of Secrets
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Name of the server's Service, which its certificate is for as well
    #[arg(long, default_value = "orb8-server", value_name = "NAME")]
    pub service: String,
    /// How long a certificate authority is valid
    #[arg(long, default_value = "3650d", value_parser = humantime::parse_duration)]
    pub ca_lifetime: Duration,
    /// How long the other certificates are valid; each is renewed when less than a third of that is left
    #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
    /// How long a new certificate authority is known to all before it signs
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub overlap: Duration,
    /// Replace what is still good: the certificates at once, the authority beginning now
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    pub force_rotate: Option<Force>,
}

/// What is replaced although it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Force {
    /// Both of the others
    All,
    /// Certificates of agents, server and operators
    Leaves,
    /// The certificate authority: its successor is made, and follows after the overlap
    Ca,
}

/// Why certificates could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum CertgenError {
    /// Options contradict each other.
    #[error("{0}")]
    Options(String),
    /// Making or reading a certificate failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The API server did not do what it was asked.
    #[error("{verb} {what}: {error}{advice}")]
    Api {
        /// get, create or patch.
        verb: &'static str,
        /// Kind, namespace and name.
        what: String,
        /// Why.
        error: Box<kube::Error>,
        /// What to do.
        advice: &'static str,
    },
    /// There is no Kubernetes to talk to.
    #[error("no way to the API server of a cluster: {0}; with --dir DIR certificates are written to files")]
    NoCluster(String),
    /// A file can't be read or written.
    #[error("{verb} {path}: {error}")]
    File {
        /// Reading or writing.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Somebody else wrote at the same time.
    #[error("{0} was changed by another run at the same time, again and again; run it once more")]
    Conflict(String),
}

/// What became of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// kept, made, rotated, updated, or left alone.
    pub outcome: &'static str,
    /// Which Secret, ConfigMap or file.
    pub what: String,
    /// Until when it is good, and what else is to say.
    pub note: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<10} {}: {}", self.outcome, self.what, self.note)
    }
}

/// Makes what is missing and renews what has to be; one line for each thing.
///
/// # Errors
/// [`CertgenError`] says what failed; what was written before that is good, and a further run goes on from there.
pub async fn run(options: &Options) -> Result<Vec<Line>, CertgenError> {
    options.check()?;
    if let Some(directory) = &options.dir {
        let store = Directory::new(directory.clone());
        return settle(&store, options, None, OffsetDateTime::now_utc()).await;
    }
    let store = Secrets::connect(options.namespace.clone()).await?;
    let namespace = store.namespace().to_owned();
    settle(&store, options, Some(&namespace), OffsetDateTime::now_utc()).await
}

/// The same with a client that there is already, at `now`.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    client: kube::Client,
    namespace: &str,
    options: &Options,
    now: OffsetDateTime,
) -> Result<Vec<Line>, CertgenError> {
    options.check()?;
    let store = Secrets::new(client, namespace);
    settle(&store, options, Some(namespace), now).await
}

impl Options {
    fn check(&self) -> Result<(), CertgenError> {
        let wrong = |text: String| Err(CertgenError::Options(text));
        if self.lifetime < Duration::from_secs(60) {
            return wrong("--lifetime has to be a minute at least".to_owned());
        }
        if self.ca_lifetime < self.lifetime {
            return wrong(
                "--ca-lifetime has to be at least --lifetime: nothing outlives who signed it".to_owned(),
            );
        }
        // It is replaced when a third of its life is left, and has to last until its successor signs.
        if self.overlap >= self.ca_lifetime / 3 {
            return wrong("--overlap has to be less than a third of --ca-lifetime".to_owned());
        }
        // 100 years: beyond that dates can't be written.
        if self.ca_lifetime > Duration::from_secs(100 * 365 * 86_400) {
            return wrong("--ca-lifetime can be 100 years (36500d) at most".to_owned());
        }
        Ok(())
    }

    fn forces(&self, what: Force) -> bool {
        self.force_rotate
            .is_some_and(|force| force == Force::All || force == what)
    }

    /// DNS names of the certificate at `place`: its identity first.
    fn names(&self, place: Place, namespace: Option<&str>) -> Vec<String> {
        match place {
            Place::Agent => vec![AGENT.to_owned()],
            Place::Operator => vec![OPERATOR.to_owned()],
            Place::Server => {
                let service = &self.service;
                let mut names = vec![SERVER.to_owned(), service.clone()];
                if let Some(namespace) = namespace {
                    names.push(format!("{service}.{namespace}"));
                    names.push(format!("{service}.{namespace}.svc"));
                }
                names
            }
            Place::Ca | Place::Bundle => Vec::new(),
        }
    }
}

/// Runs until no other run interferes.
async fn settle<S: Store>(
    store: &S,
    options: &Options,
    namespace: Option<&str>,
    now: OffsetDateTime,
) -> Result<Vec<Line>, CertgenError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match pass(store, options, namespace, now).await {
            Err(CertgenError::Conflict(_)) if attempt < ATTEMPTS => {
                // Two that met once should not meet again.
                let spread = u64::from(std::process::id() % 97);
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) * (50 + spread))).await;
            }
            other => return other,
        }
    }
}

async fn pass<S: Store>(
    store: &S,
    options: &Options,
    namespace: Option<&str>,
    now: OffsetDateTime,
) -> Result<Vec<Line>, CertgenError> {
    let mut lines = Vec::new();
    let mut ca = store.read(Place::Ca).await?;
    let mut others = BTreeMap::new();
    for place in [Place::Agent, Place::Server, Place::Operator, Place::Bundle] {
        if let Some(stored) = store.read(place).await? {
            others.insert(place, stored);
        }
    }
    let what = store.describe(Place::Ca);
    let mut roots = match Roots::read(ca.as_ref(), &what)? {
        Some(roots) => roots,
        None => Roots::new(Authority::make(now, span(options.ca_lifetime))?),
    };
    let foreign = ca.as_ref().and_then(|stored| stored.foreign.clone());
    if let Some(maker) = &foreign {
        let until = moment(roots.current.facts().until);
        lines.push(line(
            "left alone",
            &what,
            format!("cert-manager makes it ({maker}); until {until}"),
        ));
    } else {
        let known = |root: &str| {
            others
                .values()
                .filter(|stored| stored.foreign.is_none())
                .all(|stored| holds(stored, root))
        };
        let outcome = roots.advance(options, now, ca.is_some(), known)?;
        let data = roots.data();
        if ca.as_ref().is_none_or(|stored| stored.data != data) {
            ca = Some(store.write(Place::Ca, &data, ca.as_ref()).await?);
        }
        lines.push(line(outcome, &what, roots.note(options)));
    }
    let bundle = roots.bundle();
    for place in [Place::Agent, Place::Server, Place::Operator] {
        let stored = others.get(&place);
        let names = options.names(place, namespace);
        lines.push(
            leaf(
                store,
                place,
                stored,
                &names,
                &roots.current,
                &bundle,
                options,
                now,
            )
            .await?,
        );
    }
    lines.push(publish(store, others.get(&Place::Bundle), &bundle).await?);
    // Only now do all know the successor: from here on the overlap counts.
    if foreign.is_none()
        && let Some(next) = roots.next.as_mut()
        && next.since.is_none()
    {
        next.since = Some(now);
        let data = roots.data();
        store.write(Place::Ca, &data, ca.as_ref()).await?;
    }
    Ok(lines)
}

#[expect(
    clippy::too_many_arguments,
    reason = "they are what one certificate depends on"
)]
async fn leaf<S: Store>(
    store: &S,
    place: Place,
    stored: Option<&Stored>,
    names: &[String],
    authority: &Authority,
    bundle: &str,
    options: &Options,
    now: OffsetDateTime,
) -> Result<Line, CertgenError> {
    let what = store.describe(place);
    if let Some(maker) = stored.and_then(|stored| stored.foreign.as_ref()) {
        let note = format!(
            "cert-manager makes it ({maker}); its DNS names have to include {}",
            names[0]
        );
        return Ok(line("left alone", &what, note));
    }
    let pair = stored.and_then(|stored| stored.pair(CERTIFICATE, KEY));
    let objection = match &pair {
        None => Some(String::new()),
        Some(_) if options.forces(Force::Leaves) => Some("it was asked for".to_owned()),
        Some(pair) => authority.objection(pair, names, now),
    };
    let (pair, outcome, why) = match (pair, objection) {
        (Some(pair), None) => (pair, "kept", String::new()),
        (before, why) => {
            let outcome = if before.is_some() { "rotated" } else { "made" };
            let why = why.filter(|why| !why.is_empty()).map(|why| format!(" ({why})"));
            let pair = authority.issue(names, now, span(options.lifetime))?;
            (pair, outcome, why.unwrap_or_default())
        }
    };
    let until = facts(&pair.certificate).map_or_else(|why| why, |facts| moment(facts.until));
    let data = Data::from([
        (CERTIFICATE.to_owned(), pair.certificate),
        (KEY.to_owned(), pair.key),
        (CA_BUNDLE.to_owned(), bundle.to_owned()),
    ]);
    if stored.is_none_or(|stored| stored.data != data) {
        store.write(place, &data, stored).await?;
    }
    Ok(line(outcome, &what, format!("{}, until {until}{why}", names[0])))
}

async fn publish<S: Store>(store: &S, stored: Option<&Stored>, bundle: &str) -> Result<Line, CertgenError> {
    let what = store.describe(Place::Bundle);
    let data = Data::from([(CA_BUNDLE.to_owned(), bundle.to_owned())]);
    let outcome = match stored {
        Some(stored) if stored.data.get(CA_BUNDLE) == data.get(CA_BUNDLE) => "kept",
        Some(_) => "updated",
        None => "made",
    };
    if outcome != "kept" {
        store.write(Place::Bundle, &data, stored).await?;
    }
    let count = certificates(bundle).len();
    let roots = if count == 1 { "root" } else { "roots" };
    Ok(line(outcome, &what, format!("{count} {roots}")))
}

/// The authority, who follows it, and who came before.
#[derive(Debug)]
struct Roots {
    current: Authority,
    next: Option<Next>,
    /// Certificates, newest first.
    previous: Vec<String>,
}

#[derive(Debug)]
struct Next {
    authority: Authority,
    /// Since when all bundles have it; `None`: they need not yet.
    since: Option<OffsetDateTime>,
}

impl Roots {
    const fn new(current: Authority) -> Self {
        Self {
            current,
            next: None,
            previous: Vec::new(),
        }
    }

    /// What was stored; `None`: nothing.
    fn read(stored: Option<&Stored>, what: &str) -> Result<Option<Self>, CertgenError> {
        let Some(pair) = stored.and_then(|stored| stored.pair(CERTIFICATE, KEY)) else {
            return Ok(None);
        };
        let foreign = stored.is_some_and(|stored| stored.foreign.is_some());
        let stored = stored.map(|stored| &stored.data);
        let text = |key: &str| stored.and_then(|data| data.get(key)).map_or("", String::as_str);
        let current = Authority::read(pair, what).map_err(|error| {
            // Somebody's own, perhaps: it is not replaced unasked.
            AuthorityError::Unusable {
                what: what.to_owned(),
                why: format!("{error}; {}", if foreign {
                    "it is cert-manager's: have cert-manager make the other certificates as well, and leave certgen out"
                } else {
                    "delete it to have a new certificate authority made"
                }),
            }
        })?;
        let next = match (text(NEXT_CERTIFICATE), text(NEXT_KEY)) {
            ("", _) | (_, "") => None,
            (certificate, key) => {
                let pair = Pair {
                    certificate: certificate.to_owned(),
                    key: key.to_owned(),
                };
                Authority::read(pair, what).ok().map(|authority| Next {
                    authority,
                    since: humantime::parse_rfc3339(text(NEXT_SINCE))
                        .ok()
                        .map(OffsetDateTime::from),
                })
            }
        };
        let own = |root: &String| {
            *root != current.pair().certificate
                && next
                    .as_ref()
                    .is_none_or(|next: &Next| *root != next.authority.pair().certificate)
        };
        let previous = certificates(text(CA_BUNDLE)).into_iter().filter(own).collect();
        Ok(Some(Self {
            current,
            next,
            previous,
        }))
    }

    /// Does what is due: makes a successor, lets it sign, drops who has expired. `known`: whether all bundles have a root.
    fn advance(
        &mut self,
        options: &Options,
        now: OffsetDateTime,
        stored: bool,
        known: impl Fn(&str) -> bool,
    ) -> Result<&'static str, CertgenError> {
        let mut outcome = if stored { "kept" } else { "made" };
        let expired = now >= self.current.facts().until;
        if let Some(mut next) = self.next.take() {
            if !known(&next.authority.pair().certificate) {
                // Somebody restored an old bundle, or a run broke off.
                next.since = None;
            }
            let over = next
                .since
                .is_some_and(|since| now >= since + span(options.overlap));
            if over || expired {
                let before = std::mem::replace(&mut self.current, next.authority);
                self.previous.insert(0, before.pair().certificate.clone());
                outcome = "rotated";
            } else {
                self.next = Some(next);
            }
        } else if expired {
            let made = Authority::make(now, span(options.ca_lifetime))?;
            let before = std::mem::replace(&mut self.current, made);
            self.previous.insert(0, before.pair().certificate.clone());
            outcome = "rotated";
        } else if stored && (self.current.facts().ends_soon(now) || options.forces(Force::Ca)) {
            self.next = Some(Next {
                authority: Authority::make(now, span(options.ca_lifetime))?,
                since: None,
            });
            outcome = "updated";
        }
        self.previous
            .retain(|root| facts(root).is_ok_and(|facts| now < facts.until));
        self.previous.truncate(PREDECESSORS);
        Ok(outcome)
    }

    /// All roots, who signs first.
    fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| &next.authority.pair().certificate);
        std::iter::once(&self.current.pair().certificate)
            .chain(next)
            .chain(&self.previous)
            .flat_map(|text| certificates(text))
            .collect()
    }

    fn data(&self) -> Data {
        let Pair { certificate, key } = self.current.pair().clone();
        let mut data = Data::from([
            (CERTIFICATE.to_owned(), certificate),
            (KEY.to_owned(), key),
            (CA_BUNDLE.to_owned(), self.bundle()),
        ]);
        if let Some(Next { authority, since }) = &self.next {
            let Pair { certificate, key } = authority.pair().clone();
            data.insert(NEXT_CERTIFICATE.to_owned(), certificate);
            data.insert(NEXT_KEY.to_owned(), key);
            if let Some(since) = since {
                data.insert(NEXT_SINCE.to_owned(), moment(*since));
            }
        }
        data
    }

    fn note(&self, options: &Options) -> String {
        let until = moment(self.current.facts().until);
        let next = match &self.next {
            None => String::new(),
            Some(Next { since: None, .. }) => {
                let overlap = humantime::format_duration(options.overlap);
                format!("; its successor is in all bundles now, and signs {overlap} from now on")
            }
            Some(Next {
                since: Some(since), ..
            }) => {
                let from = moment(*since + span(options.overlap));
                format!("; its successor signs from {from} on, at the next run after that")
            }
        };
        format!("certificate authority, until {until}{next}")
    }
}

fn holds(stored: &Stored, root: &str) -> bool {
    let bundle = stored.data.get(CA_BUNDLE).map_or("", String::as_str);
    certificates(bundle).iter().any(|other| other == root)
}

fn line(outcome: &'static str, what: &str, note: String) -> Line {
    Line {
        outcome,
        what: what.to_owned(),
        note,
    }
}

/// Bounded by [`Options::check`].
fn span(duration: Duration) -> time::Duration {
    time::Duration::try_from(duration).unwrap_or(time::Duration::MAX)
}

fn moment(time: OffsetDateTime) -> String {
    humantime::format_rfc3339_seconds(SystemTime::from(time)).to_string()
}

#[cfg(test)]
mod tests;
