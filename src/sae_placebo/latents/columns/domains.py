"""Contexts that a reader of the text would recognize: scopes of Python code, and clusters of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import TokenTable

SCOPES = (
    *("kind.comment", "kind.docstring", "kind.string", "kind.fstring", "role.import"),
    *("inside.call_arguments", "inside.subscript", "inside.fstring_expression"),
    *("inside.decorator", "inside.class_body", "inside.function_body", "inside.method"),
    *("inside.nested_function", "inside.async", "inside.loop", "inside.try", "inside.except"),
    *("inside.with", "inside.if", "inside.comprehension", "inside.return"),
    *("bracket.in_square", "bracket.in_curly", "line.continuation", "clause.annotation"),
)
"""Labels that hold for stretches of text rather than for single tokens."""
LARGEST_SHARE = 0.4
"""Share of the text above which a context is left out: it is half of a precision of .8."""
_SMALLEST = 200
_MOST_TYPES = 1024
_ROUNDS = 30
_RESTARTS = 4
_COMPONENTS = 32
_TRIED = 5


@dataclass(frozen=True, eq=False)
class Domains:
    """Recognizable contexts of the tokens.

    Attributes:
        names: Name of each domain.
        members: [token, domain] whether the token lies in the domain; it may lie in several, or in none.
    """

    names: tuple[str, ...]
    members: Bool[np.ndarray, "token domain"]


def domains_of(
    tokens: TokenTable, seed: int, n_clusters: Sequence[int] = (4, 8, 16, 32)
) -> Domains:
    """Return the contexts of a text: scopes where its tokens are labeled, document clusters where not.

    There are clusters as soon as one document has no labels, as prose beside code has none, and then all
    documents are clustered. They are clustered several times, into 4, 8, 16 and 32, since it is not known
    how many kinds there are: a kind that is split in one clustering, or merged with another, may be whole
    in the next.

    Contexts of fewer than 200 tokens are left out, since nothing can be estimated in them, and so are those
    of more than 40% of the text, in which a precision of .8 says little.

    Args:
        tokens: The tokens that were read.
        seed: It names the starts of the clusterings.
        n_clusters: Number of clusters of each clustering.
    """
    labels, names, parts = tokens.labels, [], []
    labeled = np.zeros(tokens.n_documents, dtype=bool)
    if labels is not None and any(name in SCOPES for name in labels.names):
        chosen = [i for i, name in enumerate(labels.names) if name in SCOPES]
        names += [labels.names[i] for i in chosen]
        parts.append(
            np.concatenate(
                [labels.at(part)[:, chosen] for part in np.array_split(tokens.places, 16)]
            )
        )
        labeled[tokens.documents[labels.known[tokens.places[:, 0], tokens.places[:, 1]]]] = True
    if not labeled[tokens.documents].all():
        for n in n_clusters:
            names += [f"documents.{i}_of_{n}" for i in range(n)]
            clusters = document_clusters(tokens, seed, n)[tokens.documents]
            parts.append(clusters[:, None] == np.arange(n))
    members = np.concatenate(parts, axis=1) if parts else np.zeros((len(tokens), 0), dtype=bool)
    sizes = members.sum(0)
    kept = (sizes >= _SMALLEST) & (sizes <= LARGEST_SHARE * max(len(tokens), 1))
    return Domains(
        tuple(name for name, keep in zip(names, kept, strict=True) if keep), members[:, kept]
    )


def document_clusters(
    tokens: TokenTable, seed: int, n_clusters: int
) -> Int64[np.ndarray, " document"]:
    """Return the cluster of each document, by k-means on unigram profiles.

    A profile is the square root of the document's share of each of the 1,024 most frequent token ids, so
    that squared distances are Hellinger's, and is reduced to 32 principal components. The starts are those
    of k-means++ (Arthur and Vassilvitskii 2007), each center the best of 5 draws from a named seed. Lloyd's
    rounds follow until nothing changes, 30 at most, and the tightest of 4 such results is taken.
    """
    _, types = np.unique(tokens.ids, return_inverse=True)
    counts = np.bincount(types)
    common = np.argsort(-counts, kind="stable")[:_MOST_TYPES]
    rank = np.full(len(counts), -1, dtype=np.int64)
    rank[common] = np.arange(len(common))
    place = rank[types]
    seen = place >= 0
    cells = tokens.documents[seen].astype(np.int64) * len(common) + place[seen]
    profile = np.bincount(cells, minlength=tokens.n_documents * len(common))
    rows = profile.reshape(tokens.n_documents, len(common)).astype(np.float64)
    rows = np.sqrt(rows / np.maximum(rows.sum(1, keepdims=True), 1))
    rows = rows - rows.mean(0)
    rows = rows @ np.linalg.eigh(rows.T @ rows)[1][:, -_COMPONENTS:]
    n = min(n_clusters, len(rows))
    results = [_lloyd(rows, _starts(rows, seed, n, i)) for i in range(_RESTARTS)]
    return min(results, key=lambda result: result[1])[0]


def _starts(
    rows: Float[np.ndarray, "document type"], seed: int, n: int, restart: int
) -> Float[np.ndarray, "cluster type"]:
    draw = numpy_generator(seed, "document clusters", n, restart)
    chosen = [int(draw.integers(len(rows)))]
    nearest = ((rows - rows[chosen[0]]) ** 2).sum(1)
    while len(chosen) < n:
        total = nearest.sum()
        shares = nearest / total if total > 0 else np.full(len(rows), 1 / len(rows))
        tried = draw.choice(len(rows), _TRIED, p=shares)
        distance = ((rows[None] - rows[tried][:, None]) ** 2).sum(2)
        left = np.minimum(nearest, distance)
        best = int(left.sum(1).argmin())
        chosen.append(int(tried[best]))
        nearest = left[best]
    return rows[chosen]


def _lloyd(
    rows: Float[np.ndarray, "document type"], centers: Float[np.ndarray, "cluster type"]
) -> tuple[Int64[np.ndarray, " document"], float]:
    """Return the cluster of each document, and the sum of squared distances to the centers."""
    owner = np.full(len(rows), -1, dtype=np.int64)
    centers = centers.copy()
    for _ in range(_ROUNDS):
        distance = (centers**2).sum(1) - 2 * rows @ centers.T
        nearest = distance.argmin(1)
        if np.array_equal(nearest, owner):
            break
        owner = nearest
        for cluster in range(len(centers)):
            if np.any(owner == cluster):
                centers[cluster] = rows[owner == cluster].mean(0)
    return owner, float(((rows - centers[owner]) ** 2).sum())
