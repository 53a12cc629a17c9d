"""Write mindmodel's fresh weights of a size as a Hugging Face folder.

usage: python -m bench.weights SIZE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from bench.sizes import SEED, SIZES

from mindmodel.convert.folder import CONFIG, write_json, write_shards
from mindmodel.models.decoder import initial_weight
from mindmodel.models.family import find_family, parameter_shapes
from mindmodel.models.weight_rules import to_theirs
from mindmodel.tensor_file import LazyTensor


def main(size_name: str, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    model = SIZES[size_name].model
    family, shapes = find_family(model.family), parameter_shapes(model)
    ours = {
        name: LazyTensor(
            shape=shape,
            dtype=np.dtype(np.float32),
            read=lambda name=name, shape=shape: initial_weight(name, shape, model, SEED),
        )
        for name, shape in shapes.items()
    }
    write_shards(folder, to_theirs(family.rules, model, shapes, ours, folder))
    write_json(folder / CONFIG, {**family.write_config(model), "bos_token_id": None, "eos_token_id": None})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
