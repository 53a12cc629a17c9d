"""Ascend training chips: memory, arithmetic and links. Pure Python.

Source: peaks of FlagPerf's base benchmarks and MindSpeed-LLM, which are the matrix unit's; public specification texts
add the vector unit's. Bandwidths are per chip, in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from mindmodel.errors import LayoutError

USABLE_SHARE = 59_392 / 65_536
"""Of a chip's memory, what a job can have: a 64 GiB device offers 59,392 MiB (MindSpore's documentation of dry runs).

The same share is taken of chips with less or more memory, whose own figure is not published.
"""

DEFAULT_CHIP = "910B3"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device; None is not published.

    Attributes:
        bf16_flops: FLOP/s of the matrix unit in bfloat16, else with the vector unit where only that is known.
        measured_bf16_flops: FLOP/s that a benchmark reached.
        hbm_bytes: memory; a job can have `usable_bytes` of it.
        hbm_bytes_s: bandwidth of the memory.
        link_bytes_s: of the links within a node.
        network_bits_s: of the network between nodes.
    """

    name: str
    bf16_flops: float
    hbm_bytes: int
    hbm_bytes_s: float
    measured_bf16_flops: Optional[float] = None
    link_bytes_s: Optional[float] = None
    network_bits_s: Optional[float] = None

    @property
    def usable_bytes(self) -> int:
        """Memory that a job can have."""
        return int(self.hbm_bytes * USABLE_SHARE)


def _chip(
    name: str, bf16_tflops: float, hbm_gib: int, hbm_gb_s: float, measured_tflops: Optional[float] = None,
    links: bool = True,
) -> Chip:
    """From the units of data sheets."""
    return Chip(
        name=name,
        bf16_flops=bf16_tflops * 1e12,
        measured_bf16_flops=measured_tflops and measured_tflops * 1e12,
        hbm_bytes=hbm_gib << 30,
        hbm_bytes_s=hbm_gb_s * 1e9,
        link_bytes_s=392e9 if links else None,
        network_bits_s=200e9 if links else None,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _chip("910B1", 379, 64, 1600),
        _chip("910B2", 354, 64, 1600, measured_tflops=315),
        _chip("910B3", 295, 64, 1600, measured_tflops=304),
        _chip("910B4", 270, 32, 800),
        _chip("910C", 752, 128, 3200, links=False),
    )
}


def find_chip(name: str) -> Chip:
    """The chip of a name.

    Raises:
        LayoutError: if there is none.
    """
    if name not in CHIPS:
        raise LayoutError(f"chip '{name}' is unknown. Use one of {', '.join(CHIPS)}.")
    return CHIPS[name]
