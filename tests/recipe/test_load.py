"""Files, bases and overrides to a Recipe, and back."""

from __future__ import annotations

import pytest

from mindmodel.errors import RecipeError
from mindmodel.recipe.dump import recipe_to_dict, recipe_to_yaml
from mindmodel.recipe.load import load_recipe, load_run_recipe, load_with_changes, recipe_from_dict, with_overrides
from mindmodel.recipe.schema import RopeScaling


def write(path, text):
    path.write_text(text)
    return path


def test_derived_defaults_are_filled_in(load):
    model = load("model.num_kv_heads=null").model
    assert (model.num_kv_heads, model.head_size, model.qk_norm) == (4, 16, False)


def test_the_name_is_the_file_and_the_output_follows(load):
    recipe = load()
    assert (recipe.name, recipe.output, recipe.sequences_per_step) == ("small", "runs/small", 8)


def test_auto_stays_until_the_devices_are_known(load):
    assert load().parallel.dp == "auto"


def test_overrides_are_yaml(load):
    recipe = load(
        "train.steps=1_000",
        "optim.peak_lr=3e-4",
        "model.rope_scaling={type: linear, factor: 2}",
        "parallel.stages=[2,2]",
        "parallel.pp=2",
        "parallel.micro_batches=2",
        "data.source=*.txt",
    )
    assert (recipe.train.steps, recipe.optim.peak_lr, recipe.parallel.stages) == (1000, 3e-4, (2, 2))
    assert recipe.model.rope_scaling == RopeScaling(type="linear", factor=2.0)
    assert recipe.data.source == ("*.txt",)


def test_an_override_may_reach_into_a_mapping(load):
    recipe = load("model.rope_scaling={type: linear, factor: 2}", "model.rope_scaling.factor=4")
    assert recipe.model.rope_scaling == RopeScaling(type="linear", factor=4.0)


def test_a_later_override_wins(load):
    assert load("train.steps=5", "train.steps=6").train.steps == 6


def test_the_file_wins_over_its_base(tmp_path, small):
    path = write(tmp_path / "child.yaml", "base: small.yaml\ntrain: {steps: 7}\n")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.train.steps, recipe.train.tokens_per_step) == ("child", 7, 256)


def test_a_base_is_found_from_any_working_folder(tmp_path, small, monkeypatch):
    path = write(tmp_path / "child.yaml", "base: small.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(path).model.hidden_size == 64


def test_the_base_of_a_base_is_refused(tmp_path, small):
    write(tmp_path / "middle.yaml", "base: small.yaml\n")
    path = write(tmp_path / "child.yaml", "base: middle.yaml\n")
    with pytest.raises(RecipeError, match="has a base of its own, and one level is read. Use 'small.yaml'"):
        load_recipe(path)


def test_a_base_must_be_one_path(tmp_path):
    with pytest.raises(RecipeError, match=r"base: '\[a, b\]' is not a path. Use one path, relative to this file"):
        load_recipe(write(tmp_path / "child.yaml", "base: [a, b]\n"))


def test_a_base_that_is_not_there_is_named_with_the_recipe_that_asks_for_it(tmp_path):
    with pytest.raises(RecipeError, match=r"child\.yaml, base: .*gone\.yaml: No such file"):
        load_recipe(write(tmp_path / "child.yaml", "base: gone.yaml\n"))


def test_a_fault_of_the_base_names_the_base(tmp_path, small):
    write(tmp_path / "bad.yaml", small.read_text() + "optim: {peak_lr: x}\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml, optim\.peak_lr: 'x' does not fit"):
        load_recipe(write(tmp_path / "child.yaml", "base: bad.yaml\n"))


def test_all_faults_come_in_one_message_with_their_places(small):
    overrides = [
        "train.stps=4", "train.steps=x", "optim.beta1=1", "modle.hidden_size=4", "steps", "steps=4", "=4", "log=4",
    ]
    with pytest.raises(RecipeError) as error:
        load_recipe(small, overrides)
    lines = str(error.value).splitlines()
    assert "command line, train.stps: unknown key. Did you mean 'train.steps'?" in lines
    assert "command line, train.steps: 'x' does not fit. Use a whole number, at least 1." in lines
    assert "command line, optim.beta1: '1' does not fit. Use a number, at least 0, below 1." in lines
    assert "command line, modle.hidden_size: unknown key. Did you mean 'model.hidden_size'?" in lines
    assert "command line, steps: unknown key. Did you mean 'train.steps'?" in lines
    assert "command line: 'steps' is not key=value. Use a form such as train.steps=100." in lines
    assert "command line: '=4' is not key=value. Use a form such as train.steps=100." in lines
    assert "command line, log: is a section. Set its keys one by one, as log.every=..." in lines
    assert len(lines) == 8


def test_a_missing_key_is_named_with_its_file(tmp_path):
    path = write(tmp_path / "bare.yaml", "data: {source: stdlib, seq_len: 8}\ntrain: {steps: 1, tokens_per_step: 8}\n")
    with pytest.raises(RecipeError, match=r"bare.yaml, model.num_layers: is missing: decoder blocks. Use a whole"):
        load_recipe(path)


def test_an_unknown_section_is_refused(tmp_path, small):
    path = write(tmp_path / "extra.yaml", small.read_text() + "optimizer: {name: adamw}\nsteps: 4\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert "extra.yaml, optimizer: no such section. Did you mean" in str(error.value)
    assert "extra.yaml, steps: no such section. Did you mean 'train.steps'?" in str(error.value)


def test_a_section_without_keys_is_its_defaults(tmp_path, small):
    assert load_recipe(write(tmp_path / "a.yaml", small.read_text() + "optim:\n")).optim.name == "adamw"


def test_a_section_must_be_a_mapping(tmp_path, small):
    path = write(tmp_path / "a.yaml", small.read_text() + "optim: adamw\n")
    with pytest.raises(RecipeError, match="optim: 'adamw' is not a mapping. Use keys, one to a line"):
        load_recipe(path)


def test_a_broken_list_on_the_command_line_is_refused(load):
    with pytest.raises(RecipeError, match="^command line, parallel.stages, line 1"):
        load("parallel.stages=[2,2")


@pytest.mark.parametrize("name", ["../x", "a/b", "[1]", "..", "'a b'"])
def test_a_name_cannot_leave_the_runs_folder(tmp_path, small, name):
    path = write(tmp_path / "a.yaml", f"name: {name}\n" + small.read_text())
    with pytest.raises(RecipeError, match="is no name. Use letters, digits, '_', '-' and '.'"):
        load_recipe(path)


def test_a_resolved_recipe_reads_back_equal(load, tmp_path):
    recipe = load(
        "model.vocab_size=512",
        "runtime.output='3e-4'",
        "data.source=[a b.txt, 'no', '*.md']",
        "model.rope_scaling={type: llama3, factor: 8}",
        "optim.eps=1e-8",
        "train.max_hours=1.5",
    )
    path = write(tmp_path / "recipe.yaml", recipe_to_yaml(recipe))
    assert load_run_recipe(path) == recipe
    assert load_recipe(path) == recipe


def test_a_run_recipe_is_read_without_rules_but_with_types(load, tmp_path):
    text = recipe_to_yaml(load("model.vocab_size=512"))
    assert load_run_recipe(write(tmp_path / "a.yaml", text.replace("seq_len: 32", "seq_len: 33"))).data.seq_len == 33
    with pytest.raises(RecipeError, match="data.seq_len: 'x' does not fit"):
        load_run_recipe(write(tmp_path / "b.yaml", text.replace("seq_len: 32", "seq_len: x")))


def test_a_run_recipe_that_was_edited_has_its_defaults_again_or_is_refused(load, tmp_path):
    recipe = load("model.vocab_size=512")
    lines = recipe_to_yaml(recipe).splitlines()

    def without(*names):
        kept = [line for line in lines if not line.strip().startswith(names)]
        return load_run_recipe(write(tmp_path / "recipe.yaml", "\n".join(kept)))

    assert without("num_kv_heads", "head_size", "qk_norm") == recipe.with_keys({"model.num_kv_heads": 4})
    with pytest.raises(RecipeError, match="recipe.yaml, model.vocab_size: is missing. A run's recipe names every size"):
        without("vocab_size")


def test_a_recipe_is_plain_values(load):
    plain = recipe_to_dict(load())
    assert plain["name"] == "small"
    assert plain["data"]["source"] == ["stdlib"]
    assert plain["train"]["stop_at"] is None


def test_plain_values_are_the_recipe_again(load):
    recipe = load("model.rope_scaling={type: llama3, factor: 8}", "parallel.stages=[4]")
    assert recipe_from_dict(recipe_to_dict(recipe), "here") == recipe


@pytest.mark.parametrize("name", [None, 3, "../x"])
def test_plain_values_need_a_name_that_cannot_leave_the_runs_folder(load, name):
    with pytest.raises(RecipeError, match="^index.json, name: '.*' is no name. Use letters"):
        recipe_from_dict({**recipe_to_dict(load()), "name": name}, "index.json")


def test_overrides_on_a_resolved_recipe_are_checked(load):
    recipe = load()
    assert with_overrides(recipe, ["train.steps=7"], "recipe.yaml") == recipe.with_keys({"train.steps": 7})
    with pytest.raises(RecipeError, match="command line, train.stop_at: 'stop_at=101' is beyond 'steps=100'"):
        with_overrides(recipe, ["train.stop_at=101"], "recipe.yaml")


def test_typed_keys_survive_shrinking(small):
    recipe, changes = load_with_changes(small, ["train.steps=50", "model.num_layers=4"], shrink=True)
    assert (recipe.train.steps, recipe.model.num_layers) == (50, 4)
    assert not any(change.startswith("train.steps:") for change in changes)
    assert "name: small -> small_small" in changes
