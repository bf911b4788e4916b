"""The corpus as token ids: made once, kept in the work folder, known by the corpus's hash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16

from pylm import corpus, tokenizer

SPLITS = ("train", "dev", "heldout")


@dataclass(frozen=True)
class Tokens:
    """Token ids of each split, documents joined and each behind a BOS, and what they came from."""

    splits: dict[str, UInt16[np.ndarray, " token"]]
    facts: dict[str, Any]


def prepare(work: Path, vocabulary: int) -> Tokens:
    """Return the corpus as tokens, from the work folder where it is there."""
    facts_path = work / "data.json"
    if not facts_path.exists():
        _make(work, vocabulary, facts_path)
    facts = json.loads(facts_path.read_text())
    return Tokens({s: np.load(work / f"{s}.npy", mmap_mode="r") for s in SPLITS}, facts)


def _make(work: Path, vocabulary: int, facts_path: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    found = list(corpus.documents())
    learned = tokenizer.learn(
        (d.text for d in found if d.split == "train"),
        vocabulary,
    )
    tokenizer.save(learned, work / "tokenizer")
    facts: dict[str, Any] = {
        "corpus_sha256": corpus.sha256(found),
        "versions": corpus.versions(),
        "splits": {},
    }
    for split in SPLITS:
        texts = [d.text for d in found if d.split == split]
        ids = []
        for start in range(0, len(texts), 256):
            batch = texts[start : start + 256]
            for one in learned(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                ids.append(np.array([learned.bos_token_id, *one], dtype=np.uint16))
        joined = np.concatenate(ids)
        np.save(work / f"{split}.npy", joined)
        facts["splits"][split] = {
            "documents": len(texts),
            "bytes": sum(len(t.encode("utf-8", "surrogatepass")) for t in texts),
            "tokens": len(joined) - len(texts),
        }
    facts_path.write_text(json.dumps(facts, indent=1))
