//! The kubelet's API for the resources of pods, on a real socket, against a server of the same API.

use std::{path::Path, time::Duration};

use orb8_fake_kubelet::{Behaviour, FakeKubelet};
use orb8_gpu::kubelet::{
    KubeletError, PodResources,
    api::{ClaimResource, ContainerDevices, ContainerResources, DynamicResource, PodResources as Pod},
};

const DEADLINE: Duration = Duration::from_secs(3);

fn devices(resource: &str, ids: &[&str]) -> ContainerDevices {
    ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
    }
}

fn pod(name: &str, devices: Vec<ContainerDevices>, claims: Vec<DynamicResource>) -> Pod {
    Pod {
        name: name.to_owned(),
        namespace: "ml".to_owned(),
        containers: vec![ContainerResources {
            name: "main".to_owned(),
            devices,
            dynamic_resources: claims,
        }],
    }
}

fn claim(name: &str, devices: &[&str]) -> DynamicResource {
    DynamicResource {
        claim_name: name.to_owned(),
        claim_namespace: "ml".to_owned(),
        claim_resources: devices
            .iter()
            .map(|device| ClaimResource {
                driver_name: "gpu.nvidia.com".to_owned(),
                pool_name: "n1".to_owned(),
                device_name: (*device).to_owned(),
            })
            .collect(),
    }
}

async fn list(socket: &Path) -> Result<Vec<(String, String, Vec<String>)>, KubeletError> {
    let allocations = PodResources::new(socket, DEADLINE).list().await?;
    Ok(allocations
        .held
        .into_iter()
        .map(|held| (held.pod, held.claim.unwrap_or(held.resource), held.devices))
        .collect())
}

#[tokio::test]
async fn all_kinds_of_allocations_are_listed() {
    let pods = vec![
        pod("plain", vec![devices("nvidia.com/gpu", &["GPU-a"])], vec![]),
        // Once for each NUMA node.
        pod(
            "two",
            vec![
                devices("nvidia.com/gpu", &["GPU-b"]),
                devices("nvidia.com/gpu", &["GPU-c"]),
                devices("nvidia.com/mig-1g.10gb", &["MIG-d"]),
            ],
            vec![],
        ),
        pod(
            "shared",
            vec![devices("nvidia.com/gpu.shared", &["GPU-a::3"])],
            vec![],
        ),
        pod("dra", vec![], vec![claim("one", &["gpu-0", "gpu-1"])]),
        pod("none", vec![devices("nvidia.com/gpu", &[])], vec![]),
    ];
    let kubelet = FakeKubelet::start(Behaviour::Answer(pods)).unwrap();
    let text = |pod: &str, what: &str, ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        (pod.to_owned(), what.to_owned(), ids)
    };
    assert_eq!(
        list(kubelet.socket()).await.unwrap(),
        [
            text("plain", "nvidia.com/gpu", &["GPU-a"]),
            text("two", "nvidia.com/gpu", &["GPU-b", "GPU-c"]),
            text("two", "nvidia.com/mig-1g.10gb", &["MIG-d"]),
            text("shared", "nvidia.com/gpu.shared", &["GPU-a::3"]),
            text("dra", "ml/one", &["gpu-0", "gpu-1"]),
        ]
    );
    let mut client = PodResources::new(kubelet.socket(), DEADLINE);
    let held = client.get("ml", "two").await.unwrap();
    assert_eq!(held.len(), 2);
    let error = client.get("ml", "nobody").await.unwrap_err();
    assert!(matches!(error, KubeletError::NoPod { .. }), "{error}");
    assert!(error.to_string().contains("ml/nobody"), "{error}");
}

#[tokio::test]
async fn a_socket_that_is_gone_is_named_and_found_again() {
    let kubelet = FakeKubelet::start(Behaviour::Answer(vec![])).unwrap();
    let mut client = PodResources::new(kubelet.socket(), DEADLINE);
    client.list().await.unwrap();
    let directory = kubelet.stop().unwrap().unwrap();
    let error = client.list().await.unwrap_err();
    let path = client.socket().to_owned();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, KubeletError::Unreachable { .. }), "{error}");
    let pods = vec![pod("back", vec![devices("nvidia.com/gpu", &["GPU-a"])], vec![])];
    let _kubelet = FakeKubelet::start_in(directory, Behaviour::Answer(pods)).unwrap();
    assert_eq!(client.list().await.unwrap().held.len(), 1);
}

#[tokio::test]
async fn a_kubelet_that_hangs_is_given_up() {
    let kubelet = FakeKubelet::start(Behaviour::Hang).unwrap();
    let mut client = PodResources::new(kubelet.socket(), Duration::from_millis(100));
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, KubeletError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("0.1 s"), "{error}");
}

#[tokio::test]
async fn an_older_kubelet_says_what_it_lacks() {
    let kubelet = FakeKubelet::start(Behaviour::Unimplemented).unwrap();
    let mut client = PodResources::new(kubelet.socket(), DEADLINE);
    let error = client.get("ml", "a").await.unwrap_err().to_string();
    assert!(error.contains("KubeletPodResourcesGet"), "{error}");
}

#[tokio::test]
async fn an_answer_is_bounded() {
    let huge = "x".repeat(17 << 20);
    let kubelet = FakeKubelet::start(Behaviour::Answer(vec![pod(
        "a",
        vec![devices("r", &[&huge])],
        vec![],
    )]))
    .unwrap();
    let error = list(kubelet.socket()).await.unwrap_err();
    assert!(matches!(error, KubeletError::Refused { .. }), "{error}");
    let long = "x".repeat(1000);
    let pods = vec![pod(
        "a",
        vec![devices("nvidia.com/gpu", &[&long, "GPU-a", ""])],
        vec![],
    )];
    let kubelet = FakeKubelet::start(Behaviour::Answer(pods)).unwrap();
    let mut client = PodResources::new(kubelet.socket(), DEADLINE);
    let listed = client.list().await.unwrap();
    assert_eq!((listed.held[0].devices.len(), listed.refused), (1, 2));
}

#[tokio::test]
async fn the_example_of_the_fake_is_read() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fakes/kubelet/example.json");
    let kubelet = FakeKubelet::start(Behaviour::File(file)).unwrap();
    assert_eq!(list(kubelet.socket()).await.unwrap().len(), 3);
}
