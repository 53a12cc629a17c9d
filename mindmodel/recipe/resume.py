"""What may differ between a run's recipe and the recipe that continues it."""

from __future__ import annotations

from mindmodel.recipe.dump import Change, differences
from mindmodel.recipe.schema import Recipe

MUST_MATCH = (
    "data.source",
    "data.path",
    "data.tokenizer",
    "data.tokenizer_vocab_size",
    "data.seq_len",
    "data.heldout",
    "train.seed",
)
"""Keys that a continued run must share with its beginning, beside the whole section `model`."""

NOT_REPORTED = ("runtime.output", "train.stop_at", "train.max_hours")
"""Keys of one process rather than of the run."""

NOT_IN_THE_NUMBERS = (
    "checkpoint.", "log.", "train.eval_every", "runtime.compile_cache", "runtime.devices_per_node", *NOT_REPORTED,
)
"""Sections and keys that change no number of a step; every other one is taken to."""


def _must_match(key: str) -> bool:
    """Whether a dotted key must be the same when a run is continued."""
    return key in MUST_MATCH or key.startswith("model.")


def changes_numbers(key: str) -> bool:
    """Whether a dotted key can change the numbers of a step."""
    return not key.startswith(NOT_IN_THE_NUMBERS)


def resume_conflicts(old: Recipe, new: Recipe) -> list[Change]:
    """Differences that forbid continuing: model, data, tokenizer and seed.

    A vocabulary size that one of the two leaves to the tokenizer is no conflict: the tokenizer's keys are compared.
    """
    return [
        (key, was, now)
        for key, was, now in differences(old, new)
        if _must_match(key) and not (key == "model.vocab_size" and None in (was, now))
    ]


def resume_changes(old: Recipe, new: Recipe) -> list[Change]:
    """Differences that are allowed and worth a line in the log."""
    return [
        change for change in differences(old, new) if not _must_match(change[0]) and change[0] not in NOT_REPORTED
    ]
