"""SAELens' own `ActivationsStore` over a saved model; runs in the peer's environment, turn by turn.

Reads settings as a line of JSON from standard input; then, for every line, draws batches and answers with
a line of JSON: seconds, tokens that the model really ran, the share of the machine that others took.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


class NoTokenizer:
    """Rows are tokenized already; the wrapper only asks for these ids."""

    bos_token_id = eos_token_id = sep_token_id = pad_token_id = 0


def store(given: dict[str, Any]) -> Any:
    import torch
    import transformers
    from datasets import Dataset
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activations_store import ActivationsStore
    from safetensors.torch import load_file

    ids = load_file(given["rows"])["token_ids"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    plain.eval().requires_grad_(False)
    model: Any = HookedProxyLM(plain, NoTokenizer())
    return ActivationsStore(
        model,
        Dataset.from_dict({"input_ids": ids.tolist()}),
        streaming=False,
        hook_name=given["hook"],
        hook_head_index=None,
        context_size=ids.shape[1],
        d_in=given["d_in"],
        n_batches_in_buffer=2 * given["forward_rows"],
        total_training_tokens=10**9,
        store_batch_size_prompts=given["forward_rows"],
        train_batch_size_tokens=given["forward_rows"] * ids.shape[1],
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )


def main() -> None:
    given = json.loads(sys.stdin.readline())
    warnings.simplefilter("ignore")
    import torch
    from timing import timed, wait_until_quiet

    torch.set_num_threads(given["threads"])
    torch.set_float32_matmul_precision(given["products"])
    found = store(given)
    ran, read = 0, found.get_activations

    def counted(tokens: Any) -> Any:
        nonlocal ran
        ran += tokens.numel()
        return read(tokens)

    def draw() -> None:
        # a store serves from its buffer: what counts is what the model ran meanwhile
        while ran < given["tokens"]:
            found.next_batch()

    found.get_activations = counted
    with torch.inference_mode():
        draw()  # fills the buffer
        print(json.dumps({"torch": torch.__version__}), flush=True)
        for _ in sys.stdin:
            wait_until_quiet(given["wait"])
            ran = 0
            seconds, foreign = timed(draw)
            print(json.dumps({"seconds": seconds, "foreign": foreign, "tokens": ran}), flush=True)


if __name__ == "__main__":
    main()
