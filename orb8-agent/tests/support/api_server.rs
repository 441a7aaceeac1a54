//! An API server on loopback that speaks the list and watch protocol of Kubernetes, and fails on request.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

/// Bytes of a watch are sent in pieces of this size, wherever lines end.
const PIECE: usize = 1500;

/// How requests for a resource are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Answer {
    /// As the API server does.
    #[default]
    Normal,
    /// All with this HTTP status and a Status object.
    Status(u16),
    /// Watches that came too late with HTTP status 410, instead of an ERROR event.
    GoneByStatus,
    /// Watches with an empty stream that ends at once.
    NoStream,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) resource: String,
    pub(crate) query: HashMap<String, String>,
}

impl Asked {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|value| value == "true")
    }
}

#[derive(Debug)]
struct Entry {
    /// Not set: a line only for who watches when it is written.
    version: Option<u64>,
    resource: String,
    object: Value,
    line: String,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<Entry>,
    /// Watches from before this version have expired.
    oldest: u64,
    /// Lists that are being paged through.
    lists: Vec<(u64, Vec<Value>)>,
    /// Continue tokens of lists before this one have expired.
    oldest_list: usize,
    asked: Vec<Asked>,
    answers: HashMap<String, Answer>,
}

impl State {
    fn write(&mut self, version: Option<u64>, kind: &str, resource: &str, object: Value) {
        self.log.push(Entry {
            version,
            resource: resource.to_owned(),
            line: format!("{}\n", json!({"type": kind, "object": object})),
            object,
        });
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The number of entries in the log.
    written: watch::Sender<usize>,
    cut: Notify,
    /// Held by each connection that was begun since the last cut.
    uncut: Mutex<Arc<()>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        self.written.send_replace(state.log.len());
        result
    }
}

/// The server. All of it ends with it.
#[derive(Debug)]
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// `None`: connections are refused.
    running: Option<AbortOnDropHandle<()>>,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            written: watch::Sender::new(0),
            cut: Notify::new(),
            uncut: Mutex::default(),
        });
        let mut server = Self {
            shared,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            running: None,
        };
        server.up().await;
        server
    }

    pub(crate) fn config(&self) -> kube::Config {
        kube::Config::new(format!("http://{}", self.address).parse().expect("a URL"))
    }

    /// Accepts connections again, at the same address.
    pub(crate) async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("a free port");
        self.address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(serve(self.shared.clone(), listener));
        self.running = Some(AbortOnDropHandle::new(serving));
    }

    /// Refuses connections, and cuts those there are.
    pub(crate) async fn down(&mut self) {
        if let Some(serving) = self.running.take() {
            serving.abort();
            // The listener is closed when its task has ended.
            let _ = serving.await;
        }
    }

    /// Cuts all connections in the middle of what they carry; new ones are accepted.
    pub(crate) async fn cut(&self) {
        let cut = std::mem::take(&mut *self.shared.uncut.lock().expect("no panic"));
        // What is written from now on is not for these. Again and again: one may have been accepted and not wait yet.
        while Arc::strong_count(&cut) > 1 {
            self.shared.cut.notify_waiters();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Creates or replaces an object; returns its version.
    pub(crate) fn apply(&self, resource: &str, object: Value) -> u64 {
        self.shared.change(|state| {
            state.version += 1;
            let version = state.version;
            let key = key(&object);
            let mut object = object;
            // What cannot have a version is sent as it is.
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
            }
            let before = state.objects.insert((resource.to_owned(), key), object.clone());
            let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
            state.write(Some(version), kind, resource, object);
            version
        })
    }

    /// Deletes an object; its last state goes with the event.
    pub(crate) fn delete(&self, resource: &str, object: &Value) {
        self.shared.change(|state| {
            let place = (resource.to_owned(), key(object));
            let mut object = state.objects.remove(&place).expect("an object that was applied");
            state.version += 1;
            let version = state.version;
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
            }
            state.write(Some(version), "DELETED", resource, object);
        });
    }

    /// Writes a line to the watches that run now.
    pub(crate) fn write(&self, resource: &str, line: &str) {
        self.shared.change(|state| {
            state.log.push(Entry {
                version: None,
                resource: resource.to_owned(),
                object: Value::Null,
                line: line.to_owned(),
            });
        });
    }

    /// Tells the watches that run now how far they are.
    pub(crate) fn bookmark(&self, resource: &str) {
        let version = self.shared.state().version.to_string();
        let bookmark = json!({"type": "BOOKMARK", "object": {
            "kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version, "creationTimestamp": null}}});
        self.write(resource, &format!("{bookmark}\n"));
    }

    /// Ends the watches that run now with an ERROR event.
    pub(crate) fn error(&self, resource: &str, code: u16) {
        let event = json!({"type": "ERROR", "object": status(code, "told by the test")});
        self.write(resource, &format!("{event}\n"));
    }

    /// Forgets its history: nobody can go on from where they were.
    pub(crate) fn compact(&self) {
        let mut state = self.shared.state();
        state.version += 1;
        state.oldest = state.version;
        state.oldest_list = state.lists.len();
    }

    pub(crate) fn answer(&self, resource: &str, answer: Answer) {
        self.shared.state().answers.insert(resource.to_owned(), answer);
    }

    /// What was asked for a resource.
    pub(crate) fn asked(&self, resource: &str) -> Vec<Asked> {
        let state = self.shared.state();
        let asked = state.asked.iter().filter(|asked| asked.resource == resource);
        asked.cloned().collect()
    }

    /// All objects of a resource.
    pub(crate) fn objects(&self, resource: &str) -> Vec<Value> {
        let state = self.shared.state();
        let of = state.objects.iter().filter(|((of, _), _)| of == resource);
        of.map(|(_, object)| object.clone()).collect()
    }
}

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!("{}/{}", metadata["namespace"], metadata["name"])
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
           "reason": reason, "code": code})
}

async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    // The connections go with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let shared = shared.clone();
        let uncut = shared.uncut.lock().expect("no panic").clone();
        connections.spawn(async move {
            let _uncut = uncut;
            let served = shared.clone();
            let service = service_fn(move |request| {
                let shared = served.clone();
                async move { Ok::<_, Infallible>(handle(&shared, &request)) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // Clients may leave as they like.
                _ = connection => {}
                () = shared.cut.notified() => {}
            }
        });
    }
}

type Answered = Response<BoxBody<Bytes, io::Error>>;

fn response(code: StatusCode, body: BoxBody<Bytes, io::Error>) -> Answered {
    let builder = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    builder.body(body).expect("a response")
}

fn whole(code: u16, body: &Value) -> Answered {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    response(StatusCode::from_u16(code).expect("a status"), body.boxed())
}

fn handle(shared: &Arc<Shared>, request: &Request<Incoming>) -> Answered {
    let (resource, kind) = match request.uri().path() {
        "/api/v1/pods" => ("pods", "PodList"),
        "/api/v1/services" => ("services", "ServiceList"),
        "/api/v1/nodes" => ("nodes", "NodeList"),
        "/apis/discovery.k8s.io/v1/endpointslices" => ("endpointslices", "EndpointSliceList"),
        path => return whole(404, &status(404, path)),
    };
    let query = parse(request.uri().query().unwrap_or_default());
    let asked = Asked {
        at: Instant::now(),
        resource: resource.to_owned(),
        query: query.clone(),
    };
    let is_watch = asked.is_watch();
    let mut state = shared.state();
    state.asked.push(asked);
    let answer = state.answers.get(resource).copied().unwrap_or_default();
    if let Answer::Status(code) = answer {
        return whole(code, &status(code, &format!("{resource} is not for you")));
    }
    let selected = selector(query.get("fieldSelector").map_or("", String::as_str));
    if !is_watch {
        return list(&mut state, resource, kind, &query, &selected);
    }
    if answer == Answer::NoStream {
        return whole_stream(Vec::new());
    }
    let from: u64 = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .unwrap_or(0);
    if from < state.oldest {
        let gone = status(410, &format!("too old resource version: {from}"));
        if answer == Answer::GoneByStatus {
            return whole(410, &gone);
        }
        return whole_stream(format!("{}\n", json!({"type": "ERROR", "object": gone})).into_bytes());
    }
    let began = state.log.len();
    drop(state);
    let (sender, receiver) = mpsc::channel(16);
    let (shared, resource) = (shared.clone(), resource.to_owned());
    tokio::spawn(async move {
        let mut written = shared.written.subscribe();
        let mut next = 0;
        loop {
            let mut bytes = Vec::new();
            {
                let state = shared.state();
                for (index, entry) in state.log.iter().enumerate().skip(next) {
                    let is_new = entry.version.map_or(index >= began, |version| version > from);
                    if is_new
                        && entry.resource == resource
                        && (entry.version.is_none() || selected(&entry.object))
                    {
                        bytes.extend_from_slice(entry.line.as_bytes());
                    }
                }
                next = state.log.len();
            }
            for piece in bytes.chunks(PIECE) {
                let frame = Ok::<_, io::Error>(Frame::data(Bytes::copy_from_slice(piece)));
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = sender.closed() => return,
                changed = written.wait_for(|length| *length > next) => if changed.is_err() { return },
            }
        }
    });
    response(
        StatusCode::OK,
        BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))),
    )
}

/// A watch that ends after these bytes.
fn whole_stream(bytes: Vec<u8>) -> Answered {
    let frames = futures::stream::iter([Ok(Frame::data(Bytes::from(bytes)))]);
    response(StatusCode::OK, BodyExt::boxed(StreamBody::new(frames)))
}

/// A page: those after the first are of the same list, however the objects have changed meanwhile.
fn list(
    state: &mut State,
    resource: &str,
    kind: &str,
    query: &HashMap<String, String>,
    selected: &Selected,
) -> Answered {
    let (number, offset) = match query.get("continue") {
        Some(token) => {
            let (number, offset) = token.split_once('.').expect("a token of ours");
            (
                number.parse().expect("a number"),
                offset.parse::<usize>().expect("a number"),
            )
        }
        None => {
            let of = state.objects.iter().filter(|((of, _), _)| of == resource);
            let items = of
                .map(|(_, object)| object.clone())
                .filter(|object| selected(object));
            let list = (state.version, items.collect());
            state.lists.push(list);
            (state.lists.len() - 1, 0)
        }
    };
    if number < state.oldest_list {
        return whole(410, &status(410, "the provided continue parameter is too old"));
    }
    let (version, items) = &state.lists[number];
    let limit = query
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let end = offset.saturating_add(limit).min(items.len());
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if end < items.len() {
        metadata["continue"] = json!(format!("{number}.{end}"));
        metadata["remainingItemCount"] = json!(items.len() - end);
    }
    let api = if resource == "endpointslices" {
        "discovery.k8s.io/v1"
    } else {
        "v1"
    };
    let page = json!({"kind": kind, "apiVersion": api, "metadata": metadata, "items": &items[offset..end]});
    whole(200, &page)
}

type Selected = Box<dyn Fn(&Value) -> bool + Send + Sync>;

/// Of field selectors, what the real one has for pods and is used.
fn selector(text: &str) -> Selected {
    match text.split_once('=') {
        Some(("spec.nodeName", node)) => {
            let node = node.trim_start_matches('=').to_owned();
            Box::new(move |object| object["spec"]["nodeName"] == *node)
        }
        _ => Box::new(|_| true),
    }
}

fn parse(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<u8>| char::from(byte.unwrap_or_default()).to_digit(16).unwrap_or(0);
        bytes.push(match byte {
            b'%' => (hex(rest.next()) * 16 + hex(rest.next())) as u8,
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Repeats `attempt` until it gives something.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain waited for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
