//! Requests go on while the cluster around them changes: agents killed, a kubelet restarted, the API server gone for
//! a while, backends deleted and added.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use labctl_wire::{Exchange, Outcome};

use crate::docker;
use crate::lab::{Lab, Turn};
use crate::need::need_kind;

/// Requests over TCP that begin in each second.
const RATE: u32 = 200;
/// Datagrams beside them. Nothing sends a lost one again, so they see what TCP hides by its second SYN.
const DATAGRAM_RATE: u32 = 100;
/// How long a request may take before it counts as failed. Two cores carry three nodes here.
const LIMIT_MS: u32 = 15_000;
/// How long anything in the cluster may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Requests that go on in the background, each on a connection or from a port of its own.
struct Load(Child);

impl Load {
    /// `protocol` is what fetch calls it: nothing for TCP.
    fn start(lab: &Lab, seconds: u32, rate: u32, protocol: &[&str]) -> Self {
        let worker = format!("{}:32000", docker::address(&lab.container("worker")));
        let (count, rate, limit) = ((seconds * rate).to_string(), rate.to_string(), LIMIT_MS.to_string());
        let client = lab.container("client");
        let mut args = vec!["exec", &client, "/labctl", "node", "fetch", &worker, "--json"];
        args.extend(["-n", &count, "--rate", &rate, "--timeout", &limit]);
        args.extend(protocol);
        let mut command = docker::command(&args);
        Self(command.stdout(Stdio::piped()).spawn().expect("docker runs"))
    }

    /// Whether requests are still being sent.
    fn goes_on(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_none()
    }

    /// Waits for all exchanges.
    fn finish(mut self) -> Vec<Exchange> {
        let mut out = String::new();
        self.0.stdout.take().expect("a pipe").read_to_string(&mut out).expect("UTF-8");
        self.0.wait().expect("it is ours");
        out.lines().map(|line| serde_json::from_str(line).expect("one exchange a line")).collect()
    }
}

/// Waits until `kubectl` says so.
#[track_caller]
fn wait_until(lab: &Lab, what: &str, args: &[&str], so: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = lab.kubectl(args);
        if so(&said) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: still {said:?}");
        std::thread::park_timeout(Duration::from_millis(300));
    }
}

fn agents_ready(lab: &Lab) {
    let count = ["-n", "labctl", "get", "daemonset", "labctl-agent", "-o", "jsonpath={.status.numberReady}"];
    wait_until(lab, "agents ready", &count, |said| said == "3");
}

/// Kills every agent, as an out-of-memory killer would.
fn kill_agents(lab: &Lab) {
    let pods = lab.kubectl(&["-n", "labctl", "get", "pods", "-o", "name"]);
    let agents: Vec<&str> = pods.lines().filter(|pod| pod.contains("labctl-agent")).collect();
    assert_eq!(agents.len(), 3, "{pods}");
    let args =
        [&["-n", "labctl", "delete", "--grace-period=0", "--force", "--wait=true"], &agents[..]].concat();
    lab.kubectl(&args);
    agents_ready(lab);
}

fn restart_kubelet(lab: &Lab) {
    docker::exec(&lab.container("worker2"), &["systemctl", "restart", "kubelet"]);
    let ready = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}"#;
    wait_until(lab, "nodes ready", &["get", "nodes", "-o", ready], |said| said == "True True True");
}

/// Ends the API server's process; its kubelet starts it again.
fn restart_api_server(lab: &Lab) {
    let node = lab.container("control-plane");
    let process =
        || docker::command(&["exec", &node, "pgrep", "-x", "kube-apiserver"]).output().expect("docker runs");
    let before = process().stdout;
    docker::exec(&node, &["pkill", "-x", "kube-apiserver"]);
    let deadline = Instant::now() + PATIENCE;
    let get = ["kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "--raw", "/readyz"];
    let is_another = || {
        let now = process().stdout;
        !now.is_empty() && now != before
    };
    while !(is_another() && docker::succeeds(&[&["exec", &node], &get[..]].concat())) {
        assert!(Instant::now() < deadline, "the API server did not come back");
        std::thread::park_timeout(Duration::from_millis(300));
    }
}

fn backends(lab: &Lab) -> Vec<String> {
    let pods =
        lab.kubectl(&["-n", "labctl", "get", "pods", "-o", "name", "--field-selector=status.phase=Running"]);
    pods.lines().filter(|pod| pod.contains("web")).map(str::to_owned).collect()
}

fn scale_backends(lab: &Lab, replicas: usize) {
    let deployments = lab.kubectl(&["-n", "labctl", "get", "deployments", "-o", "name"]);
    let web = deployments.lines().find(|name| name.contains("web")).expect("a deployment");
    lab.kubectl(&["-n", "labctl", "scale", web, &format!("--replicas={replicas}")]);
    let ready = ["-n", "labctl", "get", web, "-o", "jsonpath={.status.readyReplicas} {.status.replicas}"];
    wait_until(lab, "backends ready", &ready, |said| said == format!("{replicas} {replicas}"));
}

/// Deletes one backend in the regular way: it goes on answering for a while.
fn delete_a_backend(lab: &Lab) {
    let pod = backends(lab).remove(0);
    lab.kubectl(&["-n", "labctl", "delete", "--wait=false", &pod]);
    let name = pod.trim_start_matches("pod/").to_owned();
    let deployments = lab.kubectl(&["-n", "labctl", "get", "deployments", "-o", "name"]);
    let web = deployments.lines().find(|name| name.contains("web")).expect("a deployment").to_owned();
    let ready = ["-n", "labctl", "get", &web, "-o", "jsonpath={.status.readyReplicas}"];
    wait_until(lab, "its successor", &ready, |said| said == "2");
    wait_until(lab, "its end", &["-n", "labctl", "get", "pods", "-o", "name"], |said| !said.contains(&name));
}

fn assert_all_answered(exchanges: &[Exchange], expected: u32, done: &str) {
    assert_eq!(exchanges.len(), expected as usize, "not every request came to an end");
    let failed: Vec<_> = exchanges.iter().filter(|e| e.outcome != Outcome::Answered).collect();
    assert!(
        failed.is_empty(),
        "{} of {expected} requests failed; the first: {:?}, the last: {:?}; done: {done}",
        failed.len(),
        failed[0],
        failed[failed.len() - 1]
    );
}

#[test]
fn three_hundred_requests_a_second_notice_nothing() {
    need_kind!();
    // Alone: this measures losses, not how two cores carry six nodes.
    let lab = Lab::new("dsr", Turn::alone(), |text| {
        text.replace("- {node: worker2, address: 10.0.1.108}", "- {node: worker2, replicas: 2}")
    });
    lab.bring_up();
    const SECONDS: u32 = 100;
    let mut loads =
        [Load::start(&lab, SECONDS, RATE, &[]), Load::start(&lab, SECONDS, DATAGRAM_RATE, &["--udp"])];
    let began = Instant::now();
    let mut done = Vec::new();
    let mut step = |what: &str, run: &dyn Fn(&Lab)| {
        run(&lab);
        assert!(loads.iter_mut().all(Load::goes_on), "the requests were over before {what}; done: {done:?}");
        done.push(format!("{what} at {:.0} s", began.elapsed().as_secs_f64()));
    };
    step("agents killed", &kill_agents);
    step("kubelet restarted", &restart_kubelet);
    step("backends added", &|lab| scale_backends(lab, 3));
    step("backends taken away", &|lab| scale_backends(lab, 2));
    step("a backend deleted", &delete_a_backend);
    step("API server restarted", &restart_api_server);
    let [requests, datagrams] = loads.map(Load::finish);
    assert_all_answered(&requests, SECONDS * RATE, &done.join(", "));
    assert_all_answered(&datagrams, SECONDS * DATAGRAM_RATE, &done.join(", "));
    // The deleted backend's successor is known: the agents have heard of it after the API server came back.
    let now: std::collections::BTreeSet<_> = backends(&lab).into_iter().collect();
    let verdict = lab.verify();
    verdict.assert_passes(&[]);
    assert_eq!(now.len(), 2);
    assert_eq!(lab.status()["backends"].as_array().map(Vec::len), Some(2));
    lab.take_down();
}
