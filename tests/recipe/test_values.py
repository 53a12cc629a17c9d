"""Plain values to the types of the schema."""

from __future__ import annotations

import math

import pytest

from mindmodel.recipe.schema import SECTIONS, TrainSection
from mindmodel.recipe.values import Refused, build, nearest

REQUIRED = {"steps": 10, "tokens_per_step": 64}
KNOWN = ["train.steps", "optim.peak_lr", "optim.warmup_steps", "model.hidden_size", "parallel.tp"]


def texts(section: str, mapping: dict) -> list[str]:
    with pytest.raises(Refused) as refused:
        build(SECTIONS[section], section, mapping)
    return [f"{fault.key}: {fault.text}" for fault in refused.value.faults]


def train(**keys) -> TrainSection:
    return build(TrainSection, "train", {**REQUIRED, **keys})


def test_a_whole_number_may_be_written_as_a_float():
    steps = train(steps=1.0e3).steps
    assert steps == 1000 and type(steps) is int


def test_a_whole_number_becomes_a_float_where_one_is_wanted():
    clip = train(clip_norm=1).clip_norm
    assert clip == 1.0 and type(clip) is float


def test_a_single_text_becomes_a_list():
    assert build(SECTIONS["data"], "data", {"seq_len": 8, "source": "a.txt"}).source == ("a.txt",)
    assert build(SECTIONS["data"], "data", {"seq_len": 8, "source": ["a", "b"]}).source == ("a", "b")


def test_null_is_the_default_of_an_optional_key():
    assert train(stop_at=None).stop_at is None


def test_auto_and_numbers_are_degrees():
    section = build(SECTIONS["parallel"], "parallel", {"dp": "auto", "tp": 2})
    assert (section.dp, section.tp) == ("auto", 2)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("train", "steps", 1.5, "'1.5' does not fit. Use a whole number, at least 1."),
        ("train", "steps", True, "'true' does not fit. Use a whole number, at least 1."),
        ("train", "steps", "x", "'x' does not fit. Use a whole number, at least 1."),
        ("train", "steps", 0, "'0' does not fit. Use a whole number, at least 1."),
        ("train", "steps", None, "'null' does not fit. Use a whole number, at least 1."),
        ("train", "steps", 2**63, f"'{2**63}' does not fit. Use a whole number, at least 1. It is beyond 64 bits."),
        ("train", "compute_dtype", "float16", "'float16' does not fit. Use float32 or bfloat16."),
        ("optim", "peak_lr", 0, "'0' does not fit. Use a number, above 0."),
        ("optim", "peak_lr", math.nan, "'.nan' does not fit. Use a number, above 0."),
        ("optim", "final_lr_ratio", 2, "'2' does not fit. Use a number, at least 0, at most 1."),
        ("data", "heldout", 1, "'1' does not fit. Use a number, at least 0, below 1."),
        ("data", "path", 2024, "'2024' does not fit. Use text. Put it in quotes to make it text."),
        ("parallel", "tp", "many", "'many' does not fit. Use a whole number or auto, at least 1."),
        ("parallel", "stages", [4, 0], "'[4, 0]' does not fit. Use a list of whole numbers, at least 1."),
        ("parallel", "sequence_parallel", "yes", "'yes' does not fit. Use true or false."),
        ("model", "rope_scaling", 2, "'2' does not fit. Use a mapping."),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(section, key, value, message):
    assert f"{section}.{key}: {message}" in texts(section, {key: value})


def test_a_mapping_inside_is_checked_key_by_key():
    messages = texts("model", {"rope_scaling": {"type": "yarn", "fcator": 2}})
    assert "model.rope_scaling.type: 'yarn' does not fit. Use linear or llama3." in messages
    assert any(line.startswith("model.rope_scaling.fcator: unknown key. Did you mean") for line in messages)
    assert any(line.startswith("model.rope_scaling.factor: is missing: how much longer") for line in messages)


def test_all_faults_of_a_section_come_at_once():
    assert len(texts("train", {"stpes": 1, "seed": -1})) == 4  # unknown, out of bounds, two missing


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("train.stps", "train.steps"),
        ("optim.steps", "train.steps"),
        ("train.lr", "optim.peak_lr"),
        ("model.hidden", "model.hidden_size"),
        ("paralel.tp", "parallel.tp"),
    ],
)
def test_the_nearest_key_is_found_across_sections(typed, meant):
    assert nearest(typed, KNOWN) == f" Did you mean '{meant}'?"


def test_nothing_near_suggests_nothing():
    assert nearest("train.zzzz", KNOWN) == ""
