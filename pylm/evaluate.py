"""Evaluate pylm: `python -m pylm.evaluate --work runs/pylm --model runs/pylm/final`.

Held-out loss against tuned Kneser-Ney models on exactly the same tokens, copying, induction heads,
and continuations that parse. Figures go to a JSON file; `--markdown` prints them as a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from pylm import behavior, ngram
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units

STRIDE, ORDERS, MAIN_ORDER = 128, (3, 4, 5, 6), 5
LENGTHS, SEQUENCES, N_PROMPTS, RESAMPLES = (32, 64, 100), 64, 200, 4000
HEAD_LENGTH = 64
COPIED = 0.5  # a document is a near copy if so much of it stands in training text in runs of 20


@dataclass(frozen=True)
class HeldOut:
    """Documents of one split, their token ids without BOS, and how many bytes each token is."""

    documents: list[NDArray[np.uint16]]
    bytes_of: Int64[np.ndarray, " vocabulary"]

    def joined(self) -> NDArray[np.uint16]:
        """Return the documents' token ids in one array, each behind a BOS."""
        bos = np.array([ngram.BOS], dtype=np.uint16)
        return np.concatenate([part for d in self.documents for part in (bos, d)])

    def bytes_each(self) -> Int64[np.ndarray, " document"]:
        """Return the documents' sizes in bytes of UTF-8."""
        return np.array([self.bytes_of[d].sum() for d in self.documents])

    def draw(self, n_tokens: int, seed: int) -> list[int]:
        """Return drawn documents up to the one that reaches `n_tokens` tokens; all for 0."""
        if not n_tokens:
            return list(range(len(self.documents)))
        order = numpy_generator(seed, "held-out documents").permutation(len(self.documents))
        reached = np.cumsum([len(self.documents[i]) for i in order])
        return sorted(order[: int(np.searchsorted(reached, n_tokens)) + 1].tolist())


def held_out(work: Path, tokenizer: Any) -> HeldOut:
    """Return the held-out split; its bytes must be those that data.json counted."""
    joined = np.load(work / "heldout.npy")
    documents = [d[1:] for d in np.split(joined, np.flatnonzero(joined == ngram.BOS)[1:])]
    # in a byte-level vocabulary, one character stands for one byte
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    sizes = np.array([0 if i == ngram.BOS else len(name) for i, name in enumerate(names)])
    found = HeldOut(documents, sizes)
    facts = json.loads((work / "data.json").read_text())["splits"]["heldout"]
    if (len(documents), int(found.bytes_each().sum())) != (facts["documents"], facts["bytes"]):
        raise SystemExit(f"{work}/heldout.npy is not what data.json counted; make both again")
    return found


def windows(n_tokens: int, width: int, stride: int) -> list[tuple[int, int]]:
    """Return (start, first scored) of the windows of `width` tokens that score each token once."""
    found = [(0, 0)]
    while found[-1][0] + width < n_tokens:
        start = found[-1][0]
        found.append((start + stride, start + width))
    return found


@torch.no_grad()
def nats(
    model: Any, documents: list[NDArray[np.uint16]], stride: int | None
) -> list[Float64[np.ndarray, " token"]]:
    """Return the loss in nats of every token of each document.

    Windows hold BOS and as many tokens as the model's context takes; they move by `stride` tokens
    and score what the window before did not reach, or lie side by side where it is None.
    """
    width = model.config.max_position_embeddings - 1
    found = [np.zeros(len(d)) for d in documents]
    places = [
        (i, start, first)
        for i, d in enumerate(documents)
        for start, first in windows(len(d), width, stride or width)
    ]
    for at in range(0, len(places), 32):
        batch = places[at : at + 32]
        ids = torch.full((len(batch), width + 1), ngram.BOS)
        for row, (i, start, _) in enumerate(batch):
            part = documents[i][start : start + width].astype(np.int64)
            ids[row, 1 : 1 + len(part)] = torch.from_numpy(part)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, 1:], reduction="none"
        ).numpy()
        for row, (i, start, first) in enumerate(batch):
            end = min(start + width, len(documents[i]))
            found[i][first:end] = loss[row, first - start : end - start]
    return found


def interval(
    above: Sequence[float] | NDArray[Any], below: Sequence[float] | NDArray[Any], seed: int
) -> dict[str, Any]:
    """Return sum(above) / sum(below) with a 95 % percentile bootstrap over the units."""
    over, under = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    drawn = resampled_units(numpy_generator(seed, "bootstrap"), len(over), RESAMPLES)
    ratios = over[drawn].sum(axis=1) / under[drawn].sum(axis=1)
    low, high = percentile_interval(ratios)
    return {
        "value": float(over.sum() / under.sum()),
        "low": low,
        "high": high,
        "n": len(over),
    }


def fit_ngrams(work: Path, vocabulary: int) -> dict[str, Any]:
    """Return the tuned n-gram models by name, and the main one with a cache."""
    counts = ngram.count(np.load(work / "train.npy"), max(ORDERS), vocabulary)
    dev = np.load(work / "dev.npy")
    found: dict[str, Any] = {}
    for order in ORDERS:
        plain = ngram.KneserNey(counts, order)
        found[f"kneser_ney_{order}"] = ngram.tune(plain, dev)
        if order == MAIN_ORDER:
            found[f"kneser_ney_{order}_untuned"] = plain
    main = found[f"kneser_ney_{MAIN_ORDER}"]
    found[f"kneser_ney_{MAIN_ORDER}_with_cache"] = ngram.tune_cache(main, dev)
    return found


def losses(
    model: Any, ngrams: dict[str, Any], held: HeldOut, chosen: list[int]
) -> dict[str, NDArray[np.float64]]:
    """Return the bits that every model spends on each chosen document, on the same tokens."""
    some = [held.documents[i] for i in chosen]
    ends = np.cumsum([len(d) for d in held.documents])[:-1]
    sums = {}
    for name, one in ngrams.items():
        parts = np.split(-one.log2_probabilities(held.joined()), ends)
        sums[name] = np.array([parts[i].sum() for i in chosen])
    for name, stride in (("pylm", STRIDE), ("pylm_rows", None)):
        sums[name] = np.array([p.sum() for p in nats(model, some, stride)]) / np.log(2)
    return sums


def compared(
    sums: dict[str, NDArray[np.float64]], held: HeldOut, chosen: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Return bits per byte, nats per token and gaps to pylm over some documents."""
    size = held.bytes_each()[chosen]
    tokens = np.array([len(held.documents[i]) for i in chosen])
    main = f"kneser_ney_{MAIN_ORDER}"
    return {
        "documents": len(chosen),
        "tokens": int(tokens.sum()),
        "bytes": int(size.sum()),
        "bits_per_byte": {name: interval(bits, size, seed) for name, bits in sums.items()},
        "nats_per_token": {
            name: interval(bits * np.log(2), tokens, seed) for name, bits in sums.items()
        },
        "bits_per_byte_below": {
            name: interval(bits - sums["pylm"], size, seed)
            for name, bits in sums.items()
            if name != "pylm"
        },
        "rows_below": {main: interval(sums[main] - sums["pylm_rows"], size, seed)},
        "documents_won": {main: int((sums["pylm"] < sums[main]).sum())},
    }


def copies(model: Any, eager: Any, seed: int) -> dict[str, Any]:
    """Return the loss on both halves of repeated random sequences, and the heads' scores."""
    halves = {}
    for length in LENGTHS:
        first, second = behavior.copying(model, length, SEQUENCES, seed)
        ones = np.ones(SEQUENCES)
        halves[str(length)] = {
            "first_half_nats": interval(first, ones, seed),
            "second_half_nats": interval(second, ones, seed),
            "below": interval(first - second, ones, seed),
        }
    scores = behavior.heads(eager, HEAD_LENGTH, SEQUENCES, seed)
    best = {}
    for name, table in scores.items():
        layer, head = np.unravel_index(table.argmax(), table.shape)
        best[name] = {"layer": int(layer), "head": int(head), "score": float(table.max())}
    return {
        "lengths": halves,
        "uniform_nats": float(np.log(model.config.vocab_size - 1)),
        "head_length": HEAD_LENGTH,
        "heads": {name: table.round(4).tolist() for name, table in scores.items()},
        "best_heads": best,
    }


def continuations(model: Any, main: Any, tokenizer: Any, held: HeldOut, seed: int) -> Any:
    """Return the shares of continuations that parse, and their differences by document."""
    texts = [tokenizer.decode(d, clean_up_tokenization_spaces=False) for d in held.documents]
    given = behavior.prompts(texts, tokenizer, N_PROMPTS, seed)
    if not given:
        raise SystemExit("no held-out document has a function header to continue")
    made = {"truth": [p.truth for p in given]}
    for name, seeded in (("greedy", None), ("sampled", seed)):
        made[f"pylm_{name}"] = behavior.continue_with_model(model, tokenizer, given, seeded)
        made[f"ngram_{name}"] = behavior.continue_with_ngrams(main, tokenizer, given, seeded)
    right = {
        name: np.array([behavior.continued(p, c) for p, c in zip(given, found, strict=True)])
        for name, found in made.items()
    }
    units = np.unique([p.document for p in given], return_inverse=True)[1]
    size = np.bincount(units)

    def share(values: NDArray[Any]) -> dict[str, Any]:
        return interval(np.bincount(units, weights=values), size, seed)

    return {
        "prompts": len(given),
        "documents": len(size),
        "new_tokens": behavior.NEW_TOKENS,
        "parsed": {name: share(values) for name, values in right.items()},
        "more_than_ngram": {
            how: share(right[f"pylm_{how}"].astype(float) - right[f"ngram_{how}"])
            for how in ("greedy", "sampled")
        },
        "examples": [
            {"prompt": p.text[-300:], **{name: found[i] for name, found in made.items()}}
            for i, p in enumerate(given[:4])
        ],
    }


def evaluate(work: Path, folder: Path, n_tokens: int, seed: int) -> dict[str, Any]:
    """Return every figure of the model in `folder`."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        AutoModelForCausalLM.from_pretrained(folder)
        times.append(round(time.perf_counter() - began, 3))
    # from_pretrained returns models in evaluation mode
    model, eager = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=how)
        for how in ("sdpa", "eager")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held = held_out(work, tokenizer)
    began = time.perf_counter()
    ngrams = fit_ngrams(work, model.config.vocab_size)
    main = ngrams[f"kneser_ney_{MAIN_ORDER}"]
    result = {
        "model": folder.name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": sum(p.stat().st_size for p in folder.iterdir()) / 1e6,
        "seconds_to_load": times,
        "seconds_to_fit_ngrams": round(time.perf_counter() - began, 1),
        "discounts": {
            name: one.discounts.round(3).tolist()
            for name, one in ngrams.items()
            if isinstance(one, ngram.KneserNey)
        },
    }
    chosen = held.draw(n_tokens, seed)
    sums = losses(model, ngrams, held, chosen)
    places = np.array(chosen)
    result["window_stride"] = STRIDE
    result["losses"] = compared(sums, held, places, seed)
    shares = ngram.seen_shares(np.load(work / "train.npy"), held.joined())[places]
    fresh = shares < COPIED
    result["seen_shares"] = shares.round(4).tolist()
    result["losses_without_copies"] = compared(
        {name: bits[fresh] for name, bits in sums.items()}, held, places[fresh], seed
    )
    result["copying"] = copies(model, eager, seed)
    result["continuations"] = continuations(model, main, tokenizer, held, seed)
    return result


def markdown(found: dict[str, Any]) -> str:
    """Return the figures as the table of the model's card."""
    loss, copied, continuing = found["losses"], found["copying"], found["continuations"]
    rows: list[tuple[str, str]] = [
        ("Parameters", f"{found['parameters']:,}"),
        ("Size on disk", f"{found['megabytes']:.1f} MB"),
        ("Loading, first and again", " and ".join(f"{s:.2f} s" for s in found["seconds_to_load"][:2])),
        ("Held-out text", ", ".join(f"{loss[k]:,} {k}" for k in ("documents", "tokens", "bytes"))),
    ]  # fmt: skip
    for name, one in loss["bits_per_byte"].items():
        each = loss["nats_per_token"][name]["value"]
        rows.append((f"Bits per byte, {_plain(name)}", f"{_shown(one)}; {each:.3f} nats per token"))
    for name, one in loss["bits_per_byte_below"].items():
        rows.append((f"Bits per byte below {_plain(name)}", _shown(one)))
    fresh = found["losses_without_copies"]
    rows.append(("Without near copies of training documents", f"{fresh['documents']} documents"))
    for name in ("pylm", f"kneser_ney_{MAIN_ORDER}", f"kneser_ney_{MAIN_ORDER}_with_cache"):
        rows.append((f"... bits per byte, {_plain(name)}", _shown(fresh["bits_per_byte"][name])))
    gap = fresh["bits_per_byte_below"][f"kneser_ney_{MAIN_ORDER}"]
    rows.append((f"... bits per byte below Kneser-Ney {MAIN_ORDER}", _shown(gap)))
    for length, one in copied["lengths"].items():
        halves = [_shown(one[k], 2) for k in ("first_half_nats", "second_half_nats")]
        rows.append((f"Repeated {length} random tokens, nats", " then ".join(halves)))
    for name, one in copied["best_heads"].items():
        where = f"layer {one['layer']}, head {one['head']}"
        rows.append((f"Best {_plain(name)} head", f"{one['score']:.2f} ({where})"))
    for name, one in continuing["parsed"].items():
        rows.append((f"Continuations that parse, {_plain(name)}", _shown(one, 2)))
    for name, one in continuing["more_than_ngram"].items():
        rows.append((f"Parse more often than the n-gram's, {name}", _shown(one, 2)))
    lines = [f"| {what} | {value} |" for what, value in rows]
    return "\n".join(["| Figure | Value (95 % interval) |", "|---|---|", *lines])


def _plain(name: str) -> str:
    return name.replace("kneser_ney_", "Kneser-Ney ").replace("_", " ")


def _shown(one: dict[str, Any], digits: int = 3) -> str:
    return f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def main() -> None:
    """Run `python -m pylm.evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pylm"))
    parser.add_argument("--model", type=Path, help="folder of the model; default WORK/final")
    parser.add_argument("--out", type=Path, help="default WORK/evaluation.json")
    parser.add_argument(
        "--tokens", type=int, default=0, help="held-out tokens to draw documents for; 0: all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--markdown", action="store_true", help="only print the table of figures made before"
    )
    given = parser.parse_args()
    out = given.out or given.work / "evaluation.json"
    if not given.markdown:
        torch.set_num_threads(given.threads)
        folder = given.model or given.work / "final"
        found = evaluate(given.work, folder, given.tokens, given.seed)
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.write(markdown(json.loads(out.read_text())) + "\n")


if __name__ == "__main__":
    main()
