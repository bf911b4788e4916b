"""What `structure.py` reads: a text with labels, activations of two models, SAEs and their codes.

Ids follow Zipf's law; a third of them are of the document's topic, some follow from the token before;
documents have 1,000 to 5,000 tokens, in rows of 256. Labels hold for ids, and for stretches of text.
Activations are a row for the token, one for the token before, and noise; the placebo's model has other
rows for the token before. SAEs have random rows; half of the sibling's are near the SAE's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.labels.catalogue import NAMES
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import TokenTable
from sae_placebo.latents.columns.domains import SCOPES
from sae_placebo.saes import SAE, TopKSpec

D_IN, K, VOCABULARY, WIDTH, SEED = 256, 32, 4096, 256, 0
CHUNK = 65_536
TRAINED, PLACEBO = "trained", "placebo"


def text(n_tokens: int) -> TokenTable:
    """Return a text of so many tokens that are read; a shorter one is the beginning of a longer one."""
    shapes = numpy_generator(SEED, "lengths of documents")
    lengths = shapes.integers(1_000, 5_001, 8 + n_tokens // 1_000)
    lengths = lengths[: 1 + int(np.searchsorted(np.cumsum(lengths), n_tokens))]
    found: list[np.ndarray] = []
    sizes: list[int] = []
    owners: list[int] = []
    for document, length in enumerate(lengths):
        ids = _document(document, int(length))
        for first in range(0, len(ids), WIDTH - 1):
            piece = ids[first : first + WIDTH - 1]
            found.append(np.pad(np.append(0, piece), (0, WIDTH - 1 - len(piece))))
            sizes.append(1 + len(piece))
            owners.append(document)
    ids = np.array(found, dtype=np.int32)
    rows = Rows(
        token_ids=ids,
        lengths=np.array(sizes, dtype=np.int32),
        documents=np.array(owners, dtype=np.int32),
        names=tuple(f"document {i}" for i in range(len(lengths))),
        labels=_labels(ids),
    )
    places = np.argwhere(rows.usable())[:n_tokens]
    return TokenTable(rows, places, _vocabulary())


def _document(document: int, length: int) -> np.ndarray:
    draw = numpy_generator(SEED, "document", document)
    shares = np.cumsum(1 / np.arange(1, VOCABULARY))
    ids: np.ndarray = 1 + np.searchsorted(shares, draw.random(length) * shares[-1])
    topic = np.arange(VOCABULARY)
    topic[64:] = 64 + numpy_generator(SEED, "topic", document % 8).permutation(VOCABULARY - 64)
    ids = np.where(draw.random(length) < 1 / 3, topic[ids], ids)
    behind = numpy_generator(SEED, "token behind each").integers(1, VOCABULARY, VOCABULARY)
    follows = draw.random(length) < 0.2
    follows[0] = False
    ids[follows] = behind[np.roll(ids, 1)[follows]]
    return ids


def _labels(ids: np.ndarray) -> Labels:
    """Return labels: some are decided by the id, scopes hold for stretches of 32 tokens."""
    draw = numpy_generator(SEED, "labels")
    scopes = np.isin(NAMES, SCOPES)
    chance = draw.uniform(0.02, 0.3, len(NAMES))
    of_id = (draw.random((VOCABULARY, len(NAMES))) < chance) & ~scopes
    of_stretch = (draw.random((300, len(NAMES))) < chance) & scopes
    packed = [np.packbits(one, axis=1, bitorder="little") for one in (of_id, of_stretch)]
    bits = np.empty((*ids.shape, packed[0].shape[1]), dtype=np.uint8)
    for row, own in enumerate(ids):
        stretches = numpy_generator(SEED, "stretches", row).zipf(1.3, -(-ids.shape[1] // 32)) % 300
        bits[row] = packed[0][own] | packed[1][np.repeat(stretches, 32)[: ids.shape[1]]]
    return Labels(NAMES, bits, np.ones(ids.shape, dtype=bool))


def _vocabulary() -> tuple[str, ...]:
    draw = numpy_generator(SEED, "words")
    letters = np.array(list("etaoinshrdlucmfw"))
    words = ["".join(draw.choice(letters, n)) for n in draw.integers(1, 9, VOCABULARY)]
    forms: tuple[Callable[[str], str], ...] = (
        *(lambda w: f" {w}", str, lambda w: f" {w}ing", lambda w: f" {w.capitalize()}"),
        *(lambda w: w.upper(), lambda w: str(len(w)), lambda w: "." * len(w), lambda w: f"_{w}"),
    )
    return tuple(forms[i % len(forms)](word) for i, word in enumerate(words))


def rows_of(name: str) -> np.ndarray:
    """Return a fixed vector of length 1, about, for each id."""
    drawn = numpy_generator(SEED, name).standard_normal((VOCABULARY, D_IN), np.float32)
    return np.asarray(drawn / np.float32(math.sqrt(D_IN)))


def activations(tokens: TokenTable, model: str, into: np.ndarray) -> None:
    """Write what a model makes of the tokens: rows of the token and of the one before, and noise."""
    current, before = rows_of("token"), rows_of(f"token before, {model}")
    for i, first in enumerate(range(0, len(tokens), CHUNK)):
        part = slice(first, first + CHUNK)
        draw = numpy_generator(SEED, "noise", model, i)
        noise = draw.standard_normal((CHUNK, D_IN), np.float32)[: len(tokens.ids[part])]
        noise *= np.float32(0.5 / math.sqrt(D_IN))
        into[part] = noise + current[tokens.ids[part]] + 0.6 * before[tokens.previous[part]]


def sae_of(d_sae: int, which: str) -> SAE:
    """Return the SAE, its sibling or the placebo's, with random rows; half the sibling's are near."""
    spec = TopKSpec(d_sae=d_sae, k=K)
    made = spec.create(D_IN, {"sae": 0, "sibling": 1, "placebo": 2}[which])
    if which == "sibling":
        rows = made.params["W_dec"].clone()
        own, half = sae_of(d_sae, "sae").params["W_dec"], d_sae // 2
        order = numpy_generator(SEED, "order of the sibling", d_sae).permutation(d_sae)[:half]
        mixed = own[torch.from_numpy(order)] + 0.6 * rows[:half]
        rows[:half] = torch.nn.functional.normalize(mixed, dim=1)
        scale = made.params["W_enc"].norm(dim=0)
        made = SAE(spec, dict(made.params) | {"W_dec": rows, "W_enc": (rows * scale[:, None]).t()})
    return made


def codes_of(sae: SAE, x: torch.Tensor) -> Any:
    """Return codes, scipy CSR, encoded a chunk at a time."""
    from scipy.sparse import csr_matrix, vstack

    parts = []
    for first in range(0, len(x), 8_192):
        chunk = x[first : first + 8_192]
        codes = sae.encode(chunk)
        latents = codes.latents.numpy().astype(np.int32)
        one = (codes.values.numpy(), latents, codes.offsets.numpy())
        parts.append(csr_matrix(one, shape=(len(chunk), sae.d_sae)))
    return vstack(parts, "csr")


def prepare(folder: Path, n_tokens: int, sizes: Mapping[int, int]) -> None:
    """Write the activations of both models, and the codes of the SAEs that are held beside."""
    tokens = text(n_tokens)
    for model in (TRAINED, PLACEBO):
        shape = (len(tokens), D_IN)
        file = np.lib.format.open_memmap(folder / f"{model}.npy", "w+", np.float32, shape)
        activations(tokens, model, file)
        file.flush()
    for d_sae, n in sizes.items():
        for which, model in (("sibling", TRAINED), ("placebo", PLACEBO)):
            codes = codes_of(sae_of(d_sae, which), read(folder, model, n))
            for name in ("data", "indices", "indptr"):
                np.save(folder / f"{which}-{d_sae}-{name}.npy", getattr(codes, name))


def read(folder: Path, model: str, n_tokens: int) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{model}.npy", mmap_mode="c")[:n_tokens])


def read_codes(folder: Path, which: str, d_sae: int, n_tokens: int) -> Any:
    from scipy.sparse import csr_matrix

    whole = [
        np.load(folder / f"{which}-{d_sae}-{name}.npy", mmap_mode="r")
        for name in ("data", "indices", "indptr")
    ]
    bounds = np.array(whole[2][: n_tokens + 1])
    values, latents = (np.array(part[: bounds[-1]]) for part in whole[:2])
    return csr_matrix((values, latents, bounds), shape=(n_tokens, d_sae))
