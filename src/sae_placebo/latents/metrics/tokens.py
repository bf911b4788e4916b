"""Which tokens a latent fires on: one pass over its codes gives every token statistic.

Codes are summed once into the activation mass of each latent, token id and document. These make a sparse
matrix [latent and token, document]. Its product with the document weights is the mass of every token id in
every bootstrap replicate, and all statistics follow from these masses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Integer

from sae_placebo.data.tokenizing import is_numbered
from sae_placebo.latents.base import Columns, Encoded
from sae_placebo.latents.classes.thresholds import ClassThresholds
from sae_placebo.latents.metrics.base import Evidence, ratio
from sae_placebo.latents.metrics.entropy_null import entropy_null
from sae_placebo.latents.metrics.sparsity import by_document, firings
from sae_placebo.latents.metrics.token_families import token_families

# how many elements of [latent and token, replicate] masses are held at once
_BLOCK = 8_000_000


@dataclass(frozen=True)
class TokenStatistics:
    """What each latent fires on, under each column of document weights; NaN where it never fires.

    Attributes:
        n_tokens: Number of tokens, by replicate.
        n_active: Number of tokens on which the latent is active.
        density: Share of tokens on which the latent is active.
        token_entropy_bits: Entropy over token ids of the latent's activation mass,
            H = - sum p_i log2 p_i with p_i the share of its total activation that is on id i.
        n_effective: 2 to the entropy of the activation over positions: the number of equally strong
            activations that would be as spread out.
        token_entropy_null_bits: Expected token entropy of n_effective random positions.
        effective_tokens: 2 to the token entropy.
        top_token: Token id with the largest mass; -1 where the latent never fires.
        top_token_mass: Share of the activation on that token.
        top_token_recall: Share of that token's occurrences on which the latent is active.
        family_mass: Share of the activation on the family of tokens that has most of it.

    Source: token entropy is that of Heap et al. 2025 (arXiv 2501.17727). Differs: they use a latent's most
    activating examples only, which limits the entropy to the logarithm of their number, and do not state the
    logarithm's base; here every held-out activation counts, in bits. Recall and mass are definitions of this
    package.
    """

    n_tokens: Float[np.ndarray, " replicate"]
    n_active: Float[np.ndarray, "latent replicate"]
    density: Float[np.ndarray, "latent replicate"]
    token_entropy_bits: Float32[np.ndarray, "latent replicate"]
    n_effective: Float32[np.ndarray, "latent replicate"]
    token_entropy_null_bits: Float32[np.ndarray, "latent replicate"]
    effective_tokens: Float32[np.ndarray, "latent replicate"]
    top_token: Int64[np.ndarray, "latent replicate"]
    top_token_mass: Float32[np.ndarray, "latent replicate"]
    top_token_recall: Float32[np.ndarray, "latent replicate"]
    family_mass: Float32[np.ndarray, "latent replicate"]

    @property
    def columns(self) -> Columns:
        """The statistics that `classification.decide` reads, by name, in double precision."""
        names = ("n_active", "density", "effective_tokens", "top_token_mass", "top_token_recall")
        return {name: getattr(self, name).astype(np.float64) for name in (*names, "family_mass")}


@dataclass(frozen=True)
class TokenEntropies:
    """The entropies of `TokenStatistics`, which can be computed without the other statistics."""

    n_active: Float[np.ndarray, "latent replicate"]
    token_entropy_bits: Float32[np.ndarray, "latent replicate"]
    n_effective: Float32[np.ndarray, "latent replicate"]
    token_entropy_null_bits: Float32[np.ndarray, "latent replicate"]


def token_evidence(reading: Encoded, thresholds: ClassThresholds | None = None) -> Evidence:
    """Return what the token statistics of an SAE read; its reconstruction errors are left at 0.

    Args:
        reading: The SAE and its codes on the held-out tokens.
        thresholds: Where one class of latents ends and the next begins.
    """
    tokens, codes = reading.tokens, reading.codes
    nothing = np.zeros(tokens.n_documents)
    return Evidence(
        token_ids=tokens.ids,
        documents=tokens.documents,
        n_documents=tokens.n_documents,
        offsets=codes.indptr.astype(np.int64),
        latents=codes.indices,
        values=codes.data,
        d_sae=reading.d_sae,
        vocabulary=tokens.vocabulary,
        squared_error=nothing,
        activation_sum=nothing[:, None],
        activation_energy=nothing,
        thresholds=thresholds or ClassThresholds(),
    )


def token_entropies(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> TokenEntropies:
    """Return the token entropies of every latent under each column of document weights.

    They are computed once for each pair of evidence and weights.
    """

    def compute() -> TokenEntropies:
        n_effective, null = token_null(evidence, weights)
        filled = _filled(evidence, weights, entropy_alone=True)
        return TokenEntropies(firings(evidence, weights), filled.entropy, n_effective, null)

    return evidence.shared("token_entropies", weights, compute)


def token_null(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> tuple[Float32[np.ndarray, "latent replicate"], Float32[np.ndarray, "latent replicate"]]:
    """Return `n_effective` and `token_entropy_null_bits`, for which no sums by token are needed."""

    def compute() -> tuple[Any, Any]:
        n_effective = _effective_positions(evidence, weights)
        null = entropy_null(_types(evidence).counts @ weights).at(n_effective)
        return n_effective.astype(np.float32), null.astype(np.float32)

    return evidence.shared("token_null", weights, compute)


def token_statistics(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> TokenStatistics:
    """Return the token statistics of every latent under each column of document weights.

    They are computed once for each pair of evidence and weights.
    """
    return evidence.shared("token_statistics", weights, lambda: _compute(evidence, weights))


@dataclass(frozen=True)
class _Types:
    """The token ids that occur, and how often in each document."""

    ids: Integer[np.ndarray, " type"]
    of_token: Integer[np.ndarray, " token"]
    counts: Any  # CSR [type, document]


def _types(evidence: Evidence) -> _Types:
    from scipy.sparse import coo_matrix

    def compute() -> _Types:
        ids, types = np.unique(evidence.token_ids, return_inverse=True)
        shape = (len(ids), evidence.n_documents)
        ones = np.ones(evidence.n_tokens)
        return _Types(ids, types, coo_matrix((ones, (types, evidence.documents)), shape).tocsr())

    return evidence.shared("types", np.zeros((0, 0)), compute)


@dataclass(frozen=True)
class _Groups:
    """Activation by (latent, token), rows sorted by latent, then family, then token."""

    latents: Integer[np.ndarray, " group"]
    types: Integer[np.ndarray, " group"]
    families: Integer[np.ndarray, " group"]
    mass: Any  # CSR [group, document], float32
    counts: Any  # CSR [group, document], float32
    no_words: bool  # whether nobody knows which tokens are one family


def _groups(evidence: Evidence) -> _Groups:
    from scipy.sparse import csr_matrix

    seen = _types(evidence)
    families = token_families(evidence.vocabulary, seen.ids.astype(np.int64))
    # types are renumbered so that their order is that of their families
    order = np.lexsort((np.arange(len(families)), families))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    # tokens are put in the order of type and document; each latent's codes are then in that order as well,
    # and nothing but the tokens has to be sorted
    cell = place[seen.of_token] * evidence.n_documents + evidence.documents
    by_cell = np.argsort(cell, kind="stable")
    shape = (evidence.n_tokens, evidence.d_sae)
    codes = csr_matrix((evidence.values, evidence.latents, evidence.offsets), shape=shape)
    codes = codes[by_cell].tocsc()
    cells = cell[by_cell][codes.indices]
    first = np.diff(cells, prepend=-1) != 0
    first[codes.indptr[:-1][np.diff(codes.indptr) > 0]] = True
    starts = np.flatnonzero(first)
    mass = np.add.reduceat(codes.data, starts, dtype=np.float64)
    counts = np.diff(starts, append=len(cells)).astype(np.float32)
    latents = np.repeat(np.arange(evidence.d_sae), np.diff(codes.indptr))[starts]
    place_of, document = np.divmod(cells[starts], evidence.n_documents)
    rows = np.flatnonzero(
        (np.diff(latents, prepend=-1) != 0) | (np.diff(place_of, prepend=-1) != 0)
    )
    shape = (len(rows), evidence.n_documents)
    pointers = np.append(rows, len(latents)).astype(np.int32)
    document, types = document.astype(np.int32), order[place_of[rows]]
    return _Groups(
        latents=latents[rows],
        types=types,
        families=families[types],
        mass=csr_matrix((mass.astype(np.float32), document, pointers), shape=shape),
        counts=csr_matrix((counts, document, pointers), shape=shape),
        no_words=is_numbered(evidence.vocabulary),
    )


def _compute(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> TokenStatistics:
    n_tokens = evidence.document_tokens @ weights
    n_active = firings(evidence, weights)
    n_effective, null = token_null(evidence, weights)
    filled = _filled(evidence, weights)
    silent = ~(n_active > 0)
    return TokenStatistics(
        n_tokens=n_tokens,
        n_active=n_active,
        density=ratio(n_active, np.broadcast_to(n_tokens, n_active.shape)),
        token_entropy_bits=filled.entropy,
        n_effective=n_effective,
        token_entropy_null_bits=null,
        effective_tokens=np.exp2(filled.entropy),
        top_token=np.where(silent, -1, _types(evidence).ids[filled.top].astype(np.int64)),
        top_token_mass=filled.top_mass,
        top_token_recall=filled.recall,
        family_mass=filled.family_mass,
    )


def _filled(
    evidence: Evidence,
    weights: Float[np.ndarray, "document replicate"],
    entropy_alone: bool = False,
) -> _FoundTokens:
    """Return the statistics that follow from the masses by token, one block of latents after the other."""
    shape = (evidence.d_sae, weights.shape[1])
    filled = _FoundTokens(
        entropy=np.full(shape, np.nan, dtype=np.float32),
        top=np.full(shape, -1, dtype=np.int64),
        top_mass=np.full(shape, np.nan, dtype=np.float32),
        recall=np.full(shape, np.nan, dtype=np.float32),
        family_mass=np.full(shape, np.nan, dtype=np.float32),
    )
    if len(evidence.latents) == 0:
        return filled
    groups, type_counts = _groups(evidence), _types(evidence).counts @ weights
    firsts = np.flatnonzero(np.diff(groups.latents, prepend=-1))
    bounds = np.append(firsts, len(groups.latents))
    most = max(1, _BLOCK // weights.shape[1])
    begin = 0
    while begin < len(firsts):
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + most, "right")) - 1)
        _fill(filled, groups, bounds[begin : end + 1], weights, type_counts, entropy_alone)
        begin = end
    return filled


@dataclass(frozen=True)
class _FoundTokens:
    entropy: Float32[np.ndarray, "latent replicate"]
    top: Int64[np.ndarray, "latent replicate"]
    top_mass: Float32[np.ndarray, "latent replicate"]
    recall: Float32[np.ndarray, "latent replicate"]
    family_mass: Float32[np.ndarray, "latent replicate"]


def _fill(
    into: _FoundTokens,
    groups: _Groups,
    bounds: Int64[np.ndarray, " latents_plus_one"],
    weights: Float[np.ndarray, "document replicate"],
    type_counts: Float[np.ndarray, "type replicate"],
    entropy_alone: bool,
) -> None:
    """Write the statistics of the latents whose groups lie between consecutive bounds."""
    rows = slice(int(bounds[0]), int(bounds[-1]))
    starts = bounds - bounds[0]
    latents = groups.latents[bounds[:-1]]
    share = groups.mass[rows] @ weights.astype(np.float32)
    total = _segment_sums(share, starts)
    silent: Bool[np.ndarray, "latent replicate"] = total <= 0
    total[silent] = 1
    share /= np.repeat(total, np.diff(starts), axis=0)

    logs = np.log2(np.maximum(share, np.float32(1e-30)))
    logs *= share
    entropy = -_segment_sums(logs, starts)
    del logs
    into.entropy[latents] = np.where(silent, np.nan, np.maximum(entropy, 0))
    if entropy_alone:
        return
    first_of_family = np.diff(groups.families[rows], prepend=-1) != 0
    first_of_family[starts[:-1]] = True
    family_starts = np.append(np.flatnonzero(first_of_family), len(share))
    family_share = _segment_sums(share, family_starts)
    family_bounds = np.searchsorted(family_starts, starts)

    top = np.empty((len(latents), weights.shape[1]), dtype=np.int64)
    family_mass = np.empty(top.shape, dtype=np.float32)
    for index in range(len(latents)):
        begin, end = starts[index], starts[index + 1]
        share[begin:end].argmax(axis=0, out=top[index])
        begin_family, end_family = family_bounds[index], family_bounds[index + 1]
        family_share[begin_family:end_family].max(axis=0, out=family_mass[index])
    top += starts[:-1, None]
    top_mass = np.take_along_axis(share, top, axis=0)

    # recall needs only the counts of the top tokens
    needed, place = np.unique(top, return_inverse=True)
    active = groups.counts[needed + rows.start] @ weights
    top_types = groups.types[rows][top]
    replicate = np.broadcast_to(np.arange(weights.shape[1]), top.shape)
    recall = ratio(active[place.reshape(top.shape), replicate], type_counts[top_types, replicate])

    into.top[latents] = top_types
    into.top_mass[latents] = np.where(silent, np.nan, np.minimum(top_mass, 1))
    into.recall[latents] = np.where(silent, np.nan, recall)
    unknown = silent | groups.no_words
    into.family_mass[latents] = np.where(unknown, np.nan, np.minimum(family_mass, 1))


def _segment_sums(
    rows: Float32[np.ndarray, "row replicate"], bounds: Int64[np.ndarray, " segments_plus_one"]
) -> Float32[np.ndarray, "segment replicate"]:
    """Return the sums of the rows between consecutive bounds.

    A product with a matrix of ones takes a fifth of the time of `numpy.add.reduceat`.
    """
    from scipy.sparse import csr_matrix

    ones = csr_matrix(
        (np.ones(len(rows), dtype=np.float32), np.arange(len(rows)), bounds),
        shape=(len(bounds) - 1, len(rows)),
    )
    sums: Float32[np.ndarray, "segment replicate"] = ones @ rows
    return sums


def _effective_positions(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, "latent replicate"]:
    """Return 2 to the entropy of each latent's activation over positions."""
    values = evidence.values.astype(np.float64)

    def weighted(what: Float[np.ndarray, " active"]) -> Float[np.ndarray, "latent replicate"]:
        sums: Float[np.ndarray, "latent replicate"] = by_document(evidence, what) @ weights
        return sums

    total = weighted(values)
    bits = ratio(weighted(values * np.log2(values)), total)
    np.subtract(np.log2(total, where=total > 0, out=np.zeros(total.shape)), bits, out=bits)
    np.exp2(np.maximum(bits, 0), out=bits)
    return bits
