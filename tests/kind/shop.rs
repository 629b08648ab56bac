//! Somebody else's web shop on a cluster: its image, its Deployment and its Service of type NodePort.
//!
//! Owns: making them, and the image's end. Does not own: the cluster, or what labctl says about the shop.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::docker;
use crate::lab::Lab;
use crate::verdict::text;

/// Port of the Service on every node.
pub(crate) const NODE_PORT: u16 = 31234;
/// Where the program lies in the image.
const PROGRAM: &str = "server";

/// The image, until the value goes.
pub(crate) struct Shop {
    image: String,
    cluster: String,
}

impl Shop {
    /// Opens it on a cluster of kind's, with both pods on one node. They come up as soon as the node has a network.
    pub(crate) fn open(lab: &Lab, cluster: &str, node: &str) -> Self {
        let shop = Self { image: format!("shop.test/web:{}", lab.name), cluster: cluster.to_owned() };
        compile(lab.folder());
        let tar = lab.folder().join("shop.tar");
        run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(lab.folder()).arg(PROGRAM));
        let tar = tar.to_str().expect("UTF-8");
        docker::docker(&["import", tar, &shop.image]);
        run(Command::new("kind").args(["load", "docker-image", "--name", cluster, &shop.image]));
        apply(cluster, &shop.manifests(node));
        shop
    }

    /// Waits until its pods serve.
    pub(crate) fn wait(&self) {
        let ready = ["-n", "shop", "rollout", "status", "deployment/web", "--timeout=60s"];
        docker::kubectl(&self.cluster, &ready);
    }

    /// Its objects, each with what tells whether it was made again or changed.
    pub(crate) fn objects(&self) -> String {
        let columns = "custom-columns=KIND:.kind,UID:.metadata.uid,SPEC:.spec";
        docker::kubectl(&self.cluster, &["-n", "shop", "get", "services,deployments,pods", "-o", columns])
    }

    fn manifests(&self, node: &str) -> String {
        let image = &self.image;
        format!(
            "\
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: shop}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      nodeName: {node}
      automountServiceAccountToken: false
      containers:
        - name: web
          image: {image}
          command: [/{PROGRAM}]
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http, nodePort: {NODE_PORT}, protocol: TCP}}]
"
        )
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = docker::command(&["rmi", "--force", &self.image]).output();
    }
}

/// By the compiler beside the cargo that runs the tests.
fn compile(folder: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kind/shop/server.rs");
    let rustc = PathBuf::from(env!("CARGO")).with_file_name("rustc");
    let mut compile = Command::new(rustc);
    compile.args(["--edition=2024", "-Copt-level=s", "-Ctarget-feature=+crt-static", "-o"]);
    run(compile.arg(folder.join(PROGRAM)).arg(source));
}

fn apply(cluster: &str, manifests: &str) {
    let node = format!("{cluster}-control-plane");
    let apply =
        ["exec", "-i", &node, "kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "apply", "-f", "-"];
    let mut kubectl = docker::command(&apply);
    let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("docker runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, manifests.as_bytes()).expect("kubectl reads");
    drop(stdin);
    assert!(child.wait().expect("it is ours").success(), "the shop cannot be applied");
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", text(&output));
}
