"""The tree finds the blocks behind exactly the tokens asked for, under the same salt and nowhere else."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.run.engine.cache.pool import Node, PrefixTree, agreeing, key_of


def grown(tree: PrefixTree, tokens: list[int], first: int = 0, salt: str = "") -> list[Node]:
    """Put a chain of blocks into a tree, the last one perhaps a part; return its new nodes."""
    above = tree.root(salt)
    made = []
    for i, at in enumerate(range(0, len(tokens), SIZE)):
        key = key_of(tokens[at : at + SIZE])
        if key not in above.children:
            made.append(tree.insert(above, key, first + i))
        above = above.children[key]
    return made


def test_path_leads_as_far_as_the_tokens_agree():
    tree = PrefixTree()
    grown(tree, [*range(3 * SIZE)])
    assert [n.block for n in tree.walk("", [*range(3 * SIZE)], 3 * SIZE)] == [0, 1, 2]
    other = [*range(SIZE), *range(900, 900 + 2 * SIZE)]
    assert [n.block for n in tree.walk("", other, len(other))] == [0]
    assert tree.walk("", [7, *range(100)], 101) == []


def test_path_ends_at_the_limit():
    tree = PrefixTree()
    grown(tree, [*range(2 * SIZE)])
    assert len(tree.walk("", [*range(2 * SIZE)], 2 * SIZE - 1)) == 1


def test_another_salt_sees_nothing():
    tree = PrefixTree()
    grown(tree, [*range(SIZE)], salt="a")
    assert tree.walk("b", [*range(SIZE)], SIZE) == []
    assert tree.nearest("b", [], [*range(SIZE)]) == (None, 0)
    assert len(tree.walk("a", [*range(SIZE)], SIZE)) == 1


def test_root_goes_with_its_last_child():
    tree = PrefixTree()
    nodes = grown(tree, [*range(2 * SIZE)], salt="a")
    for node in reversed(nodes):
        assert tree._roots
        tree.remove(node)
    assert not tree._roots and tree.nodes == 0


def test_only_leaves_are_removed():
    tree = PrefixTree()
    inner, _ = grown(tree, [*range(2 * SIZE)])
    with pytest.raises(AssertionError):
        tree.remove(inner)


def test_nothing_grows_under_a_part_of_a_block():
    tree = PrefixTree()
    (part,) = grown(tree, [1, 2, 3])
    with pytest.raises(AssertionError):
        tree.insert(part, key_of([4]), 9)


TOKENS = st.lists(st.sampled_from([0, 1, 255, 256, 1 << 31]), max_size=SIZE)


@given(TOKENS, TOKENS)
def test_keys_compare_and_agree_as_their_tokens_do(a: list[int], b: list[int]):
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert agreeing(key_of(a), key_of(b)) == same
    assert (key_of(a) < key_of(b)) == (a < b)


def test_nearest_is_a_child_that_no_other_surpasses():
    rng = random.Random(1)
    for _ in range(200):
        tree = PrefixTree()
        blocks = [[rng.randint(0, 2) for _ in range(SIZE)] for _ in range(rng.randint(1, 12))]
        for i, tokens in enumerate(blocks):
            if key_of(tokens) not in tree.root("").children:
                tree.insert(tree.root(""), key_of(tokens), i)
        wanted = [rng.randint(0, 2) for _ in range(rng.randint(1, SIZE))]
        best = max(agreeing(key_of(wanted), key_of(b)) for b in blocks)
        node, same = tree.nearest("", [], wanted)
        assert same == best
        if node is not None:
            assert agreeing(node.key, key_of(wanted)) == best


def test_part_and_its_whole_know_each_other():
    tree = PrefixTree()
    grown(tree, [5, 6, 7])
    grown(tree, [5, 9, 9], first=1)
    root = tree.root("")
    assert tree.covers(root, key_of([5, 6])) and not tree.covers(root, key_of([5, 6, 7, 8]))
    part = tree.part_of(root, key_of([5, 6, 7, 8]))
    assert part is not None and part.block == 0
    assert tree.part_of(root, key_of([5, 6, 8])) is None
