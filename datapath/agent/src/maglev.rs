//! Maglev lookup tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4): every node computes the same table from the same set of backends, in any
//! order, and a backend that comes or goes moves little more than its own share of the flows.

use datapath_types::{MAGLEV_SLOTS, mix};

/// The table for a set of backend ids: one id per slot, all zero without backends.
pub fn maglev_table(backends: &[u32]) -> Vec<u32> {
    let size = MAGLEV_SLOTS as u64;
    let mut table = vec![0; MAGLEV_SLOTS as usize];
    let mut ids: Vec<u32> = backends.to_vec();
    // The same set in another order must give the same table.
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return table;
    }
    let mut walks: Vec<Walk> = ids.iter().map(|id| Walk::new(*id, size)).collect();
    let mut filled = 0;
    'fill: loop {
        for (id, walk) in ids.iter().zip(&mut walks) {
            let slot = walk.find(|slot| table[*slot] == 0).expect("a full table ends the loop");
            table[slot] = *id;
            filled += 1;
            if filled == table.len() {
                break 'fill;
            }
        }
    }
    table
}

/// One backend's permutation of the slots. The size is prime, so every skip visits all of them.
struct Walk {
    next: u64,
    skip: u64,
    size: u64,
}

impl Walk {
    fn new(id: u32, size: u64) -> Self {
        let offset = mix(id as u64) % size;
        let skip = mix(id as u64 ^ 0x9e37_79b9_7f4a_7c15) % (size - 1) + 1;
        Self { next: offset, skip, size }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let slot = self.next;
        self.next = (self.next + self.skip) % self.size;
        Some(slot as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_evenly() {
        let ids: Vec<u32> = (1..=7).collect();
        let table = maglev_table(&ids);
        for id in ids {
            let share = table.iter().filter(|slot| **slot == id).count();
            // The paper's bound: shares differ by at most one slot at the end of a round.
            assert!((145..=146).contains(&share), "backend {id} has {share} of {MAGLEV_SLOTS} slots");
        }
    }

    #[test]
    fn order_does_not_matter() {
        assert_eq!(maglev_table(&[3, 1, 2]), maglev_table(&[1, 2, 3, 3]));
    }

    #[test]
    fn no_backend_no_slot() {
        assert!(maglev_table(&[]).iter().all(|slot| *slot == 0));
    }

    #[test]
    fn losing_one_backend_moves_little_else() {
        let before = maglev_table(&(1..=10).collect::<Vec<_>>());
        let after = maglev_table(&(1..=9).collect::<Vec<_>>());
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 10 && b != a).count();
        // Beyond the tenth that had to move; the paper shows a few percent for tables this small.
        assert!(moved * 100 < before.len() * 6, "{moved} of {} slots moved needlessly", before.len());
    }
}
