//! What labctl says to a cluster, without a cluster: the manifests.

mod manifests;
