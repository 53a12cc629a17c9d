"""The files that docs/architecture.md names for a change are enough: each change is made in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mindmodel

PACKAGE = Path(mindmodel.__file__).parent
RECIPE = """
model: {family: FAMILY, hidden_size: 16, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_size: 48, vocab_size: 300}
data: {source: README.md, seq_len: 16, tokenizer_vocab_size: 300}
train: {steps: 2, tokens_per_step: 32}
"""
FAMILY = '''"""Mistral: Llama without scaling of the rotary embedding; its sliding window is off."""

from mindmodel.models.family import Family
from mindmodel.models.llama import RULES

FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    qk_norm=False,
    rope_scaling_types=(),
    rules=RULES,
    fixed_entries={"hidden_act": "silu", "sliding_window": None},
)
'''
VERB = '''"""Say how many parameters a recipe's model has."""

from mindmodel.cli.arguments import add_recipe_arguments
from mindmodel.recipe.estimate import parameters
from mindmodel.recipe.load import load_recipe


def add_arguments(parser):
    add_recipe_arguments(parser)


def run(args):
    model = load_recipe(args.recipe, args.overrides).model
    print(parameters(model, model.vocab_size).total)
    return 0
'''
RULE = '''

def dp_is_even(recipe: Recipe) -> Iterator[Fault]:
    if isinstance(recipe.parallel.dp, int) and recipe.parallel.dp % 2:
        yield Fault("parallel.dp", f"'dp={recipe.parallel.dp}' is odd. Use an even degree.")


LAYOUT_RULES = (
    dp_is_even,'''


class Copy:
    """The package in a folder of its own, with a recipe beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder / "mindmodel"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "README.md").write_text("one two three\n" * 200)
        self.recipe("llama")

    def recipe(self, family: str) -> None:
        (self.folder / "new.yaml").write_text(RECIPE.replace("FAMILY", family))

    def edit(self, name: str, pattern: str, replacement: str) -> None:
        path = self.package / name
        text, count = re.subn(pattern, lambda match: replacement, path.read_text(), count=1)
        assert count == 1, f"{name} has no {pattern}"
        path.write_text(text)

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mindmodel", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def test_a_family_is_one_file(copy):
    (copy.package / "models" / "mistral.py").write_text(FAMILY)
    copy.recipe("mistral")
    shown = copy("recipe", "new.yaml")
    assert shown.returncode == 0 and "family: mistral" in shown.stdout, shown.stderr


@pytest.mark.long
def test_a_family_of_one_file_trains_and_becomes_a_hugging_face_folder(copy):
    (copy.package / "models" / "mistral.py").write_text(FAMILY)
    copy.recipe("mistral")
    trained = copy("train", "new.yaml", "runtime.output=run", "runtime.cpu_kernels=graph")
    assert trained.returncode == 0, trained.stderr
    exported = copy("convert", "to-hf", "run", "hf")
    assert exported.returncode == 0, exported.stderr
    assert '"MistralForCausalLM"' in (copy.folder / "hf" / "config.json").read_text()
    assert copy("convert", "check", "run", "hf").returncode == 0
    refused = copy("convert", "to-mindformers", "run", "other")
    assert refused.returncode == 2 and "'mistral' has no rules for MindFormers' names" in refused.stderr


def test_a_verb_is_one_file_and_one_line(copy):
    (copy.package / "cli" / "count.py").write_text(VERB)
    copy.edit("cli/main.py", "VERBS = {", 'VERBS = {\n    "count": "say how many parameters a model has",')
    assert "count  " in copy("--help").stdout
    counted = copy("count", "new.yaml", "model.num_layers=1")
    assert (counted.returncode, counted.stderr) == (0, "")
    assert int(counted.stdout) > 300 * 16


def test_a_rule_of_layouts_is_a_function_and_its_name_in_a_list(copy):
    copy.edit("recipe/layout_rules.py", r"\n\nLAYOUT_RULES = \(", RULE)
    refused = copy("recipe", "new.yaml", "parallel.dp=3", "train.tokens_per_step=48")
    assert refused.returncode == 2
    assert "parallel.dp: 'dp=3' is odd. Use an even degree." in refused.stderr
