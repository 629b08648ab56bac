//! Every program loads in every mode, and cheaply.

use aya::programs::SchedClassifier;
use datapath_agent::DatapathMode;

use crate::harness::{Node, POD, PROGRAMS, WORKER, WORKER2, state};

/// Instructions that the verifier may walk per program. It takes 4,000 to 31,000 today; a value kept on the
/// stack over a branch can make that ten times as many (datapath/ebpf/src/scratch.rs).
const VERIFIER_BUDGET: u32 = 36_000;

const MODES: [DatapathMode; 4] =
    [DatapathMode::Dsr, DatapathMode::Snat, DatapathMode::Hybrid, DatapathMode::Local];

#[test]
fn every_program_loads_in_every_mode() {
    for mode in MODES {
        for node in [WORKER, WORKER2] {
            let node = Node::new(&state(node, mode, &[(POD, WORKER2)])).expect("loads");
            assert_eq!(node.status().abi, datapath_types::ABI_VERSION);
        }
    }
}

#[test]
fn the_verifier_stays_cheap() {
    for mode in MODES {
        let mut node = Node::of(WORKER, mode);
        for name in PROGRAMS {
            let program: &mut SchedClassifier =
                node.ebpf.program_mut(name).expect(name).try_into().expect("classifier");
            // Since Linux 5.16; a test that cannot count must not pass.
            let walked = program.info().expect("info").verified_instruction_count();
            let walked = walked.expect("this kernel does not say how many instructions the verifier walked");
            assert!(
                walked < VERIFIER_BUDGET,
                "the verifier walks {walked} instructions of {name} in {mode:?}"
            );
        }
    }
}

/// How many instructions the verifier walks, for whoever changes a program:
/// `cargo test --test packet -- --ignored --nocapture verifier`.
#[test]
#[ignore = "prints, does not judge"]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn what_the_verifier_walks() {
    for mode in MODES {
        let mut node = Node::of(WORKER, mode);
        for name in PROGRAMS {
            let program: &mut SchedClassifier =
                node.ebpf.program_mut(name).expect(name).try_into().expect("classifier");
            let info = program.info().expect("info");
            let (walked, took) = (info.verified_instruction_count().unwrap_or(0), node.loading[name]);
            println!("{mode:?} {name}: {walked} instructions, {} us to load", took.as_micros());
        }
    }
}
