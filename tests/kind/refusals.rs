//! Machines, images and clusters that cannot do it: a message that says what to do, the documented exit code, and
//! nothing left behind.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::docker;
use crate::lab::{Lab, Turn};
use crate::need::{self, need_kind};
use crate::verdict::text;

/// Runs `up`, which must fail with this exit code and these words, and leave nothing.
#[track_caller]
fn refused(lab: &Lab, mut up: Command, code: i32, words: &[&str]) -> Output {
    let output = up.output().expect("labctl runs");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    for word in words {
        assert!(said.contains(word), "nothing of {word:?} in\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    lab.expect_nothing("a refused up");
    output
}

fn lab() -> Lab {
    Lab::new("dsr", Turn::shared(), |text| text)
}

/// A folder with a program of this name that is this script.
fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it a program");
}

#[test]
fn without_docker_the_message_says_so() {
    need_kind!();
    let lab = lab();
    let mut up = lab.command_up(need::image().as_deref());
    up.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    refused(&lab, up, 3, &["Docker", "/nonexistent/docker.sock"]);
    // Namespace labs do not care.
    let list = lab.command(&["list"]).env("DOCKER_HOST", "unix:///nonexistent/docker.sock").output();
    let list = list.expect("labctl runs");
    assert!(list.status.success(), "{}", text(&list));
}

#[test]
fn without_kind_or_with_an_old_one_the_message_says_so() {
    need_kind!();
    let lab = lab();
    let empty = lab.folder().join("empty");
    fs::create_dir(&empty).expect("a folder");
    let mut up = lab.command_up(need::image().as_deref());
    up.env("PATH", &empty);
    refused(&lab, up, 3, &["kind", "https://kind.sigs.k8s.io"]);

    let old = lab.folder().join("old");
    fs::create_dir(&old).expect("a folder");
    program(&old, "kind", "echo 'kind v0.8.1 go1.14.2 linux/amd64'");
    let mut up = lab.command_up(need::image().as_deref());
    up.env("PATH", format!("{}:/usr/bin:/bin", old.display()));
    refused(&lab, up, 3, &["0.8.1", "0.20"]);
}

#[test]
fn an_image_that_cannot_be_had_is_named() {
    need_kind!();
    let lab = lab();
    let output = lab.command_up(Some("localhost:1/labctl/no-such-node:v1")).output().expect("labctl runs");
    assert!(matches!(output.status.code(), Some(3 | 5)), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-node"), "{}", text(&output));
    lab.expect_nothing("an image that cannot be had");
}

#[test]
fn what_somebody_else_made_is_never_touched() {
    need_kind!();
    let lab = lab();
    let network = lab.cluster();
    docker::docker(&["network", "create", &network]);
    let output = lab.command_up(need::image().as_deref()).output().expect("labctl runs");
    let (code, said) = (output.status.code(), text(&output));
    let down = lab.labctl(&["down", &lab.name]);
    let gc = lab.labctl(&["gc"]);
    let still = docker::succeeds(&["network", "inspect", &network]);
    docker::command(&["network", "rm", &network]).output().expect("docker runs");
    assert!(matches!(code, Some(2 | 3)) && said.contains(&network), "{said}");
    assert_eq!(down.status.code(), Some(4), "{}", text(&down));
    assert!(gc.status.success(), "{}", text(&gc));
    assert!(still, "somebody else's network is gone");
}

#[test]
fn faults_of_namespace_labs_are_refused_with_their_place() {
    need_kind!();
    let lab = Lab::new("dsr", Turn::shared(), |text| {
        format!("{text}\nfaults:\n  - {{name: drop-options, on: all}}\n")
    });
    refused(&lab, lab.command_up(need::image().as_deref()), 2, &["fault", "netns"]);
}

/// A node image like the one of these tests with something changed.
struct Image(String);

impl Image {
    fn build(name: &str, folder: &Path, dockerfile: &str) -> Option<Self> {
        let base = need::image().or_else(local_image)?;
        let tag = format!("labctl-test/{name}:{}", std::process::id());
        fs::write(folder.join("Dockerfile"), format!("FROM {base}\n{dockerfile}\n")).expect("a Dockerfile");
        // The old builder takes a local base without asking a registry.
        let mut build = Command::new("docker");
        build.args(["build", "--quiet", "--tag", &tag, "."]).current_dir(folder).env("DOCKER_BUILDKIT", "0");
        let output = build.output().expect("docker runs");
        assert!(output.status.success(), "{}", text(&output));
        Some(Self(tag))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = docker::command(&["rmi", "--force", &self.0]).output();
    }
}

/// kind's own node image, once kind has pulled one.
fn local_image() -> Option<String> {
    let images = docker::command(&["images", "kindest/node", "--quiet"]).output().ok()?;
    String::from_utf8_lossy(&images.stdout).lines().next().map(str::to_owned)
}

/// Says that a test needs a node image that is here; kind's default one is not, until kind has pulled it.
fn no_image(test: &str) {
    need::skip(test, "there is no local node image to change; LABCTL_KIND_IMAGE names one");
}

#[test]
fn a_node_image_without_the_cni_plugins_is_refused() {
    need_kind!();
    let lab = lab();
    let Some(image) =
        Image::build("no-cni", lab.folder(), "RUN rm -f /opt/cni/bin/ptp /opt/cni/bin/host-local")
    else {
        return no_image("a_node_image_without_the_cni_plugins_is_refused");
    };
    refused(&lab, lab.command_up(Some(&image.0)), 5, &["CNI", "ptp"]);
}

#[test]
fn an_image_load_that_fails_half_way_is_undone() {
    need_kind!();
    let lab = lab();
    program(
        lab.folder(),
        "ctr",
        // A node whose disk is full: takes a part of labctl's image, and fails. What the node image imports itself must
        // not fail first.
        r#"case "$*" in *"--no-unpack -"*) head -c 100000 >/dev/null; echo "ctr: no space left on device" >&2; exit 1;; esac
exec /usr/bin/ctr.real "$@""#,
    );
    let change =
        "RUN mv \"$(command -v ctr)\" /usr/bin/ctr.real && rm -f /usr/local/bin/ctr\nCOPY ctr /usr/bin/ctr";
    let Some(image) = Image::build("no-space", lab.folder(), change) else {
        return no_image("an_image_load_that_fails_half_way_is_undone");
    };
    refused(&lab, lab.command_up(Some(&image.0)), 5, &["no space left on device"]);
}

#[test]
fn an_api_server_that_never_answers_is_given_up() {
    need_kind!();
    let lab = lab();
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("it is bound");
    let kubeconfig = lab.folder().join("kubeconfig");
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: silent\n\
         clusters: [{{name: silent, cluster: {{server: 'http://{address}'}}}}]\n\
         users: [{{name: silent, user: {{}}}}]\n\
         contexts: [{{name: silent, context: {{cluster: silent, user: silent}}}}]\n"
    );
    fs::File::create(&kubeconfig)
        .and_then(|mut file| file.write_all(config.as_bytes()))
        .expect("a kubeconfig");
    let kubeconfig = kubeconfig.to_str().expect("UTF-8");
    let mut up = lab.command(&["up", lab.path(), "--provider", "cluster", "--yes"]);
    up.args(["--kubeconfig", kubeconfig, "--context", "silent"]);
    up.stdout(Stdio::null());
    let output = up.output().expect("labctl runs");
    assert!(matches!(output.status.code(), Some(3 | 5)), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&address.to_string()) || said.contains("API server"), "{said}");
    lab.expect_nothing("a silent API server");
}
