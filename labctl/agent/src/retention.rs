//! Backends that have left their service keep their connections for a while, and readiness may flicker.
//!
//! Before Kubernetes 1.22 a pod leaves the EndpointSlices as soon as its deletion begins, while it still has its
//! grace period to finish what it does. And a kubelet that starts again calls every pod of its node unready until
//! it has probed them (<https://github.com/kubernetes/kubernetes/issues/78733>). Pure: the caller says what time it is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use datapath_agent::{BackendState, Proto, ServiceState};

/// How long the datapath knows a backend after it left its service. Connections that are silent for longer
/// than this end with it.
pub const RETENTION: Duration = Duration::from_secs(300);

/// How long a backend that is not ready any more still serves for want of a ready one.
pub const FLICKER: Duration = Duration::from_secs(15);

/// What was there, to know what has left.
#[derive(Debug, Default)]
pub struct Retention {
    known: BTreeMap<Port, BTreeMap<(Ipv4Addr, u16), Known>>,
}

/// One port of one service: its id, its protocol and the ClusterIP's port.
type Port = (u32, Proto, Option<(Ipv4Addr, u16)>);

#[derive(Debug)]
struct Known {
    backend: BackendState,
    /// When it was seen last.
    seen: Instant,
    /// When it took new connections last.
    ready: Option<Instant>,
}

impl Retention {
    /// Adds to each service the backends that left it less than [`RETENTION`] before `now`, as retired ones.
    /// Those that were ready less than [`FLICKER`] before take new connections if nobody else does.
    pub fn retain(&mut self, services: &mut [ServiceState], now: Instant) {
        let mut before = std::mem::take(&mut self.known);
        for service in services {
            let port = (service.id, service.protocol, service.cluster_ip);
            let mut known = before.remove(&port).unwrap_or_default();
            for backend in &mut service.backends {
                let socket = (backend.address, backend.port);
                let stays = !backend.terminating && !backend.retired;
                let ready = if stays { Some(now) } else { known.get(&socket).and_then(|known| known.ready) };
                if backend.retired && ready.is_some_and(|ready| now.duration_since(ready) < FLICKER) {
                    (backend.terminating, backend.retired) = (true, false);
                }
                known.insert(socket, Known { backend: backend.clone(), seen: now, ready });
            }
            known.retain(|_, known| now.duration_since(known.seen) < RETENTION);
            let left = known.values().filter(|known| known.seen < now);
            service.backends.extend(left.map(|known| BackendState {
                terminating: false,
                retired: true,
                ..known.backend.clone()
            }));
            self.known.insert(port, known);
        }
    }
}
