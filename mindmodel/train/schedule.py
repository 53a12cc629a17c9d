"""Learning rate of every step. Pure Python."""

from __future__ import annotations

import math

from mindmodel.recipe.schema import OptimSection

WSD_DECAY_SHARE = 0.2  # of the whole run; MiniCPM (arXiv 2404.06395) uses a tenth, later work a fifth


def _decayed(schedule: str, progress: float) -> float:
    """Share of the way from the final ratio (0) up to the peak (1) at `progress` 0..1 after warm-up."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress


def learning_rate(optim: OptimSection, steps: int, step: int) -> float:
    """Learning rate of step `step`, counted from 1 to `steps`.

    Linear warm-up reaches peak_lr at step warmup_steps; the last step has final_lr_ratio * peak_lr (constant: peak_lr).
    """
    if step <= optim.warmup_steps:
        return optim.peak_lr * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.peak_lr
    start = optim.warmup_steps
    if optim.schedule == "wsd":
        start = max(start, steps - math.ceil(WSD_DECAY_SHARE * steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    share = _decayed(optim.schedule, progress)
    return optim.peak_lr * (optim.final_lr_ratio + (1 - optim.final_lr_ratio) * share)
