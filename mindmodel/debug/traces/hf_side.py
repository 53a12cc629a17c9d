"""A training step of a Hugging Face folder as a trace, computed by transformers on torch.

torch and transformers are no dependencies of the package: they are imported when such a side is asked for. The folder's
model computes forward and backward pass; what its modules give is put into our places and our row order by the rules of
the conversion. The loss is ours, of the labels as they are given: transformers' own would shift them once more.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Mapping, Optional

import ml_dtypes
import numpy as np

from mindmodel.convert.folder import read_model, read_tensors
from mindmodel.data.loader import IGNORED
from mindmodel.debug.traces.inputs import Inputs
from mindmodel.debug.traces.trace import LOGITS, Trace, clip_scale, global_norm, places
from mindmodel.errors import TraceError
from mindmodel.models.family import Family, parameter_shapes
from mindmodel.models.weight_rules import Join, Moved, active_rules, to_ours
from mindmodel.recipe.schema import ModelSection, Recipe
from mindmodel.tensor_file import LazyTensor

NEEDED = ("torch", "transformers")
WEIGHT, EMBEDDING = ".weight", "embedding.weight"
LAYER, HEAD = "model.layers.{layer}", "lm_head"
INPUTS_OF = {"attention.causal_attention": "self_attn.o_proj", "mlp.swiglu": "mlp.down_proj"}
"""Places of a layer whose arrays are what a module of theirs is given."""

Arrays = dict[str, np.ndarray]


def trace_hugging_face(folder: Path, inputs: Inputs, dtype: str, recipe: Optional[Recipe]) -> Trace:
    """Compute one step from the folder's weights and keep what it computes.

    Args:
        inputs: token ids must be of the model's vocabulary.
        dtype: of matmuls and activations: float32 or bfloat16.
        recipe: its optimizer and loss; without one there are no new weights, and the loss is the cross entropy alone.

    Raises:
        TraceError: if torch or transformers is missing, or a token is not of the model's vocabulary.
        ConversionError: if the folder is incomplete, damaged or of a model that is not ours.
    """
    torch, transformers = map(_imported, NEEDED)
    folder = Path(folder)
    _, family, model = read_model(folder)
    _check_tokens(folder, inputs, model)
    weights = _ours(family, model, {name: tensor.read() for name, tensor in read_tensors(folder).items()}, folder)
    network = _load(torch, transformers, folder, dtype)
    taken = _Taken(network)
    loss, objective = _loss(torch, network, inputs, recipe.train.z_loss if recipe else 0.0)
    objective.backward()
    theirs = {name: _array(parameter.grad.float()) for name, parameter in network.named_parameters()}
    gradients = _ours(family, model, theirs, folder)
    norm = global_norm(gradients)
    return Trace(
        source=f"{folder}, {type(network).__name__} of transformers {transformers.__version__} on torch",
        dtype=dtype,
        loss=loss,
        grad_norm=norm,
        lr=inputs.lr,
        library="torch",
        batch=inputs.batch,
        tensors={
            "activation": _by_place(family, model, *taken.arrays()),
            "activation_grad": _in_float32(_by_place(family, model, *taken.arrays(gradients=True))),
            "weight_grad": gradients,
            "weight": _updated(torch, weights, gradients, norm, recipe, inputs.lr) if recipe else {},
        },
    )


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TraceError(
            f"a Hugging Face folder is computed by transformers on torch, and {name} cannot be imported here "
            f"({error}). Install both: pip install {' '.join(NEEDED)}"
        ) from error


def _check_tokens(folder: Path, inputs: Inputs, model: ModelSection) -> None:
    assert model.vocab_size is not None
    largest = int(max(inputs.batch.ids.max(), inputs.batch.labels.max()))
    if largest >= model.vocab_size:
        raise TraceError(
            f"{folder}: its vocabulary has {model.vocab_size} tokens, and token {largest} is among those to compute. "
            "Use a folder and a recipe of the same vocabulary."
        )


def _load(torch: Any, transformers: Any, folder: Path, dtype: str) -> Any:
    """The folder's network, in the compute dtype; what is not a parameter, as the rotary tables are, stays float32."""
    transformers.utils.logging.disable_progress_bar()
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    for parameter in network.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return network.eval()  # without dropout


class _Taken:
    """What the modules of a network give and are given while it computes; gradients after the backward pass."""

    def __init__(self, network: Any) -> None:
        self._outputs: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}
        for name, module in network.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            pairs: list[tuple[dict[str, Any], Any]] = [(self._outputs, first)]
            pairs += [(self._inputs, tensor) for tensor in inputs[:1]]
            for tensors, tensor in pairs:
                if getattr(tensor, "requires_grad", False):
                    tensor.retain_grad()
                    tensors[name] = tensor

        return keep

    def arrays(self, gradients: bool = False) -> tuple[Arrays, Arrays]:
        """What modules give, and what they are given, by module, [tokens, columns]; or the gradients by that."""
        return _arrays(self._outputs, gradients), _arrays(self._inputs, gradients)


def _arrays(tensors: Mapping[str, Any], gradients: bool) -> Arrays:
    chosen = {name: tensor.grad if gradients else tensor for name, tensor in tensors.items()}
    return {name: _array(tensor.flatten(0, -2)) for name, tensor in chosen.items() if tensor is not None}


def _array(tensor: Any) -> np.ndarray:
    """NumPy's, bfloat16 included, which torch does not hand over."""
    tensor = tensor.detach().contiguous()
    if tensor.element_size() == 2:
        return tensor.view(getattr(importlib.import_module("torch"), "int16")).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _loss(torch: Any, network: Any, inputs: Inputs, z_loss: float) -> tuple[float, Any]:
    """Mean cross entropy over the labels that count, and what is differentiated."""
    ids, labels = (torch.from_numpy(array.astype(np.int64)) for array in (inputs.batch.ids, inputs.batch.labels))
    logits = network(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    labels = labels.flatten().clamp(min=IGNORED)
    counted = labels >= 0
    number = counted.sum().clamp(min=1)
    entropy = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="sum") / number
    squares = torch.logsumexp(logits[counted], dim=-1).square().sum() / number
    return float(entropy.detach()), entropy + z_loss * squares


def _ours(family: Family, model: ModelSection, theirs: Mapping[str, np.ndarray], folder: Path) -> Arrays:
    """Their tensors, or gradients by them, under our names and in our row order, float32."""
    lazy = {name: _lazy(array) for name, array in theirs.items()}
    joined = to_ours(family.rules, model, parameter_shapes(model), lazy, folder)
    return {name: tensor.read().astype(np.float32) for name, tensor in joined.items()}


def _lazy(array: np.ndarray) -> LazyTensor:
    return LazyTensor(shape=array.shape, dtype=array.dtype, read=lambda: array)


def _by_place(family: Family, model: ModelSection, outputs: Arrays, inputs: Arrays) -> Arrays:
    """What their modules give at our places. Columns of a fused layer are in the order of its weight's rows."""
    rules = {rule.ours.removesuffix(WEIGHT): rule for rule in active_rules(family.rules, model)}
    found = {}
    for place in places(model):
        number, _, name = place.removeprefix("layers.").partition(".")
        layer = LAYER.format(layer=number)
        if place == LOGITS:
            found[place] = outputs[HEAD]
        elif place in rules:
            found[place] = _joined(rules[place], model, outputs)
        else:
            found[place] = inputs[f"{layer}.{INPUTS_OF[name]}"] if name else outputs[layer]
    return found


def _in_float32(gradients: Arrays) -> Arrays:
    """Those that a trace has."""
    return {place: array.astype(np.float32) for place, array in gradients.items() if place != LOGITS}


def _joined(rule: Moved, model: ModelSection, outputs: Arrays) -> np.ndarray:
    """What our layer gives, from those that its weight is made of."""
    theirs = rule.theirs if isinstance(rule, Join) else (rule.theirs,)
    parts = {name: _lazy(outputs[name.removesuffix(WEIGHT)].T) for name in theirs}
    return rule.join(model, parts).read().T


def _updated(
    torch: Any, weights: Arrays, gradients: Arrays, norm: float, recipe: Recipe, lr: float
) -> Arrays:
    """The weights after a step of torch's AdamW with the recipe's clipping; as they are if it would not be applied."""
    optim, train = recipe.optim, recipe.train
    if train.check_finite != "none" and not np.isfinite(norm):
        return weights
    scale = clip_scale(norm, train.clip_norm)
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(gradients[name] * np.float32(scale))
    groups: dict[float, list[Any]] = {optim.weight_decay: [], 0.0: []}
    for name, tensor in tensors.items():
        is_decayed = tensor.dim() > 1 and (optim.decay_embeddings or name != EMBEDDING)
        groups[optim.weight_decay if is_decayed else 0.0].append(tensor)
    parameters = [{"params": group, "weight_decay": decay} for decay, group in groups.items()]
    torch.optim.AdamW(parameters, lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps).step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
