"""What `pylm` does beyond its loss: copying, the heads that copy, and continuations that parse."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from pylm.ngram import BOS, KneserNey
from sae_placebo.core.spec import numpy_generator

HEADER_TOKENS, NEW_TOKENS = 100, 64
_HEADER = re.compile(r"^[ ]*(async )?def .*:$")


def repeated(
    length: int, n: int, vocabulary: int, seed: int
) -> Int64[np.ndarray, "sequence position"]:
    """Return n sequences: BOS, `length` tokens drawn uniformly, and the same tokens again."""
    generator = numpy_generator(seed, "copying", str(length))
    drawn = generator.integers(1, vocabulary, (n, length))
    return np.concatenate([np.full((n, 1), BOS), drawn, drawn], axis=1)


@torch.no_grad()
def copying(
    model: Any, length: int, n: int, seed: int
) -> tuple[Float64[np.ndarray, " sequence"], Float64[np.ndarray, " sequence"]]:
    """Return each sequence's mean loss in nats on the first and on the second half.

    A half's first token is left out on both sides: nothing before it says that a repeat begins.
    """
    ids = torch.from_numpy(repeated(length, n, model.config.vocab_size, seed))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    nats = loss.double().numpy()
    return nats[:, 1:length].mean(axis=1), nats[:, length + 1 :].mean(axis=1)


@torch.no_grad()
def heads(model: Any, length: int, n: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return per layer and head the induction and the previous-token score, [layer head].

    Induction: mean attention from a token of the second half to the token after its first
    occurrence (Olsson et al. 2022, prefix matching on repeated random tokens). Previous token: mean
    attention from every token to the one before it. The model must run with eager attention.
    """
    ids = torch.from_numpy(repeated(length, n, model.config.vocab_size, seed))
    attentions = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    induction, previous = [], []
    for layer in attentions:  # [sequence head query key]
        one = layer.float().mean(dim=0)
        # query length + k holds the token first seen at k, which k + 1 follows
        back = one.diagonal(offset=1 - length, dim1=1, dim2=2)[:, 2:]
        induction.append(back.mean(dim=1).double().numpy())
        previous.append(one.diagonal(offset=-1, dim1=1, dim2=2).mean(dim=1).double().numpy())
    return {"induction": np.stack(induction), "previous_token": np.stack(previous)}


@dataclass(frozen=True)
class Prompt:
    """The tokens of a held-out document up to the colon of a function's header."""

    document: int
    ids: tuple[int, ...]
    text: str
    truth: str


def prompts(texts: list[str], tokenizer: Any, n: int, seed: int) -> list[Prompt]:
    """Return up to n prompts drawn by seed from the one-line `def ...:` headers of `texts`.

    A prompt is at most 100 tokens, starts at the earliest line within them from which header and a
    `pass` parse (see `parses`), and has at least 64 tokens of document after it.
    """
    found: list[Prompt] = []
    for i, text in enumerate(texts):
        found.extend(_prompts(i, text, tokenizer))
    order = numpy_generator(seed, "prompts").permutation(len(found))
    return [found[i] for i in order[:n]]


def _prompts(document: int, text: str, tokenizer: Any) -> Iterator[Prompt]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    defs = sorted({node.lineno for node in ast.walk(tree) if isinstance(node, functions)})
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = encoded["input_ids"], np.array(encoded["offset_mapping"])
    lines = text.split("\n")
    ends = np.cumsum([len(line) + 1 for line in lines]) - 1
    for number in defs:
        if number > len(lines) or not _HEADER.match(lines[number - 1]):
            continue
        colon = int(np.searchsorted(spans[:, 1], ends[number - 1]))
        last = colon + 1
        if colon >= len(ids) or spans[colon, 1] != ends[number - 1] or last + NEW_TOKENS > len(ids):
            continue
        for first in range(max(0, last - HEADER_TOKENS), last):
            start, end = int(spans[first, 0]), int(spans[colon, 1])
            if first and "\n" not in text[start : int(spans[first, 1])]:
                continue
            if parses(text[start:end] + " pass"):
                after = text[end : int(spans[last + NEW_TOKENS - 1, 1])]
                yield Prompt(document, tuple(ids[first:last]), text[start:end], after)
                break


def parses(snippet: str) -> bool:
    """Return whether a cut of a file parses as Python.

    Blank lines in front are dropped; if the first line is indented by 4, 8, ... it is put into
    that many `if True:` blocks, so that the snippet may leave its block again.
    """
    lines = snippet.split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    if not lines:
        return False
    depth = len(lines[0]) - len(lines[0].lstrip(" "))
    blocks = [" " * i + "if True:" for i in range(0, depth, 4)]
    try:
        ast.parse("\n".join([*blocks, *lines]))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def continued(prompt: Prompt, continuation: str) -> bool:
    """Return whether the prompt with the whole lines of a continuation parses."""
    return parses(prompt.text + continuation[: continuation.rfind("\n") + 1])


@torch.no_grad()
def continue_with_model(
    model: Any, tokenizer: Any, given: list[Prompt], seed: int | None
) -> list[str]:
    """Return 64 tokens after each prompt: greedy, or drawn at temperature 1 by a seed; never BOS."""
    how: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        texts: list[str] = []
        for start in range(0, len(given), 50):
            batch = [[BOS, *p.ids] for p in given[start : start + 50]]
            width = max(map(len, batch))
            ids = torch.tensor([[BOS] * (width - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                **how,
                suppress_tokens=[BOS],
                pad_token_id=BOS,
            )
            texts.extend(tokenizer.batch_decode(out[:, width:], clean_up_tokenization_spaces=False))
    return texts


def continue_with_ngrams(
    model: KneserNey, tokenizer: Any, given: list[Prompt], seed: int | None
) -> list[str]:
    """Return 64 tokens after each prompt: the likeliest each time, or drawn by a seed; never BOS."""
    generator = None if seed is None else numpy_generator(seed, "n-gram samples")
    return [tokenizer.decode(_extend(model, p, generator)) for p in given]


def _extend(model: KneserNey, prompt: Prompt, generator: np.random.Generator | None) -> list[int]:
    ids = [BOS, *prompt.ids]
    for _ in range(NEW_TOKENS):
        p = model.distribution(np.array(ids[-model.order :], dtype=np.uint16))
        p[BOS] = 0
        ids.append(
            int(p.argmax() if generator is None else generator.choice(len(p), p=p / p.sum()))
        )
    return ids[-NEW_TOKENS:]
