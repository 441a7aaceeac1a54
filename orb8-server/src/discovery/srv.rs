//! Agents as DNS SRV records (RFC 2782) tell them.

use std::{sync::Arc, time::Duration};

use hickory_resolver::{TokioResolver, proto::rr::RData};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Agents, Found};
use crate::server::ServerError;

/// How often they are asked for.
const INTERVAL: Duration = Duration::from_secs(10);
/// Records that are taken at most.
const MAX_AGENTS: usize = 16_384;

/// Asks for the records of `name` until `stop`. While there is no answer, the last one holds.
pub(super) fn follow(
    name: String,
    sender: watch::Sender<Option<Arc<Agents>>>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let resolver = TokioResolver::builder_tokio()
        .and_then(|mut builder| {
            // The records themselves say how long they hold; asking is what follows changes.
            builder.options_mut().cache_size = 0;
            builder.build()
        })
        .map_err(|error| ServerError::Setting(format!("--agent-srv {name}: DNS can't be asked: {error}")))?;
    tokio::spawn(async move {
        let mut failing = false;
        loop {
            match resolver.srv_lookup(name.as_str()).await {
                Ok(records) => {
                    failing = false;
                    let agents: Agents = records
                        .answers()
                        .iter()
                        .filter_map(|record| match &record.data {
                            RData::SRV(srv) => Some(srv),
                            _ => None,
                        })
                        .take(MAX_AGENTS)
                        .map(|srv| {
                            let target = srv.target.to_string();
                            let address = format!("{}:{}", target.trim_end_matches('.'), srv.port);
                            let found = Found {
                                address: address.clone(),
                                pod: String::new(),
                                note: String::new(),
                            };
                            (address, found)
                        })
                        .collect();
                    sender.send_if_modified(|known| {
                        let changed = known.as_deref() != Some(&agents);
                        if changed {
                            *known = Some(Arc::new(agents));
                        }
                        changed
                    });
                }
                Err(error) => {
                    // Once, not at every attempt.
                    if !std::mem::replace(&mut failing, true) {
                        warn!(name, %error, "DNS does not tell where agents are; those of the last answer are asked");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    });
    Ok(())
}
