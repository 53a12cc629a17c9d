"""Slices of a tensor are a sequence, though columns hold them."""

import random

import pytest

from crew import random_blocks
from mindmodel.checkpoint.blocks import Block, common
from mindmodel.checkpoint.slices import Slice, Slices, Table

PARTS = [Slice(file=f"{number}", offset=(2 * number, 0), shape=(2, 3), sha256=f"{number:064x}") for number in range(4)]


def slices_of(blocks):
    return Slices.of(*(
        Slice(file=f"{number}", offset=block.offset, shape=block.shape, sha256="0" * 64)
        for number, block in enumerate(blocks)
    ))


def test_they_come_back_as_they_were_given():
    slices = Slices.of(*PARTS)
    assert list(slices) == PARTS and slices[-1] == PARTS[-1] and len(slices) == 4
    assert slices[1:3] == Slices.of(*PARTS[1:3]) and slices != Slices.of(*PARTS[1:])


def test_there_is_none_beyond_the_last():
    with pytest.raises(IndexError):
        Slices.of(*PARTS)[4]


def test_those_that_meet_a_block_are_those_that_share_an_element_with_it():
    draw = random.Random(3)
    for _ in range(200):
        shape = tuple(draw.randrange(1, 7) for _ in range(draw.randrange(1, 4)))
        blocks = random_blocks(draw, shape)
        offset = tuple(draw.randrange(size) for size in shape)
        block = Block(offset=offset, shape=tuple(draw.randrange(size - at + 1) for at, size in zip(offset, shape)))
        found = {(one.offset, one.shape) for one in slices_of(blocks).meeting(block)}
        assert found == {(one.offset, one.shape) for one in blocks if common(one, block) is not None}


def test_the_numbers_are_the_same_whichever_files_hold_them():
    others = [Slice(file="x", offset=part.offset, shape=part.shape, sha256=part.sha256) for part in PARTS]
    assert Slices.of(*PARTS).same_numbers(Slices.of(*others))
    assert not Slices.of(*PARTS).same_numbers(Slices.of(*PARTS[:-1], PARTS[0]))


def test_rows_of_several_tables_are_sorted_by_tensor_and_keep_their_order_there():
    one = Table.of([(1, 0, PARTS[0], "0" * 64), (0, 0, Block(offset=(4,), shape=(1,)), "1" * 64)])
    other = Table.of([(0, 1, Block(offset=(0,), shape=(4,)), "2" * 64)])
    joined = Table.joined([one, other])
    assert joined.tensor.tolist() == [0, 0, 1] and joined.file.tolist() == [0, 1, 0]
    first, second = joined.by_tensor([1, 2])
    assert first.offset.tolist() == [[4], [0]] and second.shape.tolist() == [[2, 3]]


def test_a_row_of_more_dims_than_its_tensor_is_refused():
    table = Table.of([(0, 0, PARTS[0], "0" * 64)])
    with pytest.raises(ValueError, match="a slice of 2 dims is one of a tensor of 1"):
        list(table.by_tensor([1]))
