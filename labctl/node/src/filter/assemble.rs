//! From tests to instructions.
//!
//! Owns: jumps, and leaving out what is already known: a load whose value the accumulator still holds, a
//! test whose outcome every path to it has decided. Does not own: what is tested (`lower`).
//!
//! A filter becomes blocks, each a test with two successors. Blocks are made from the filter's end to its
//! start, so every jump goes from a higher number to a lower one: walking the numbers downwards, all paths
//! to a block have been seen before the block itself, and what is known there is what they agree on.

use super::Instruction;
use super::ast::Join;
use super::error::Problem;
use super::lower::{Node, Test, op};

/// `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: usize = 4096;
/// Farthest target of a conditional jump.
const REACH: usize = u8::MAX as usize;
/// The two ends of every filter.
const REJECT: BlockId = 0;
const ACCEPT: BlockId = 1;

type BlockId = usize;
type LoadId = usize;
type TestId = usize;

/// The program of a filter; without a filter it takes everything.
pub(super) fn assemble(tests: Option<&Node>, snaplen: u32) -> Result<Vec<Instruction>, Problem> {
    let mut graph = Graph::default();
    let mut entry = tests.map_or(ACCEPT, |node| graph.node(node, ACCEPT, REJECT));
    let pieces = loop {
        let pieces = graph.thread(entry);
        match pieces.iter().any(|p| p.yes == p.no) {
            true => entry = graph.without_pointless(&pieces, entry),
            false => break pieces,
        }
    };
    let ends = [(ACCEPT, snaplen), (REJECT, 0)];
    Layout::new(entry, pieces, &ends).link()
}

/// A test and where it leads.
#[derive(Clone, Copy, Debug)]
struct Block {
    test: TestId,
    yes: BlockId,
    no: BlockId,
}

#[derive(Debug, Default)]
struct Graph {
    /// Block number `n` is at `n - 2`, behind the two ends.
    blocks: Vec<Block>,
    loads: Vec<Vec<Instruction>>,
    tests: Vec<(LoadId, u16, u32)>,
}

/// What is known at a block.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Load whose value the accumulator still holds.
    loaded: Option<LoadId>,
    /// Offset of the IPv4 header whose length X still holds.
    header_length: Option<u32>,
    /// Tests already decided, ascending.
    decided: Vec<(TestId, bool)>,
}

impl Known {
    /// What holds whichever of two paths was taken.
    fn meet(&mut self, other: &Self) {
        self.loaded = self.loaded.filter(|l| other.loaded == Some(*l));
        self.header_length = self.header_length.filter(|h| other.header_length == Some(*h));
        self.decided.retain(|fact| other.decided.binary_search(fact).is_ok());
    }

    fn decide(&mut self, test: TestId, outcome: bool) {
        if let Err(place) = self.decided.binary_search_by_key(&test, |(t, _)| *t) {
            self.decided.insert(place, (test, outcome));
        }
    }
}

/// A block with what is left of its load.
#[derive(Debug)]
struct Piece {
    block: BlockId,
    load: Vec<Instruction>,
    code: u16,
    k: u32,
    yes: BlockId,
    no: BlockId,
}

/// Index of `item` in `table`, which it joins if it is new.
fn intern<T: PartialEq>(table: &mut Vec<T>, item: T) -> usize {
    table.iter().position(|known| *known == item).unwrap_or_else(|| {
        table.push(item);
        table.len() - 1
    })
}

impl Graph {
    /// The first block of `node`, which goes on to `yes` or `no`.
    fn node(&mut self, node: &Node, yes: BlockId, no: BlockId) -> BlockId {
        match node {
            Node::Not(inside) => self.node(inside, no, yes),
            Node::Chain(first, rest) => {
                let (mut yes, mut no) = (yes, no);
                for (join, part) in rest.iter().rev() {
                    let part = self.node(part, yes, no);
                    match join {
                        Join::And => yes = part,
                        Join::Or => no = part,
                    }
                }
                self.node(first, yes, no)
            }
            Node::And(left, right) => {
                let then = self.node(right, yes, no);
                self.node(left, then, no)
            }
            Node::Or(left, right) => {
                let otherwise = self.node(right, yes, no);
                self.node(left, yes, otherwise)
            }
            Node::Test(test) => self.test(test, yes, no),
        }
    }

    fn test(&mut self, test: &Test, yes: BlockId, no: BlockId) -> BlockId {
        let load = intern(&mut self.loads, test.load.clone());
        let test = intern(&mut self.tests, (load, test.jump, test.k));
        self.blocks.push(Block { test, yes, no });
        self.blocks.len() + 1
    }

    fn block(&self, id: BlockId) -> Option<Block> {
        self.blocks.get(id.checked_sub(2)?).copied()
    }

    /// Leads every jump past the blocks whose outcome is known on its path. Returns the blocks that are still
    /// reached, in program order.
    fn thread(&self, entry: BlockId) -> Vec<Piece> {
        let mut known: Vec<Option<Known>> = vec![None; self.blocks.len() + 2];
        known[entry] = Some(Known::default());
        let mut pieces = Vec::new();
        for id in (2..known.len()).rev() {
            let (Some(mut here), Some(block)) = (known[id].take(), self.block(id)) else { continue };
            let (load, code, k) = self.tests[block.test];
            let instructions = self.remaining_load(load, &mut here);
            let mut lead = |to: BlockId, outcome: bool| {
                let mut there = here.clone();
                there.decide(block.test, outcome);
                let target = self.target(to, &there);
                match &mut known[target] {
                    Some(others) => others.meet(&there),
                    nothing => *nothing = Some(there),
                }
                target
            };
            let (yes, no) = (lead(block.yes, true), lead(block.no, false));
            pieces.push(Piece { block: id, load: instructions, code, k, yes, no });
        }
        pieces
    }

    /// Takes out blocks that lead to one place whatever their test says. Their loads must go: a load beyond
    /// the frame's end or a division by zero would reject the frame. Returns the first block.
    fn without_pointless(&mut self, pieces: &[Piece], entry: BlockId) -> BlockId {
        // Jumps lead downwards, so upwards every target is already resolved.
        let mut leads: Vec<BlockId> = (0..self.blocks.len() + 2).collect();
        for piece in pieces.iter().rev() {
            // The threaded jumps: the facts that they used hold on every path to this block.
            let block = &mut self.blocks[piece.block - 2];
            (block.yes, block.no) = (leads[piece.yes], leads[piece.no]);
            if block.yes == block.no {
                leads[piece.block] = block.yes;
            }
        }
        leads[entry]
    }

    /// The instructions of a load that are still needed, and what is known behind them.
    fn remaining_load(&self, load: LoadId, known: &mut Known) -> Vec<Instruction> {
        if known.loaded == Some(load) {
            return Vec::new();
        }
        known.loaded = Some(load);
        let mut remaining = Vec::new();
        for instruction in &self.loads[load] {
            match instruction.code {
                op::LDX_MSH if known.header_length == Some(instruction.k) => continue,
                op::LDX_MSH => known.header_length = Some(instruction.k),
                op::LDX_MEM | op::TAX => known.header_length = None,
                _ => {}
            }
            remaining.push(*instruction);
        }
        remaining
    }

    /// Where a path ends up that comes to `to` with these facts.
    fn target(&self, mut to: BlockId, known: &Known) -> BlockId {
        while let Some(block) = self.block(to) {
            match self.outcome(known, block.test) {
                Some(true) => to = block.yes,
                Some(false) => to = block.no,
                None => break,
            }
        }
        to
    }

    /// How a test ends, if that is already known.
    fn outcome(&self, known: &Known, test: TestId) -> Option<bool> {
        if let Ok(found) = known.decided.binary_search_by_key(&test, |(t, _)| *t) {
            return Some(known.decided[found].1);
        }
        // A value that equals one number equals no other.
        let (load, jump, k) = self.tests[test];
        let other = |(other, outcome): &(TestId, bool)| {
            let (l, j, value) = self.tests[*other];
            *outcome && l == load && j == op::JEQ && value != k
        };
        (jump == op::JEQ && known.decided.iter().any(other)).then_some(false)
    }
}

/// Blocks in their order, and the distances between them.
#[derive(Debug)]
struct Layout {
    pieces: Vec<Piece>,
    /// Index of each block among the pieces; the ends stand behind all of them.
    places: Vec<Option<usize>>,
    /// What the ends return, in their order.
    returns: Vec<u32>,
    /// Which of a piece's two jumps are too far for a conditional one.
    far: Vec<(bool, bool)>,
}

impl Layout {
    fn new(entry: BlockId, pieces: Vec<Piece>, ends: &[(BlockId, u32)]) -> Self {
        let mut layout = Self {
            places: vec![None; entry.max(ACCEPT) + 1],
            returns: Vec::new(),
            far: vec![(false, false); pieces.len()],
            pieces,
        };
        for (index, piece) in layout.pieces.iter().enumerate() {
            layout.places[piece.block] = Some(index);
        }
        for (end, bytes) in ends {
            if entry == *end || layout.pieces.iter().any(|p| p.yes == *end || p.no == *end) {
                layout.places[*end] = Some(layout.pieces.len() + layout.returns.len());
                layout.returns.push(*bytes);
            }
        }
        layout
    }

    /// Turns block numbers into distances. A conditional jump reaches 255 instructions; one that must go
    /// farther goes to an unconditional jump right behind it, which makes everything longer, so this repeats
    /// until nothing changes.
    fn link(mut self) -> Result<Vec<Instruction>, Problem> {
        loop {
            let starts = self.starts();
            let length = starts.last().copied().unwrap_or_default();
            if length > MAX_INSTRUCTIONS {
                return Err(Problem::TooLong(length));
            }
            let far = self.pieces.iter().enumerate().map(|(index, piece)| {
                let is_far = |to| self.address(&starts, to) - self.branch(&starts, index) - 1 > REACH;
                let (yes, no) = self.far[index];
                (yes || is_far(piece.yes), no || is_far(piece.no))
            });
            let far: Vec<_> = far.collect();
            if far == self.far {
                return Ok(self.emit(&starts));
            }
            self.far = far;
        }
    }

    /// Address of each piece, of each return, and of the end.
    fn starts(&self) -> Vec<usize> {
        let mut next = 0;
        let sizes = self
            .pieces
            .iter()
            .zip(&self.far)
            .map(|(piece, (yes, no))| piece.load.len() + 1 + usize::from(*yes) + usize::from(*no));
        let mut starts = vec![0];
        for size in sizes.chain(self.returns.iter().map(|_| 1)) {
            next += size;
            starts.push(next);
        }
        starts
    }

    /// Address of a piece's conditional jump.
    fn branch(&self, starts: &[usize], index: usize) -> usize {
        starts[index] + self.pieces[index].load.len()
    }

    fn address(&self, starts: &[usize], to: BlockId) -> usize {
        starts[self.places[to].expect("a jump leads only to blocks that are reached")]
    }

    fn emit(&self, starts: &[usize]) -> Vec<Instruction> {
        let jump =
            |from: usize, to: usize| Instruction { code: op::JA, jt: 0, jf: 0, k: (to - from - 1) as u32 };
        let mut out = Vec::with_capacity(starts.last().copied().unwrap_or_default());
        for (index, piece) in self.pieces.iter().enumerate() {
            let at = self.branch(starts, index);
            let (yes, no) = (self.address(starts, piece.yes), self.address(starts, piece.no));
            let (yes_far, no_far) = self.far[index];
            let jt = if yes_far { 0 } else { yes - at - 1 };
            let jf = if no_far { usize::from(yes_far) } else { no - at - 1 };
            out.extend_from_slice(&piece.load);
            out.push(Instruction { code: piece.code, jt: jt as u8, jf: jf as u8, k: piece.k });
            if yes_far {
                out.push(jump(at + 1, yes));
            }
            if no_far {
                out.push(jump(at + 1 + usize::from(yes_far), no));
            }
        }
        let end = |bytes: &u32| Instruction { code: op::RET, jt: 0, jf: 0, k: *bytes };
        out.extend(self.returns.iter().map(end));
        out
    }
}
