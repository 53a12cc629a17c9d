"""mindmodel recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindmodel.cli.main import main
from mindmodel.recipe.load import load_recipe

TEXT = """\
model: {family: llama, hidden_size: 64, num_layers: 4, num_heads: 4, ffn_size: 160}
data: {source: stdlib, tokenizer_vocab_size: 512, seq_len: 32}
parallel: {dp: 2, tp: 2}
train: {steps: 100, tokens_per_step: 256}
"""


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "demo.yaml"
    file.write_text(TEXT)
    return file


def test_it_prints_a_recipe_that_can_be_used_and_what_it_needs(path, capsys, tmp_path):
    assert main(["recipe", str(path), "train.steps=50"]) == 0
    resolved, summary = capsys.readouterr().out.split("\n\n", 1)
    (tmp_path / "recipe.yaml").write_text(resolved)
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(path, ["train.steps=50"])
    heads = [line.split()[0] for line in summary.splitlines() if not line.startswith(" ")]
    assert heads == ["batch", "parameters", "tokens", "arithmetic", "memory", "disk"]
    assert "8 sequences of 32 tokens a step, 4 a dp rank" in summary
    assert "12.8 k in 50 steps" in summary


def test_single_and_shrink_are_told(path, capsys):
    assert main(["recipe", str(path), "--single", "--shrink"]) == 0
    told = capsys.readouterr().out.partition("changed by --single and --shrink:")[2]
    assert "parallel.tp: 2 -> 1" in told and "train.steps: 100 -> 20" in told


def test_it_fits_a_terminal(path, capsys):
    main(["recipe", str(path), "--single", "--shrink"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_vocabulary_that_only_the_tokenizer_knows_is_said(path, capsys):
    assert main(["recipe", str(path), "data.tokenizer=somewhere"]) == 0
    assert "not known before the tokenizer is read; give model.vocab_size" in capsys.readouterr().out


def test_keys_need_no_recipe(capsys):
    assert main(["recipe", "--keys"]) == 0
    assert "train.tokens_per_step" in capsys.readouterr().out


def test_no_recipe_is_bad_input(capsys):
    assert main(["recipe"]) == 2
    assert "no recipe given. Use mindmodel recipe recipes/cpu/tiny.yaml, or --keys" in capsys.readouterr().err


def test_a_fault_is_one_message_without_a_traceback(path, capsys):
    assert main(["recipe", str(path), "train.stps=5"]) == 2
    error = capsys.readouterr().err
    assert error == "RecipeError: command line, train.stps: unknown key. Did you mean 'train.steps'?\n"


def test_sequences_that_only_fill_a_batch_up_are_told(path, capsys):
    assert main(["recipe", str(path), "parallel.dp=3", "parallel.micro_batches=2", "parallel.tp=1"]) == 0
    assert "8 sequences of 32 tokens a step, 4 a dp rank" in (summary := capsys.readouterr().out)
    assert "2 a micro-batch, 4 of them empty, for dp and micro_batches do not share evenly" in summary
