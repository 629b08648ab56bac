//! Every program loads in every mode.

use datapath_agent::DatapathMode;

use crate::harness::{Node, POD, WORKER, WORKER2, state};

#[test]
fn every_program_loads_in_every_mode() {
    for mode in [DatapathMode::Dsr, DatapathMode::Snat, DatapathMode::Hybrid, DatapathMode::Local] {
        for node in [WORKER, WORKER2] {
            let node = Node::new(&state(node, mode, &[(POD, WORKER2)])).expect("loads");
            assert_eq!(node.status().abi, datapath_types::ABI_VERSION);
        }
    }
}
