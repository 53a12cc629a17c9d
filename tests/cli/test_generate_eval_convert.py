"""A trained run generates, is evaluated, leaves as a Hugging Face folder, comes back, and is trained on."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from mindmodel.data.tokens import TokenWriter


@pytest.fixture(scope="module")
def imported(finished):
    """The run, exported and imported again; its folder's name has a space."""
    for arguments in (("to-hf", "run", "hf"), ("from-hf", "hf", "imported run")):
        done = finished("convert", *arguments)
        assert done.returncode == 0, done.stderr
    return "imported run"


GREEDY = ("--prompt", "the red", "--temperature", 0, "--max-tokens")


@pytest.fixture(scope="module")
def greedy(finished):
    """A greedy answer, where there is no home."""
    return finished("generate", "run", *GREEDY, 12, HOME="/proc/nowhere")


@pytest.mark.long
def test_without_a_cache_that_can_be_written_the_answer_is_the_same(finished, greedy):
    done = finished("generate", "run", *GREEDY, 12, HOME="/proc/nowhere", MINDMODEL_CACHE="")
    assert (done.returncode, done.stdout) == (0, greedy.stdout)


@pytest.fixture(scope="module")
def evaluated(finished):
    done = finished("eval", "run", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_standard_output_holds_prompt_and_answer_alone(greedy):
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout.startswith("the red") and len(greedy.stdout.split()) > 4
    assert "compiling" in greedy.stderr and "compiling" not in greedy.stdout


def test_the_imported_run_gives_the_same_greedy_answer_from_a_longer_limit(finished, imported, greedy):
    done = finished("generate", imported, *GREEDY, 16)
    assert done.stdout.startswith(greedy.stdout[:-1]) and len(done.stdout) > len(greedy.stdout)


@pytest.mark.long
def test_the_same_seed_gives_the_same_text_from_a_run_and_from_its_newest_checkpoint(finished):
    texts = [
        finished("generate", path, "--prompt", "one", "--max-tokens", 20, "--seed", seed).stdout
        for path, seed in (("run", 3), ("run/checkpoints/step_200", 3))
    ]
    assert texts[0] == texts[1] and texts[0].startswith("one") and len(texts[0].split()) > 4


def test_eval_prints_what_training_measured_last(finished, evaluated):
    (last,) = [row for row in finished.run("run").rows if "eval_loss" in row]
    assert set(evaluated) == {"loss", "perplexity", "tokens"}
    assert evaluated["loss"] == pytest.approx(last["eval_loss"], abs=1e-4)
    assert evaluated["perplexity"] == pytest.approx(math.exp(evaluated["loss"]))
    assert evaluated["tokens"] == last["eval_tokens"] > 200


def test_an_imported_run_is_evaluated_on_a_text(finished, imported, evaluated):
    told = finished.refused("eval", imported)
    assert "this run has no held-out documents. Name a text: --text FILE." in told
    done = finished("eval", imported, "--text", "corpus/00.txt")
    assert done.returncode == 0, done.stderr
    loss, perplexity, tokens = (line.split()[1] for line in done.stdout.splitlines())
    assert float(loss) == pytest.approx(evaluated["loss"], abs=0.3)
    assert int(tokens) > 200 and float(perplexity) == pytest.approx(math.exp(float(loss)), rel=1e-2)


def test_a_run_that_holds_nothing_out_names_the_way(finished, tmp_path):
    run = finished.copy("run", tmp_path / "run")
    with TokenWriter(run.path / "data" / "heldout", vocab_size=300):
        pass
    told = finished.refused("eval", run.path)
    assert "fewer than two tokens to evaluate on. Name a longer text: --text FILE." in told


def test_export_import_and_export_again_are_equal(finished, imported, tmp_path):
    done = finished("convert", "to-hf", imported, tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished.folder / "hf" / name).read_bytes()
    done = finished("convert", "check", "run", "hf")
    assert done.returncode == 0 and "are the same model, bit by bit" in done.stdout


def test_an_imported_run_is_not_trained_in_place(finished, imported, tmp_path):
    shutil.copytree(finished.folder / imported, tmp_path / "run")
    told = finished.refused("train", "recipe.yaml", f"runtime.output={tmp_path}/run")
    assert f"holds an imported model, not a training run. Train from it with train.init_from={tmp_path}/run" in told


@pytest.mark.parametrize("origin", ["hf", pytest.param("imported run", marks=pytest.mark.long)])
def test_training_begins_with_the_weights_of_init_from(origin, finished, imported, evaluated, tmp_path):
    done = finished.train(
        tmp_path / "tuned", f"train.init_from={origin}", "train.steps=1", "optim.warmup_steps=0", "optim.peak_lr=1e-12"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["loss"] == pytest.approx(evaluated["loss"], abs=0.3)
    assert rows[2]["eval_loss"] == pytest.approx(evaluated["loss"], abs=1e-4)


def test_init_from_a_model_of_another_size(finished, imported, tmp_path):
    overrides = f"runtime.output={tmp_path}/run", "train.init_from=hf", "model.ffn_size=96"
    told = finished.refused("train", "recipe.yaml", *overrides)
    assert "another architecture: ffn_size is 64 there and 96 in the recipe. Change the recipe's model." in told
