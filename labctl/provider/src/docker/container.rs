//! Docker containers.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bollard::models::{ContainerCreateBody, ContainerSummary, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptions, ListContainersOptions, RemoveContainerOptions, StartContainerOptions,
    UploadToContainerOptions,
};
use bytes::Bytes;

use super::engine::Engine;
use super::error::{EngineError, found};

/// A container.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    /// Its identifier.
    pub(crate) id: String,
    /// Its name, without the slash that Docker puts before it.
    pub(crate) name: String,
    /// `running`, `exited`, ...
    pub(crate) state: String,
    /// Its labels.
    pub(crate) labels: HashMap<String, String>,
    /// Networks that it is on, with its address there; `None` while it does not run.
    pub(crate) networks: HashMap<String, Option<Ipv4Addr>>,
    /// Its ports that this machine serves: the container's, then the machine's.
    pub(crate) published: HashMap<u16, u16>,
}

impl Container {
    /// Whether it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.state == "running"
    }
}

/// A container to run.
pub(crate) struct ContainerSpec<'a> {
    pub(crate) name: String,
    pub(crate) image: &'a str,
    pub(crate) network: String,
    /// Arguments of the image's entry point.
    pub(crate) arguments: Vec<String>,
    /// Capabilities, all others dropped: `NET_ADMIN`.
    pub(crate) capabilities: Vec<String>,
    pub(crate) labels: HashMap<String, String>,
}

impl Engine {
    /// Every container that has these labels (`key` or `key=value`), running or not.
    pub(crate) async fn containers(&self, labels: &[String]) -> Result<Vec<Container>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let all = self.docker.list_containers(Some(options)).await;
        let mut all: Vec<_> =
            all.map_err(EngineError::request("list containers"))?.into_iter().map(container).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Whether a container has this name.
    pub(crate) async fn has_container(&self, name: &str) -> Result<bool, EngineError> {
        let looked = self.docker.inspect_container(name, None).await;
        Ok(found(looked, format!("look at container {name}"))?.is_some())
    }

    /// Makes a container and starts it.
    pub(crate) async fn run(&self, spec: ContainerSpec<'_>) -> Result<(), EngineError> {
        let options = CreateContainerOptions { name: Some(spec.name.clone()), ..Default::default() };
        let body = ContainerCreateBody {
            image: Some(spec.image.to_owned()),
            cmd: Some(spec.arguments),
            labels: Some(spec.labels),
            hostname: Some(spec.name.clone()),
            host_config: Some(HostConfig {
                network_mode: Some(spec.network),
                cap_drop: Some(vec!["ALL".to_owned()]),
                cap_add: Some(spec.capabilities),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let made = self.docker.create_container(Some(options), body).await;
        made.map_err(EngineError::request(format!("make container {}", spec.name)))?;
        let started = self.docker.start_container(&spec.name, None::<StartContainerOptions>).await;
        started.map_err(EngineError::request(format!("start container {}", spec.name)))
    }

    /// Ends and removes a container with its anonymous volumes; whether there was one.
    pub(crate) async fn remove_container(&self, id: &str, name: &str) -> Result<bool, EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        let removed = self.docker.remove_container(id, Some(options)).await;
        match removed {
            // Another command removes it already.
            Err(error) if super::error::status(&error) == Some(409) => Ok(false),
            other => Ok(found(other, format!("remove container {name}"))?.is_some()),
        }
    }

    /// Unpacks a tar archive into a folder of a container.
    pub(crate) async fn upload(&self, name: &str, folder: &str, tar: Bytes) -> Result<(), EngineError> {
        let options = UploadToContainerOptions { path: folder.to_owned(), ..Default::default() };
        let sent = self.docker.upload_to_container(name, Some(options), bollard::body_full(tar)).await;
        sent.map_err(EngineError::request(format!("copy files to {name}:{folder}")))
    }
}

fn container(summary: ContainerSummary) -> Container {
    let networks = summary.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let ports = summary.ports.unwrap_or_default().into_iter();
    let name = summary.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    Container {
        id: summary.id.unwrap_or_default(),
        name: name.trim_start_matches('/').to_owned(),
        state: summary.state.map_or_else(String::new, |state| state.to_string()),
        labels: summary.labels.unwrap_or_default(),
        networks: networks
            .into_iter()
            .map(|(name, endpoint)| (name, endpoint.ip_address.and_then(|text| text.parse().ok())))
            .collect(),
        published: ports.filter_map(|port| Some((port.private_port, port.public_port?))).collect(),
    }
}
