//! Which cluster `up --provider cluster` means, and whether the person means it too.
//!
//! Owns: the flags about existing clusters, the default kubeconfig, the question. Does not own: what a lab does in
//! the cluster.

use std::io::{IsTerminal, stdin};
use std::path::PathBuf;

use clap::ValueEnum;
use labctl_model::{Plan, ProviderKind};
use labctl_provider::kubernetes::Access;
use labctl_provider::{ClusterOptions, ClusterProvider};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::Ui;

/// Flags of the provider cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Existing clusters (--provider cluster)")]
pub(crate) struct TargetArgs {
    /// Context of the kubeconfig; without, its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig; without, $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Do not ask whether this is the cluster that is meant.
    #[arg(long)]
    yes: bool,
    /// Whose load balancer serves the Service: labctl's own, or whatever the cluster has.
    #[arg(long, value_enum, value_name = "WHOSE")]
    datapath: Option<Datapath>,
    /// Ask this Service, with the pods that it has, instead of making one; TCP only, by HTTP.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service)]
    service: Option<(String, String)>,
    /// Image with labctl at /labctl that the nodes can pull, where they are no containers of this machine.
    #[arg(long, value_name = "IMAGE")]
    agent_image: Option<String>,
}

/// Whose load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Datapath {
    /// labctl loads its own on every node.
    Bundled,
    /// The cluster has one: nothing is loaded, and it is judged.
    External,
}

impl TargetArgs {
    /// Puts what the flags say into the plan.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a flag that another provider does not know.
    pub(crate) fn apply(&self, plan: &mut Plan) -> Result<(), Failure> {
        if plan.provider != ProviderKind::Cluster {
            return match self.first_given() {
                None => Ok(()),
                Some(flag) => Err(Failure::new(
                    Exit::Usage,
                    format!("{flag} is about an existing cluster, and this lab runs on {}", plan.provider),
                )
                .hint("add --provider cluster, or leave it out")),
            };
        }
        if let Some(datapath) = self.datapath {
            plan.datapath.external = datapath == Datapath::External;
        }
        if let Some((namespace, name)) = &self.service {
            plan.service.foreign = Some(namespace.clone());
            plan.service.name.clone_from(name);
        }
        Ok(())
    }

    fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.context.is_some(), "--context"),
            (self.kubeconfig.is_some(), "--kubeconfig"),
            (self.datapath.is_some(), "--datapath"),
            (self.service.is_some(), "--service"),
            (self.agent_image.is_some(), "--agent-image"),
        ];
        given.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }

    /// The cluster, once the person has agreed to it; `None` for other providers.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a kubeconfig that cannot be used, for a no, and where nobody can be asked.
    pub(crate) fn agreed(&self, plan: &Plan, ui: &Ui) -> Result<Option<ClusterOptions>, Failure> {
        if plan.provider != ProviderKind::Cluster {
            return Ok(None);
        }
        let access = Access { kubeconfig: self.kubeconfig()?, context: self.context.clone() };
        let (context, server) =
            ClusterProvider::target(&access).map_err(|error| Failure::failed(Exit::Usage, &error))?;
        let does = if plan.datapath.external {
            "makes capture pods on every node"
        } else {
            "loads its datapath on every node"
        };
        let plain = format!("context {context}, {server}: labctl {does}, in namespace labctl-{}", plan.lab);
        if self.yes {
            ui.say(&plain);
        } else {
            ask(&plain, ui)?;
        }
        Ok(Some(ClusterOptions { access, agent_image: self.agent_image.clone() }))
    }

    fn kubeconfig(&self) -> Result<PathBuf, Failure> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || Some(set("HOME")?.join(".kube/config"));
        let found = self.kubeconfig.clone().or_else(|| set("KUBECONFIG")).or_else(home);
        found.ok_or_else(|| {
            Failure::new(Exit::Usage, "no kubeconfig is known: neither $KUBECONFIG nor $HOME is set")
        })
    }
}

fn ask(question: &str, ui: &Ui) -> Result<(), Failure> {
    if !stdin().is_terminal() {
        let failure = Failure::new(
            Exit::Usage,
            "an existing cluster is touched only after a yes, and nobody can be asked",
        );
        return Err(failure.hint(format!("{question}\nif that is what you want, add --yes")));
    }
    ui.say(question);
    ui.say("Go on? [y/N]");
    let mut answer = String::new();
    // A stdin that cannot be read says no.
    let _ = stdin().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Usage, "nothing was done: the answer was not yes")),
    }
}

/// `NAMESPACE/NAME`.
fn service(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME, such as default/web".to_owned()),
    }
}
