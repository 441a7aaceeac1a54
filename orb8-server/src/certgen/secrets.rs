//! Certificates as Secrets of Kubernetes.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Map, Value, json};

use super::{
    CertgenError,
    store::{Data, Place, Store, Stored},
};

/// How cert-manager marks what it made.
const CERT_MANAGER: &str = "cert-manager.io/certificate-name";
const TLS_TYPE: &str = "kubernetes.io/tls";

/// The Secrets and the ConfigMap of one namespace.
pub(super) struct Secrets {
    namespace: String,
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
}

impl Secrets {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
        }
    }

    /// To the cluster that this runs in, or that the kubeconfig names.
    pub(super) async fn connect(namespace: Option<String>) -> Result<Self, CertgenError> {
        let config = Config::infer()
            .await
            .map_err(|error| CertgenError::NoCluster(error.to_string()))?;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| CertgenError::NoCluster(error.to_string()))?;
        Ok(Self::new(client, &namespace))
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn failed(&self, verb: &'static str, place: Place, error: kube::Error) -> CertgenError {
        let what = self.describe(place);
        let advice = match &error {
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
                return CertgenError::Conflict(what);
            }
            kube::Error::Api(status) if status.code == 403 => {
                "; who runs certgen needs a Role with get, create and patch of secrets and configmaps in this namespace"
            }
            kube::Error::Api(status) if status.is_not_found() && verb == "patch" => {
                // Deleted since it was read: as if somebody had changed it.
                return CertgenError::Conflict(what);
            }
            kube::Error::Api(status) if status.is_not_found() => "; does the namespace exist?",
            kube::Error::Api(_) => "",
            _ => "; is the API server reachable?",
        };
        CertgenError::Api {
            verb,
            what,
            error: Box::new(error),
            advice,
        }
    }
}

const fn name(place: Place) -> &'static str {
    match place {
        Place::Ca | Place::Bundle => "orb8-ca",
        Place::Agent => "orb8-agent-tls",
        Place::Server => "orb8-server-tls",
        Place::Operator => "orb8-operator-tls",
    }
}

impl Store for Secrets {
    fn describe(&self, place: Place) -> String {
        let kind = if place == Place::Bundle {
            "ConfigMap"
        } else {
            "Secret"
        };
        format!("{kind} {}/{}", self.namespace, name(place))
    }

    async fn read(&self, place: Place) -> Result<Option<Stored>, CertgenError> {
        let failed = |error| self.failed("get", place, error);
        if place == Place::Bundle {
            let found = self.config_maps.get_opt(name(place)).await.map_err(failed)?;
            return Ok(found.map(of_config_map));
        }
        let found = self.secrets.get_opt(name(place)).await.map_err(failed)?;
        Ok(found.map(of_secret))
    }

    async fn write(
        &self,
        place: Place,
        data: &Data,
        before: Option<&Stored>,
    ) -> Result<Stored, CertgenError> {
        if place == Place::Bundle {
            return match before {
                None => {
                    let made = ConfigMap {
                        metadata: metadata(place),
                        data: Some(data.clone()),
                        ..ConfigMap::default()
                    };
                    self.config_maps.create(&PostParams::default(), &made).await
                }
                Some(before) => {
                    let patch = patch(data, before, |text| json!(text));
                    let patch = Patch::Merge(&patch);
                    self.config_maps
                        .patch(name(place), &PatchParams::default(), &patch)
                        .await
                }
            }
            .map(of_config_map)
            .map_err(|error| self.failed(verb(before), place, error));
        }
        match before {
            None => {
                let made = Secret {
                    metadata: metadata(place),
                    type_: Some(TLS_TYPE.to_owned()),
                    data: Some(
                        data.iter()
                            .map(|(name, text)| (name.clone(), ByteString(text.clone().into_bytes())))
                            .collect(),
                    ),
                    ..Secret::default()
                };
                self.secrets.create(&PostParams::default(), &made).await
            }
            Some(before) => {
                let patch = patch(data, before, |text| json!(ByteString(text.as_bytes().to_vec())));
                let patch = Patch::Merge(&patch);
                self.secrets
                    .patch(name(place), &PatchParams::default(), &patch)
                    .await
            }
        }
        .map(of_secret)
        .map_err(|error| self.failed(verb(before), place, error))
    }
}

const fn verb(before: Option<&Stored>) -> &'static str {
    match before {
        None => "create",
        Some(_) => "patch",
    }
}

fn metadata(place: Place) -> ObjectMeta {
    let label = |name: &str, value: &str| (format!("app.kubernetes.io/{name}"), value.to_owned());
    ObjectMeta {
        name: Some(name(place).to_owned()),
        labels: Some(BTreeMap::from([
            label("part-of", "orb8"),
            label("managed-by", "orb8-certgen"),
        ])),
        ..ObjectMeta::default()
    }
}

/// What makes `before` to `data`; refused by the API server if it is not as it was any more.
fn patch(data: &Data, before: &Stored, encode: impl Fn(&str) -> Value) -> Value {
    let gone = before
        .data
        .keys()
        .filter(|name| !data.contains_key(*name))
        .map(|name| (name.clone(), Value::Null));
    let kept = data.iter().map(|(name, text)| (name.clone(), encode(text)));
    let data: Map<String, Value> = gone.chain(kept).collect();
    json!({ "metadata": { "resourceVersion": before.version }, "data": data })
}

fn of_secret(secret: Secret) -> Stored {
    let data = secret.data.unwrap_or_default().into_iter();
    stored(
        secret.metadata,
        data.map(|(name, ByteString(bytes))| (name, String::from_utf8_lossy(&bytes).into_owned()))
            .collect(),
    )
}

fn of_config_map(map: ConfigMap) -> Stored {
    stored(map.metadata, map.data.unwrap_or_default())
}

fn stored(metadata: ObjectMeta, data: Data) -> Stored {
    Stored {
        data,
        foreign: metadata
            .annotations
            .and_then(|mut annotations| annotations.remove(CERT_MANAGER)),
        version: metadata.resource_version,
    }
}
