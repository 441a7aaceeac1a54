//! Who may ask, and what they are told.
//!
//! A [`Guard`] stands in front of a service and serves the same protocol:
//!
//! - Who has an operator's certificate may ask everything.
//! - Who has a token of the cluster (`authorization: Bearer …`, if tokens are taken at all) is told what belongs to
//!   namespaces in which they may `get pods`. Questions are narrowed to these, and the answers are looked at again.
//! - Everybody else is refused, and so is everybody whose permissions can't be found out.
//!
//! A server without TLS can't tell who asks: it answers everybody, and has to be started so on purpose.
//!
//! # What a person with a token is told
//!
//! - Flows, edges and events whose reporting end is in a namespace that they may see. The other end, if it is in another
//!   namespace or in none (a process of a node, say): address, port and kind; of a Service there address and port. DNS
//!   names that their own workload asked for. Edges have the other end's report only if it may be seen.
//! - Calls, and pods, of these namespaces. Nothing of what is in no pod.
//! - GPUs that a pod of these namespaces holds or uses, and errors of these. Of other holders, how many there are. What such
//!   a device did, that it was idle among it, is told only if nobody else held it in that time: it would be theirs as well.
//! - Sums over what matched, as long as nothing had to be kept back; else the sums of what was told.
//! - The names and states of nodes. Of losses, that there were some.
//! - Conditions on the other end by address, kind, or name in a namespace that they may see; a Service or peer without a
//!   namespace is looked for in the namespaces asked for. Others are refused: they could be used to guess names.
//!
//! Switching the syscall programs, and asking for sampled calls, changes what nodes do: that is for operators.

mod narrow;
mod places;
mod refusal;
mod review;
mod sight;
mod view;

use std::{net::IpAddr, sync::Arc};

use futures::{Stream, StreamExt as _};
use orb8_proto::{
    Responses,
    v1::{
        AgentStatus, FlowQuery, FlowReports, GetAgentStatusRequest, GpuQuery, ListNodesRequest,
        ListPodsRequest, ListPodsResponse, NodeInfo, NodePods, NodeStatus, QueryEdgesResponse,
        QueryFlowsResponse, QueryGpusResponse, QueryStatusRequest, QuerySyscallsResponse,
        SetSyscallModeRequest, SetSyscallModeResponse, StreamEventsRequest, StreamEventsResponse,
        SyscallQuery, orbit_service_server::OrbitService,
    },
};
use orb8_tls::{OPERATOR, Peer};
use tonic::{Extensions, Request, Response, Status, metadata::MetadataMap};

use self::{
    narrow::Peers,
    places::{Place, Places},
    refusal::Refusal,
    review::{Person, Reviews},
    sight::Sight,
    view::{Everybody, Redact, View},
};
pub use self::{
    refusal::GuardCounts,
    review::{KubeReviewer, Reviewer, User},
};

/// Tokens of one address that are looked up at once.
const REVIEWS: usize = 8;

/// The namespaces that there are, for who names none.
pub trait Namespaces: Send + Sync + 'static {
    /// As known now, in any order.
    fn namespaces(&self) -> Vec<String>;
}

/// Bounds on one client: a certificate's identity and an address, or a token's user.
#[derive(Clone, Copy, Debug)]
pub struct GuardLimits {
    /// Questions at once.
    pub queries: usize,
    /// Streams of events at once.
    pub streams: usize,
    /// Namespaces that are looked at for who names none.
    pub namespaces: usize,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self {
            queries: 16,
            streams: 16,
            namespaces: 256,
        }
    }
}

/// Who counts as one client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Client {
    Operator(Option<IpAddr>),
    User { name: String, uid: String },
    Anybody(Option<IpAddr>),
}

/// What somebody may do.
enum Who {
    /// Everything.
    Everything,
    /// What the API server lets them, with this token.
    Person(Person, String),
}

/// Somebody who was let in; their place is theirs until it is dropped.
struct Admitted {
    who: Who,
    place: Place<Client>,
}

#[derive(Clone, Copy)]
enum Kind {
    Query,
    Stream,
}

/// Stands in front of a service: see the [module](self).
pub struct Guard<S> {
    inner: S,
    /// There is no TLS: nobody can show who they are.
    plain: bool,
    reviews: Option<Arc<Reviews>>,
    namespaces: Option<Arc<dyn Namespaces>>,
    limits: GuardLimits,
    queries: Places<Client>,
    streams: Places<Client>,
    by_address: Places<Option<IpAddr>>,
    counts: Arc<GuardCounts>,
}

impl<S> std::fmt::Debug for Guard<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("plain", &self.plain)
            .field("tokens", &self.reviews.is_some())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<S> Guard<S> {
    /// In front of `inner`: only operators are let in. What it counts is added to `counts`.
    #[must_use]
    pub fn new(inner: S, limits: GuardLimits, counts: Arc<GuardCounts>) -> Self {
        Self {
            inner,
            plain: false,
            reviews: None,
            namespaces: None,
            limits,
            queries: Places::new(limits.queries),
            streams: Places::new(limits.streams),
            by_address: Places::new(REVIEWS),
            counts,
        }
    }

    /// Takes tokens that `reviewer` knows. Without `namespaces`, people have to name theirs.
    #[must_use]
    pub fn with_tokens(
        mut self,
        reviewer: Arc<dyn Reviewer>,
        namespaces: Option<Arc<dyn Namespaces>>,
    ) -> Self {
        self.reviews = Some(Arc::new(Reviews::new(reviewer, self.counts.clone())));
        self.namespaces = namespaces;
        self
    }

    /// Lets everybody do everything, as a server without TLS has to.
    #[must_use]
    pub const fn open(mut self) -> Self {
        self.plain = true;
        self
    }

    fn refuse(&self, refusal: &Refusal) -> Status {
        self.counts.refuse(refusal)
    }

    /// Finds out who asks, and gives them a place.
    async fn admit<T>(&self, request: &Request<T>, kind: Kind) -> Result<Admitted, Status> {
        self.recognise(request.extensions(), request.metadata(), kind)
            .await
            .map_err(|refusal| self.refuse(&refusal))
    }

    async fn recognise(
        &self,
        extensions: &Extensions,
        metadata: &MetadataMap,
        kind: Kind,
    ) -> Result<Admitted, Refusal> {
        let peer = extensions.get::<Peer>();
        let address = peer
            .and_then(|peer| peer.address)
            .map(|address| address.ip().to_canonical());
        let (client, who) = if self.plain {
            (Client::Anybody(address), Who::Everything)
        } else if peer.is_some_and(|peer| peer.is(OPERATOR)) {
            (Client::Operator(address), Who::Everything)
        } else if let Some(identity) = peer.and_then(|peer| peer.identities.first()) {
            return Err(Refusal::Identity(identity.clone()));
        } else {
            let (person, token) = self.person(metadata, address).await?;
            let client = Client::User {
                name: person.user.name.clone(),
                uid: person.user.uid.clone(),
            };
            (client, Who::Person(person, token))
        };
        let (places, full): (_, fn(usize) -> Refusal) = match kind {
            Kind::Query => (&self.queries, Refusal::Queries),
            Kind::Stream => (&self.streams, Refusal::Streams),
        };
        let place = places.take(&client).ok_or_else(|| full(places.most()))?;
        Ok(Admitted { who, place })
    }

    async fn person(
        &self,
        metadata: &MetadataMap,
        address: Option<IpAddr>,
    ) -> Result<(Person, String), Refusal> {
        let Some(reviews) = &self.reviews else {
            return Err(Refusal::Anonymous { tokens: false });
        };
        let Some(header) = metadata.get("authorization") else {
            return Err(Refusal::Anonymous { tokens: true });
        };
        let token = header
            .to_str()
            .ok()
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(Refusal::Token)?;
        let person = match reviews.known(token) {
            Some(known) => known,
            None => {
                let _place = self.by_address.take(&address).ok_or(Refusal::Reviews)?;
                reviews.identify(token).await?
            }
        };
        let person = person.ok_or(Refusal::Token)?;
        Ok((person, token.to_owned()))
    }

    /// What a person may see who asks for these namespaces.
    async fn sight(&self, person: Person, named: &[String]) -> Result<Sight, Refusal> {
        let Some(reviews) = &self.reviews else {
            return Err(Refusal::Anonymous { tokens: false });
        };
        let known = || {
            let namespaces = self.namespaces.as_ref();
            namespaces.map_or_else(Vec::new, |namespaces| namespaces.namespaces())
        };
        Sight::new(reviews.clone(), person, named, known, self.limits.namespaces).await
    }

    fn view(&self, sight: Sight, peers: Peers, token: String) -> View {
        View::new(sight, peers, token, self.counts.clone())
    }

    async fn narrowed_flows(
        &self,
        query: &mut FlowQuery,
        person: Person,
        token: String,
    ) -> Result<View, Refusal> {
        let filter = query.filter.get_or_insert_default();
        let mut sight = self.sight(person, &filter.namespaces).await?;
        let peers = narrow::flows(filter, &mut sight).await?;
        query.set_reports(FlowReports::Own);
        Ok(self.view(sight, peers, token))
    }

    async fn narrowed_syscalls(
        &self,
        query: &mut SyscallQuery,
        person: Person,
        token: String,
    ) -> Result<View, Refusal> {
        let filter = query.filter.get_or_insert_default();
        let mut sight = self.sight(person, &filter.namespaces).await?;
        narrow::syscalls(filter, &mut sight).await?;
        Ok(self.view(sight, Peers::default(), token).grouped(&query.by))
    }

    async fn narrowed_gpus(
        &self,
        query: &mut GpuQuery,
        person: Person,
        token: String,
    ) -> Result<View, Refusal> {
        let filter = query.filter.get_or_insert_default();
        let mut sight = self.sight(person, &filter.namespaces).await?;
        narrow::gpus(filter, &mut sight).await?;
        Ok(self.view(sight, Peers::default(), token))
    }

    async fn narrowed_events(
        &self,
        request: &mut StreamEventsRequest,
        person: Person,
        token: String,
    ) -> Result<View, Refusal> {
        if request.syscall_sampling != 0 {
            return Err(Refusal::Operators(
                "asking for sampled calls (`--sample 0` asks for none)",
            ));
        }
        if request.network.is_none() && request.syscall.is_none() && request.gpu.is_none() {
            request.network = Some(Default::default());
            request.syscall = Some(Default::default());
            request.gpu = Some(Default::default());
        }
        let (asked, differ) = {
            let named = [
                request.network.as_ref().map(|filter| &filter.namespaces),
                request.syscall.as_ref().map(|filter| &filter.namespaces),
                request.gpu.as_ref().map(|filter| &filter.namespaces),
            ];
            let mut named = named.into_iter().flatten();
            let asked = named.next().cloned().unwrap_or_default();
            let differ = named.any(|others| *others != asked);
            (asked, differ)
        };
        if differ {
            return Err(Refusal::Condition(
                "name the same namespaces for events of flows, calls and GPUs, or ask for them apart"
                    .to_owned(),
            ));
        }
        let mut sight = self.sight(person, &asked).await?;
        let mut peers = Peers::default();
        if let Some(filter) = &mut request.network {
            peers = narrow::flows(filter, &mut sight).await?;
        }
        if let Some(filter) = &mut request.syscall {
            narrow::syscalls(filter, &mut sight).await?;
        }
        if let Some(filter) = &mut request.gpu {
            narrow::gpus(filter, &mut sight).await?;
        }
        Ok(self.view(sight, peers, token))
    }

    async fn narrowed_pods(
        &self,
        request: &mut ListPodsRequest,
        person: Person,
        token: String,
    ) -> Result<View, Refusal> {
        let mut sight = self.sight(person, &request.namespaces).await?;
        let ListPodsRequest {
            namespaces,
            pods,
            workloads,
            ..
        } = request;
        narrow::pods(namespaces, pods, workloads, &mut sight).await?;
        Ok(self.view(sight, Peers::default(), token))
    }

    /// What somebody may see of the answer to a question that `narrow` restricts to it; none: everything.
    async fn view_of<F>(
        &self,
        who: Who,
        narrow: impl FnOnce(Person, String) -> F,
    ) -> Result<Option<View>, Status>
    where
        F: Future<Output = Result<View, Refusal>>,
    {
        match who {
            Who::Everything => Ok(None),
            Who::Person(person, token) => match narrow(person, token).await {
                Ok(view) => Ok(Some(view)),
                Err(refusal) => Err(self.refuse(&refusal)),
            },
        }
    }
}

/// Hands an answer on; the client's place is theirs until it ends.
fn hand_on<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    place: Place<Client>,
) -> Response<Responses<T>> {
    Response::new(Box::pin(stream.inspect(move |_| {
        let _ = &place;
    })))
}

/// The same, as `view` sees it.
fn redacted<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    view: impl Redact<T>,
    place: Place<Client>,
) -> Response<Responses<T>> {
    let state = Some((Box::pin(stream), view, place));
    Response::new(Box::pin(futures::stream::unfold(state, async |state| {
        let (mut stream, mut view, place) = state?;
        loop {
            let message = match stream.next().await? {
                Ok(message) => view.redact(message).await,
                Err(status) => Err(status),
            };
            match message {
                Ok(None) => {}
                Ok(Some(message)) => return Some((Ok(message), Some((stream, view, place)))),
                Err(status) => return Some((Err(status), None)),
            }
        }
    })))
}

/// Either of them.
fn seen<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    view: Option<impl Redact<T>>,
    place: Place<Client>,
) -> Response<Responses<T>> {
    match view {
        None => hand_on(stream, place),
        Some(view) => redacted(stream, view, place),
    }
}

#[tonic::async_trait]
impl<S: OrbitService> OrbitService for Guard<S> {
    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryFlowsResponse>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let mut query = request.into_inner();
        let view = self
            .view_of(who, |person, token| {
                self.narrowed_flows(&mut query, person, token)
            })
            .await?;
        let answer = self.inner.query_flows(Request::new(query)).await?.into_inner();
        Ok(seen(answer, view, place))
    }

    async fn query_edges(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<Responses<QueryEdgesResponse>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let mut query = request.into_inner();
        let view = self
            .view_of(who, |person, token| {
                self.narrowed_flows(&mut query, person, token)
            })
            .await?;
        let answer = self.inner.query_edges(Request::new(query)).await?.into_inner();
        Ok(seen(answer, view, place))
    }

    async fn query_syscalls(
        &self,
        request: Request<SyscallQuery>,
    ) -> Result<Response<Responses<QuerySyscallsResponse>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let mut query = request.into_inner();
        let view = self
            .view_of(who, |person, token| {
                self.narrowed_syscalls(&mut query, person, token)
            })
            .await?;
        let answer = self.inner.query_syscalls(Request::new(query)).await?.into_inner();
        Ok(seen(answer, view, place))
    }

    async fn query_gpus(
        &self,
        request: Request<GpuQuery>,
    ) -> Result<Response<Responses<QueryGpusResponse>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let mut query = request.into_inner();
        let view = self
            .view_of(who, |person, token| self.narrowed_gpus(&mut query, person, token))
            .await?;
        let answer = self.inner.query_gpus(Request::new(query)).await?.into_inner();
        Ok(seen(answer, view, place))
    }

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Responses<StreamEventsResponse>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Stream).await?;
        let mut events = request.into_inner();
        let view = self
            .view_of(who, |person, token| {
                self.narrowed_events(&mut events, person, token)
            })
            .await?;
        let answer = self.inner.stream_events(Request::new(events)).await?.into_inner();
        Ok(seen(answer, view, place))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<Responses<NodeInfo>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let asked = Request::new(request.into_inner());
        let answer = self.inner.list_nodes(asked).await?.into_inner();
        let view = matches!(who, Who::Person(..)).then_some(Everybody);
        Ok(seen(answer, view, place))
    }

    async fn query_status(
        &self,
        request: Request<QueryStatusRequest>,
    ) -> Result<Response<Responses<NodeStatus>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let asked = Request::new(request.into_inner());
        let answer = self.inner.query_status(asked).await?.into_inner();
        let view = matches!(who, Who::Person(..)).then_some(Everybody);
        Ok(seen(answer, view, place))
    }

    async fn query_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<Responses<NodePods>>, Status> {
        let Admitted { who, place } = self.admit(&request, Kind::Query).await?;
        let mut pods = request.into_inner();
        let view = self
            .view_of(who, |person, token| self.narrowed_pods(&mut pods, person, token))
            .await?;
        let answer = self.inner.query_pods(Request::new(pods)).await?.into_inner();
        Ok(seen(answer, view, place))
    }

    async fn list_pods(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        let Admitted { who, place: _place } = self.admit(&request, Kind::Query).await?;
        let mut pods = request.into_inner();
        let view = self
            .view_of(who, |person, token| self.narrowed_pods(&mut pods, person, token))
            .await?;
        let answer = self.inner.list_pods(Request::new(pods)).await?;
        Ok(match view {
            None => answer,
            Some(mut view) => Response::new(view.pods_of_all(answer.into_inner())),
        })
    }

    async fn get_agent_status(
        &self,
        request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        let Admitted { who, place: _place } = self.admit(&request, Kind::Query).await?;
        let asked = Request::new(request.into_inner());
        let answer = self.inner.get_agent_status(asked).await?;
        Ok(match who {
            Who::Everything => answer,
            Who::Person(..) => Response::new(view::status(answer.into_inner())),
        })
    }

    async fn set_syscall_mode(
        &self,
        request: Request<SetSyscallModeRequest>,
    ) -> Result<Response<SetSyscallModeResponse>, Status> {
        let Admitted { who, place: _place } = self.admit(&request, Kind::Query).await?;
        match who {
            Who::Everything => {
                let asked = Request::new(request.into_inner());
                self.inner.set_syscall_mode(asked).await
            }
            Who::Person(..) => Err(self.refuse(&Refusal::Operators("switching the syscall programs"))),
        }
    }
}
