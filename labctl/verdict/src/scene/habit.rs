//! What load balancers are free to do: one table per kind, so that what is allowed is data and never a hole in a check.

use crate::evidence::Evidence;

/// What a load balancer may do that is neither demanded nor forbidden by a mode.
#[derive(Debug)]
pub(crate) struct Habits {
    /// The node that was asked may forward without taking one from the TTL. Cilium 1.13.17 was
    /// captured doing so, a development version of 1.18 was not.
    pub(crate) may_keep_ttl: bool,
    /// Source NAT may give packets another IP identification.
    pub(crate) may_change_id: bool,
    /// The source may be rewritten for a backend on the node that was asked as well, and to any address of that
    /// node, such as the pods' gateway (kube-proxy's masquerade).
    pub(crate) may_masquerade_at_home: bool,
    /// A node without a backend may say no instead of being silent.
    pub(crate) may_refuse: bool,
    /// In direct server return each packet that opens a flow carries the frontend in our IPv4 option. Others may
    /// carry it in another way or not at all; what they carry must be right all the same.
    pub(crate) must_carry_option: bool,
    /// The option must be gone before the pod.
    pub(crate) must_strip_option: bool,
    /// It counts what it drops, by reason.
    pub(crate) counts_drops: bool,
    /// Frames on pod links have the addresses of both ends, and one program forwards them. Others may bridge or
    /// proxy.
    pub(crate) owns_pod_links: bool,
    /// Client and frontend have other things to do than the run's traffic: their addresses in other packets mean nothing.
    pub(crate) has_other_traffic: bool,
}

/// Of the load balancer that was judged.
pub(crate) const fn of(evidence: &Evidence) -> Habits {
    let datapath = &evidence.plan.datapath;
    if datapath.external {
        return Habits { has_other_traffic: evidence.origin.files().is_some(), ..FOREIGN };
    }
    Habits { must_strip_option: datapath.strip_option, ..BUNDLED }
}

const BUNDLED: Habits = Habits {
    may_keep_ttl: false,
    may_change_id: false,
    may_masquerade_at_home: false,
    may_refuse: false,
    must_carry_option: true,
    must_strip_option: true,
    counts_drops: true,
    owns_pod_links: true,
    has_other_traffic: false,
};

const FOREIGN: Habits = Habits {
    may_keep_ttl: true,
    may_change_id: true,
    may_masquerade_at_home: true,
    may_refuse: true,
    must_carry_option: false,
    must_strip_option: false,
    counts_drops: false,
    owns_pod_links: false,
    has_other_traffic: false,
};
