"""A Hugging Face folder as a side: the same step as ours at every place, and a fault of ours is found against it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from mindmodel.cli.main import main
from mindmodel.debug.traces import sides
from mindmodel.debug.traces.compare import compare_traces
from mindmodel.debug.traces.hf_side import trace_hugging_face
from mindmodel.debug.traces.inputs import Inputs, inputs_of
from mindmodel.debug.traces.trace import places, write_trace
from mindmodel.errors import ConversionError, TraceError
from mindmodel.models.family import find_family, parameter_shapes
from mindmodel.recipe.dump import recipe_to_yaml
from mindmodel.recipe.load import recipe_from_dict
from mindmodel.recipe.rules import resolve_degrees, with_defaults

SIZES = {"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 64, "vocab_size": 300}


def a_recipe(folder: Path, family: str = "llama", dtype: str = "float32", tied: bool = False, layers: int = 2, **train):
    recipe = recipe_from_dict({
        "name": "tests",
        "model": {**SIZES, "family": family, "tied_embeddings": tied, "num_layers": layers},
        "data": {"source": "stdlib", "seq_len": 16, "tokenizer_vocab_size": 300},
        "train": {"steps": 1, "tokens_per_step": 64, "compute_dtype": dtype, "init_from": str(folder), **train},
        "runtime": {"device": "cpu", "cpu_kernels": "graph"},
    }, "tests")
    return resolve_degrees(with_defaults(recipe), 1)


def saved(recipe, **changes) -> Path:
    """The recipe's model as transformers saves it, with random weights of a size that makes a fault show."""
    folder = Path(recipe.train.init_from)
    config = {**find_family(recipe.model.family).write_config(recipe.model), **changes}
    torch.manual_seed(recipe.train.seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    model.save_pretrained(folder)
    return folder


def some_ignored(inputs: Inputs) -> Inputs:
    labels = inputs.batch.labels.copy()
    labels[:, ::5] = -100
    return dataclasses.replace(inputs, batch=dataclasses.replace(inputs.batch, labels=labels))


IN_PLACE = np.tile(np.arange(16, dtype=np.int32), (4, 1))
"""Of each label of a batch, the token of its sequence that it is taken from."""
CLIPPED = {"z_loss": 0.1, "clip_norm": 0.5}
TIED = {"family": "qwen3", "dtype": "bfloat16", "tied": True, "layers": 3}
models = pytest.mark.parametrize("given", [
    pytest.param(CLIPPED, id="llama"), pytest.param({**TIED, **CLIPPED}, id="qwen3 bfloat16", marks=pytest.mark.long),
])


def one_off(seed: int) -> np.ndarray:
    """Labels of the token before or behind: of all sequences or of one, from some token on."""
    draw, order = random.Random(seed), IN_PLACE.copy()
    rows, first = draw.choice((slice(None), draw.randrange(4))), draw.randrange(8)
    order[rows, first:] = np.clip(order[rows, first:] + draw.choice((-1, 1)), 0, 15)
    return order


@pytest.fixture(scope="module")
def compiled_steps():
    """By recipe, but for seed and weights."""
    return {}


@pytest.fixture
def our_trace(runtime, without_fusion, compiled_steps, monkeypatch):
    """Function: the first step of a recipe on MindSpore, with labels that are taken from elsewhere."""
    import mindspore as ms
    from mindspore import ops

    from mindmodel.debug.traces.tapped import TracedSteps
    from mindmodel.train import build
    from mindmodel.train.init_from import initial_weights
    from mindmodel.train.state import hold_first

    class Reordered(build.DecoderLoss):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self.order = ms.Parameter(ms.Tensor(IN_PLACE), name="order", requires_grad=False)

        def construct(self, ids, labels):
            labels = ops.gather_elements(labels, 1, self.order)
            return self.loss(self.decoder.activations(ids)[-1], self.decoder.head.weight, labels.reshape((-1,)))

    monkeypatch.setattr(build, "DecoderLoss", Reordered)

    def trace(recipe, order=IN_PLACE):
        key = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=0, init_from=None))
        if key not in compiled_steps:
            compiled_steps[key] = TracedSteps(key, runtime)
        steps = compiled_steps[key]
        hold_first(steps._built, recipe, 0, initial_weights(recipe).weights)
        for name, parameter in steps._built.optimizer.state().items():
            parameter.set_data(ms.Tensor(np.full(parameter.shape, name.endswith("_power"), np.float32)))
        steps._step.network.order.set_data(ms.Tensor(order))
        return steps.trace(some_ignored(inputs_of(recipe)), "ours")

    return trace


@models
def test_our_step_is_that_of_transformers_at_every_place(our_trace, tmp_path, given):
    recipe = a_recipe(tmp_path / "hf", **given)
    folder = saved(recipe)
    ours = our_trace(recipe)
    theirs = trace_hugging_face(folder, some_ignored(inputs_of(recipe)), recipe.train.compute_dtype, recipe)
    comparison = compare_traces(ours, theirs)
    assert comparison.first is None and not comparison.left_out
    flow = list(places(recipe.model))
    assert [row.place for row in comparison.rows if row.kind == "activation"] == [*flow, "loss"]
    assert list(ours.tensors["activation"]) == list(theirs.tensors["activation"]) == flow
    for kind in ("weight", "weight_grad"):
        assert theirs.tensors[kind].keys() == parameter_shapes(recipe.model).keys()
    assert "ForCausalLM of transformers" in theirs.source and theirs.library != ours.library
    assert theirs.grad_norm > 0.5  # is clipped


@pytest.fixture
def compared(our_trace, monkeypatch, tmp_path, capsys):
    """Function: exit code and last line of `debug compare` of a recipe and its folder; our side is computed here."""

    def command(recipe, order):
        def run_command(*arguments):
            write_trace(our_trace(recipe, order), Path(arguments[arguments.index("--out") + 1]))

        monkeypatch.setattr(sides, "run_command", run_command)
        (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
        code = main(["debug", "compare", str(tmp_path / "recipe.yaml"), str(saved(recipe))])
        return code, capsys.readouterr().out.splitlines()[-1]

    return command


@models
@pytest.mark.parametrize("seed", range(5))
def test_labels_that_are_one_off_are_named_by_the_command(compared, tmp_path, seed, given):
    """As a loss behind equal logits."""
    recipe = a_recipe(tmp_path / "hf", seed=seed, **given)
    dtype = recipe.train.compute_dtype
    assert compared(recipe, IN_PLACE) == (0, f"agree       rounding of {dtype} explains every difference")
    code, said = compared(recipe, one_off(seed))
    assert code == 1 and said.startswith("part at     loss, activation: ")


# Without MindSpore


@pytest.fixture
def folder(tmp_path):
    return saved(a_recipe(tmp_path / "hf"))


def given(folder):
    return inputs_of(a_recipe(folder))


def test_without_a_recipe_there_are_no_new_weights(folder):
    trace = trace_hugging_face(folder, given(folder), "float32", None)
    assert trace.tensors["weight"] == {}
    assert trace.tensors["weight_grad"].keys() == parameter_shapes(a_recipe(folder).model).keys()


def test_the_loss_is_of_the_labels_as_they_are_given(folder):
    """transformers shifts labels itself: its own loss is that of ids as labels."""
    inputs = given(folder)
    trace = trace_hugging_face(folder, inputs, "float32", None)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.from_numpy(inputs.batch.ids.astype(np.int64))
    whole = torch.cat([ids, torch.from_numpy(inputs.batch.labels[:, -1:].astype(np.int64))], 1)
    assert trace.loss == pytest.approx(network(whole, labels=whole).loss.item(), rel=1e-6)


def test_weights_decay_as_the_recipe_says(folder):
    recipe = a_recipe(folder)
    still = dataclasses.replace(given(folder), lr=0.0)
    weights = trace_hugging_face(folder, still, "float32", recipe).tensors["weight"]
    inputs = dataclasses.replace(still, lr=0.1)
    kept, decayed = (
        trace_hugging_face(folder, inputs, "float32", dataclasses.replace(
            recipe, optim=dataclasses.replace(recipe.optim, weight_decay=decay, decay_embeddings=False)
        )).tensors["weight"]
        for decay in (0.0, 0.5)
    )
    for name, array in weights.items():
        share = 0.0 if array.ndim == 1 or name == "embedding.weight" else 0.05
        np.testing.assert_allclose(decayed[name], kept[name] - share * array, atol=1e-6, err_msg=name)


def test_a_step_that_is_not_finite_changes_no_weight(folder):
    recipe = a_recipe(folder)
    name = next(folder.glob("*.safetensors"))
    from safetensors.numpy import load_file, save_file

    arrays = load_file(name)
    arrays["model.norm.weight"][0] = np.inf
    save_file(arrays, name, {"format": "pt"})
    trace = trace_hugging_face(folder, given(folder), "float32", recipe)
    assert not np.isfinite(trace.loss) and trace.tensors["weight"]["norm.weight"][0] == np.inf
    np.testing.assert_array_equal(trace.tensors["weight"]["head.weight"], arrays["lm_head.weight"])


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_what_is_missing_is_named_with_what_to_install(folder, monkeypatch, missing):
    find = importlib.import_module

    def importing(name):
        if name == missing:
            raise ImportError(f"No module named '{missing}'")
        return find(name)

    monkeypatch.setattr(importlib, "import_module", importing)
    wanted = f"{missing} cannot be imported here .*Install both: pip install torch transformers"
    with pytest.raises(TraceError, match=wanted):
        trace_hugging_face(folder, given(folder), "float32", None)


def test_a_token_beyond_the_vocabulary_is_refused(folder):
    inputs = given(folder)
    inputs.batch.labels[1, 2] = 300
    with pytest.raises(TraceError, match="its vocabulary has 300 tokens, and token 300 is among those to compute"):
        trace_hugging_face(folder, inputs, "float32", None)


def test_a_folder_with_pickled_weights_alone_is_refused(folder):
    next(folder.glob("*.safetensors")).rename(folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="holds only pickled weights"):
        trace_hugging_face(folder, given(folder), "float32", None)


def test_code_of_the_folder_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('was run')")
    assert np.isfinite(trace_hugging_face(folder, given(folder), "float32", None).loss)


def test_torch_is_not_loaded_before_such_a_side_is_computed():
    code = "import sys, mindmodel.debug.traces.sides; sys.exit('torch' in sys.modules or 'mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
