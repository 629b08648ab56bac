//! What users do between `up` and `down`, and what a kill in between leaves: nothing that `gc` does not find.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::docker;
use crate::lab::{Lab, Turn};
use crate::need::{self, need_kind};
use crate::tcpdump::tshark;
use crate::verdict::text;

/// Sysctls that a kubelet sets for the whole machine.
const KUBELETS: [&str; 3] = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"];

fn sysctls() -> Vec<String> {
    KUBELETS.iter().map(|key| fs::read_to_string(format!("/proc/sys/{key}")).expect("a sysctl")).collect()
}

fn containers(lab: &Lab) -> BTreeSet<String> {
    docker::lines(&[
        "ps",
        "--no-trunc",
        "--filter",
        &format!("name={}", lab.cluster()),
        "--format",
        "{{.ID}}",
    ])
}

#[test]
fn a_lab_lives_its_whole_life_and_leaves_nothing() {
    need_kind!();
    let turn = Turn::alone();
    let (machine, kernel) = (docker::snapshot(), sysctls());
    let lab = Lab::new("dsr", turn, |text| text);
    let up = lab.bring_up();
    let said = String::from_utf8_lossy(&up.stderr);
    assert!(said.contains("kind create cluster"), "no time of kind's own in\n{said}");

    up_twice_is_no_work(&lab);
    it_is_listed(&lab);
    nodes_are_ready_and_pods_reach_services(&lab);
    a_node_can_be_watched(&lab);
    the_kubeconfig_is_the_labs_own(&lab);

    lab.take_down();
    assert_eq!(sysctls(), kernel, "kernel settings of the whole machine");
    assert_eq!(docker::snapshot(), machine);
    assert_eq!(lab.labctl(&["down", &lab.name]).status.code(), Some(4), "a lab that is not up");
}

fn up_twice_is_no_work(lab: &Lab) {
    let before = containers(lab);
    assert_eq!(before.len(), 4, "three nodes and the client");
    let again = lab.bring_up();
    assert_eq!(containers(lab), before, "{}", text(&again));
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("already up") || said.contains("is up"), "{said}");
    // The same name with another plan is refused.
    let other = lab
        .command(&["up", "snat", "--name", &lab.name, "--provider", "kind"])
        .args(need::image().iter().flat_map(|image| ["--image", image]))
        .output()
        .expect("labctl runs");
    assert_eq!(other.status.code(), Some(2), "{}", text(&other));
    let netns = lab.labctl(&["up", "dsr", "--name", &lab.name]);
    assert_eq!(netns.status.code(), Some(2), "one name, two providers:\n{}", text(&netns));
}

fn it_is_listed(lab: &Lab) {
    let list: Value = serde_json::from_str(&lab.ok(&["list", "--format", "json"])).expect("JSON");
    let labs = list["labs"].as_array().expect("labs");
    let found = labs.iter().find(|entry| entry["name"] == lab.name.as_str()).expect("it is listed");
    assert_eq!((&found["provider"], &found["state"]), (&"kind".into(), &"up".into()), "{found}");
    assert_eq!((&found["nodes"], &found["backends"]), (&3.into(), &1.into()), "{found}");
    let status = lab.status();
    assert_eq!(status["problems"], serde_json::json!([]));
    for node in ["control-plane", "worker", "worker2"] {
        let nodes = status["nodes"].as_array().expect("nodes");
        let found = nodes.iter().find(|n| n["name"] == node).unwrap_or_else(|| panic!("no {node}"));
        assert_eq!(found["place"], lab.container(node).as_str());
        assert_eq!(found["address"], docker::address(&lab.container(node)).as_str());
        let programs = found["datapath"]["programs"].as_array().expect("programs");
        assert!(!programs.is_empty(), "nothing is attached on {node}");
    }
}

/// What a cluster needs beyond the service under test: the network of its nodes, and the API server for pods.
fn nodes_are_ready_and_pods_reach_services(lab: &Lab) {
    let ready = lab.kubectl(&[
        "get",
        "nodes",
        "-o",
        r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}"#,
    ]);
    assert_eq!(ready, "True True True");
    let status = lab.status();
    let backend = &status["backends"][0];
    let pod = backend["pod"].as_str().expect("a name");
    let address = |name: &str| {
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        let node = nodes.into_iter().find(|n| n["name"] == name).expect("a node");
        node["address"].as_str().expect("an address").to_owned()
    };
    let cluster_ip = lab.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]);
    // From a pod's namespace: the API server by its ClusterIP, other nodes' NodePorts, every node itself.
    let node = backend["node"].as_str().expect("a node");
    let pod_address = backend["address"].as_str().and_then(|a| a.split(':').next()).expect("an address");
    let in_pod = |target: &str, port: u16| {
        let target = format!("{target}:{port}");
        // What answers is no backend of labctl; that it answers is what counts.
        let args = ["node", "--in-pod", pod_address, "fetch", &target, "--json", "--timeout", "5000"];
        let container = lab.container(node);
        let args = [&["exec", &container, "/usr/local/bin/labctl"], &args[..]].concat();
        let output = docker::command(&args).output().expect("docker runs");
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str::<Value>(&line).unwrap_or_else(|e| panic!("{pod}: {e}: {}", text(&output)))
    };
    for other in ["control-plane", "worker", "worker2"] {
        let answer = in_pod(&address(other), 32000);
        assert_eq!(answer["outcome"]["result"].as_str(), Some("answered"), "{answer}");
    }
    // TLS: the API server answers plain HTTP with an error of its own, which no silence is.
    let answer = in_pod(&cluster_ip, 443);
    let said = answer.to_string();
    assert!(
        !said.contains("timed-out") && !said.contains("timed out"),
        "kubernetes.default is silent: {said}"
    );
}

fn a_node_can_be_watched(lab: &Lab) {
    let file = lab.folder().join("worker.pcapng");
    let file = file.to_str().expect("UTF-8");
    let mut capture = lab
        .command(&[
            "capture",
            &lab.name,
            "--node",
            "worker",
            "-f",
            "tcp port 32000",
            "--count",
            "4",
            "-w",
            file,
        ])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("labctl runs");
    // It says when it listens; then the request cannot pass unseen.
    let mut stderr = BufReader::new(capture.stderr.take().expect("a pipe"));
    let said = heard(&mut stderr, &["captur", "listen"]);
    let worker = format!("{}:32000", docker::address(&lab.container("worker")));
    let client = lab.container("client");
    docker::exec(&client, &["/labctl", "node", "fetch", &worker, "--timeout", "5000"]);
    let ended = capture.wait().expect("it is ours");
    assert!(ended.success(), "{ended}: {said}");
    let rows = tshark(file.as_ref(), &["frame.interface_name", "tcp.port"]);
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(rows.iter().all(|row| row.starts_with("worker:") && row.contains("32000")), "{rows:?}");
}

fn the_kubeconfig_is_the_labs_own(lab: &Lab) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = lab.state().join("kubeconfig");
    let mode = fs::metadata(&path).expect("the lab's kubeconfig").permissions().mode();
    assert_eq!(mode & 0o077, 0, "a key that others can read");
    assert!(fs::read_to_string(path).expect("it is ours").contains(&lab.cluster()));
}

/// Reads until one of these words was said; returns all that was.
fn heard(stderr: &mut impl BufRead, words: &[&str]) -> String {
    let mut said = String::new();
    while !words.iter().any(|word| said.contains(word)) {
        assert!(stderr.read_line(&mut said).expect("a pipe") > 0, "it ended without {words:?}: {said}");
    }
    said
}

/// Starts `up` and waits until it has said something.
fn started_until(lab: &Lab, words: &str) -> Child {
    let mut up = lab
        .command_up(need::image().as_deref())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("labctl runs");
    let mut stderr = BufReader::new(up.stderr.take().expect("a pipe"));
    heard(&mut stderr, &[words]);
    // Nobody must be stopped by a full pipe.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    up
}

/// Waits until Docker has a node of the lab.
fn until_a_node_is_there(lab: &Lab) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while containers(lab).is_empty() {
        assert!(std::time::Instant::now() < deadline, "no node came");
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
}

#[test]
fn an_interrupted_up_undoes_itself_and_a_killed_one_is_found_by_gc() {
    need_kind!();
    let turn = Turn::alone();
    let (machine, kernel) = (docker::snapshot(), sysctls());
    let lab = Lab::new("dsr", turn, |text| text);

    let mut up = started_until(&lab, "network");
    until_a_node_is_there(&lab);
    kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGINT).expect("it runs");
    assert_eq!(up.wait().expect("it is ours").code(), Some(130));
    lab.expect_nothing("Ctrl-C");
    assert_eq!(docker::snapshot(), machine, "after Ctrl-C");

    let mut up = started_until(&lab, "network");
    until_a_node_is_there(&lab);
    kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGKILL).expect("it runs");
    up.wait().expect("it is ours");
    let gc = lab.labctl(&["gc"]);
    assert!(gc.status.success(), "{}", text(&gc));
    lab.expect_nothing("gc");
    assert_eq!(docker::snapshot(), machine, "after gc");
    assert_eq!(sysctls(), kernel, "kernel settings of the whole machine");
}
