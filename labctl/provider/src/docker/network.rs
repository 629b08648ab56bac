//! Docker networks.

use std::collections::HashMap;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;
use ipnet::Ipv4Net;

use super::engine::Engine;
use super::error::{EngineError, found};

/// A network of Docker.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// Its name; Docker allows several of one name, labs do not.
    pub(crate) name: String,
    /// Its identifier.
    pub(crate) id: String,
    /// IPv4 subnets.
    pub(crate) subnets: Vec<Ipv4Net>,
    /// Its labels.
    pub(crate) labels: HashMap<String, String>,
}

impl Engine {
    /// Every network.
    pub(crate) async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        let all = self.docker.list_networks(None::<ListNetworksOptions>).await;
        let all = all.map_err(EngineError::request("list networks"))?;
        Ok(all
            .into_iter()
            .map(|network| Network {
                name: network.name.unwrap_or_default(),
                id: network.id.unwrap_or_default(),
                subnets: subnets(network.ipam),
                labels: network.labels.unwrap_or_default(),
            })
            .collect())
    }

    /// The networks of this name.
    pub(crate) async fn networks_named(&self, name: &str) -> Result<Vec<Network>, EngineError> {
        let mut networks = self.networks().await?;
        networks.retain(|network| network.name == name);
        Ok(networks)
    }

    /// Makes a bridge network; without a subnet Docker chooses one.
    pub(crate) async fn make_network(
        &self,
        name: &str,
        subnet: Option<Ipv4Net>,
        mtu: u16,
        labels: HashMap<String, String>,
    ) -> Result<(), EngineError> {
        let ipam = subnet.map(|subnet| Ipam {
            config: Some(vec![IpamConfig { subnet: Some(subnet.to_string()), ..IpamConfig::default() }]),
            ..Ipam::default()
        });
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            ipam,
            options: Some(HashMap::from([("com.docker.network.driver.mtu".to_owned(), mtu.to_string())])),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        let made = self.docker.create_network(request).await;
        made.map(drop).map_err(EngineError::request(format!("make network {name}")))
    }

    /// Removes a network; whether there was one.
    pub(crate) async fn remove_network(&self, id: &str, name: &str) -> Result<bool, EngineError> {
        let removed = found(self.docker.remove_network(id).await, format!("remove network {name}"))?;
        Ok(removed.is_some())
    }
}

fn subnets(ipam: Option<Ipam>) -> Vec<Ipv4Net> {
    let configs = ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    configs.iter().filter_map(|config| config.subnet.as_ref()?.parse().ok()).collect()
}
