//! An existing cluster: labctl's own datapath on it and away again, and somebody else's load balancer judged.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::docker;
use crate::lab::{Lab, Turn};
use crate::need::{self, need_kind};
use crate::shop::{self, Shop};
use crate::verdict::text;

/// A cluster that kind made for its user: nothing of labctl in it.
struct Cluster {
    name: String,
    kubeconfig: PathBuf,
    /// Whether it came without a network: the node image has no CNI of kind's own.
    bare: bool,
}

impl Cluster {
    /// Made by kind alone, as users do: with a network and a kube-proxy, where the node image has them.
    fn create(lab: &Lab) -> Self {
        Self::make(lab, need::kube_proxy().is_some())
    }

    /// Without either.
    fn create_bare(lab: &Lab) -> Self {
        Self::make(lab, true)
    }

    fn make(lab: &Lab, bare: bool) -> Self {
        let name = format!("x{}", lab.name);
        let kubeconfig = lab.folder().join("kubeconfig");
        let config = lab.folder().join("kind.yaml");
        let networking = if bare {
            "networking: {disableDefaultCNI: true, kubeProxyMode: none, podSubnet: 10.0.0.0/16}\n"
        } else {
            ""
        };
        let yaml = format!(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n{networking}\
             nodes: [{{role: control-plane}}, {{role: worker}}, {{role: worker}}]\n"
        );
        fs::write(&config, yaml).expect("write kind's config");
        let mut create = Command::new("kind");
        create.args(["create", "cluster", "--quiet", "--name", &name, "--config"]).arg(&config);
        create.arg("--kubeconfig").arg(&kubeconfig);
        if let Some(image) = need::image() {
            create.args(["--image", &image]);
        }
        let cluster = Self { name, kubeconfig, bare };
        let output = create.output().expect("kind runs");
        assert!(output.status.success(), "{}", text(&output));
        cluster
    }

    fn nodes(&self) -> [String; 3] {
        ["control-plane", "worker", "worker2"].map(|node| format!("{}-{node}", self.name))
    }

    /// Native routing and a CNI configuration written by hand, and the real kube-proxy; nothing to do where the cluster
    /// came with both.
    fn with_network_and_kube_proxy(&self) {
        let Some(kube_proxy) = need::kube_proxy().filter(|_| self.bare) else { return };
        let nodes = self.nodes();
        let cidrs = nodes.each_ref().map(|node| self.pod_cidr(node));
        for (node, cidr) in nodes.iter().zip(&cidrs) {
            let conflist = format!(
                r#"{{"cniVersion":"0.4.0","name":"hand","plugins":[{{"type":"ptp","mtu":1500,"ipam":{{"type":"host-local","ranges":[[{{"subnet":"{cidr}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#
            );
            let write = format!("cat >/etc/cni/net.d/10-hand.conflist <<'END'\n{conflist}\nEND");
            docker::exec(node, &["sh", "-c", &write]);
            for (other, cidr) in nodes.iter().zip(&cidrs).filter(|(other, _)| *other != node) {
                docker::exec(node, &["ip", "route", "replace", cidr, "via", &docker::address(other)]);
            }
        }
        let output = Command::new(kube_proxy).arg(&self.name).output().expect("kube-proxy starts");
        assert!(output.status.success(), "{}", text(&output));
    }

    /// The controller manager hands them out some seconds after a node has joined.
    fn pod_cidr(&self, node: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let cidr = docker::kubectl(&self.name, &["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"]);
            if cidr.contains('/') {
                return cidr;
            }
            assert!(Instant::now() < deadline, "{node} got no pod CIDR");
            std::thread::park_timeout(Duration::from_millis(300));
        }
    }

    /// `labctl up` on this cluster, which must succeed.
    #[track_caller]
    fn bring_up(&self, lab: &Lab, more: &[&str]) {
        let output = self.up(lab, more);
        assert!(output.status.success(), "up failed:\n{}", text(&output));
    }

    fn up(&self, lab: &Lab, more: &[&str]) -> Output {
        let kubeconfig = self.kubeconfig.to_str().expect("UTF-8");
        let context = format!("kind-{}", self.name);
        let mut up = lab.command(&["up", lab.path(), "--provider", "cluster", "--yes"]);
        up.args(["--kubeconfig", kubeconfig, "--context", &context]).args(more);
        up.output().expect("labctl runs")
    }

    /// Everything in the cluster and on its nodes that labctl may have made.
    fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let kinds =
            "namespaces,clusterroles,clusterrolebindings,daemonsets,deployments,services,serviceaccounts";
        let all = docker::kubectl(&self.name, &["get", kinds, "--all-namespaces", "-o", "name"]);
        traces.extend(all.lines().filter(|l| l.contains("labctl")).map(str::to_owned));
        for node in self.nodes() {
            let files = "ls -d /etc/cni/net.d/*labctl* /sys/fs/bpf/labctl /usr/local/bin/labctl 2>/dev/null; \
                         ip -4 route show proto 76; ctr -n k8s.io images ls -q | grep labctl/node-role; true";
            let found = docker::exec(&node, &["sh", "-c", files]);
            traces.extend(found.lines().filter(|l| !l.is_empty()).map(|line| format!("{node}: {line}")));
        }
        traces
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut delete = Command::new("kind");
        delete.args(["delete", "cluster", "--quiet", "--name", &self.name]);
        let _ = delete.arg("--kubeconfig").arg(&self.kubeconfig).output();
    }
}

#[test]
fn kube_proxy_passes_as_snat_and_fails_as_dsr() {
    need_kind!();
    let first = Lab::new("snat", Turn::shared(), |text| text);
    let cluster = Cluster::create(&first);
    cluster.with_network_and_kube_proxy();

    cluster.bring_up(&first, &["--datapath", "external"]);
    let verdict = first.verify();
    assert_eq!((verdict.code(), verdict.word()), (0, "pass"), "{}", verdict.said());
    for check in ["handshake", "client-ip", "return-path", "reply-source"] {
        assert!(verdict.checks("pass").contains(check), "{check} did not judge:\n{}", verdict.said());
    }
    assert!(verdict.evidence_of("client-ip")["source_rewritten"].as_u64() > Some(0), "{}", verdict.said());
    first.take_down();
    assert_eq!(cluster.traces(), Vec::<String>::new());

    let second = Lab::beside("dsr", |text| text);
    cluster.bring_up(&second, &["--datapath", "external"]);
    let verdict = second.verify();
    assert_eq!((verdict.code(), verdict.word()), (1, "fail"), "{}", verdict.said());
    let failed = verdict.checks("fail");
    assert!(failed.contains("client-ip") && failed.contains("return-path"), "{}", verdict.said());
    // The reason names who was seen instead of the client, and where the replies went.
    let worker = docker::address(&format!("{}-worker", cluster.name));
    let said = verdict.json().to_string();
    assert!(said.contains(&worker), "{worker} is not named:\n{}", verdict.said());
    second.take_down();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

#[test]
fn somebody_elses_service_is_judged_where_it_is() {
    need_kind!();
    let lab = Lab::new("snat", Turn::shared(), |text| text);
    let cluster = Cluster::create(&lab);
    cluster.with_network_and_kube_proxy();
    let shop = Shop::open(&lab, &cluster.name, &cluster.nodes()[2]);
    shop.wait();
    let before = shop.objects();

    let refused = |lab: &Lab, more: &[&str], code: i32, expected: &str| {
        let output = cluster.up(lab, &[&["--datapath", "external"], more].concat());
        let said = text(&output);
        assert!(output.status.code() == Some(code) && said.contains(expected), "{said}");
        assert_eq!(cluster.traces(), Vec::<String>::new());
    };
    let unknown = "find Service shop/wbe: namespace shop has web;";
    refused(&lab, &["--service", "shop/wbe"], 2, unknown);
    let inside = "use Service default/kubernetes: it is of type ClusterIP";
    refused(&lab, &["--service", "default/kubernetes"], 2, inside);
    let same_port = |text: String| text.replace("nodePort: 32000", &format!("nodePort: {}", shop::NODE_PORT));
    let taken = format!("open nodePort {}: Service shop/web has it", shop::NODE_PORT);
    refused(&Lab::beside("snat", same_port), &[], 3, &taken);

    cluster.bring_up(&lab, &["--datapath", "external", "--service", "shop/web"]);
    let verdict = lab.verify();
    assert_eq!((verdict.code(), verdict.word()), (0, "pass"), "{}", verdict.said());
    for check in ["handshake", "client-ip", "return-path", "reply-source", "request-path"] {
        assert!(verdict.checks("pass").contains(check), "{check} did not judge:\n{}", verdict.said());
    }
    assert_eq!(lab.status()["service"]["node_port"], shop::NODE_PORT);
    lab.take_down();
    assert_eq!(cluster.traces(), Vec::<String>::new());
    assert_eq!(shop.objects(), before, "what is not labctl's has changed");
}

#[test]
fn the_bundled_datapath_comes_and_goes() {
    need_kind!();
    let lab = Lab::new("dsr", Turn::shared(), |text| text);
    let cluster = Cluster::create_bare(&lab);
    // Its pods wait for a network, which the lab's agent brings.
    let _shop = Shop::open(&lab, &cluster.name, &cluster.nodes()[2]);
    cluster.bring_up(&lab, &["--service", "shop/web"]);
    let verdict = lab.verify();
    // A web server that knows nothing of labctl does not say who it is.
    verdict.assert_passes(&["backend"]);
    assert_eq!(verdict.evidence_of("client-ip")["client_address_kept"].as_u64(), Some(8 + 2));
    lab.take_down();

    cluster.bring_up(&lab, &[]);
    let verdict = lab.verify();
    verdict.assert_passes(&[]);
    assert_eq!(verdict.evidence_of("client-ip")["client_address_kept"].as_u64(), Some(16 + 4));
    lab.take_down();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
