//! "This machine", among several machines.

use orb8_proto::v1::{EndpointKind, Flow};

/// An address of "this machine" is the reporting node's: says so.
pub(crate) fn name_hosts(flow: &mut Flow) {
    let Flow { node, src, dst, .. } = flow;
    for end in [src, dst].into_iter().flatten() {
        if end.kind() == EndpointKind::Host && end.node.is_empty() {
            end.node.clone_from(node);
        }
    }
}

/// Names the node of what a member told: that is the member's own, whatever it says. Of a member that is known by its
/// address alone, it is as its agent says, there or else in its summary (`own`).
pub(crate) fn name_node(node: &mut String, member: &str, own: &str) {
    if !member.contains(':') {
        member.clone_into(node);
    } else if node.is_empty() {
        if own.is_empty() { member } else { own }.clone_into(node);
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::v1::Endpoint;

    use super::*;

    #[test]
    fn only_hosts_without_a_node_get_one() {
        let end = |kind: EndpointKind, node: &str| {
            Some(Endpoint {
                kind: kind.into(),
                node: node.into(),
                ..Endpoint::default()
            })
        };
        let mut flow = Flow {
            node: "n1".into(),
            src: end(EndpointKind::Host, ""),
            dst: end(EndpointKind::Pod, ""),
            ..Flow::default()
        };
        name_hosts(&mut flow);
        assert_eq!(
            (flow.src.unwrap().node.as_str(), flow.dst.unwrap().node.as_str()),
            ("n1", "")
        );
    }
}
