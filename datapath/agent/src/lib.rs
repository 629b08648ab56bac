//! The node agent's library: from desired state to attached programs and filled maps.
//!
//! Owns: the embedded eBPF object, its loading and attaching, the pins, the maps' contents, and reading
//! them back. Does not own: where desired state comes from (a plan, or a Kubernetes API), and processes.
//!
//! Everything is pinned below one folder of a bpffs, so nothing here needs to keep running: the datapath
//! lives on its pins, and [`apply`] on existing pins replaces programs atomically and updates maps in
//! place. An agent that stays keeps a [`Datapath`], whose updates touch only what differs. Both belong to a
//! thread that is in the node's network namespace.

mod apply;
mod attach;
mod drops;
mod kernel_types;
mod maglev;
mod maps;
mod object;
mod remove;
mod state;
mod status;
mod sync;

pub use apply::{Applied, ApplyError, Datapath, Links, apply, interface_link, open};
pub use attach::{AttachError, AttachKind};
pub use drops::{DropWatch, DropWatchError, SeenDrop};
pub use maglev::maglev_table;
pub use object::{OBJECT, supports_mutations};
pub use remove::{RemoveError, remove};
pub use state::{
    AttachMode, BackendState, DatapathMode, DatapathOptions, LocalPod, MapRoom, NodeState, Proto,
    ServiceState,
};
pub use status::{
    DatapathStatus, FlowRecord, MapFill, ProgramStatus, StatusError, TcxProgram, flows, status, tcx_programs,
};
pub use sync::{SyncError, backend_id, settings};
