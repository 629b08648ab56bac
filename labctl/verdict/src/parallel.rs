//! Work shared out to the processors where there is enough of it, with results as if one had done it all.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Captured packets from which on it pays.
const MANY: usize = 50_000;

/// Pieces of work for each processor: some take longer than others.
const PIECES: usize = 8;

/// What `work` makes of each piece of `0..count`, one behind the other. `packets` says how much work it is.
pub(crate) fn in_pieces<T: Send>(
    packets: usize,
    count: usize,
    work: impl Fn(Range<usize>) -> Vec<T> + Sync,
) -> Vec<T> {
    let workers = if packets < MANY { 1 } else { thread::available_parallelism().map_or(1, usize::from) };
    if workers == 1 || count < 2 {
        return work(0..count);
    }
    let size = count.div_ceil(workers * PIECES).max(1);
    let next = AtomicUsize::new(0);
    let some = || {
        let mut done = Vec::new();
        loop {
            let start = next.fetch_add(size, Ordering::Relaxed);
            if start >= count {
                return done;
            }
            done.push((start, work(start..count.min(start + size))));
        }
    };
    let mut done: Vec<(usize, Vec<T>)> = thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(some)).collect();
        let mut done = some();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(start, _)| *start);
    done.into_iter().flat_map(|(_, part)| part).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn many_hands_make_what_one_makes() {
        for count in [0, 1, 2, 7, 1_000] {
            for packets in [0, super::MANY] {
                let squares = super::in_pieces(packets, count, |range| range.map(|n| n * n).collect());
                assert_eq!(squares, (0..count).map(|n| n * n).collect::<Vec<_>>());
            }
        }
    }
}
