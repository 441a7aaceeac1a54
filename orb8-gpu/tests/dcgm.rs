//! The scraper against an exporter that behaves as told, over real HTTP.

use std::time::{Duration, Instant};

use orb8_fake_dcgm::{EXAMPLE, Exporter, Fault};
use orb8_gpu::{
    dcgm::{DcgmError, Scraper},
    id::{DeviceKey, Uuid},
    sample::{Device, Snapshot},
};

/// Long enough for a busy machine, and never waited for where nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: usize = 4 << 20;

fn scraper(exporter: &Exporter) -> Scraper {
    Scraper::new(&exporter.url(), PATIENCE, LIMIT).unwrap()
}

fn device(snapshot: &Snapshot, number: u32, instance: Option<u32>) -> &Device {
    let key = DeviceKey {
        uuid: Uuid::new(format!("GPU-5a1f2c3d-0000-4000-8000-{number:012}")),
        instance,
    };
    let mut found = snapshot.devices.iter().filter(|device| device.key == key);
    let device = found.next().unwrap_or_else(|| panic!("no {key:?}"));
    assert_eq!(found.next(), None, "twice");
    device
}

fn pods(device: &Device) -> Vec<&str> {
    device.claims.iter().map(|claim| claim.pod.as_str()).collect()
}

#[tokio::test]
async fn the_example_is_read() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let snapshot = scraper(&exporter).sample().await.unwrap();
    assert_eq!(snapshot.rejected, 0, "{:?}", snapshot.first_rejected);
    // Three GPUs and two instances, each once.
    assert_eq!(snapshot.devices.len(), 5);

    let exclusive = device(&snapshot, 1, None);
    assert_eq!(pods(exclusive), ["train-0"]);
    assert_eq!(exclusive.readings.utilization, Some(0.97));
    assert_eq!(exclusive.readings.memory_used, Some(38068 << 20));
    assert_eq!(exclusive.readings.power, Some(287.4));
    assert!(
        !exclusive.readings.other.contains_key("DCGM_FI_DEV_MEMORY_TEMP"),
        "DCGM's blank is no value"
    );

    let cut = device(&snapshot, 2, None);
    assert_eq!(pods(cut), [""; 0]);
    assert_eq!(cut.readings.temperature, Some(36.0), "once for the GPU");
    assert_eq!(cut.readings.power, Some(91.25));
    assert_eq!(cut.readings.memory_used, None, "no sum of its instances");
    let seven = device(&snapshot, 2, Some(7));
    assert_eq!(pods(seven), ["llm-7d9f-x2x"]);
    assert_eq!(seven.readings.memory_used, Some(1764 << 20));
    assert_eq!(seven.readings.profile.graphics_active, Some(0.64));
    assert_eq!((seven.readings.temperature, seven.readings.power), (None, None));
    let two = device(&snapshot, 2, Some(2));
    assert_eq!(pods(two), [""; 0]);
    assert_eq!(
        two.readings.profile.graphics_active,
        Some(0.0),
        "measured as zero"
    );

    let shared = device(&snapshot, 3, None);
    assert_eq!(pods(shared), ["ada-0", "grace-0"]);
    assert_eq!(shared.readings.utilization, Some(0.55), "not twice");
}

#[tokio::test]
async fn labels_that_move_are_followed() {
    let page = |pod: &str| {
        format!(
            "DCGM_FI_DEV_GPU_UTIL{{gpu=\"0\",UUID=\"GPU-5a1f2c3d-0000-4000-8000-000000000001\"{pod}}} 50\n"
        )
    };
    let held = |pod: &str| page(&format!(",container=\"main\",namespace=\"ml\",pod=\"{pod}\""));
    let exporter = Exporter::local("").unwrap();
    exporter.serve(vec![held("a").into(), page("").into(), held("b").into()]);
    let scraper = scraper(&exporter);
    for expected in [vec!["a"], vec![], vec!["b"], vec!["b"]] {
        let snapshot = scraper.sample().await.unwrap();
        assert_eq!(pods(device(&snapshot, 1, None)), expected);
    }
    assert_eq!(exporter.requests(), 4);
}

#[tokio::test]
async fn a_page_that_does_not_come_is_not_waited_for() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let timeout = Duration::from_millis(300);
    let scraper = Scraper::new(&exporter.url(), timeout, LIMIT).unwrap();
    for fault in [Fault::Silent, Fault::Slow(Duration::from_secs(60))] {
        exporter.fault(fault.clone());
        let begin = Instant::now();
        let error = scraper.sample().await.unwrap_err();
        assert!(matches!(error, DcgmError::TimedOut { .. }), "{fault:?}: {error}");
        assert!(error.to_string().contains("/metrics"), "{error}");
        assert!(
            begin.elapsed() >= timeout && begin.elapsed() < PATIENCE,
            "{fault:?}"
        );
    }
    // One that comes in two parts is whole.
    exporter.fault(Fault::Slow(Duration::from_millis(100)));
    let patient = self::scraper(&exporter);
    let snapshot = patient.sample().await.unwrap();
    assert_eq!((snapshot.devices.len(), snapshot.rejected), (5, 0));
}

#[tokio::test]
async fn a_compressed_page_is_the_same_page() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let scraper = scraper(&exporter);
    let plain = scraper.sample().await.unwrap();
    exporter.fault(Fault::Gzip);
    let compressed = scraper.sample().await.unwrap();
    assert_eq!(compressed.devices, plain.devices);
    assert_eq!(compressed.rejected, 0);
    exporter.fault(Fault::NotGzip);
    let error = scraper.sample().await.unwrap_err();
    assert!(matches!(error, DcgmError::Encoding { .. }), "{error}");
}

#[tokio::test]
async fn what_came_of_a_broken_page_is_used() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let scraper = scraper(&exporter);
    let cut = EXAMPLE.find("# HELP DCGM_FI_DEV_GPU_UTIL").unwrap();
    exporter.fault(Fault::Truncated(cut));
    let snapshot = scraper.sample().await.unwrap();
    let gpu = device(&snapshot, 1, None);
    assert_eq!(
        (gpu.readings.temperature, gpu.readings.utilization),
        (Some(61.0), None)
    );
    assert_eq!(snapshot.rejected, 1);
    let reason = snapshot.first_rejected.unwrap();
    assert!(reason.starts_with("the page is not whole: "), "{reason}");

    // In the middle of a line, that line is lost too.
    let last = EXAMPLE[..cut].trim_end().len() - 1;
    exporter.fault(Fault::Truncated(last));
    assert_eq!(scraper.sample().await.unwrap().rejected, 2);

    exporter.fault(Fault::TruncatedGzip(400));
    let snapshot = scraper.sample().await.unwrap();
    assert!(snapshot.rejected >= 1 && !snapshot.devices.is_empty());

    // Of nothing nothing is made.
    exporter.fault(Fault::Truncated(0));
    let error = scraper.sample().await.unwrap_err();
    assert!(matches!(error, DcgmError::NotDcgm { .. }), "{error}");
}

#[tokio::test]
async fn a_page_larger_than_allowed_is_left() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let exact = Scraper::new(&exporter.url(), PATIENCE, EXAMPLE.len()).unwrap();
    let short = Scraper::new(&exporter.url(), PATIENCE, EXAMPLE.len() - 1).unwrap();
    for fault in [Fault::None, Fault::Gzip] {
        exporter.fault(fault);
        assert_eq!(exact.sample().await.unwrap().rejected, 0);
        let error = short.sample().await.unwrap_err();
        assert!(matches!(error, DcgmError::TooLarge { limit, .. } if limit == EXAMPLE.len() - 1));
    }
    // Larger than there is memory: it can only be left early.
    for fault in [Fault::Huge(1 << 50), Fault::GzipBomb(1 << 36)] {
        exporter.fault(fault.clone());
        let error = scraper(&exporter).sample().await.unwrap_err();
        assert!(matches!(error, DcgmError::TooLarge { .. }), "{fault:?}: {error}");
    }
}

#[tokio::test]
async fn what_is_no_page_is_said() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let scraper = scraper(&exporter);
    for code in [500, 404, 204] {
        exporter.fault(Fault::Status(code));
        let error = scraper.sample().await.unwrap_err();
        assert!(
            matches!(&error, DcgmError::Status { status, .. } if status.as_u16() == code),
            "{error}"
        );
        assert!(error.to_string().contains(&exporter.url()), "{error}");
    }
    exporter.fault(Fault::WrongContent);
    let error = scraper.sample().await.unwrap_err();
    assert!(matches!(error, DcgmError::NotDcgm { .. }), "{error}");
    exporter.fault(Fault::None);
    let elsewhere = exporter.url().replace("/metrics", "/");
    let error = Scraper::new(&elsewhere, PATIENCE, LIMIT)
        .unwrap()
        .sample()
        .await
        .unwrap_err();
    assert!(
        matches!(&error, DcgmError::Status { status, .. } if status.as_u16() == 404),
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Exporter::local(EXAMPLE).unwrap();
    let exporter = Exporter::local(EXAMPLE).unwrap();
    exporter.fault(Fault::Redirect(target.url()));
    let error = scraper(&exporter).sample().await.unwrap_err();
    assert!(
        matches!(&error, DcgmError::Status { status, .. } if status.as_u16() == 302),
        "{error}"
    );
    assert_eq!((exporter.requests(), target.requests()), (1, 0));
}

#[tokio::test]
async fn an_exporter_that_comes_back_is_found_again() {
    let exporter = Exporter::local(EXAMPLE).unwrap();
    let address = exporter.address();
    let scraper = scraper(&exporter);
    scraper.sample().await.unwrap();
    drop(exporter);
    let error = scraper.sample().await.unwrap_err();
    assert!(matches!(error, DcgmError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    let exporter = Exporter::start(address, vec![EXAMPLE.into()]).unwrap();
    scraper.sample().await.unwrap();
    // Gone and back between two scrapes: the old connection is no obstacle.
    drop(exporter);
    let exporter = Exporter::start(address, vec![EXAMPLE.into()]).unwrap();
    let snapshot = scraper.sample().await.unwrap();
    assert_eq!((snapshot.devices.len(), exporter.requests()), (5, 1));
    // So it is after any fault.
    for fault in [Fault::Truncated(10), Fault::Status(500), Fault::Huge(1 << 40)] {
        exporter.fault(fault);
        let _ = scraper.sample().await;
        exporter.fault(Fault::None);
        assert_eq!(scraper.sample().await.unwrap().devices.len(), 5);
    }
}

#[test]
fn addresses_that_are_none_are_refused() {
    for url in [
        "",
        "localhost:9400",
        "https://localhost:9400/metrics",
        "unix:///run/x",
        "http://",
        "http:///metrics",
    ] {
        let error = Scraper::new(url, PATIENCE, LIMIT).unwrap_err();
        assert!(matches!(error, DcgmError::Address { .. }), "{url}");
        assert!(
            error.to_string().contains("http://localhost:9400/metrics"),
            "{error}"
        );
    }
    let error = Scraper::new("http://me:secret@localhost/metrics", PATIENCE, LIMIT)
        .unwrap_err()
        .to_string();
    assert!(
        !error.contains("secret") && error.contains("localhost"),
        "{error}"
    );
}
