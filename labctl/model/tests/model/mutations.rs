//! Damaged lab files are refused or understood, never a panic, and what is understood is sound.

use std::collections::BTreeSet;

use labctl_model::{Plan, Protocol, builtin_lab, builtin_names, parse_bytes};

const ROUNDS: u64 = 3_000;

/// Marsaglia's xorshift64: the same damage on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Pieces that lab files are made of, and some that they are not.
const PIECES: [&str; 32] = [
    "0",
    "1",
    "65535",
    "65536",
    "-1",
    "1e9",
    "/0",
    "/31",
    "/32",
    "0.0.0.0/0",
    "255.255.255.255",
    "10.0.1.1",
    "local",
    "hybrid",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "\n",
    "\t",
    "&a ",
    "*a",
    "<<: ",
    "~",
    "\"",
    "#",
    "replicas: 999",
    "hostNetwork: true",
    "\u{feff}",
    "é",
];

fn damage(text: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(text.len() + 1);
    let to = (at + dice.below(12)).min(text.len());
    match dice.below(5) {
        0 => drop(text.drain(at..to)),
        1 => {
            let piece = PIECES[dice.below(PIECES.len())].bytes();
            drop(text.splice(at..to, piece));
        }
        2 => {
            let piece = PIECES[dice.below(PIECES.len())].bytes();
            drop(text.splice(at..at, piece));
        }
        3 => {
            let copy = text[at..to].to_vec();
            let into = dice.below(text.len() + 1);
            drop(text.splice(into..into, copy));
        }
        _ => text.iter_mut().skip(at).take(1).for_each(|byte| *byte = dice.below(256) as u8),
    }
}

/// What later stages rely on.
fn assert_sound(plan: &Plan, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    assert!(plan.node(&plan.traffic.via).is_some(), "via is no node: {text}");
    assert!(plan.backends().count() > 0, "no backend: {text}");
    let mut hosts = BTreeSet::from([plan.client.name.as_str()]);
    let mut addresses = BTreeSet::from([plan.client.address]);
    for node in &plan.nodes {
        assert!(hosts.insert(&node.name) && addresses.insert(node.address), "{} twice: {text}", node.name);
        assert!(plan.network.contains(&node.address) && plan.pod_cidr.contains(&node.pod_cidr), "{text}");
        assert!(!plan.network.contains(&node.pod_gateway), "{text}");
        for pod in &node.pods {
            assert!(hosts.insert(&pod.name), "pod {} twice: {text}", pod.name);
            if !pod.host_network {
                assert!(addresses.insert(pod.address) && node.pod_cidr.contains(&pod.address), "{text}");
                assert_ne!(pod.address, node.pod_gateway, "{text}");
            }
        }
    }
    assert!(plan.datapath.snat_port_min <= plan.datapath.snat_port_max, "{text}");
    assert!(plan.traffic.requests == 0 || plan.service.protocols.contains(&Protocol::Tcp), "{text}");
    assert!(plan.traffic.datagrams == 0 || plan.service.protocols.contains(&Protocol::Udp), "{text}");
}

#[test]
fn damaged_files_never_panic() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let texts: Vec<&str> = builtin_names().filter_map(builtin_lab).collect();
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let mut text = texts[dice.below(texts.len())].as_bytes().to_vec();
        for _ in 0..=dice.below(4) {
            damage(&mut text, &mut dice);
        }
        match parse_bytes("lab.yaml", &text) {
            Ok(plan) => {
                accepted += 1;
                assert_sound(&plan, &text);
            }
            Err(error) => assert!(error.to_string().starts_with("use lab file `lab.yaml`: ")),
        }
    }
    // Damage in comments is harmless; without these rounds assert_sound would prove nothing.
    assert!(accepted > ROUNDS / 20, "only {accepted} of {ROUNDS} accepted");
}

/// Values in place of others: most stay valid YAML, so that resolving is reached more often.
#[test]
fn exchanged_values_never_panic() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let texts: Vec<&str> = builtin_names().filter_map(builtin_lab).collect();
    for _ in 0..ROUNDS {
        let text = texts[dice.below(texts.len())];
        let mut words: Vec<&str> = text.split_inclusive([' ', '\n', ',', '}']).collect();
        for _ in 0..=dice.below(3) {
            let (from, to) = (dice.below(words.len()), dice.below(words.len()));
            words[to] = words[from];
        }
        let text = words.concat();
        if let Ok(plan) = parse_bytes("lab.yaml", text.as_bytes()) {
            assert_sound(&plan, text.as_bytes());
        }
    }
}
