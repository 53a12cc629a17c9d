"""MindFormers itself, in a process of its own: `python mindformers_child.py JOBS.json` in a scratch folder.

A job is an object: `do` names a function here, the rest are its arguments. Arrays are exchanged as .npz files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mindmodel.parallel.environment import prepare_environment
from mindmodel.recipe.schema import RuntimeSection

DTYPES = {"params_dtype": "float32", "compute_dtype": "float32"}


def network(family: str, config: dict):
    """A model of random weights, of the sizes in a Hugging Face config.json."""
    if family == "qwen3":
        from mindformers.models.qwen3.configuration_qwen3 import Qwen3Config
        from mindformers.models.qwen3.modeling_qwen3_train import TrainingQwen3ForCausalLM

        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        names += ("num_key_value_heads", "head_dim", "tie_word_embeddings")
        return TrainingQwen3ForCausalLM(Qwen3Config(**{name: config[name] for name in names}, **DTYPES))
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig
    from mindformers.modules.transformer import TransformerOpParallelConfig

    parallel = TransformerOpParallelConfig()
    parallel.cpu_offloading = None
    return LlamaForCausalLM(LlamaConfig(
        batch_size=1,
        seq_length=16,
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        vocab_size=config["vocab_size"],
        intermediate_size=config["intermediate_size"],
        tie_word_embeddings=config["tie_word_embeddings"],
        param_init_type="float32",
        use_flash_attention=False,
        parallel_config=parallel,
    ))


def dump(net, path: str) -> None:
    np.savez(path, **{parameter.name: parameter.asnumpy() for parameter in net.get_parameters()})


def load(family: str, config: dict, folder: str, out: str) -> None:
    """The parameters after its load_checkpoint."""
    from mindformers.checkpoint.checkpoint import load_checkpoint

    net = network(family, config)
    load_checkpoint(folder, net)
    dump(net, out)


def load_hf(family: str, config: dict, folder: str, out: str) -> None:
    """The parameters after its own conversion of a Hugging Face folder."""
    from mindformers.checkpoint.checkpoint import load_hf_checkpoint

    net = network(family, config)
    load_hf_checkpoint(folder, net)
    dump(net, out)


def convert_hf(family: str, config: dict, folder: str, out: str) -> None:
    """The tensors of a Hugging Face folder as its Llama's converter renames them."""
    from mindformers.models.llama.llama import LlamaForCausalLM
    from safetensors.numpy import load_file

    theirs = load_file(Path(folder) / "model.safetensors")
    np.savez(out, **{LlamaForCausalLM.convert_name(name): array for name, array in theirs.items()})


def save(family: str, config: dict, folder: str, out: str) -> None:
    """Random parameters, as its save_checkpoint writes them."""
    from mindformers.checkpoint.checkpoint import CommonInfo, save_checkpoint

    net = network(family, config)
    save_checkpoint(7, net, common_info=CommonInfo(global_step=7), save_checkpoint_path=folder)
    dump(net, out)


def layouts(shapes: dict):
    """Over four ranks: rows over one axis or both, columns over one, norms whole."""
    from mindspore.parallel import Layout

    layout = Layout((2, 2), ("dp", "tp"), rank_list=[0, 1, 2, 3])
    cut = {"linear_fc2": ("None", "tp"), "linear_proj": ("dp", "tp"), "embed": ("tp", "None"), "output": ("tp", "None")}
    for name, shape in shapes.items():
        rows = ("None",) if len(shape) == 1 else next((axes for part, axes in cut.items() if part in name), None)
        yield name, layout(*(rows or (("tp", "dp"), "None")))


def metas(shapes: dict, rank: int):
    """What its own code says that a rank holds."""
    from mindformers.checkpoint.sharded_tensor import get_sharded_tensor_from_strategy_metadata
    from mindspore import float32

    infos = {name: [layout, float32, shapes[name]] for name, layout in layouts(shapes)}
    return get_sharded_tensor_from_strategy_metadata(infos, rank)


def area(meta, rank: int) -> tuple:
    from mindformers.checkpoint.reshard import infer_slice_area_by_rank

    layout = meta.layout.to_dict()
    found = infer_slice_area_by_rank(layout["device_matrix"], layout["tensor_map"], rank, meta.global_shape)
    return tuple(slice(*ends) for ends in found)


def save_cut(family: str, config: dict, folder: str, out: str) -> None:
    """As four ranks write it: its metadata, and a file for each rank."""
    import mindspore as ms
    from mindformers.checkpoint import metadata
    from mindformers.checkpoint.utils import FileType, get_checkpoint_name

    metadata.get_group_size = lambda: 4
    net, iteration = network(family, config), Path(folder) / "iteration_00000007"
    iteration.mkdir(parents=True)
    arrays = {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}
    ranks = {rank: metas({name: array.shape for name, array in arrays.items()}, rank) for rank in range(4)}
    for rank, held in ranks.items():
        content = [{"name": name, "data": ms.Tensor(arrays[name][area(meta, rank)])} for name, meta in held.items()]
        file = get_checkpoint_name(str(iteration), None, rank, 4, FileType.MODEL)
        ms.save_checkpoint(content, file, format="safetensors")
    mappings = metadata.get_total_params_file_mapping_info(ranks, None, list(arrays))
    metadata.save_metadata(ranks, mappings, str(iteration / "metadata.json"))
    (Path(folder) / "latest_checkpointed_iteration.txt").write_text("7")
    dump(net, out)


def reshard(family: str, config: dict, folder: str, out: str) -> None:
    """What its loader gives each of four ranks of a folder, an .npz for each; and where these blocks lie."""
    from mindformers.checkpoint import reshard as module
    from mindformers.checkpoint.checkpoint import get_checkpoint_path
    from mindformers.checkpoint.metadata import get_metadata_of_checkpoint

    shapes = {parameter.name: parameter.shape for parameter in network(family, config).get_parameters()}
    path = get_checkpoint_path(folder)
    sources, mappings = get_metadata_of_checkpoint(path)
    for rank in range(4):
        module.get_real_rank = lambda rank=rank: rank
        held = module.ReshardLoader(path, metas(shapes, rank), sources, mappings).load()
        np.savez(out.replace(".npz", f"-{rank}.npz"), **{name: tensor.asnumpy() for name, tensor in held.items()})
    areas = {f"{name}/{rank}": area(meta, rank) for rank in range(4) for name, meta in metas(shapes, rank).items()}
    np.savez(out, **{name: np.array([(part.start, part.stop) for part in place]) for name, place in areas.items()})


def main(jobs: list[dict]) -> None:
    """All jobs, of one family."""
    prepare_environment(RuntimeSection(threads=1, cpu_kernels="graph"))
    from mindformers import build_context

    build_context({
        "use_legacy": jobs[0]["family"] == "llama",
        "run_mode": "train",
        "use_parallel": False,
        "parallel": {},
        "context": {"mode": 0, "device_target": "CPU", "runtime_num_threads": 1},
    })
    for job in jobs:
        globals()[job.pop("do")](**job)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
