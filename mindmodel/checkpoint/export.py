"""A checkpoint in one safetensors file, whatever the layout was that wrote it."""

from __future__ import annotations

from pathlib import Path

from mindmodel.checkpoint.load import Checkpoint
from mindmodel.errors import CheckpointError
from mindmodel.files import write_file_safely
from mindmodel.tensor_file import Written, write_tensors


def export_checkpoint(checkpoint: Checkpoint, target: Path, optimizer: bool = False) -> Written:
    """Write the tensors of a checkpoint under their names, one in memory at a time.

    Args:
        target: a file that is not there yet; it is whole or absent.
        optimizer: whether the optimizer's state goes with the weights.

    Raises:
        CheckpointError: if the file is there, or cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target}: is there already. Name a new file.")
    tensors = {name: checkpoint.weights().lazy(name) for name in checkpoint.weights()}
    if optimizer:
        tensors.update({name: checkpoint.optimizer().lazy(name) for name in checkpoint.optimizer()})
    index = checkpoint.index
    facts = {"step": index.step, "samples": index.samples, "tokens": index.tokens}
    try:
        with write_file_safely(target) as temporary:
            return write_tensors(temporary, tensors, {name: str(value) for name, value in facts.items()})
    except OSError as error:
        raise CheckpointError(f"{target}: could not be written: {error.strerror}. Choose another place.") from error
