//! The Merkle tree of RFC 6962 section 2.1, kept as its frontier: the roots of the complete subtrees, largest first.
//!
//! Proofs are made from leaf hashes read once, in order, in memory that grows with the tree's height only, and are
//! checked by the algorithms of RFC 9162 sections 2.1.3.2 and 2.1.4.2.

use crypto::digest::sha256;

pub type Hash = [u8; 32];

/// SHA-256(0x00 ‖ leaf).
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    sha256(&[&[0], leaf])
}

/// SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// All that is needed to append to a tree and to know its root: one hash for each bit set in its size.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// A frontier as read from a segment's header; `None` where the number of hashes does not go with the size.
    pub fn from_parts(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (subtrees.len() == size.count_ones() as usize).then_some(Self { size, subtrees })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the complete subtrees, largest first.
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // As many complete subtrees merge as the size has trailing ones.
        for _ in 0..self.size.trailing_ones() {
            let left = self.subtrees.pop().expect("a frontier has a hash for each bit of its size");
            node = node_hash(&left, &node);
        }
        self.subtrees.push(node);
        self.size += 1;
    }

    /// The tree's root; of the empty tree, SHA-256 of nothing.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        match subtrees.next() {
            None => sha256(&[]),
            Some(last) => subtrees.fold(*last, |root, left| node_hash(left, &root)),
        }
    }
}

/// Makes one proof from the leaf hashes of a tree, pushed in order.
///
/// A proof is a list of subtree roots. Their ranges are known beforehand and do not overlap, so one pass fills them.
pub struct ProofBuilder {
    /// First leaf, one past the last, and the subtree so far; in the order of the proof.
    ranges: Vec<(u64, u64, Frontier)>,
    size: u64,
    pushed: u64,
}

impl ProofBuilder {
    /// The proof that leaf `index` is in the tree of `size` leaves (RFC 9162 section 2.1.3.1); `None` unless it is in it.
    pub fn inclusion(index: u64, size: u64) -> Option<Self> {
        let mut ranges = Vec::new();
        let (mut first, mut end) = (0, size);
        if index >= size {
            return None;
        }
        while end - first > 1 {
            let middle = first + split(end - first);
            if index < middle {
                ranges.push((middle, end));
                end = middle;
            } else {
                ranges.push((first, middle));
                first = middle;
            }
        }
        // Found from the root down; a proof goes from the leaf up.
        ranges.reverse();
        Some(Self::over(ranges, size))
    }

    /// The proof that the tree of `size` leaves extends that of its first `earlier` leaves (RFC 9162 section 2.1.4.1);
    /// `None` unless `0 < earlier <= size`. Empty where both are the same.
    pub fn consistency(earlier: u64, size: u64) -> Option<Self> {
        if earlier == 0 || earlier > size {
            return None;
        }
        let mut ranges = Vec::new();
        let (mut first, mut end) = (0, size);
        while end != earlier {
            let middle = first + split(end - first);
            if earlier <= middle {
                ranges.push((middle, end));
                end = middle;
            } else {
                ranges.push((first, middle));
                first = middle;
            }
        }
        // The earlier tree itself is known to whoever checks, a part of it is not.
        if first != 0 {
            ranges.push((first, end));
        }
        ranges.reverse();
        Some(Self::over(ranges, size))
    }

    fn over(ranges: Vec<(u64, u64)>, size: u64) -> Self {
        let ranges = ranges.into_iter().map(|(first, end)| (first, end, Frontier::default())).collect();
        Self { ranges, size, pushed: 0 }
    }

    /// Leaf hashes that are still to be pushed.
    pub fn missing(&self) -> u64 {
        self.size - self.pushed
    }

    /// The next leaf's hash. Leaves beyond the tree's size are passed over.
    pub fn push(&mut self, leaf: Hash) {
        if self.pushed == self.size {
            return;
        }
        let index = self.pushed;
        if let Some((_, _, subtree)) =
            self.ranges.iter_mut().find(|(first, end, _)| (*first..*end).contains(&index))
        {
            subtree.push(leaf);
        }
        self.pushed += 1;
    }

    /// The proof; `None` while leaf hashes are missing.
    pub fn finish(self) -> Option<Vec<Hash>> {
        let complete = self.missing() == 0;
        complete.then(|| self.ranges.iter().map(|(_, _, subtree)| subtree.root()).collect())
    }
}

/// Whether `proof` shows that the leaf is number `index` of the tree of `size` leaves that has `root`
/// (RFC 9162 section 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            if node & 1 == 0 {
                let levels = node.trailing_zeros();
                node = node.checked_shr(levels).unwrap_or(0);
                last = last.checked_shr(levels).unwrap_or(0);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `size` leaves that has `root` extends the one of `earlier` leaves that has
/// `earlier_root` (RFC 9162 section 2.1.4.2). An empty earlier tree proves nothing and is refused.
pub fn verify_consistency(earlier: u64, earlier_root: &Hash, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if earlier == 0 || earlier > size {
        return false;
    }
    if earlier == size {
        return proof.is_empty() && earlier_root == root;
    }
    let known = earlier.is_power_of_two().then_some(earlier_root);
    let mut path = known.into_iter().chain(proof);
    let Some(start) = path.next() else { return false };
    let (mut node, mut last) = (earlier - 1, size - 1);
    let levels = node.trailing_ones();
    node >>= levels;
    last >>= levels;
    let (mut earlier_hash, mut hash) = (*start, *start);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            earlier_hash = node_hash(sibling, &earlier_hash);
            hash = node_hash(sibling, &hash);
            if node & 1 == 0 {
                let levels = node.trailing_zeros();
                node = node.checked_shr(levels).unwrap_or(0);
                last = last.checked_shr(levels).unwrap_or(0);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && earlier_hash == *earlier_root && hash == *root
}

/// Leaves of the left subtree: the largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6962 section 2.1, word for word.
    fn naive_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => sha256(&[]),
            [leaf] => *leaf,
            leaves => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node_hash(&naive_root(left), &naive_root(right))
            }
        }
    }

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|index| leaf_hash(&index.to_le_bytes())).collect()
    }

    fn proof(mut builder: ProofBuilder, leaves: &[Hash]) -> Vec<Hash> {
        leaves.iter().for_each(|leaf| builder.push(*leaf));
        builder.finish().unwrap()
    }

    /// RFC 9162 section 2.1.3.1, word for word.
    fn naive_path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
        if leaves.len() == 1 {
            return Vec::new();
        }
        let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
        let (mut path, sibling) = if index < left.len() {
            (naive_path(index, left), naive_root(right))
        } else {
            (naive_path(index - left.len(), right), naive_root(left))
        };
        path.push(sibling);
        path
    }

    /// RFC 9162 section 2.1.4.1, word for word.
    fn naive_subproof(earlier: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
        if earlier == leaves.len() {
            return if whole { Vec::new() } else { vec![naive_root(leaves)] };
        }
        let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
        let (mut proof, sibling) = if earlier <= left.len() {
            (naive_subproof(earlier, left, whole), naive_root(right))
        } else {
            (naive_subproof(earlier - left.len(), right, false), naive_root(left))
        };
        proof.push(sibling);
        proof
    }

    #[test]
    fn proofs_of_every_small_tree_are_those_of_the_definition_and_verify() {
        for size in 1..=33u64 {
            let leaves = leaves(size);
            let root = naive_root(&leaves);
            for index in 0..size {
                let path = proof(ProofBuilder::inclusion(index, size).unwrap(), &leaves);
                assert_eq!(path, naive_path(index as usize, &leaves), "leaf {index} of {size}");
                assert!(verify_inclusion(&leaves[index as usize], index, size, &root, &path));
                for other in (0..=size).filter(|other| *other != index) {
                    let shown = verify_inclusion(&leaves[index as usize], other, size, &root, &path);
                    assert!(!shown, "leaf {index} of {size} as {other}");
                }
            }
            for earlier in 1..=size {
                let proof = proof(ProofBuilder::consistency(earlier, size).unwrap(), &leaves);
                assert_eq!(proof, naive_subproof(earlier as usize, &leaves, true), "{earlier} of {size}");
                let earlier_root = naive_root(&leaves[..earlier as usize]);
                assert!(verify_consistency(earlier, &earlier_root, size, &root, &proof));
                let other = naive_root(&leaves[..earlier as usize - 1]);
                assert!(!verify_consistency(earlier, &other, size, &root, &proof), "{earlier} of {size}");
            }
        }
        assert!(ProofBuilder::inclusion(3, 3).is_none());
        assert!(ProofBuilder::consistency(0, 3).is_none());
        assert!(ProofBuilder::consistency(4, 3).is_none());
    }

    /// The inputs and roots that Certificate Transparency implementations test against.
    #[test]
    fn roots_match_the_published_vectors() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::default();
        for (input, expected) in inputs.iter().zip(roots) {
            frontier.push(leaf_hash(input));
            let root: String = frontier.root().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(root, expected, "size {}", frontier.size());
        }
    }

    proptest! {
        #[test]
        fn the_frontier_agrees_with_the_definition(count in 0usize..200) {
            let leaves: Vec<Hash> = (0..count).map(|index| leaf_hash(&index.to_le_bytes())).collect();
            let mut frontier = Frontier::default();
            leaves.iter().for_each(|leaf| frontier.push(*leaf));
            prop_assert_eq!(frontier.root(), naive_root(&leaves));
            let again = Frontier::from_parts(frontier.size(), frontier.subtrees().to_vec());
            prop_assert_eq!(again, Some(frontier));
        }

        #[test]
        fn a_changed_proof_does_not_verify(size in 2u64..300, index: u64, change in 0usize..9, bit in 0u8..8) {
            let leaves = leaves(size);
            let root = naive_root(&leaves);
            let index = index % size;
            let mut path = proof(ProofBuilder::inclusion(index, size).unwrap(), &leaves);
            let at = change % path.len();
            path[at][change] ^= 1 << bit;
            prop_assert!(!verify_inclusion(&leaves[index as usize], index, size, &root, &path));
            let earlier = 1 + index % (size - 1);
            let earlier_root = naive_root(&leaves[..earlier as usize]);
            let mut extension = proof(ProofBuilder::consistency(earlier, size).unwrap(), &leaves);
            let at = change % extension.len();
            extension[at][change] ^= 1 << bit;
            prop_assert!(!verify_consistency(earlier, &earlier_root, size, &root, &extension));
        }

        #[test]
        fn arbitrary_proofs_never_panic(
            index: u64,
            size: u64,
            proof in proptest::collection::vec(any::<[u8; 32]>(), 0..70),
        ) {
            let root = [1; 32];
            for size in [size, size % 100, u64::MAX] {
                for index in [index, index % 100, size.wrapping_sub(1)] {
                    prop_assert!(!verify_inclusion(&root, index, size, &root, &proof) || proof.is_empty());
                    let _ = verify_consistency(index, &root, size, &root, &proof);
                    let _ = ProofBuilder::inclusion(index, size);
                    let _ = ProofBuilder::consistency(index, size);
                }
            }
        }
    }
}
