"""pylm's tokenizer: a byte-level BPE of 4,096 tokens, learned on the training split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

BOS = "<|bos|>"
# GPT-2's rule, but an identifier's underscores belong to it and numbers are cut in threes
_PIECES = r" ?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+"


def learn(texts: Iterable[str], size: int) -> Any:
    """Return a transformers tokenizer of `size` tokens, BOS first."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    one = Tokenizer(models.BPE())
    one.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    one.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    one.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=one, bos_token=BOS, eos_token=BOS)


def save(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer where transformers finds it."""
    tokenizer.save_pretrained(folder)
