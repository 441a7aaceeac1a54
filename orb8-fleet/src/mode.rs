//! Switching what the members' syscall programs do.

use orb8_proto::v1::{NodeSyscallMode, SetSyscallModeRequest, SetSyscallModeResponse, SyscallMode};
use tonic::{Code, Status};

use crate::{
    ask::{Selection, ToldBy as _, nobody},
    hub::Hub,
};

impl Hub {
    /// Switches all, or those that are named.
    pub(crate) async fn set_mode(
        &self,
        request: SetSyscallModeRequest,
    ) -> Result<SetSyscallModeResponse, Status> {
        let Selection { asked, others, order } = self.select(&request.nodes, None)?;
        let mode = request.mode;
        let answers = self
            .gather(asked, |mut client| async move {
                let request = SetSyscallModeRequest {
                    mode,
                    nodes: Vec::new(),
                };
                client.set_syscall_mode(request).await
            })
            .await;
        let mut refused = None;
        let mut response = SetSyscallModeResponse::default();
        let mut names = Vec::new();
        for (asked, answer) in answers {
            response.nodes.push(match answer {
                Ok(switched) => {
                    let mut answer = asked.answered();
                    answer.told_by(&switched.node);
                    names.push(switched.node);
                    NodeSyscallMode {
                        answer: Some(answer),
                        before: switched.before,
                        mode: switched.mode,
                    }
                }
                Err(status) => {
                    let answer = Some(asked.failed(&status, 0));
                    if status.code() == Code::InvalidArgument {
                        refused = Some(status);
                    }
                    NodeSyscallMode {
                        answer,
                        ..NodeSyscallMode::default()
                    }
                }
            });
        }
        response
            .nodes
            .extend(others.into_iter().map(|answer| NodeSyscallMode {
                answer: Some(answer),
                ..NodeSyscallMode::default()
            }));
        let answers: Vec<_> = response
            .nodes
            .iter()
            .filter_map(|node| node.answer.clone())
            .collect();
        if let Some(error) = nobody(&answers, refused.as_ref()) {
            return Err(error);
        }
        let agreed = |of: fn(&NodeSyscallMode) -> i32| {
            let mut all = response
                .nodes
                .iter()
                .filter(|node| node.mode != SyscallMode::Unspecified as i32)
                .map(of);
            let first = all.next().unwrap_or_default();
            if all.all(|other| other == first) {
                first
            } else {
                SyscallMode::Unspecified.into()
            }
        };
        (response.before, response.mode) = (agreed(|node| node.before), agreed(|node| node.mode));
        response.node = match names.as_slice() {
            [name] => name.clone(),
            names => format!("{} nodes", names.len()),
        };
        let place = |node: &NodeSyscallMode| {
            order
                .iter()
                .position(|name| node.answer.as_ref().is_some_and(|a| a.name == *name))
        };
        response.nodes.sort_by_cached_key(place);
        Ok(response)
    }
}
