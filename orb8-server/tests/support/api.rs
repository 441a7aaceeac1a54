//! As much of a cluster's API server as certificates and access reviews need, in memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

/// The API server.
#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<State>);

#[derive(Default)]
struct State {
    /// By path.
    objects: Mutex<BTreeMap<String, Value>>,
    version: AtomicU64,
    /// Users by token: name, and namespaces whose pods they may get; `*`: all.
    users: Mutex<BTreeMap<String, (String, Vec<String>)>>,
    away: AtomicBool,
    reviews: AtomicU64,
    conflicts: AtomicU64,
}

impl FakeApi {
    /// A client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    async fn answer<B>(&self, request: Request<B>) -> Result<Response<Body>, std::io::Error>
    where
        B: hyper::body::Body,
        B::Error: std::fmt::Display,
    {
        if self.0.away.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("connection refused"));
        }
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| std::io::Error::other(error.to_string()))?
            .to_bytes();
        let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
        // Others get their turn, as they would with a real one.
        tokio::task::yield_now().await;
        let (status, answer) = self.handle(&parts.method, parts.uri.path(), sent);
        Ok(Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Body::from(answer.to_string().into_bytes()))
            .unwrap())
    }

    fn handle(&self, method: &Method, path: &str, mut sent: Value) -> (StatusCode, Value) {
        if path.ends_with("/tokenreviews") {
            self.0.reviews.fetch_add(1, Ordering::SeqCst);
            let token = sent["spec"]["token"].as_str().unwrap_or_default();
            let users = self.0.users.lock().unwrap();
            sent["status"] = match users.get(token) {
                Some((name, _)) => {
                    json!({"authenticated": true, "user": {"username": name}, "audiences": sent["spec"]["audiences"]})
                }
                None => json!({"authenticated": false, "error": "invalid bearer token"}),
            };
            return (StatusCode::CREATED, sent);
        }
        if path.ends_with("/subjectaccessreviews") {
            self.0.reviews.fetch_add(1, Ordering::SeqCst);
            let asked = &sent["spec"]["resourceAttributes"];
            assert_eq!(
                (&asked["resource"], &asked["verb"]),
                (&json!("pods"), &json!("get"))
            );
            let namespace = asked["namespace"].as_str().unwrap_or_default();
            let users = self.0.users.lock().unwrap();
            let user = users
                .values()
                .find(|(name, _)| sent["spec"]["user"] == json!(name));
            let allowed = user
                .is_some_and(|(_, namespaces)| namespaces.iter().any(|own| own == "*" || own == namespace));
            sent["status"] = json!({ "allowed": allowed });
            return (StatusCode::CREATED, sent);
        }
        self.object(method, path, sent)
    }

    fn object(&self, method: &Method, path: &str, mut sent: Value) -> (StatusCode, Value) {
        let mut objects = self.0.objects.lock().unwrap();
        let version = || json!(self.0.version.fetch_add(1, Ordering::SeqCst).to_string());
        match *method {
            Method::GET => match objects.get(path) {
                Some(found) => (StatusCode::OK, found.clone()),
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
            },
            Method::POST => {
                let path = format!("{path}/{}", sent["metadata"]["name"].as_str().unwrap());
                if objects.contains_key(&path) {
                    self.0.conflicts.fetch_add(1, Ordering::SeqCst);
                    return failure(StatusCode::CONFLICT, "AlreadyExists");
                }
                sent["metadata"]["resourceVersion"] = version();
                objects.insert(path, sent.clone());
                (StatusCode::CREATED, sent)
            }
            Method::PATCH => {
                let Some(found) = objects.get_mut(path) else {
                    return failure(StatusCode::NOT_FOUND, "NotFound");
                };
                if found["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] {
                    self.0.conflicts.fetch_add(1, Ordering::SeqCst);
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                for (name, value) in sent["data"].as_object().unwrap() {
                    let data = found["data"].as_object_mut().unwrap();
                    if value.is_null() {
                        data.remove(name);
                    } else {
                        data.insert(name.clone(), value.clone());
                    }
                }
                found["metadata"]["resourceVersion"] = version();
                (StatusCode::OK, found.clone())
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }
}

fn failure(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16(),
    });
    (code, status)
}

#[allow(dead_code, reason = "each test file uses a part")]
impl FakeApi {
    /// What is stored at a path.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.objects.lock().unwrap().get(path).cloned()
    }

    /// Serves plain HTTP on loopback until `stop`; where.
    pub(crate) async fn serve(&self, stop: &tokio_util::sync::CancellationToken) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (api, stop) = (self.clone(), stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = api.clone();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let api = api.clone();
                    async move { api.answer(request).await }
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        }));
        address
    }

    /// Changes what is stored at a path, as somebody else would.
    pub(crate) fn set(&self, path: &str, value: Value) {
        self.0.objects.lock().unwrap().insert(path.to_owned(), value);
    }

    /// Writes that were refused, since somebody else had written.
    pub(crate) fn conflicts(&self) -> u64 {
        self.0.conflicts.load(Ordering::SeqCst)
    }

    /// A token, and the namespaces that its user may see.
    pub(crate) fn user(&self, token: &str, name: &str, namespaces: &[&str]) {
        let namespaces = namespaces.iter().map(|&name| name.to_owned()).collect();
        let mut users = self.0.users.lock().unwrap();
        users.insert(token.to_owned(), (name.to_owned(), namespaces));
    }

    /// Whether it answers.
    pub(crate) fn set_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    /// Reviews that it was asked for.
    pub(crate) fn reviews(&self) -> u64 {
        self.0.reviews.load(Ordering::SeqCst)
    }
}
