//! A lab on a real kind cluster, from nothing to nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use labctl_model::Plan;
use labctl_provider::{Cancel, HostKind, KindProvider, LabState, Step, StepEvent};

use tempfile::TempDir;

use crate::machine::{binary, can_make_clusters, docker, left_in_docker, plan, say, state_dir};

/// Two clusters that come up side by side take longer than one after the other on a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent, backends and client are the static binary; the test program is not.
fn provider(state: &TempDir) -> KindProvider {
    KindProvider::in_dir(state.path()).with_binary(binary())
}

fn up(provider: &KindProvider, plan: &Plan) -> (labctl_provider::Lab, Vec<StepEvent>) {
    let lock = provider.lock(&plan.lab).expect("nobody has the lock");
    let mut events = Vec::new();
    let began = Instant::now();
    let mut on_step = |event: StepEvent| {
        say(&format!("{:6.1} s {event:?}", began.elapsed().as_secs_f64()));
        events.push(event);
    };
    let lab = provider.up(&lock, plan, &Cancel::new(), &mut on_step);
    (lab.unwrap_or_else(|e| panic!("up failed: {e}")), events)
}

#[test]
fn lab_comes_up_is_found_and_leaves_nothing() {
    if !can_make_clusters() {
        return;
    }
    let _alone = alone();
    let state = state_dir();
    let provider = provider(&state);
    let plan = plan("t-kind");
    let (lab, events) = up(&provider, &plan);
    let ended = |step: Step| events.iter().any(|e| matches!(e, StepEvent::Ended(s, _) if *s == step));
    assert!(ended(Step::CreateCluster) && ended(Step::Backends), "steps were not told: {events:?}");

    assert_eq!(lab.asked(), &plan);
    assert_eq!(lab.check(), []);
    let found = provider.find("t-kind").expect("it can be looked into").expect("it is there");
    assert_eq!(found, lab, "what is found is what was made");
    assert!(matches!(&provider.list().expect("the folder is there")[..], [entry]
        if entry.name == "t-kind" && matches!(entry.state, LabState::Ready(_))));
    for (node, host) in plan.nodes.iter().zip(lab.nodes()) {
        assert_eq!(node.name, host.name);
        let address = docker(&["exec", &host.place.to_string(), "hostname", "-i"]);
        let address = address.expect("the node has a host name");
        assert!(address.split(' ').any(|a| host.address().is_some_and(|h| h.to_string() == a)), "{address}");
    }
    assert_eq!(lab.pods().count(), plan.backends().count());
    assert!(lab.hosts().iter().all(|h| h.kind == HostKind::Pod || h.in_pod.is_none()));
    let again = provider.lock("t-kind").expect("nobody has the lock");
    let error = provider.up(&again, &plan, &Cancel::new(), &mut |_| {}).expect_err("it is up already");
    assert_eq!(error.to_string(), "make lab t-kind: it is up; run `labctl down t-kind` first");
    let report = provider.gc().expect("Docker answers");
    drop(again);
    assert!(report.swept.is_empty(), "gc took a healthy lab: {report:?}");

    let lock = provider.lock("t-kind").expect("nobody has the lock");
    let report = provider.down(lock, &mut |_| {}).expect("it goes");
    assert!(report.removed.iter().any(|what| what == "network labctl-t-kind"), "{report:?}");
    assert_eq!(left_in_docker("t-kind"), Vec::<String>::new());
    assert!(!state.path().join("t-kind").exists());
}

/// A cancel in the middle of kubeadm's work.
#[test]
fn cancelled_up_leaves_nothing() {
    if !can_make_clusters() {
        return;
    }
    let _alone = alone();
    let state = state_dir();
    let provider = provider(&state);
    let plan = plan("t-kind-cut");
    let cancel = Cancel::new();
    let lock = provider.lock(&plan.lab).expect("nobody has the lock");
    let mut on_step = |event: StepEvent| {
        if matches!(&event, StepEvent::Did(Step::CreateCluster, what) if what.starts_with("Starting control-plane"))
        {
            cancel.cancel();
        }
    };
    let error = provider.up(&lock, &plan, &cancel, &mut on_step).expect_err("it was cancelled");
    assert_eq!(error.to_string(), "make the lab: interrupted, and everything that was made is removed");
    drop(lock);
    assert_eq!(left_in_docker("t-kind-cut"), Vec::<String>::new());
    assert!(!state.path().join("t-kind-cut").exists());
}

/// One of three nodes cannot take our image: its containerd has lost its tool.
#[test]
fn half_loaded_image_is_told_and_undone() {
    if !can_make_clusters() {
        return;
    }
    let _alone = alone();
    let state = state_dir();
    let provider = provider(&state);
    let plan = plan("t-kind-half");
    let lock = provider.lock(&plan.lab).expect("nobody has the lock");
    let mut on_step = |event: StepEvent| {
        if matches!(&event, StepEvent::Did(Step::CreateCluster, what) if what.starts_with("Starting control-plane"))
        {
            let hide = "mv $(command -v ctr) /ctr.hidden";
            docker(&["exec", "labctl-t-kind-half-worker2", "sh", "-c", hide]).expect("the node has ctr");
        }
    };
    let error = provider.up(&lock, &plan, &Cancel::new(), &mut on_step).expect_err("a node has no ctr");
    let words = error.to_string();
    assert!(words.starts_with("load image labctl/node-role:"), "{words}");
    assert!(words.contains(" on node labctl-t-kind-half-worker2: ") && words.contains("ctr"), "{words}");
    drop(lock);
    assert_eq!(left_in_docker("t-kind-half"), Vec::<String>::new());
    assert!(!state.path().join("t-kind-half").exists());
}

#[test]
fn node_image_that_nobody_has() {
    if !can_make_clusters() {
        return;
    }
    let _alone = alone();
    let state = state_dir();
    let provider = provider(&state);
    let mut plan = plan("t-kind-image");
    plan.image = Some("registry.invalid/labctl/none:1".to_owned());
    let lock = provider.lock(&plan.lab).expect("nobody has the lock");
    let error = provider.up(&lock, &plan, &Cancel::new(), &mut |_| {}).expect_err("there is no such image");
    let words = error.to_string();
    assert!(words.starts_with("get node image registry.invalid/labctl/none:1: "), "{words}");
    assert!(words.contains("--image"), "{words}");
    drop(lock);
    assert_eq!(left_in_docker("t-kind-image"), Vec::<String>::new());
}
