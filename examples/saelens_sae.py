"""An SAE of pylm by SAELens's own runner, to be examined: run in an environment that has sae-lens.

    python examples/saelens_sae.py my-sae --tokens 2_000_000
    sae-placebo examine my-sae --model pylm --text python-stdlib

It is trained on the Python code that is installed beside SAELens (torch and others), not on the standard
library, so that an examination on that library is on other text. About 20 minutes for two million tokens on
two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sysconfig
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    """Write the text, train the SAE on it, and leave it in the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--latents", type=int, default=4_096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="src/sae_placebo/pylm", help="the folder of pylm")
    given = parser.parse_args()
    text = given.out.with_name(f"{given.out.name}-text.jsonl")
    write_code(text, characters=14 * given.tokens)
    train(given, text)


def write_code(path: Path, characters: int) -> None:
    """Write installed Python files in a random order, one document a line."""
    packages = Path(sysconfig.get_path("purelib"))
    files = sorted(file for file in packages.rglob("*.py") if file.stat().st_size > 800)
    random.Random(0).shuffle(files)
    with path.open("w", encoding="utf-8") as lines:
        for file in files:
            code = file.read_text(encoding="utf-8", errors="ignore")
            lines.write(json.dumps({"text": code}) + "\n")
            characters -= len(code)
            if characters < 0:
                return


def train(given: argparse.Namespace, text: Path) -> None:
    """Train the SAE as SAELens's documentation has it."""
    from datasets import load_dataset
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=256, d_sae=given.latents, k=24),
        model_name=given.model,
        model_class_name="AutoModelForCausalLM",
        hook_name="model.layers.2",
        dataset_path=str(text),
        is_dataset_tokenized=False,
        streaming=False,
        context_size=128,
        prepend_bos=True,
        training_tokens=given.tokens,
        train_batch_size_tokens=4_096,
        n_batches_in_buffer=64,
        store_batch_size_prompts=32,
        lr=1e-3,
        seed=given.seed,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        output_path=str(given.out),
    )
    rows = load_dataset("json", data_files=str(text), split="train")
    LanguageModelSAETrainingRunner(config, override_dataset=rows).run()


if __name__ == "__main__":
    main()
