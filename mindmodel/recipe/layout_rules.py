"""Rules that a degree of the device mesh, or what is cut over it, can break.

A rule yields a Fault for each thing that cannot be; the text says what would work. Degrees that are `auto` are not
known yet: rules pass over them, and rules.resolve_degrees applies them again when they are.
"""

from __future__ import annotations

import math
from typing import Iterator, Optional

from mindmodel.recipe.schema import AXES, ModelSection, Recipe
from mindmodel.recipe.values import Fault, join_or

MAX_DEGREE = 1 << 16


def known(degree: object) -> int:
    """A degree, or 1 while it is auto."""
    return degree if isinstance(degree, int) else 1


def divisors(number: int) -> list[int]:
    """Divisors, up to the largest degree that anyone can mean."""
    return [candidate for candidate in range(1, min(number, MAX_DEGREE) + 1) if number % candidate == 0]


def multiples_near(number: int, step: int) -> str:
    """The multiples of step below and above a number."""
    below = number // step * step
    return join_or([value for value in (below, below + step) if value])


def sequences_at_once(recipe: Recipe) -> Optional[int]:
    """Sequences of a rank and micro-batch; None where dp is not known, or the batch is not one of whole sequences."""
    if recipe.parallel.dp == "auto" or recipe.train.tokens_per_step % recipe.data.seq_len:
        return None
    return recipe.sequences_per_rank // recipe.parallel.micro_batches


def every_rank_has_a_sequence(recipe: Recipe) -> Iterator[Fault]:
    """A batch that they cannot share evenly is filled up, but nobody's part may be filling alone."""
    parallel, tokens, seq_len = recipe.parallel, recipe.train.tokens_per_step, recipe.data.seq_len
    share = known(parallel.dp) * parallel.micro_batches
    if tokens % seq_len == 0 and recipe.sequences_per_step < share:
        sequences = f"'tokens_per_step={tokens}' is {recipe.sequences_per_step} sequences of {seq_len}"
        parts = f"'dp={parallel.dp}' times 'micro_batches={parallel.micro_batches}'"
        yield Fault("train.tokens_per_step", f"{sequences}, fewer than {parts}. Use {share * seq_len} or more.")


def tp_divides_the_model(recipe: Recipe) -> Iterator[Fault]:
    tp = known(recipe.parallel.tp)
    uneven = _not_cut_by(tp, recipe.model)
    if uneven:
        works = [degree for degree in divisors(recipe.model.num_heads) if not _not_cut_by(degree, recipe.model)]
        yield Fault("parallel.tp", f"'tp={tp}' does not divide {join_or(uneven)}. Use {join_or(works)}.")


def _not_cut_by(tp: int, model: ModelSection) -> list[str]:
    """Sizes that do not divide; a multiple of the KV heads gives each rank a copy of one."""
    kv_heads = model.num_kv_heads or model.num_heads
    sizes = {
        "num_heads": model.num_heads,
        "num_kv_heads": tp if tp % kv_heads == 0 else kv_heads,
        "ffn_blocks": model.ffn_blocks,
        "vocab_size": model.vocab_size or tp,
    }
    return [f"'{name}={size}'" for name, size in sizes.items() if size % tp]


def sequence_parallel_has_tp(recipe: Recipe) -> Iterator[Fault]:
    parallel = recipe.parallel
    if parallel.sequence_parallel and parallel.tp == 1:
        text = "splits over the tp ranks, and 'tp=1'. Use false, or tp of 2 or more."
        yield Fault("parallel.sequence_parallel", text)


def kept_tokens_are_gathered(recipe: Recipe) -> Iterator[Fault]:
    parallel = recipe.parallel
    if parallel.gathered_tokens == "kept" and not parallel.sequence_parallel:
        text = "'kept' is about tokens that sequence_parallel gathers, and it is false"
        yield Fault("parallel.gathered_tokens", f"{text}. Use again, or sequence_parallel=true.")


def sequence_parallel_divides_the_tokens(recipe: Recipe) -> Iterator[Fault]:
    sequences, tp, cp = sequences_at_once(recipe), known(recipe.parallel.tp), known(recipe.parallel.cp)
    if not recipe.parallel.sequence_parallel or sequences is None:
        return
    tokens = sequences * recipe.data.seq_len // cp
    if tokens % tp:
        held = f"'tp={tp}' does not divide the {tokens} tokens of a rank and micro-batch"
        yield Fault("parallel.sequence_parallel", f"{held}. Use false, or a data.seq_len that {tp * cp} divides.")


def cp_divides_the_sequence(recipe: Recipe) -> Iterator[Fault]:
    cp, seq_len = known(recipe.parallel.cp), recipe.data.seq_len
    if seq_len % cp:
        works = [divisor for divisor in divisors(seq_len) if divisor <= 2 * cp]
        yield Fault("parallel.cp", f"'cp={cp}' does not divide 'seq_len={seq_len}'. Use {join_or(works)}.")


def cp_cuts_one_sequence_at_a_time(recipe: Recipe) -> Iterator[Fault]:
    """Sequences lie one behind another in the dim that dp and cp cut: of several, cp would cut between them."""
    parallel, sequences = recipe.parallel, sequences_at_once(recipe)
    if known(parallel.cp) == 1 or sequences in (None, 1):
        return
    shared = f"'cp={parallel.cp}' cuts one sequence at a time, and a rank's micro-batch has {sequences}"
    tokens = recipe.padded_sequences // sequences * recipe.data.seq_len
    works = f"micro_batches={parallel.micro_batches * sequences}, or train.tokens_per_step={tokens}"
    yield Fault("parallel.micro_batches", f"{shared}. Use {works}.")


def stages_hold_all_layers(recipe: Recipe) -> Iterator[Fault]:
    layers, pp, stages = recipe.model.num_layers, known(recipe.parallel.pp), recipe.parallel.stages
    if pp > layers:
        text = f"'pp={pp}' leaves stages without a layer: 'num_layers={layers}'. Use {layers} or less."
        yield Fault("parallel.pp", text)
    if stages is None:
        return
    if recipe.parallel.pp != "auto" and len(stages) != pp:
        text = f"names {len(stages)} stages, and 'pp={pp}'. Use {pp} numbers, or pp={len(stages)}."
        yield Fault("parallel.stages", text)
    if sum(stages) != layers:
        text = f"adds up to {sum(stages)} layers, and 'num_layers={layers}'"
        yield Fault("parallel.stages", f"{text}. Use numbers that add up to {layers}, or leave it out.")


def pipeline_is_filled(recipe: Recipe) -> Iterator[Fault]:
    pp, micro = known(recipe.parallel.pp), recipe.parallel.micro_batches
    if micro < pp:
        text = f"'micro_batches={micro}' leaves stages of 'pp={pp}' idle all the time"
        yield Fault("parallel.micro_batches", f"{text}. Use {pp} or more.")


def interleaved_chunks_are_equal(recipe: Recipe) -> Iterator[Fault]:
    layers, chunks, pp = recipe.model.num_layers, recipe.parallel.interleave, recipe.parallel.pp
    if chunks == 1:
        return
    if pp == 1:
        text = f"'interleave={chunks}' cuts pipeline stages, and 'pp=1'. Use 1, or pp of 2 or more."
        yield Fault("parallel.interleave", text)
    elif layers % (known(pp) * chunks):
        text = f"'pp={pp}' times 'interleave={chunks}' does not divide 'num_layers={layers}'"
        even = layers % known(pp) == 0
        works = join_or(divisors(layers // known(pp))) if even else f"1, or a pp that divides {layers}"
        yield Fault("parallel.interleave", f"{text}. Use {works}.")
    if recipe.parallel.stages is not None:
        text = f"'interleave={chunks}' has chunks of equal size. Leave stages out, or use interleave=1."
        yield Fault("parallel.stages", text)


def sharded_optimizer_has_ranks(recipe: Recipe) -> Iterator[Fault]:
    parallel = recipe.parallel
    if parallel.shard_optimizer != "none" and (parallel.dp, parallel.cp) == (1, 1):
        text = f"'{parallel.shard_optimizer}' would change nothing: it splits over dp * cp ranks, and that is one"
        yield Fault("parallel.shard_optimizer", f"{text}. Use none, or dp of 2 or more.")


def tied_stages_keep_parameters_whole(recipe: Recipe) -> Iterator[Fault]:
    """The embedding is sent to the last stage, and MindSpore cannot gather there what it has cut for the first."""
    parallel = recipe.parallel
    if parallel.shard_optimizer == "parameters" and recipe.model.tied_embeddings and known(parallel.pp) > 1:
        text = f"'parameters' does not compile with 'pp={parallel.pp}' and tied_embeddings. Use states or gradients."
        yield Fault("parallel.shard_optimizer", text)


def devices_make_whole_nodes(recipe: Recipe) -> Iterator[Fault]:
    """MindSpore takes 1, 2 or 4 Ascend devices, or a multiple of 8; any number of CPU processes, which have dp only."""
    degrees = recipe.parallel.degrees.values()
    if "auto" in degrees:
        return
    devices = math.prod(map(known, degrees))
    if recipe.runtime.device != "ascend" and devices == recipe.parallel.dp:
        return
    if devices not in (1, 2, 4) and devices % 8:
        product = " * ".join(AXES)
        takes = "MindSpore takes 1, 2, 4 or a multiple of 8 Ascend devices"
        text = f"'{product}' is {devices} devices, and {takes}. Change a degree."
        yield Fault("parallel.dp", text)


def reduce_dtype_has_slices_to_sum(recipe: Recipe) -> Iterator[Fault]:
    """In the compute dtype gradients are summed by the collective that gives each rank its slice, as they are made."""
    parallel = recipe.parallel
    if parallel.reduce_dtype == "float32":
        return
    if parallel.shard_optimizer != "states":
        text = f"'compute' goes with sharded states, and 'shard_optimizer={parallel.shard_optimizer}'. Use states there"
    elif parallel.pp != 1 or parallel.micro_batches != 1:
        text = (
            f"'compute' sums gradients as they are made, and with 'pp={parallel.pp}' and 'micro_batches="
            f"{parallel.micro_batches}' they are added up first, in float32. Use one stage and one micro-batch"
        )
    elif uneven := _not_cut_by_copies(recipe):
        text = f"'compute' cuts weights over dp, cp and tp, which do not divide {join_or(uneven)}. Use other degrees"
    else:
        return
    yield Fault("parallel.reduce_dtype", f"{text}, or float32 here.")


def _not_cut_by_copies(recipe: Recipe) -> list[str]:
    """Sizes of weights' first dims that the ranks with copies do not divide."""
    model, copies = recipe.model, known(recipe.parallel.dp) * known(recipe.parallel.cp)
    heads = model.num_heads + 2 * (model.num_kv_heads or model.num_heads)
    size = model.head_size or model.hidden_size // model.num_heads
    columns = copies * known(recipe.parallel.tp)
    sizes = {"hidden_size": (model.hidden_size, copies), "ffn_size": (2 * model.ffn_size, columns)}
    sizes["(num_heads + 2 * num_kv_heads) * head_size"] = heads * size, columns
    sizes["vocab_size"] = model.vocab_size or columns, columns
    return [f"'{name}'" for name, (number, ranks) in sizes.items() if number % ranks]


LAYOUT_RULES = (
    every_rank_has_a_sequence,
    tp_divides_the_model,
    sequence_parallel_has_tp,
    kept_tokens_are_gathered,
    sequence_parallel_divides_the_tokens,
    cp_divides_the_sequence,
    cp_cuts_one_sequence_at_a_time,
    stages_hold_all_layers,
    pipeline_is_filled,
    interleaved_chunks_are_equal,
    sharded_optimizer_has_ranks,
    tied_stages_keep_parameters_whole,
    devices_make_whole_nodes,
    reduce_dtype_has_slices_to_sum,
)
