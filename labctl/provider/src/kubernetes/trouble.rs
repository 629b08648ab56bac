//! Why pods are not ready, in the cluster's own words: conditions, states of containers, warnings.
//!
//! Owns: choosing what a person needs of all that. Read only when something went wrong.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod};
use kube::api::{Api, ListParams};

use super::connect::Cluster;
use super::pods::is_ready;

/// Restarts after which nobody believes in the next one.
const RESTARTS: i32 = 2;
/// Warnings of a pod that are told.
const WARNINGS: usize = 2;

impl Cluster {
    /// A sentence for each pod that is not ready; says so if there is no pod at all. Never fails: it explains a
    /// failure.
    pub(super) async fn trouble(&self, namespace: &str, labels: &str) -> Vec<String> {
        let pods = match self.raw_pods(namespace, labels).await {
            Ok(pods) => pods,
            Err(error) => return vec![error.to_string()],
        };
        if pods.is_empty() {
            return vec![self.without_pods(namespace).await];
        }
        let mut lines = Vec::new();
        for pod in pods.iter().filter(|pod| !is_ready(pod)) {
            let warnings = self.warnings(namespace, "Pod", pod.metadata.name.as_deref()).await;
            lines.push(with_warnings(explain(pod), &warnings));
        }
        if lines.is_empty() {
            lines.push("every pod is ready, but the cluster's controllers have not counted them".to_owned());
        }
        lines
    }

    /// Nothing was made: whoever should have made it may say why.
    async fn without_pods(&self, namespace: &str) -> String {
        let mut warnings = Vec::new();
        for kind in ["DaemonSet", "ReplicaSet"] {
            warnings.extend(self.warnings(namespace, kind, None).await);
        }
        let said = "no pod was made; are the cluster's controllers running?".to_owned();
        with_warnings(said, &warnings)
    }

    /// The latest warnings about an object, the newest last.
    async fn warnings(&self, namespace: &str, kind: &str, name: Option<&str>) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client(), namespace);
        let mut fields = format!("type=Warning,involvedObject.kind={kind}");
        if let Some(name) = name {
            fields.push_str(&format!(",involvedObject.name={name}"));
        }
        let params = ListParams::default().fields(&fields);
        let Ok(mut events) = self.ask("list the events", || api.list(&params)).await else {
            return Vec::new();
        };
        events.items.sort_by(|a, b| a.last_timestamp.cmp(&b.last_timestamp));
        let mut said: Vec<_> = events.items.into_iter().filter_map(|event| event.message).collect();
        said.dedup();
        said.split_off(said.len().saturating_sub(WARNINGS))
    }
}

fn with_warnings(said: String, warnings: &[String]) -> String {
    // `Error: ImagePullBackOff` and the like repeat the container's state in fewer words.
    let is_bare = |w: &&str| w.strip_prefix("Error: ").is_some_and(|reason| !reason.contains(' '));
    let new = warnings.iter().map(|w| w.trim()).filter(|w| !said.contains(*w) && !is_bare(w));
    let lines: Vec<_> = new.map(|warning| format!("\n    warning: {warning}")).collect();
    said + &lines.concat()
}

/// `pod web-1 on node worker: container web: ErrImageNeverPull: ...`
fn explain(pod: &Pod) -> String {
    let containers: Vec<_> = statuses(pod).filter_map(container).collect();
    let because = if containers.is_empty() { conditions(pod) } else { containers.join("; ") };
    format!("{}: {because}", title(pod))
}

/// A sentence if a container of the pod has ended again and again.
pub(super) fn crash(pod: &Pod) -> Option<String> {
    let crashing = statuses(pod).find(|status| status.restart_count >= RESTARTS && !status.ready)?;
    let ended = ended(crashing)?;
    let text = format!(
        "{}: container {} ended {} times, with {}",
        title(pod),
        crashing.name,
        crashing.restart_count + 1,
        words(ended)
    );
    Some(text)
}

fn title(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
        Some(node) => format!("pod {name} on node {node}"),
        None => format!("pod {name}"),
    }
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
    init.chain(status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten())
}

/// What keeps a container that is not ready; `None` for one that is, or has done its work.
fn container(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if status.ready || state.terminated.as_ref().is_some_and(|t| t.exit_code == 0) {
        return None;
    }
    let mut text = format!("container {}: {}", status.name, now(state));
    if let Some(last) = ended(status) {
        text.push_str(&format!("; it ended with {}", words(last)));
    }
    Some(text)
}

fn now(state: &ContainerState) -> String {
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        return match waiting.message.as_deref() {
            Some(message) => format!("{reason}: {message}"),
            None => reason.to_owned(),
        };
    }
    if state.running.is_some() { "runs, but is not ready" } else { "ended" }.to_owned()
}

/// How the container ended, this time or the last.
fn ended(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = status.state.as_ref().and_then(|s| s.terminated.as_ref());
    now.or_else(|| status.last_state.as_ref().and_then(|s| s.terminated.as_ref()))
}

/// `exit code 5: no ptp plugin in /opt/cni/bin`, by the container's own last words.
fn words(ended: &ContainerStateTerminated) -> String {
    let message = ended.message.as_deref().map(str::trim).filter(|m| !m.is_empty());
    match message.or(ended.reason.as_deref()) {
        Some(message) => format!("exit code {}: {message}", ended.exit_code),
        None => format!("exit code {}", ended.exit_code),
    }
}

/// For a pod whose containers have no state yet.
fn conditions(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let unmet = conditions.filter(|c| c.status != "True").filter_map(|c| c.message.as_deref());
    let said: Vec<_> = unmet.filter(|message| !message.is_empty()).collect();
    if let Some(message) = status.and_then(|s| s.message.as_deref()) {
        return message.to_owned();
    }
    if said.is_empty() { "its node has not begun with it".to_owned() } else { said.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        let pod = json!({
            "metadata": {"name": "agent-x"}, "spec": {"nodeName": "worker", "containers": []}, "status": status
        });
        serde_json::from_value(pod).unwrap()
    }

    fn status(state: Value, restarts: i32) -> Value {
        json!({
            "name": "agent", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state,
            "lastState": {"terminated": {"exitCode": 5, "message": "no ptp plugin in /opt/cni/bin\n"}}
        })
    }

    #[test]
    fn a_container_that_waits_says_why() {
        let waiting = json!({"waiting": {"reason": "ErrImageNeverPull", "message": "image is not present"}});
        let pod = pod(json!({"containerStatuses": [{
            "name": "agent", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": waiting
        }]}));
        assert_eq!(
            explain(&pod),
            "pod agent-x on node worker: container agent: ErrImageNeverPull: image is not present"
        );
        assert_eq!(crash(&pod), None);
    }

    #[test]
    fn a_container_that_ends_again_and_again_gives_its_last_words() {
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let once = pod(json!({"containerStatuses": [status(waiting.clone(), 1)]}));
        assert_eq!(crash(&once), None);
        let again = pod(json!({"containerStatuses": [status(waiting, 2)]}));
        assert_eq!(
            crash(&again).as_deref(),
            Some(
                "pod agent-x on node worker: container agent ended 3 times, with exit code 5: no ptp plugin in /opt/cni/bin"
            )
        );
    }

    #[test]
    fn a_pod_without_containers_says_its_conditions() {
        let pod = pod(json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
        ]}));
        assert_eq!(explain(&pod), "pod agent-x on node worker: 0/3 nodes are available");
    }

    #[test]
    fn warnings_are_not_said_twice() {
        let warnings = ["it is so", "and so", "Error: ErrImagePull"].map(str::to_owned);
        assert_eq!(
            with_warnings("pod a: it is so".into(), &warnings),
            "pod a: it is so\n    warning: and so"
        );
    }
}
