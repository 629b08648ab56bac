//! The bytes that travel: a stream that is known at every offset from a seed alone.
//!
//! Owns: making and checking them, and an HTTP body of them. Does not own: who sends them. Both ends of an
//! exchange compute the stream, so each byte is checked at its place without either end storing it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// Bytes of one block of the generator.
const BLOCK: u64 = 8;
/// Bytes of one body frame: small, so that a thousand streams at once stay cheap.
const FRAME: u64 = 16 * 1024;

/// The eight bytes of block `index`: splitmix64, whose n-th output needs no earlier one.
fn block(seed: u64, index: u64) -> [u8; BLOCK as usize] {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Calls `each` with consecutive pieces of the stream that cover `len` bytes from `offset`.
fn pieces(seed: u64, offset: u64, len: usize, mut each: impl FnMut(usize, &[u8]) -> bool) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let bytes = block(seed, at / BLOCK);
        let from = (at % BLOCK) as usize;
        let take = (bytes.len() - from).min(len - done);
        if !each(done, &bytes[from..from + take]) {
            return;
        }
        done += take;
    }
}

/// Writes the stream's bytes from `offset` on into `out`.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    pieces(seed, offset, out.len(), |at, piece| {
        out[at..at + piece.len()].copy_from_slice(piece);
        true
    });
}

/// Index into `data` of the first byte that is not the stream's byte at `offset` plus that index.
pub fn first_difference(seed: u64, offset: u64, data: &[u8]) -> Option<usize> {
    let mut found = None;
    pieces(seed, offset, data.len(), |at, piece| {
        let got = &data[at..at + piece.len()];
        if got != piece {
            found = got.iter().zip(piece).position(|(a, b)| a != b).map(|i| at + i);
        }
        found.is_none()
    });
    found
}

/// Checks a stream that arrives in pieces of any size.
#[derive(Clone, Debug)]
pub struct Checker {
    seed: u64,
    received: u64,
    wrong_at: Option<u64>,
}

impl Checker {
    /// Expects the stream of `seed` from its first byte.
    pub fn new(seed: u64) -> Self {
        Self { seed, received: 0, wrong_at: None }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, data: &[u8]) {
        if self.wrong_at.is_none() {
            let at = first_difference(self.seed, self.received, data);
            self.wrong_at = at.map(|i| self.received + i as u64);
        }
        self.received += data.len() as u64;
    }

    /// Bytes taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Offset of the first wrong byte.
    pub fn wrong_at(&self) -> Option<u64> {
        self.wrong_at
    }
}

/// An HTTP body of the first `len` bytes of a stream, made as it is sent.
#[derive(Clone, Debug)]
pub struct PatternBody {
    seed: u64,
    offset: u64,
    len: u64,
}

impl PatternBody {
    /// The first `len` bytes of the stream of `seed`.
    pub fn new(seed: u64, len: u64) -> Self {
        Self { seed, offset: 0, len }
    }
}

impl Body for PatternBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.len - self.offset;
        if left == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = vec![0; left.min(FRAME) as usize];
        fill(self.seed, self.offset, &mut chunk);
        self.offset += chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.len
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len - self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_window_equals_the_same_window_of_the_whole() {
        let mut whole = vec![0; 4096];
        fill(7, 0, &mut whole);
        for (from, len) in [(0, 1), (1, 9), (7, 8), (8, 8), (13, 3000), (4095, 1)] {
            let mut window = vec![0; len];
            fill(7, from as u64, &mut window);
            assert_eq!(window, whole[from..from + len], "window at {from}, {len} bytes");
        }
    }

    #[test]
    fn first_wrong_byte_is_found_across_pieces() {
        let mut data = vec![0; 1000];
        fill(3, 0, &mut data);
        data[777] ^= 1;
        let mut checker = Checker::new(3);
        data.chunks(13).for_each(|c| checker.push(c));
        assert_eq!((checker.received(), checker.wrong_at()), (1000, Some(777)));
    }

    #[test]
    fn seeds_and_shifts_differ() {
        let mut a = vec![0; 64];
        fill(1, 0, &mut a);
        assert_eq!(first_difference(2, 0, &a), Some(0), "another seed is another stream");
        assert!(first_difference(1, 8, &a).is_some(), "a shifted stream is noticed");
    }
}
