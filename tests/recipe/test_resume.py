"""What may change when a run is continued."""

from __future__ import annotations

import pytest

from mindmodel.recipe.dump import describe, differences
from mindmodel.recipe.resume import resume_changes, resume_conflicts


@pytest.mark.parametrize(
    "override",
    ["model.init_std=0.03", "data.source=a.txt", "data.seq_len=16", "data.heldout=0.1", "train.seed=2"],
)
def test_model_data_and_seed_must_match(load, override):
    key = override.partition("=")[0]
    assert [conflict[0] for conflict in resume_conflicts(load(), load(override))] == [key]
    assert resume_changes(load(), load(override)) == []


def test_everything_else_may_change_and_is_reported(load):
    new = load("train.steps=200", "optim.peak_lr=1e-3", "parallel.dp=2")
    assert resume_conflicts(load(), new) == []
    assert describe(resume_changes(load(), new)) == (
        "parallel.dp: auto -> 2",
        "train.steps: 100 -> 200",
        "optim.peak_lr: 0.0003 -> 0.001",
    )


@pytest.mark.parametrize("override", ["runtime.output=elsewhere", "train.stop_at=5", "train.max_hours=2"])
def test_what_belongs_to_one_process_is_not_reported(load, override):
    assert resume_changes(load(), load(override)) == []


def test_a_vocabulary_left_to_the_tokenizer_is_no_conflict(load):
    assert resume_conflicts(load("model.vocab_size=512"), load()) == []
    assert resume_conflicts(load("model.vocab_size=512"), load("model.vocab_size=528"))


def test_differences_inside_a_mapping_are_named_alone(load):
    old = load("model.rope_scaling={type: linear, factor: 2}")
    assert differences(old, load("model.rope_scaling={type: linear, factor: 4}")) == [
        ("model.rope_scaling.factor", 2.0, 4.0)
    ]
    assert describe(differences(load(), old))[0].startswith("model.rope_scaling: not set -> {type: linear, factor: 2.0")
