//! The loop: whatever changes, the node is made what the objects say, then it waits for the next change.
//!
//! Owns: the order of steps, retries, what is said in the log. Does not own: any of the steps. Ending leaves the
//! datapath, the routes and the CNI configuration as they are, so a restart of the agent is not noticed.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use datapath_agent::{ApplyError, Datapath, LocalPod, NodeState};
use futures_util::{Stream, StreamExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::cni::{self, CniError, Conflist};
use crate::netlink::{self, NetlinkError, Network};
use crate::options::{AgentOptions, NetworkMode};
use crate::ready;
use crate::retention::Retention;
use crate::routes::node_routes;
use crate::services::services;
use crate::view::{ClusterNode, ClusterView};
use crate::watch::{self, WatchError, Watches};

/// Changes come in bursts: a pod's deletion alone is three. They are answered together after this.
const BURST: Duration = Duration::from_millis(5);
/// A burst that does not end is answered all the same.
const LONGEST_BURST: Duration = Duration::from_millis(50);
/// Without any change the node is looked at again: somebody may have removed a route, and what left a service is
/// forgotten some time.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// First and longest wait after a step failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Where the runtime looks for the CNI configuration, and for the plugins.
pub(crate) const CNI_FOLDERS: (&str, &str) = ("/etc/cni/net.d", "/opt/cni/bin");

/// The agent cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The event loop, a signal handler or the ready file.
    #[error("{step}")]
    System {
        /// What was being done.
        step: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The API server.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The node's network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pods' network.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// The datapath.
    #[error("set up the datapath of {node}")]
    Datapath {
        /// This node.
        node: String,
        /// Why.
        #[source]
        source: Box<ApplyError>,
    },
}

impl AgentError {
    fn system(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { step, source }
    }

    /// Whether trying again cannot help: the node image lacks something, or the container may too little.
    fn is_final(&self) -> bool {
        match self {
            Self::Netlink(_) | Self::System { .. } => false,
            // A pod may be gone before its veth was looked at.
            Self::Datapath { source, .. } => !matches!(**source, ApplyError::Interface { .. }),
            Self::Watch(_) | Self::Cni(_) => true,
        }
    }
}

/// The role: keeps this node what the cluster says until SIGTERM or SIGINT. `log` gets one line for each thing
/// worth knowing.
///
/// # Errors
/// [`AgentError`] if the node cannot be set up; once it is, failures are said in the log and tried again.
pub fn run(options: AgentOptions, log: &mut dyn FnMut(&str)) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::system("start the event loop"))?;
    runtime.block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(AgentError::system("wait for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::system("wait for SIGINT"))?;
        ready::clear().map_err(AgentError::system("remove the ready file"))?;
        let mut agent = Agent::new(options, log)?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            failed = agent.follow() => failed,
        }
    })
}

struct Agent<'a> {
    options: AgentOptions,
    network: Network,
    datapath: Option<Datapath>,
    /// What the datapath was told last, if it could do all of it.
    applied: Option<NodeState>,
    retention: Retention,
    /// Whether the node has the portmap plugin.
    portmap: bool,
    log: Log<'a>,
}

impl<'a> Agent<'a> {
    fn new(options: AgentOptions, log: &'a mut dyn FnMut(&str)) -> Result<Self, AgentError> {
        let full = options.network == NetworkMode::Full;
        let portmap = full && cni::find_plugins(Path::new(CNI_FOLDERS.1))?;
        Ok(Self {
            options,
            network: Network::open()?,
            datapath: None,
            applied: None,
            retention: Retention::default(),
            portmap,
            log: Log { write: log, said: BTreeMap::new() },
        })
    }

    /// Answers every change; ends only with what cannot be mended.
    async fn follow(&mut self) -> Result<(), AgentError> {
        let client = watch::connect(&self.options.api_server)?;
        let slices = watch::slice_resource(&client, &mut |step, error| self.log.failed(step, error)).await?;
        self.log.say(&format!("watching {} with {}", self.options.api_server, slices.api_version));
        let mut watches = Watches::start(&client, &slices);
        let mut changes = netlink::changes()?;
        let mut retry = RETRY.0;
        let mut wait = LOOK_AGAIN;
        loop {
            self.wait_for_changes(&mut watches, &mut changes, wait).await;
            let Some(view) = watches.view() else { continue };
            match self.make(&view).await {
                Ok(()) => (wait, retry) = (LOOK_AGAIN, RETRY.0),
                Err(error) if error.is_final() && self.datapath.is_none() => return Err(error),
                Err(error) => {
                    self.log.failed("bring the node up to date", &error);
                    wait = retry;
                    retry = (retry * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Waits for a change, at most for `longest`, and for those that follow at once.
    async fn wait_for_changes(
        &mut self,
        watches: &mut Watches,
        changes: &mut (impl Stream<Item = ()> + Unpin),
        longest: Duration,
    ) {
        let mut began: Option<Instant> = None;
        while began.is_none_or(|began| began.elapsed() < LONGEST_BURST) {
            let change = async {
                tokio::select! {
                    event = watches.changed() => event,
                    Some(()) = changes.next() => Ok(()),
                }
            };
            let window = if began.is_none() { longest } else { BURST };
            match timeout(window, change).await {
                Err(_nothing_more) => return,
                Ok(Err(error)) => self.log.failed("watch the API server", &error),
                Ok(Ok(())) => {}
            }
            began.get_or_insert_with(Instant::now);
        }
    }

    /// Makes the node what the cluster says. The datapath comes first: the node becomes Ready with its CNI
    /// configuration, and pods follow at once.
    async fn make(&mut self, view: &ClusterView) -> Result<(), AgentError> {
        let Some(node) = view.nodes.iter().find(|node| node.name == self.options.node) else {
            self.log.notice(&format!("waiting for node {} to have an InternalIP", self.options.node));
            return Ok(());
        };
        let uplink = self.network.uplink(node.address).await?;
        let pods = self.network.pods(self.options.pod_cidr, &uplink).await?;
        let state = self.desired(view, node, &uplink, pods);
        self.apply(state)?;
        if self.options.network == NetworkMode::Full {
            self.connect_pods(view, node, &uplink).await?;
        }
        ready::set().map_err(AgentError::system("write the ready file"))
    }

    fn desired(
        &mut self,
        view: &ClusterView,
        node: &ClusterNode,
        uplink: &str,
        pods: Vec<LocalPod>,
    ) -> NodeState {
        let mut found = services(view, &self.options);
        self.retention.retain(&mut found.states, Instant::now());
        self.log.left_out(&found.left_out);
        let mut nodes: Vec<Ipv4Addr> = view.nodes.iter().map(|node| node.address).collect();
        nodes.sort();
        NodeState {
            node: node.name.clone(),
            uplink: uplink.to_owned(),
            node_address: node.address,
            nodes,
            pod_cidr: (self.options.pod_cidr.network(), self.options.pod_cidr.prefix_len()),
            pods,
            services: found.states,
            options: self.options.datapath.clone(),
        }
    }

    fn apply(&mut self, state: NodeState) -> Result<(), AgentError> {
        if self.applied.as_ref() == Some(&state) {
            return Ok(());
        }
        self.applied = None;
        let fail = |source| AgentError::Datapath { node: state.node.clone(), source: Box::new(source) };
        match &mut self.datapath {
            Some(datapath) => {
                datapath.update(&state).map_err(fail)?;
            }
            None => {
                let (datapath, applied) = Datapath::start(&state, &self.options.pins).map_err(fail)?;
                self.datapath = Some(datapath);
                let whose = if applied.reused { "took over" } else { "made" };
                let (kind, uplink) = (applied.kind, &state.uplink);
                self.log.say(&format!("{whose} the datapath of {}: {kind} on {uplink}", state.node));
            }
        }
        self.applied = Some(state);
        Ok(())
    }

    async fn connect_pods(
        &mut self,
        view: &ClusterView,
        node: &ClusterNode,
        uplink: &str,
    ) -> Result<(), AgentError> {
        for failed in self.network.set_routes(&node_routes(view, &node.name)).await? {
            // The others' pods must not wait for one node that cannot be reached.
            self.log.failed("connect the nodes' pods", &failed);
        }
        let Some(pods) = node.pod_cidr else {
            self.log.notice(&format!("waiting for node {} to be given a podCIDR", node.name));
            return Ok(());
        };
        let mtu =
            datapath_agent::interface_link(uplink).map_err(AgentError::system("read the uplink's MTU"))?.mtu;
        let conflist = Conflist { pods, mtu, portmap: self.portmap };
        conflist.write(Path::new(CNI_FOLDERS.0))?;
        self.log.notice(&format!("pods of {} get addresses of {pods}, MTU {mtu}", node.name));
        Ok(())
    }
}

/// The log, which does not say the same thing again and again.
struct Log<'a> {
    write: &'a mut dyn FnMut(&str),
    said: BTreeMap<String, Instant>,
}

impl Log<'_> {
    /// What goes on is said once in this time.
    const REPEAT: Duration = Duration::from_secs(300);

    fn say(&mut self, line: &str) {
        (self.write)(line);
    }

    /// Says what holds until something else is said about it.
    fn notice(&mut self, line: &str) {
        self.said.retain(|_, when| when.elapsed() < Self::REPEAT);
        if !self.said.contains_key(line) {
            self.said.insert(line.to_owned(), Instant::now());
            self.say(line);
        }
    }

    fn left_out(&mut self, reasons: &[String]) {
        for reason in reasons {
            self.notice(&format!("left out {reason}"));
        }
    }

    /// What failed, and every cause.
    fn failed(&mut self, step: &str, error: &dyn Error) {
        let mut line = format!("failed to {step}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            let _infallible = write!(line, ": {error}");
            cause = error.source();
        }
        self.notice(&line);
    }
}
