"""Whether latents are features or combinations of features, by where they point and by when they fire.

The two parts are apart because they come apart: a latent may point between two features and yet fire
for one of them alone, and the reverse.

*Decoder.* A unit row d_j is written as a sum of features with coefficients c >= 0, on the 8 features of the
largest cosine. The order (sum c^2)^2 / sum c^4 is 1 for a feature, 2 for an even pair. A feature of several
dimensions counts as one, whichever way a row points within it.

*Code.* What the features' activity says about a latent's firing, E[f_j > 0 | active], varies between tokens.
That variance is split in three, exactly, by what a function of activity has to be to explain it:

- `main_effect`: a sum of non-negative effects of single features: the latent fires for features;
- `conjunction`: beyond that, any function that never falls when a feature is added: it takes several;
- `complement`: all the rest: it takes a feature's absence, as with a parent's latent whose child took
  its place.

Where features are independent and effects positive the first two are the main-effect and interaction
shares of the functional analysis of variance; where one of each set is always active they are so too, since
there absence is another's presence. The OR of features that are frequent counts as a conjunction in
part, as in any analysis of variance. An AND of two independent features of rate p has a conjunction
share of (1 - p) / (1 + p), not 1.

Beware of centering: where one of a set is always active, the set's mean can sit in `b_dec`, and rows point
from that mean. `centered` in `Composition.dictionary` says that rows were held against such directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.generators.base import Sample
from sae_placebo.lab.scores.decoder_orders import Orders, dictionaries, orders
from sae_placebo.lab.scores.firing_parts import PARTS, firing_parts
from sae_placebo.lab.scores.matching import code_matrix
from sae_placebo.saes import SAE, Codes
from sae_placebo.stats.proportions import wilson

CONJUNCTION = 0.3
"""Conjunction share of a latent's firing above which it counts as a conjunction."""
ATOMIC = 0.9
"""Absolute cosine to a feature above which a latent's row counts as one."""
_RANDOM_ROWS = 256
_CHUNK_LATENTS = 256


@dataclass(frozen=True)
class LatentShare:
    """A share of latents, with Wilson's interval, and what chance gives."""

    value: float
    low: float
    high: float
    n: int
    null: float


@dataclass(frozen=True, eq=False)
class Firing:
    """What features' activity explains of each latent's firing.

    NaN: the latent is dead, fires too seldom to tell, or independently of all features.
    """

    main_effect: Float[np.ndarray, " latent"]
    conjunction: Float[np.ndarray, " latent"]
    complement: Float[np.ndarray, " latent"]
    explained: Float[np.ndarray, " latent"]
    """Share of the firing's variance that features' activity explains at all, without what noise adds."""

    def share(self, live: Bool[np.ndarray, " latent"]) -> float:
        """Return the share of live latents that are conjunctions; those without a value are none."""
        return float(np.mean(np.nan_to_num(self.conjunction[live]) > CONJUNCTION))


@dataclass(frozen=True, eq=False)
class Composition:
    """Composition of every latent; NaN where `live` is False."""

    live: Bool[np.ndarray, " latent"]
    """Whether the latent fires on any token of the draw."""
    order: Float[np.ndarray, " latent"]
    """Decoder composition order against the true directions, 1 or more."""
    unexplained: Float[np.ndarray, " latent"]
    """Squared length of the unit row that non-negative sums of features leave."""
    top_cosine: Float[np.ndarray, " latent"]
    """Largest absolute cosine to a feature."""
    dictionary: str
    """Which of the dictionaries that give the same activations fits the live rows best: `truth`, a name
    of `Truth.alternatives`, or `centered`."""
    by_best: Orders
    """Order, unexplained and cosine against that dictionary."""
    firing: Firing
    shuffled: Firing
    """The null: the same firings on other tokens. Shares should be NaN, but for few by chance."""
    random: Firing
    """What random directions have that fire as often as each latent: chance with x, not without it."""
    random_rows: Orders
    """Random directions against the true ones."""

    @property
    def n_live(self) -> int:
        """Latents that fire."""
        return int(self.live.sum())

    @property
    def main_effect(self) -> Float[np.ndarray, " latent"]:
        """Share of the explained firing variance that sums of single features give."""
        return self.firing.main_effect

    @property
    def conjunction(self) -> Float[np.ndarray, " latent"]:
        """Share that takes several features at once: interaction."""
        return self.firing.conjunction

    @property
    def complement(self) -> Float[np.ndarray, " latent"]:
        """Share that takes a feature's absence: a hole."""
        return self.firing.complement

    @property
    def decoder_atomic(self) -> float:
        """Share of live latents with an absolute cosine above 0.9 to a feature."""
        return float(np.mean(self.top_cosine[self.live] > ATOMIC))

    @property
    def conjunction_share(self) -> float:
        """Share of live latents with a conjunction share above 0.3."""
        return self.firing.share(self.live)

    def atomic(self) -> LatentShare:
        """Return `decoder_atomic` with its interval over latents, beside random directions'."""
        return self._counted(self.top_cosine > ATOMIC, self.random_rows.top_cosine > ATOMIC)

    def atomic_by_best(self) -> LatentShare:
        """Return the same against the best of the dictionaries that give the same activations."""
        return self._counted(self.by_best.top_cosine > ATOMIC, self.random_rows.top_cosine > ATOMIC)

    def conjunctions(self) -> LatentShare:
        """Return `conjunction_share` with its interval; the null is that of random directions."""
        return self._counted(
            np.nan_to_num(self.conjunction) > CONJUNCTION,
            np.nan_to_num(self.random.conjunction[self.live]) > CONJUNCTION,
        )

    def _counted(
        self, hits: Bool[np.ndarray, " latent"], null: Bool[np.ndarray, " other"]
    ) -> LatentShare:
        count, n = int(hits[self.live].sum()), self.n_live
        return LatentShare(count / n, *wilson(count, n), n, float(null.mean()))


def composition(sae: SAE, draw: Sample, seed: int = 0, threshold: float = 0.0) -> Composition:
    """Return the composition of every latent of `sae`, which has the units of the draw.

    Args:
        sae: The SAE; lengths of its rows do not matter.
        draw: Tokens and their truth; 20,000 tokens or more tell most.
        seed: Names the nulls' draws.
        threshold: A latent fires where its contribution's length, code times row length, exceeds this.

    Source: the score is the package's own; participation ratio as order, functional analysis of
    variance of firing as the code's part. `threshold` 0.05 was used with features of amplitude 1 in
    published tables.

    Raises:
        NotEstimable: no latent fires on these tokens.
    """
    rows = sae.params["W_dec"].detach().double().numpy()
    lengths = np.linalg.norm(rows, axis=1)
    fires = _fires(sae.encode(draw.x), lengths, threshold)
    counts = np.asarray(fires.sum(axis=0)).ravel().astype(np.int64)
    live = counts > 0
    if not live.any():
        raise NotEstimable("no latent fires on these tokens, so none can be a combination")
    unit = rows / np.maximum(lengths, 1e-12)[:, None]
    known = dictionaries(draw, sae.params["b_dec"])
    scored = {name: _masked(orders(unit, *directions), live) for name, directions in known.items()}
    best = max(scored, key=lambda name: float(np.nanmean(scored[name].top_cosine)))
    random = numpy_generator(seed, "composition", sae.d_in, sae.d_sae)
    directions = random.standard_normal((_RANDOM_ROWS, sae.d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    active = code_matrix(draw.codes, 0.0).tocsc()
    truth = scored["truth"]
    return Composition(
        live=live,
        order=truth.order,
        unexplained=truth.unexplained,
        top_cosine=truth.top_cosine,
        dictionary=best,
        by_best=scored[best],
        firing=firing(fires, active),
        shuffled=firing(fires[random.permutation(fires.shape[0])], active),
        random=firing(_random_fires(draw.x, counts, random), active),
        random_rows=orders(directions, *known["truth"]),
    )


def firing(fires: Any, active: Any) -> Firing:
    """Return the parts of every column of `fires`, given the features that are active.

    Args:
        fires: scipy sparse [token, latent], 1 where a latent fires.
        active: scipy sparse [token, feature], 1 where a feature is active.
    """
    fires, active = fires.tocsc(), active.tocsc()
    found = {name: np.full(fires.shape[1], np.nan) for name in PARTS}
    for first in range(0, fires.shape[1], _CHUNK_LATENTS):
        part = fires[:, first : first + _CHUNK_LATENTS]
        together = (part.T @ active).toarray()
        for offset in range(part.shape[1]):
            tokens = part.indices[part.indptr[offset] : part.indptr[offset + 1]]
            for name, value in firing_parts(tokens, together[offset], active).items():
                found[name][first + offset] = value
    return Firing(**found)


def _fires(codes: Codes, lengths: Float[np.ndarray, " latent"], threshold: float) -> Any:
    """Return scipy CSR [token, latent], 1 where a latent contributes more than the threshold."""
    matrix = code_matrix(codes)
    matrix.data = (matrix.data * lengths[matrix.indices] > threshold).astype(np.float64)
    matrix.eliminate_zeros()
    return matrix


def _random_fires(
    x: Float[torch.Tensor, "token d_in"],
    counts: Int64[np.ndarray, " latent"],
    random: np.random.Generator,
) -> Any:
    """Return firings of as many random directions, each on the tokens that lie furthest along it."""
    from scipy.sparse import csc_matrix

    centered = (x - x.mean(dim=0)).numpy()
    directions = random.standard_normal((len(counts), x.shape[1]), np.float32)
    chosen = []
    for first in range(0, len(counts), _CHUNK_LATENTS):
        along = centered @ directions[first : first + _CHUNK_LATENTS].T
        for offset in range(along.shape[1]):
            n = int(counts[first + offset])
            column = along[:, offset]
            chosen.append(np.argpartition(-column, n - 1)[:n] if n else np.zeros(0, dtype=np.int64))
    ends = np.concatenate([[0], np.cumsum(counts)])
    rows = np.concatenate(chosen)
    return csc_matrix((np.ones(len(rows)), rows, ends), shape=(len(x), len(counts)))


def _masked(found: Orders, live: Bool[np.ndarray, " latent"]) -> Orders:
    values: Mapping[str, Float[np.ndarray, " latent"]] = vars(found)
    return Orders(**{name: np.where(live, value, np.nan) for name, value in values.items()})
