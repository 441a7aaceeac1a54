//! A hub over stories, and its client.

#![allow(dead_code, reason = "each test file uses a part")]

use std::{sync::Arc, time::Duration};

use orb8_fleet::{Hub, Limits, Member, PodNodes};
use orb8_proto::v1::{NodeAnswer, NodeState, orbit_service_client::OrbitServiceClient};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::story::Story;

pub(crate) type Client = OrbitServiceClient<Channel>;

/// A hub over stories; the members go with it.
pub(crate) struct Asked {
    pub(crate) client: Client,
    pub(crate) hub: Hub,
    pub(crate) members: watch::Sender<Arc<[Member]>>,
}

pub(crate) fn quick() -> Limits {
    Limits {
        deadline: Duration::from_millis(400),
        ..Limits::default()
    }
}

pub(crate) fn hub_with(members: Vec<Member>, limits: Limits, pods: Option<Arc<dyn PodNodes>>) -> Asked {
    let (sender, receiver) = watch::channel(Arc::from(members));
    let mut hub = Hub::new(receiver, limits);
    if let Some(pods) = pods {
        hub = hub.with_pods(pods);
    }
    Asked {
        client: OrbitServiceClient::new(hub.clone().channel()),
        hub,
        members: sender,
    }
}

pub(crate) async fn hub(stories: &[Arc<Story>], limits: Limits) -> Asked {
    let mut members = Vec::new();
    for story in stories {
        members.push(story.member().await);
    }
    hub_with(members, limits, None)
}

pub(crate) fn states(nodes: &[NodeAnswer]) -> Vec<(&str, NodeState)> {
    nodes
        .iter()
        .map(|node| (node.name.as_str(), node.state()))
        .collect()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
