//! ggml's graph allocator, replayed on sizes alone: tensors get their place when they are computed and give it back after
//! their last use, so the buffer's size depends on order and fragmentation. A formula guesses; a replay knows.
//!
//! The rules are ggml's: the best fitting gap, else the end; leaves first and before anything is computed; an operation may
//! take over the place of a source that nobody needs any more, unless that source is a view.

/// ggml's, on every processor.
const ALIGNMENT: u128 = 32;
/// More than any sum of tensors.
const ENDLESS: u128 = u128::MAX / 2;

/// A tensor of a [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor(usize);

#[derive(Debug)]
struct Node {
    bytes: u128,
    sources: Vec<Tensor>,
    /// How many of the sources, from the first, have the very layout of this node.
    alike: usize,
    /// The tensor whose place a view shows.
    root: Option<Tensor>,
    is_leaf: bool,
}

/// Tensors in the order in which they are computed.
#[derive(Debug, Default)]
pub(super) struct Graph(Vec<Node>);

impl Graph {
    fn push(&mut self, node: Node) -> Tensor {
        self.0.push(node);
        Tensor(self.0.len() - 1)
    }

    /// An input, or a constant made for this graph.
    pub fn leaf(&mut self, bytes: u128) -> Tensor {
        self.push(Node { bytes, sources: Vec::new(), alike: 0, root: None, is_leaf: true })
    }

    pub fn node(&mut self, bytes: u128, sources: &[Tensor]) -> Tensor {
        self.push(Node { bytes, sources: sources.to_vec(), alike: 0, root: None, is_leaf: false })
    }

    /// An operation that can be done in the place of one of the `alike`, which are its first sources.
    pub fn in_place(&mut self, alike: &[Tensor], others: &[Tensor]) -> Tensor {
        let bytes = alike.first().map_or(0, |tensor| self.0[tensor.0].bytes);
        let sources = [alike, others].concat();
        self.push(Node { bytes, sources, alike: alike.len(), root: None, is_leaf: false })
    }

    pub fn bytes_of(&self, tensor: Tensor) -> u128 {
        self.0[tensor.0].bytes
    }

    pub fn view(&mut self, of: Tensor) -> Tensor {
        let Node { bytes, root, .. } = self.0[of.0];
        let root = Some(root.unwrap_or(of));
        self.push(Node { bytes, sources: vec![of], alike: 0, root, is_leaf: false })
    }

    /// What reads tensors into something that is not of this graph: the cache, say.
    pub fn sink(&mut self, sources: &[Tensor]) {
        self.push(Node { bytes: 0, sources: sources.to_vec(), alike: 0, root: None, is_leaf: false });
    }

    /// What writes `sources` into `into` and shows it.
    pub fn write(&mut self, sources: &[Tensor], into: Tensor) -> Tensor {
        let sources = [sources, &[into]].concat();
        self.push(Node { bytes: 0, sources, alike: 0, root: Some(into), is_leaf: false })
    }

    /// The size of the buffer that this graph needs.
    pub fn bytes(&self) -> u64 {
        let mut replay = Replay::new(&self.0);
        let (leaves, computed): (Vec<usize>, Vec<usize>) =
            (0..self.0.len()).partition(|at| self.0[*at].is_leaf);
        leaves.into_iter().for_each(|leaf| replay.place(leaf));
        for at in computed {
            replay.place(at);
            replay.let_go(at);
        }
        u64::try_from(replay.buffer.peak).unwrap_or(u64::MAX)
    }
}

/// Where a tensor is, and who still wants it.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    offset: u128,
    is_placed: bool,
    /// Its place was taken over, or given back.
    is_gone: bool,
    readers: usize,
    views: usize,
}

struct Replay<'g> {
    nodes: &'g [Node],
    states: Vec<State>,
    buffer: Buffer,
}

impl<'g> Replay<'g> {
    fn new(nodes: &'g [Node]) -> Self {
        let mut states = vec![State::default(); nodes.len()];
        for node in nodes {
            if let Some(root) = node.root {
                states[root.0].views += 1;
            }
            for source in &node.sources {
                states[source.0].readers += 1;
            }
        }
        Replay { nodes, states, buffer: Buffer::new() }
    }

    fn place(&mut self, at: usize) {
        let node = &self.nodes[at];
        if node.root.is_some() || node.bytes == 0 {
            return;
        }
        let last_used_here = |source: &&Tensor| {
            let state = &self.states[source.0];
            let is_own = self.nodes[source.0].root.is_none() && state.is_placed && !state.is_gone;
            is_own && state.readers == 1 && state.views == 0
        };
        let offset = match node.sources[..node.alike].iter().find(last_used_here) {
            Some(source) => {
                self.states[source.0].is_gone = true;
                self.states[source.0].offset
            }
            None => self.buffer.take(node.bytes),
        };
        self.states[at] = State { offset, is_placed: true, ..self.states[at] };
    }

    /// The node has read its sources.
    fn let_go(&mut self, at: usize) {
        for source in &self.nodes[at].sources {
            self.states[source.0].readers -= 1;
            if self.states[source.0].readers > 0 || self.states[source.0].views > 0 {
                continue;
            }
            match self.nodes[source.0].root {
                None => self.give_back(*source),
                Some(root) => {
                    self.states[root.0].views -= 1;
                    if self.states[root.0].views == 0 && self.states[root.0].readers == 0 {
                        self.give_back(root);
                    }
                }
            }
        }
    }

    fn give_back(&mut self, tensor: Tensor) {
        let state = &mut self.states[tensor.0];
        if state.is_placed && !state.is_gone {
            state.is_gone = true;
            self.buffer.give_back(state.offset, self.nodes[tensor.0].bytes);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    offset: u128,
    bytes: u128,
}

/// The gaps of a buffer, in order; the last has no end.
struct Buffer {
    gaps: Vec<Gap>,
    peak: u128,
}

impl Buffer {
    fn new() -> Self {
        Buffer { gaps: vec![Gap { offset: 0, bytes: ENDLESS }], peak: 0 }
    }

    fn take(&mut self, bytes: u128) -> u128 {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let last = self.gaps.len() - 1;
        // Of two that fit as well, the later one.
        let fitting = self.gaps[..last].iter().enumerate().rev().filter(|(_, gap)| gap.bytes >= bytes);
        let at = fitting.min_by_key(|(_, gap)| gap.bytes).map_or(last, |(at, _)| at);
        let gap = &mut self.gaps[at];
        let offset = gap.offset;
        gap.offset += bytes;
        gap.bytes -= bytes;
        if gap.bytes == 0 {
            self.gaps.remove(at);
        }
        self.peak = self.peak.max(offset + bytes);
        offset
    }

    fn give_back(&mut self, offset: u128, bytes: u128) {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let at = self.gaps.partition_point(|gap| gap.offset < offset);
        self.gaps.insert(at, Gap { offset, bytes });
        for at in [at + 1, at] {
            // Where two gaps touch they are one.
            if at > 0 && at < self.gaps.len() {
                let (before, gap) = (self.gaps[at - 1], self.gaps[at]);
                if before.offset + before.bytes == gap.offset {
                    self.gaps[at - 1].bytes += gap.bytes;
                    self.gaps.remove(at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_joined_and_the_best_fitting_gap_is_taken() {
        let mut buffer = Buffer::new();
        let [a, b, c, d] = [64, 32, 96, 32].map(|bytes| buffer.take(bytes));
        buffer.give_back(a, 64);
        buffer.give_back(c, 96);
        assert_eq!(buffer.take(60), a, "the gap of 64 fits better than that of 96");
        buffer.give_back(b, 32);
        assert_eq!(buffer.take(128), b, "two gaps side by side are one");
        assert_eq!((buffer.take(1), buffer.peak), (d + 32, d + 64));
    }

    #[test]
    fn an_operation_takes_over_what_nobody_else_reads_but_never_a_view() {
        let mut graph = Graph::default();
        let input = graph.leaf(1024);
        let first = graph.node(1024, &[input]);
        let second = graph.in_place(&[first], &[]);
        let view = graph.view(second);
        graph.in_place(&[view], &[]);
        // The input is gone when the last one is placed.
        assert_eq!(graph.bytes(), 2048);
        let mut both = Graph::default();
        let input = both.leaf(1024);
        let first = both.node(1024, &[input]);
        let second = both.in_place(&[first], &[]);
        both.in_place(&[first, second], &[]);
        assert_eq!(both.bytes(), 2048, "the first is still read when the second is placed");
    }
}
