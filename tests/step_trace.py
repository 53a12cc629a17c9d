"""A step of two layers and a loss, written down as MindSpore's memory tracker writes it."""

from __future__ import annotations

from mindmodel.dryrun.live import Live, live_of
from mindmodel.dryrun.memory_trace import LIVE_KINDS, read_trace
from mindmodel.dryrun.scopes import PlacedKernel

NEVER = 2**63 - 1
VOCAB_SIZE, NUM_TOKENS = 10, 4
DECODER = "Default/network-RankStep/network-OnlyLoss/network-DecoderLoss/decoder-Decoder"
LOSS = "Default/network-RankStep/network-OnlyLoss/network-DecoderLoss/loss-HeadLoss/head_loss-HeadLossAscend"
EMBEDDING = f"{DECODER}/embedding-Embedding/embedding-EmbeddingByGather"
ADAM = "Default/network-RankStep/optimizer-AdamW/update-AdamWAscend/AdamApply"


def down(layer):
    return f"{DECODER}/layers-CellList/{layer}-Block/mlp-MLP/down-Linear/linear-LinearAscend"


STAYS = (  # key, bytes, source, name
    (1, 100, "Weight", "layers.0.mlp.down.weight"),
    (2, 100, "Weight", "layers.1.mlp.down.weight"),
    (3, 80, "Weight", "first_moment.layers.0.mlp.down.weight"),
    (4, 80, "Weight", "first_moment.layers.1.mlp.down.weight"),
    (5, 7, "ConstantValue", "Default/data-0"),
    (6, 9, "ConstantValue", "Default/data-1"),
)
KERNELS = (  # time, which names the result; end, bytes, name, keys that it reads, type
    (11, 14, 50, f"{EMBEDDING}/Cast", (1, 5), "BFloat16:[10, 3]"),
    (13, 62, 90, f"{down(0)}/AllGather", (11,), "BFloat16:[10, 6]"),
    (15, 58, 40, f"{down(0)}/MatMul", (13,), "BFloat16:[4, 6]"),
    (21, 24, 50, f"{EMBEDDING}/Cast", (2, 5), "BFloat16:[10, 3]"),
    (23, 57, 90, f"{down(1)}/AllGather", (21,), "BFloat16:[10, 6]"),
    (25, 46, 40, f"{down(1)}/MatMul", (15, 23), "BFloat16:[4, 6]"),
    (31, 44, 40, f"{LOSS}/MatMul", (25,), "Float32:[4, 10]"),
    (33, 42, 40, f"{LOSS}/Exp", (31,), "Float32:[4, 10]"),
    (41, 56, 40, f"Gradients/{LOSS}/Grad_Exp/Mul", (31, 33), "Float32:[4, 10]"),
    (51, 54, 30, f"Gradients/{down(0)}/Grad_MatMul/MatMul", (41, 15), "BFloat16:[10, 6]"),
    (53, 74, 60, f"Gradients/{EMBEDDING}/Grad_Cast/Cast", (51, 5), "Float32:[10, 6]"),
    (55, 62, 40, f"Gradients/{down(0)}/Grad_MatMul/MatMul", (41, 23), "BFloat16:[4, 6]"),
    (61, 66, 30, f"Gradients/{down(0)}/Grad_MatMul/MatMul", (55, 13), "BFloat16:[10, 6]"),
    (65, 76, 60, f"Gradients/{EMBEDDING}/Grad_Cast/Cast", (61, 5), "Float32:[10, 6]"),
)
UPDATES = ((73, (53, 2, 4)), (75, (65, 1, 3)))
"""When, and what is read: of these the parameters are written."""
STAYING_BYTES, PEAK_BYTES, PEAK_TIME = 376, 756, 41


def graph_lines():
    yield from (f"(%{key}) = {name}(), task_info: {key - 1}, attrs {{stream_id=0}}\n    (Float32:[10, 3]) <- ()"
                for key, _, _, name in STAYS)
    for number, (time, _, _, name, inputs, type_) in enumerate(KERNELS):
        yield f"(%{time}) = {name}-op{number}({_keys(inputs)}), task_info: {time}, attrs {{stream_id=0}}"
        yield f"    ({type_}) <- ()"
        yield "    # File:<frozen runpy>;Line:198;Function:_run_module_as_main|"
        yield f"() = RecordEvent(), task_info: {time}, attrs {{event=1;stream_id=0}}\n    () <- ()"
    for time, inputs in UPDATES:
        yield f"({_keys(inputs[1:])}) = {ADAM}-op0({_keys(inputs)}), task_info: {time}, attrs {{stream_id=0}}"
        yield "    (Float32:[10, 3], Float32:[10, 3]) <- ()"


def _keys(keys):
    return ", ".join(f"%{key}" for key in keys)


def block_lines():
    yield "start_time_stamp,end_time_stamp,size,type,node_name"
    yield from (f"{key},{NEVER},{size},{source},{name}" for key, size, source, name in STAYS)
    yield from (f"{time},{end},{size},Kernel,{name}-op0" for time, end, size, name, _, _ in KERNELS)


def written_trace(folder):
    """The trace, read back from files in this folder."""
    (folder / "memory_block.csv").write_text("\n".join(block_lines()))
    (folder / "tracker_graph.ir").write_text("\n".join(graph_lines()))
    return read_trace(folder)


def live_in(folder, unseen=0):
    """What is alive in the step; so many bytes are measured beside those of the blocks."""
    return live_of(written_trace(folder), PEAK_BYTES + unseen, VOCAB_SIZE, NUM_TOKENS)


def live_with(**by_kind):
    """A step of one kernel, with so many bytes of kinds."""
    kinds = {**dict.fromkeys(LIVE_KINDS, 0), **by_kind}
    kernel = PlacedKernel(operator="Mul", place="loss", phase="backward")
    return Live(peak_bytes=sum(kinds.values()), peak_index=0, kernels=(kernel,), by_kind=kinds, by_part={"loss": kinds},
                groups=(), curve={kind: (number,) for kind, number in kinds.items()})
