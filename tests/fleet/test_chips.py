"""The table of chips."""

from __future__ import annotations

import pytest

from mindmodel.errors import LayoutError
from mindmodel.fleet.chips import CHIPS, DEFAULT_CHIP, find_chip


def test_a_chip_of_64_gib_offers_what_mindspore_documents():
    assert find_chip("910B3").usable_bytes == 59_392 << 20


def test_chips_with_other_memory_offer_the_same_share_of_it():
    assert find_chip("910B4").usable_bytes == 29_696 << 20
    assert find_chip("910C").usable_bytes == 118_784 << 20


def test_the_default_is_one_of_them():
    assert DEFAULT_CHIP in CHIPS


def test_an_unknown_chip_is_refused_with_those_that_are_known():
    with pytest.raises(LayoutError, match="chip '910A' is unknown. Use one of 910B1, 910B2, 910B3, 910B4, 910C"):
        find_chip("910A")
