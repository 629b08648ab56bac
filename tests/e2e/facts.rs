//! Hosts that are not what `up` made of them: what was changed behind labctl's back is said, and no verdict rests on it.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::root::need_root;
use crate::verdict::{Verdict, text};

/// Commands of bpf(2), from linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;

/// A part of `union bpf_attr` that is large enough for these commands.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn with(fields: &[(usize, &[u8])]) -> Self {
        let mut attr = Self([0; 128]);
        for (at, bytes) in fields {
            attr.0[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        attr
    }
}

fn bpf(command: libc::c_long, attr: &Attr) -> io::Result<RawFd> {
    // SAFETY: the attribute outlives the call, its length is passed, and pointers in it are to values of the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_ptr(), attr.0.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads `return value` as a program of this kind and pins it.
fn pin_program(kind: u32, value: i32, at: &Path) {
    // mov r0, value; exit
    let program: [u64; 2] = [0xb7 | u64::from(value as u32) << 32, 0x95];
    let license = c"GPL";
    let [instructions, license] = [program.as_ptr() as u64, license.as_ptr() as u64];
    let attr = Attr::with(&[
        (0, &kind.to_ne_bytes()),
        (4, &2u32.to_ne_bytes()),
        (8, &instructions.to_ne_bytes()),
        (16, &license.to_ne_bytes()),
    ]);
    let fd = owned(bpf(BPF_PROG_LOAD, &attr).expect("two instructions load"));
    let path = c_path(at);
    let attr = Attr::with(&[(0, &(path.as_ptr() as u64).to_ne_bytes()), (8, &fd.as_raw_fd().to_ne_bytes())]);
    bpf(BPF_OBJ_PIN, &attr).expect("it is pinned");
}

/// What `bpftool link detach pinned` does.
fn detach(pin: &Path) {
    let path = c_path(pin);
    let attr = Attr::with(&[(0, &(path.as_ptr() as u64).to_ne_bytes())]);
    let link = owned(bpf(BPF_OBJ_GET, &attr).expect("the link is pinned"));
    bpf(BPF_LINK_DETACH, &Attr::with(&[(0, &link.as_raw_fd().to_ne_bytes())])).expect("it can be detached");
}

fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no NUL")
}

fn pins(lab: &Lab, node: &str) -> PathBuf {
    lab.state().bpf_dir(node)
}

/// A command inside a host, which must succeed.
#[track_caller]
fn run(lab: &Lab, host: &str, command: &str) {
    let mut words = command.split_ascii_whitespace();
    let program = words.next().expect("a program");
    let output = lab.inside(host, program).args(words).output().expect("it runs");
    assert!(output.status.success(), "{host}: {command}: {}", text(&output));
}

fn notes(verdict: &Verdict) -> String {
    verdict.json()["notes"].to_string()
}

#[test]
fn a_detached_program_is_noticed_by_verify_status_and_up() {
    need_root!();
    let lab = Lab::up("dsr");
    detach(&pins(&lab, "control-plane").join("links/from_netdev~eth0"));
    let verdict = lab.verify();
    assert_eq!(verdict.code(), 1, "{}", verdict.said());
    assert!(verdict.checks("fail").contains("handshake"), "{}", verdict.said());
    let expected = "from_netdev is no longer attached to control-plane:eth0";
    assert!(notes(&verdict).contains(expected), "{}", verdict.said());
    let status = text(&lab.labctl(&["status", lab.name()]));
    assert!(status.contains(expected) && status.contains("detached"), "{status}");
    let again = text(&lab.labctl(&["up", lab.file().to_str().expect("UTF-8")]));
    assert!(again.contains(&format!("up but damaged: {expected}; making it anew")), "{again}");
    lab.verify().assert_passes(&[]);
}

#[test]
fn programs_by_clsact_are_listed_and_a_second_up_changes_nothing() {
    need_root!();
    let lab = Lab::new("dsr", |text| text);
    let file = lab.file().to_str().expect("UTF-8");
    let up = || lab.command(&["up", file]).env("LABCTL_ATTACH", "clsact").output().expect("labctl runs");
    let first = up();
    assert!(first.status.success(), "{}", text(&first));
    let status = text(&lab.labctl(&["status", lab.name()]));
    assert!(status.contains("from_netdev") && !status.contains("problem"), "{status}");
    let second = text(&up());
    assert!(second.contains("is up, whole and answers; nothing to do"), "{second}");
    lab.verify().assert_passes(&[]);
}

#[test]
fn a_capture_behind_xdp_proves_nothing() {
    need_root!();
    let lab = Lab::up("dsr");
    let pin = pins(&lab, "worker").join("xdp-pass");
    pin_program(XDP, 2, &pin);
    run(&lab, "worker", &format!("ip link set dev eth0 xdpgeneric pinned {}", pin.display()));
    let verdict = lab.verify();
    assert_eq!(verdict.code(), 6, "{}", verdict.said());
    assert!(verdict.checks("inconclusive").contains("return-path"), "{}", verdict.said());
    assert!(
        notes(&verdict).contains("sees the frames of worker:eth0 before the capture does"),
        "{}",
        verdict.said()
    );
    let folder = verdict.evidence.to_str().expect("UTF-8");
    let again = lab.labctl(&["verify", "--from", folder, "--format", "json"]);
    let kept = std::fs::read_to_string(verdict.evidence.join("results.json")).expect("results");
    assert_eq!(String::from_utf8_lossy(&again.stdout), kept);
}

#[test]
fn somebody_elses_program_is_said() {
    need_root!();
    let lab = Lab::up("dsr");
    let pin = pins(&lab, "worker2").join("cls");
    // TC_ACT_UNSPEC: whatever comes next decides.
    pin_program(SCHED_CLS, -1, &pin);
    run(&lab, "worker2", "tc qdisc add dev eth0 clsact");
    run(&lab, "worker2", &format!("tc filter add dev eth0 egress bpf da pinned {}", pin.display()));
    let verdict = lab.verify();
    assert_eq!(verdict.code(), 6, "{}", verdict.said());
    assert!(notes(&verdict).contains("at egress of worker2:eth0 is not labctl's"), "{}", verdict.said());
}

#[test]
fn an_interface_that_came_after_up_is_captured() {
    need_root!();
    let lab = Lab::up("dsr");
    let worker = lab.namespace("worker");
    run(&lab, "worker2", &format!("ip link add lan1 type veth peer name lan1 netns {worker}"));
    for (host, address) in [("worker2", "192.0.2.2/24"), ("worker", "192.0.2.1/24")] {
        run(&lab, host, &format!("ip addr add {address} dev lan1"));
        run(&lab, host, "ip link set lan1 up");
    }
    // It carries nothing: nobody is wronged, and nothing is proven there.
    let idle = lab.verify();
    assert_eq!(idle.code(), 6, "{}", idle.said());
    assert!(notes(&idle).contains("worker2 has an interface that up did not make: lan1"), "{}", idle.said());
}

#[test]
fn a_cable_that_was_laid_through_another_node_fails() {
    need_root!();
    let lab = Lab::up("dsr");
    let (worker, switch) = (lab.namespace("worker"), lab.namespace("switch"));
    // Everything of worker2 now passes a bridge in worker.
    run(&lab, "switch", &format!("ip link set p-worker2 netns {worker}"));
    run(&lab, "worker", "ip link add through type bridge");
    run(&lab, "worker", &format!("ip link add onward type veth peer name onward netns {switch}"));
    for command in ["p-worker2 master through up", "onward master through up", "through up"] {
        run(&lab, "worker", &format!("ip link set {command}"));
    }
    run(&lab, "switch", "ip link set onward master br0 up");
    let verdict = lab.verify();
    assert_eq!(verdict.code(), 1, "{}", verdict.said());
    assert!(verdict.checks("fail").contains("return-path"), "{}", verdict.said());
    assert!(
        notes(&verdict).contains("worker has an interface that up did not make: onward"),
        "{}",
        verdict.said()
    );
}

#[test]
fn a_neighbour_entry_that_leads_astray_is_seen_in_the_frames() {
    need_root!();
    let lab = Lab::up("dsr");
    let links = lab.inside("worker", "ip").args(["-o", "link", "show", "eth0"]).output().expect("ip runs");
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    let mac = links.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    run(&lab, "worker2", &format!("ip neigh replace 172.18.0.1 lladdr {mac} dev eth0 nud permanent"));
    let verdict = lab.verify();
    assert_eq!(verdict.code(), 1, "{}", verdict.said());
    assert!(verdict.checks("fail").contains("return-path"), "{}", verdict.said());
    assert!(notes(&verdict).contains("worker2 believes 172.18.0.1 of client at"), "{}", verdict.said());
}

#[test]
fn what_a_node_drops_is_named_and_no_count_excuses_it() {
    need_root!();
    let lab = Lab::up("dsr");
    // A queue behind the datapath that is too short for its replies.
    run(&lab, "worker2", "tc qdisc add dev eth0 root tbf rate 20mbit burst 1600 limit 3000");
    let output =
        lab.labctl(&["verify", lab.name(), "--requests", "40", "--datagrams", "0", "--format", "json"]);
    let verdict = Verdict::of(output, lab.folder(), lab.name());
    assert!(verdict.checks("fail").contains("conservation"), "{}", verdict.said());
    let first = verdict.evidence_of("conservation")["first"].to_string();
    assert!(first.contains("worker2 dropped it: QDISC_DROP"), "{first}");
}

#[test]
fn every_refused_request_is_in_the_kernels_record() {
    need_root!();
    let lab = Lab::up("local");
    let verdict = lab.verify();
    verdict.assert_passes(&[]);
    let text = std::fs::read_to_string(verdict.evidence.join("evidence.json")).expect("evidence");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let drops = &record["evidence"]["kernel_drops"];
    assert_eq!((&drops["unwatched"], &drops["untold"]), (&serde_json::Value::Null, &0.into()), "{drops}");
    let packets = drops["packets"].as_array().expect("packets");
    for refused in record["evidence"]["refusals"].as_array().expect("refusals") {
        let is_it = |packet: &&serde_json::Value| {
            packet["src"] == refused["local"]
                && packet["dst"] == refused["remote"]
                && packet["reason"] == "TC_INGRESS"
        };
        assert!(packets.iter().any(|packet| is_it(&packet)), "{refused} is not among {packets:#?}");
    }
}
