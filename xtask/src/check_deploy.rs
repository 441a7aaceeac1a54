//! Checks the ways to install orb8 against each other and against what they may ask of a cluster: the manifests in
//! `deploy/`, the components in `deploy/components`, and the Helm chart in `deploy/helm/orb8`.

mod objects;
mod privileges;
mod tools;
mod values;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use objects::Objects;
use privileges::Meant;
use tools::Tools;

const KUSTOMIZE: &str = "kustomize";
const HELM: &str = "helm";
const LOCKED_MEMORY: &str = "locked-memory";
const GPU: &str = "gpu";
const GPU_EXPORTER: &str = "gpu-exporter";
const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources";

/// Runs every check, and prints what each found.
///
/// # Errors
/// If a tool is missing (with what to install), something does not render, or a check finds anything.
pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?;
    let tools = Tools::find(root)?;
    let mut problems = Vec::new();
    let mut report = |what: &str, found: Vec<String>| {
        println!("{}: {what}", if found.is_empty() { "ok" } else { "FAILED" });
        for problem in found {
            println!("  {}", problem.replace('\n', "\n  "));
            problems.push(problem);
        }
    };

    let manifests = Objects::parse(&tools.kustomize(&root.join("deploy"))?)?;
    let helm = |values: &Value| Objects::parse(&tools.helm_template(values)?);
    let chart = helm(&json!({}))?;
    report(
        "the chart's defaults make what deploy/ makes, except for the namespace",
        objects::differences(KUSTOMIZE, &manifests.without_kind("Namespace"), HELM, &chart),
    );
    report(
        "with namespace.create they make that too",
        objects::differences(
            KUSTOMIZE,
            &manifests,
            HELM,
            &helm(&json!({"namespace": {"create": true}}))?,
        ),
    );
    let locked = Objects::parse(&with_component(&tools, root, LOCKED_MEMORY)?)?;
    let chart_locked = helm(&json!({"lockedMemory": true, "namespace": {"create": true}}))?;
    report(
        "lockedMemory does what the component locked-memory does",
        objects::differences(KUSTOMIZE, &locked, HELM, &chart_locked),
    );
    let gpu = Objects::parse(&with_component(&tools, root, GPU)?)?;
    let chart_gpu = helm(&json!({"gpu": {"podResources": POD_RESOURCES}, "namespace": {"create": true}}))?;
    report(
        "gpu.podResources does what the component gpu does",
        objects::differences(KUSTOMIZE, &gpu, HELM, &chart_gpu),
    );
    let exporter = Objects::parse(&with_component(&tools, root, GPU_EXPORTER)?)?;
    let chart_exporter =
        helm(&json!({"gpu": {"exporter": {"enabled": true}}, "namespace": {"create": true}}))?;
    report(
        "gpu.exporter.enabled does what the component gpu-exporter does",
        objects::differences(KUSTOMIZE, &exporter, HELM, &chart_exporter),
    );
    report("every component is checked", unknown_components(root)?);

    report(
        "deploy/ asks for no more privileges than are meant",
        privileges::unexpected(&manifests, Meant::default()),
    );
    report(
        "the component locked-memory adds SYS_RESOURCE alone",
        privileges::unexpected(
            &locked,
            Meant {
                locked_memory: true,
                ..Meant::default()
            },
        ),
    );
    report(
        "the component gpu adds the kubelet's directory alone",
        privileges::unexpected(
            &gpu,
            Meant {
                pod_resources: Some(POD_RESOURCES),
                ..Meant::default()
            },
        ),
    );
    report(
        "the component gpu-exporter adds an exporter alone",
        privileges::unexpected(
            &exporter,
            Meant {
                gpu_exporter: true,
                ..Meant::default()
            },
        ),
    );
    for (file, values) in values::examples(root)? {
        let meant = Meant {
            locked_memory: values["lockedMemory"] == true,
            state_dir: values["settings"]["state_dir"].as_str(),
            pod_resources: values["gpu"]["podResources"].as_str(),
            gpu_exporter: values["gpu"]["exporter"]["enabled"] == true,
            gpu_profiling: values["gpu"]["exporter"]["profiling"] == true,
        };
        report(
            &format!("the chart with {file} asks for no more privileges than are meant"),
            privileges::unexpected(&helm(&values).with_context(|| file.clone())?, meant),
        );
    }

    report("helm lint --strict", tools.helm_lint()?);
    report(
        "every value of the chart does something",
        values::idle(&tools, root)?,
    );
    report(
        "wrong values are refused, by their names",
        values::accepted_though_wrong(&tools)?,
    );
    report("the chart's README has every value", values::undocumented(root)?);
    report(
        "the chart's settings are the agent's",
        values::foreign_settings(root)?,
    );
    report("versions agree", values::other_versions(root)?);

    if !problems.is_empty() {
        bail!("{} problem(s) in deploy/", problems.len());
    }
    Ok(())
}

/// Renders `deploy/` with one of its components, from an overlay as a user would write it.
fn with_component(tools: &Tools, root: &Path, component: &str) -> Result<String> {
    let overlay = tempfile::tempdir().context("cannot make a temporary directory")?;
    // kustomize takes only relative paths.
    std::os::unix::fs::symlink(root.join("deploy"), overlay.path().join("deploy"))?;
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["deploy"],
        "components": [format!("deploy/components/{component}")],
    });
    fs::write(
        overlay.path().join("kustomization.yaml"),
        kustomization.to_string(),
    )?;
    tools.kustomize(overlay.path())
}

fn unknown_components(root: &Path) -> Result<Vec<String>> {
    let directory = root.join("deploy/components");
    let mut unknown = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let name = entry?.file_name();
        if ![LOCKED_MEMORY, GPU, GPU_EXPORTER]
            .iter()
            .any(|known| name == *known)
        {
            unknown.push(format!(
                "deploy/components/{}: nothing checks what it adds; have check-deploy do so",
                name.display()
            ));
        }
    }
    Ok(unknown)
}
