"""The files of a model's folder that its tokenizer is made of."""

from __future__ import annotations

from pathlib import Path

from sae_placebo.core.errors import ModelError
from sae_placebo.data.tokenizing import GIVE_IDS

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A folder with a tokenizer has one of these."""
# beside *.json
TOKENIZER_FILES = ("merges.txt", "vocab.txt")
TOKENIZER_ENDS = (".model", ".spm", ".bpe", ".tiktoken")


def check_tokenizer(folder: Path, source: str) -> None:
    """Refuse a model's folder without a tokenizer.

    Args:
        folder: The model's folder.
        source: What the model is called in the sentence.

    Raises:
        ModelError: there is none.
    """
    if not has_tokenizer(folder):
        raise ModelError(
            f"{source} holds a model but no tokenizer ({', '.join(_TOKENIZERS)}), and text needs "
            f"one: {GIVE_IDS}."
        )


def has_tokenizer(folder: Path) -> bool:
    """Return whether a model's folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZERS)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return every file of a model's folder that its tokenizer may be made of, most telling first."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json")
    found = [folder / name for name in (*names, "added_tokens.json", *TOKENIZER_FILES)]
    found += sorted(path for path in folder.iterdir() if path.suffix in TOKENIZER_ENDS)
    return [path for path in found if path.is_file()]
