//! `labctl up` and `labctl verify` for every mode and for the shapes of lab that users write: every check
//! passes, or says why it does not apply.

use crate::lab::Lab;
use crate::root::need_root;
use crate::verdict::{Verdict, text};

const BACKEND: &str = "- {node: worker2, address: 10.0.1.108}";

/// Brings up a built-in lab with pieces of its file replaced, and verifies it.
fn verified(mode: &str, changes: &[(&str, &str)]) -> Verdict {
    let lab = Lab::new(mode, |text| replaced(text, changes));
    lab.bring_up();
    let verdict = lab.verify();
    assert_eq!(lab.status()["problems"], serde_json::json!([]), "verify left the lab unwell");
    verdict
}

fn replaced(mut text: String, changes: &[(&str, &str)]) -> String {
    for (old, new) in changes {
        assert!(text.contains(old), "the lab file has no {old:?}");
        text = text.replace(old, new);
    }
    text
}

fn number(verdict: &Verdict, check: &str, name: &str) -> u64 {
    verdict.evidence_of(check)[name].as_u64().unwrap_or_else(|| panic!("{check} has no number {name}"))
}

#[test]
fn dsr_passes() {
    need_root!();
    let verdict = verified("dsr", &[]);
    verdict.assert_passes(&[]);
    // Two more each, one by each protocol, to control-plane and to worker2.
    assert_eq!(number(&verdict, "client-ip", "client_address_kept"), 16 + 4);
    assert_eq!(number(&verdict, "return-path", "through_ingress"), 0);
    assert!(number(&verdict, "carrier", "with_option") > 0);
}

#[test]
fn snat_passes() {
    need_root!();
    let verdict = verified("snat", &[]);
    verdict.assert_passes(&[]);
    assert_eq!(number(&verdict, "client-ip", "source_rewritten"), 16 + 2);
    assert_eq!(number(&verdict, "client-ip", "client_address_kept"), 2, "by worker2, where the backend is");
    assert_eq!(number(&verdict, "carrier", "with_option"), 0);
}

#[test]
fn hybrid_passes_with_tcp_as_dsr_and_udp_as_snat() {
    need_root!();
    let verdict = verified("hybrid", &[]);
    verdict.assert_passes(&[]);
    assert_eq!(number(&verdict, "client-ip", "client_address_kept"), 8 + 3, "tcp, and udp by worker2");
    assert_eq!(number(&verdict, "client-ip", "source_rewritten"), 8 + 1, "udp");
    assert!(number(&verdict, "return-path", "direct") > 0);
    assert!(number(&verdict, "return-path", "through_ingress") > 0);
}

#[test]
fn local_passes_and_other_nodes_are_silent() {
    need_root!();
    let verdict = verified("local", &[]);
    verdict.assert_passes(&[]);
    assert_eq!(number(&verdict, "client-ip", "client_address_kept"), 16);
    assert_eq!(number(&verdict, "carrier", "with_option"), 0);
}

#[test]
fn ciliums_byte_order_passes() {
    need_root!();
    for mode in ["dsr", "hybrid"] {
        let order = format!("mode: {mode}\nwire: cilium");
        verified(mode, &[(&format!("mode: {mode}"), &order)]).assert_passes(&[]);
    }
}

#[test]
fn an_option_that_is_not_stripped_passes() {
    need_root!();
    let kept = format!("{BACKEND}\ndatapath: {{stripOption: false}}");
    verified("dsr", &[(BACKEND, &kept)]).assert_passes(&[]);
}

#[test]
fn a_backend_on_the_node_that_was_asked_passes() {
    need_root!();
    for (mode, by_others) in [("dsr", 4), ("snat", 0), ("hybrid", 2)] {
        let verdict = verified(mode, &[(BACKEND, "- {node: worker}")]);
        verdict.assert_passes(&[]);
        assert_eq!(number(&verdict, "client-ip", "client_address_kept"), 16 + by_others, "{mode}");
    }
}

#[test]
fn two_backends_on_different_nodes_pass() {
    need_root!();
    let two = format!("{BACKEND}\n  - {{node: control-plane}}");
    for mode in ["dsr", "snat", "hybrid", "local"] {
        verified(mode, &[(BACKEND, &two)]).assert_passes(&[]);
    }
}

#[test]
fn two_replicas_on_one_node_pass() {
    need_root!();
    verified("dsr", &[(BACKEND, "- {node: worker2, replicas: 2}")]).assert_passes(&[]);
}

#[test]
fn a_backend_in_its_nodes_own_network_passes() {
    need_root!();
    let host_network = [(BACKEND, "- {node: worker2, hostNetwork: true}")];
    for mode in ["dsr", "snat", "hybrid"] {
        verified(mode, &host_network).assert_passes(&[]);
    }
    // Nobody forwards anything there.
    verified("local", &host_network).assert_passes(&["ttl"]);
}

#[test]
fn a_service_with_one_protocol_passes() {
    need_root!();
    for mode in ["dsr", "snat"] {
        let udp = [("[tcp, udp]", "[udp]"), ("requests: 8, ", "")];
        verified(mode, &udp).assert_passes(&["no-resets"]);
        let tcp = [("[tcp, udp]", "[tcp]"), (", datagrams: 8", "")];
        verified(mode, &tcp).assert_passes(&[]);
    }
}

#[test]
fn clsact_does_what_tcx_does() {
    need_root!();
    for mode in ["dsr", "snat"] {
        let lab = Lab::new(mode, |text| text);
        let file = lab.file().to_str().expect("UTF-8");
        let output = lab.command(&["up", file]).env("LABCTL_ATTACH", "clsact").output().expect("labctl runs");
        assert!(output.status.success(), "{}", text(&output));
        let filters = lab.inside("worker", "tc").args(["filter", "show", "dev", "eth0", "ingress"]).output();
        let filters = text(&filters.expect("tc is installed"));
        assert!(filters.contains("from_netdev"), "not attached by clsact: {filters}");
        lab.verify().assert_passes(&[]);
    }
}
