//! The programs that render manifests.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// For which Kubernetes the chart is rendered: without a cluster, helm asks its build, which may say anything.
const KUBE_VERSION: &str = "1.33.0";

/// What was found on the PATH.
pub(super) struct Tools {
    kustomize: &'static [&'static str],
    chart: PathBuf,
}

impl Tools {
    /// Looks for helm, and for kubectl or kustomize.
    pub(super) fn find(root: &Path) -> Result<Self> {
        let runs = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        let kustomize: &[&str] = if runs("kustomize", &["version"]) {
            &["kustomize", "build"]
        } else if runs("kubectl", &["version", "--client"]) {
            &["kubectl", "kustomize"]
        } else {
            bail!(
                "neither kustomize nor kubectl is on the PATH: see https://kubectl.docs.kubernetes.io/installation, \
                 or go install sigs.k8s.io/kustomize/kustomize/v5@latest"
            );
        };
        ensure!(
            runs("helm", &["version"]),
            "helm is not on the PATH: see https://helm.sh/docs/intro/install, or go install \
             helm.sh/helm/v3/cmd/helm@latest"
        );
        Ok(Self {
            kustomize,
            chart: root.join("deploy/helm/orb8"),
        })
    }

    /// Renders a directory with a `kustomization.yaml`.
    pub(super) fn kustomize(&self, directory: &Path) -> Result<String> {
        let mut command = Command::new(self.kustomize[0]);
        command.args(&self.kustomize[1..]).arg(directory);
        output(&mut command, "")?
            .map_err(|error| anyhow::anyhow!("{} does not render: {error}", directory.display()))
    }

    /// Renders the chart.
    pub(super) fn helm_template(&self, values: &Value) -> Result<String> {
        self.try_helm_template(values)?
            .map_err(|error| anyhow::anyhow!("the chart does not render: {error}"))
    }

    /// As [`Tools::helm_template`]; the inner error is what helm says about the values.
    pub(super) fn try_helm_template(&self, values: &Value) -> Result<Result<String, String>> {
        let mut command = Command::new("helm");
        command
            .args(["template", "orb8"])
            .arg(&self.chart)
            .args(["--namespace", "orb8", "--kube-version", KUBE_VERSION])
            .args(["--values", "-"]);
        output(&mut command, &values.to_string())
    }

    /// What `helm lint` has against the chart.
    pub(super) fn helm_lint(&self) -> Result<Vec<String>> {
        let mut command = Command::new("helm");
        command
            .args(["lint", "--strict", "--quiet", "--kube-version", KUBE_VERSION])
            .arg(&self.chart);
        Ok(output(&mut command, "")?.err().into_iter().collect())
    }
}

/// Runs a program: what it prints, or the inner error if it fails.
fn output(command: &mut Command, input: &str) -> Result<Result<String, String>> {
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    // The pipe takes it at once: values are smaller than its buffer. It is closed here, so that the program goes on.
    // One that fails before it reads says why itself.
    let _ = child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input.as_bytes());
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = |bytes| String::from_utf8(bytes).with_context(|| format!("{program} prints other than UTF-8"));
    let (stdout, stderr) = (text(output.stdout)?, text(output.stderr)?);
    Ok(if output.status.success() {
        Ok(stdout)
    } else {
        Err(format!("{stdout}{stderr}").trim().to_owned())
    })
}
