"""Ascend training chips and their memory.

Source: FlagPerf's base benchmarks and public specification texts.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindmodel.errors import LayoutError

USABLE_SHARE = 59_392 / 65_536
"""Of a chip's memory, what a job can have: a 64 GiB device offers 59,392 MiB (MindSpore's documentation of dry runs).

The same share is taken of chips with less or more memory, whose own figure is not published.
"""

DEFAULT_CHIP = "910B3"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device with its memory, of which a job can have `usable_bytes`."""

    name: str
    hbm_bytes: int

    @property
    def usable_bytes(self) -> int:
        """Memory that a job can have."""
        return int(self.hbm_bytes * USABLE_SHARE)


HBM_GIB = {"910B1": 64, "910B2": 64, "910B3": 64, "910B4": 32, "910C": 128}
CHIPS = {name: Chip(name=name, hbm_bytes=gib << 30) for name, gib in HBM_GIB.items()}


def find_chip(name: str) -> Chip:
    """The chip of a name.

    Raises:
        LayoutError: if there is none.
    """
    if name not in CHIPS:
        raise LayoutError(f"chip '{name}' is unknown. Use one of {', '.join(CHIPS)}.")
    return CHIPS[name]
