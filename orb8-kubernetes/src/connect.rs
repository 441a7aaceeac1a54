//! Finding the cluster's API server, and a client that notices when it is gone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::ConfigExt as _,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder};

/// A connection on which nothing comes is asked whether it lives, by TCP, after so long, as often, and given up after
/// three times: a watch may rightly be silent for minutes.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Why there is no cluster to ask.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The kubeconfig is no good.
    #[error("cannot use the kubeconfig {path}: {source}; see `kubectl --kubeconfig {path} config view`")]
    Kubeconfig {
        /// Which.
        path: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// The configuration has something that cannot be used.
    #[error("cannot make a client of the configuration from {config_source}: {source}")]
    Client {
        /// Where it came from.
        config_source: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// What [`configure`] found.
#[derive(Debug)]
pub enum Configured {
    /// A cluster: where the configuration came from.
    Found(Box<Config>, Source),
    /// None, and why.
    None(String),
}

/// Where a configuration came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A pod's service account.
    InCluster,
    /// A kubeconfig file.
    Kubeconfig(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InCluster => f.write_str("the pod's service account"),
            Self::Kubeconfig(path) => f.write_str(path),
        }
    }
}

/// Finds the cluster's configuration: the kubeconfig given, else the service account's, else that of `KUBECONFIG`.
///
/// # Errors
/// If a kubeconfig is named that cannot be used.
pub async fn configure(kubeconfig: Option<&Path>) -> Result<Configured, KubernetesError> {
    let named = kubeconfig.map(Path::to_owned).or_else(|| {
        std::env::var_os("KUBECONFIG")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    });
    if kubeconfig.is_none()
        && let Ok(config) = Config::incluster()
    {
        return Ok(Configured::Found(Box::new(config), Source::InCluster));
    }
    let Some(path) = named else {
        return Ok(Configured::None(
            "there is no service account (not in a pod), and neither the setting kubeconfig nor KUBECONFIG names a file"
                .to_owned(),
        ));
    };
    let text = path.display().to_string();
    let error = |source| KubernetesError::Kubeconfig {
        path: text.clone(),
        source,
    };
    // KUBECONFIG may be a list of files.
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::from_env().map(Option::unwrap_or_default),
    };
    let config = Config::from_custom_kubeconfig(read.map_err(error)?, &KubeConfigOptions::default())
        .await
        .map_err(error)?;
    Ok(Configured::Found(Box::new(config), Source::Kubeconfig(text)))
}

/// A client that notices when the other end is gone.
///
/// # Errors
/// If the configuration has something that cannot be used.
pub fn client(config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let https = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer()?)
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace))
}
