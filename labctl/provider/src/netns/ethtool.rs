//! Device features by the ethtool ioctl: switching segmentation, receive and checksum offloads off.
//!
//! Owns: the four ioctl layouts that this takes (linux/ethtool.h). Does not own: which interfaces. Works on the
//! calling thread's namespace. The kernel names features by strings and may add some at any time, so the
//! names are asked and not numbered here.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of one name (`ETH_GSTRING_LEN`).
const STRING: usize = 32;

/// Words of one block of 32 features in `ETHTOOL_GFEATURES`: available, requested, active, never changed.
const GET_WORDS: usize = 4;
/// Words of one block in `ETHTOOL_SFEATURES`: valid, requested.
const SET_WORDS: usize = 2;

/// Switches every offload of the interface off that makes a packet on the wire differ from one on a real
/// link, and checks that it is off.
pub(crate) fn offloads_off(interface: &str) -> io::Result<()> {
    let device = Device::open(interface)?;
    let names = device.feature_names()?;
    let blocks = names.len().div_ceil(32);
    let features = device.features(blocks)?;
    let mut wanted = vec![0; blocks];
    for (number, _) in names.iter().enumerate().filter(|(_, name)| is_offload(name)) {
        // What the driver cannot change is left out, or the kernel would refuse the rest.
        wanted[number / 32] |= features[number / 32].available & (1 << (number % 32));
    }
    device.switch_off(&wanted)?;
    let after = device.features(blocks)?;
    let still = |number: &usize| after[number / 32].active & wanted[number / 32] & (1 << (number % 32)) != 0;
    match (0..names.len()).find(still) {
        Some(number) => Err(io::Error::other(format!("{} stays on", names[number]))),
        None => Ok(()),
    }
}

/// Names as `ethtool -k` shows them.
fn is_offload(name: &str) -> bool {
    let sends =
        name.starts_with("tx-") && ["checksum", "segmentation", "gso"].iter().any(|what| name.contains(what));
    sends || name == "rx-checksum" || name.starts_with("rx-gro") || name == "rx-udp-gro-forwarding"
}

struct Block {
    available: u32,
    active: u32,
}

struct Device {
    socket: std::os::fd::OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Device {
    fn open(interface: &str) -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { socket, name })
    }

    fn feature_names(&self) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: cmd, reserved, 64-bit mask, one length a set.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = mask;
        info[2] = u32::from_ne_bytes([a, b, c, d]);
        info[3] = u32::from_ne_bytes([e, f, g, h]);
        self.ask(&mut info)?;
        let count = info[4] as usize;
        // struct ethtool_gstrings: cmd, set, count, names.
        let mut strings = vec![0; 3 + count * STRING / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.ask(&mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(bytes.chunks_exact(STRING).map(until_zero).collect())
    }

    fn features(&self, blocks: usize) -> io::Result<Vec<Block>> {
        let mut words = vec![0; 2 + blocks * GET_WORDS];
        words[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        self.ask(&mut words)?;
        let blocks = words[2..].chunks_exact(GET_WORDS);
        Ok(blocks.map(|b| Block { available: b[0], active: b[2] }).collect())
    }

    fn switch_off(&self, features: &[u32]) -> io::Result<()> {
        let mut words = vec![0; 2 + features.len() * SET_WORDS];
        words[..2].copy_from_slice(&[ETHTOOL_SFEATURES, features.len() as u32]);
        for (block, valid) in words[2..].chunks_exact_mut(SET_WORDS).zip(features) {
            block[0] = *valid;
        }
        self.ask(&mut words)
    }

    /// One ioctl. `words` begins with the command and has room for all that the command writes.
    fn ask(&self, words: &mut [u32]) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: words.as_mut_ptr().cast() },
        };
        // SAFETY: `request` and the words it points to live through the call. How much the kernel writes follows
        // from the counts in the words, and every caller sized its words by the same counts.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        // ETHTOOL_SFEATURES answers with flags above zero where a feature came out otherwise than asked.
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_are_told_from_other_features() {
        for name in [
            "tx-checksum-ip-generic",
            "tx-tcp-segmentation",
            "tx-tcp6-segmentation",
            "tx-udp-segmentation",
            "tx-generic-segmentation",
            "tx-gso-list",
            "rx-gro",
            "rx-gro-list",
            "rx-checksum",
        ] {
            assert!(is_offload(name), "{name}");
        }
        for name in ["tx-scatter-gather", "highdma", "tx-vlan-hw-insert", "loopback", "rx-vlan-filter"] {
            assert!(!is_offload(name), "{name}");
        }
    }
}
