"""Child: greedy answers of Hugging Face's generate on torch, eager, with its key and value cache."""

from __future__ import annotations

from bench.child import Work, serve
from bench.sizes import NUM_NEW, SIZES, prompts


def load(spec: dict):
    """Spec: size, batch, threads, folder (the weights)."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, LlamaForCausalLM

    size = SIZES[spec["size"]]

    def build() -> Work:
        torch.set_num_threads(spec["threads"])
        config = AutoConfig.from_pretrained(spec["folder"])
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").float().eval()
        model.load_state_dict(load_file(f"{spec['folder']}/model.safetensors"))
        ids = torch.from_numpy(prompts(size, spec["batch"]))
        settings = {"max_new_tokens": NUM_NEW, "do_sample": False, "use_cache": True, "pad_token_id": 0}

        def work(index: int) -> list[list[int]]:
            answer = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            return answer[:, ids.shape[1] :].tolist()

        return work

    return build


if __name__ == "__main__":
    serve(load)
