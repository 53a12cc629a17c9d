"""Blocks make up a tensor when every element is in one of them, and in one only."""

import random

import numpy as np
import pytest

from crew import random_blocks
from mindmodel.checkpoint.blocks import Block, common, fault_of_blocks, whole


def block(offset, shape):
    return Block(offset=tuple(offset), shape=tuple(shape))


def counted(blocks, shape):
    """How many blocks each element is in."""
    count = np.zeros(shape, int)
    for one in blocks:
        count[one.place] += 1
    return count


def test_blocks_that_were_cut_at_random_make_up_the_tensor_and_fewer_or_more_do_not():
    draw = random.Random(1)
    for _ in range(300):
        shape = tuple(draw.randrange(1, 7) for _ in range(draw.randrange(1, 4)))
        blocks = random_blocks(draw, shape)
        assert fault_of_blocks(blocks, shape) == ""
        assert fault_of_blocks([*blocks, draw.choice(blocks)], shape) == "two slices overlap"
        assert fault_of_blocks(blocks[1:], shape) == "its slices leave a gap"


def test_the_answer_is_that_of_counting_for_any_blocks():
    draw = random.Random(2)
    for _ in range(300):
        shape = tuple(draw.randrange(1, 5) for _ in range(2))
        offsets = [tuple(draw.randrange(size) for size in shape) for _ in range(draw.randrange(1, 4))]
        blocks = [block(at, (draw.randrange(1, s - o + 1) for o, s in zip(at, shape))) for at in offsets]
        assert (fault_of_blocks(blocks, shape) == "") == (counted(blocks, shape) == 1).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_the_whole_makes_up_any_tensor(shape):
    assert fault_of_blocks([whole(shape)], shape) == ""


def test_what_two_blocks_share_is_what_indexing_says():
    draw = random.Random(3)
    for _ in range(200):
        one, other = (draw.choice(random_blocks(draw, (5, 6))) for _ in range(2))
        both = counted([one, other], (5, 6)) == 2
        shared = common(one, other)
        assert both.any() == (shared is not None)
        if shared is not None:
            assert both[shared.place].all() and both.sum() == both[shared.place].size
            here = np.arange(30).reshape(5, 6)
            np.testing.assert_array_equal(here[one.place][shared.within(one).place], here[shared.place])


def test_a_place_of_a_scalar_gives_a_view():
    scalar = np.array(3.0)
    assert scalar[whole(()).place].base is scalar
