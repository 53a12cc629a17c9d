"""Child: training steps of Hugging Face's Llama on torch."""

from __future__ import annotations

import contextlib

from bench.child import Work, serve
from bench.sizes import PEAK_LR, SIZES, batch


def load(spec: dict):
    """Spec: size, dtype, threads, folder (the weights), compile (bool)."""
    import numpy as np
    import torch
    import torch._dynamo  # the optimizer would import it
    from safetensors.torch import load_file
    from transformers import AutoConfig, LlamaForCausalLM

    size, bfloat16 = SIZES[spec["size"]], spec["dtype"] == "bfloat16"

    def build() -> Work:
        torch.set_num_threads(spec["threads"])
        if spec["dtype"] == "float32-medium":
            torch.set_float32_matmul_precision("medium")
        config = AutoConfig.from_pretrained(spec["folder"], use_cache=False)
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").float().train()
        model.load_state_dict(load_file(f"{spec['folder']}/model.safetensors"))
        forward = torch.compile(model) if spec["compile"] else model
        optimizer = torch.optim.AdamW(_groups(model), lr=PEAK_LR, betas=(0.9, 0.999), eps=1e-8, fused=True)

        def work(index: int) -> float:
            ids, labels = (torch.from_numpy(array.astype(np.int64)) for array in batch(size, index))
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext():
                loss = forward(input_ids=ids, labels=labels, shift_labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return work

    return build


def _groups(model) -> list[dict]:
    """Norms have no weight decay, as in mindmodel."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]


if __name__ == "__main__":
    serve(load)
