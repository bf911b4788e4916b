"""Whether latents are features or combinations of features, by where they point and by when they fire.

The two are measured apart because they can differ: a latent may point between two features and yet fire
for one of them alone, and the reverse.

*Decoder.* A unit row d_j is written as a sum of features with coefficients c >= 0, on the 8 features of the
largest cosine. The order (sum c^2)^2 / sum c^4 is 1 for a feature, 2 for an even pair. A feature of several
dimensions counts as one, whichever way a row points within it.

*Code.* What the features' activity says about a latent's firing, E[f_j > 0 | active], varies between tokens.
That variance is split exactly in three, by what kind of function of activity explains it:

- `main_effect` is explained by a sum of non-negative effects of single features: the latent fires for
  features;
- `conjunction` is explained beyond that by a function that never falls when a feature is added: the latent
  needs several features at once;
- `complement` is all the rest: the latent needs a feature's absence, as a parent's latent does whose place a
  child's has taken.

Where features are independent and effects positive, the first two are the main-effect and interaction shares
of the functional analysis of variance. They are so too where one of each set is always active, since there
the absence of one is the presence of another. The OR of frequent features counts as a conjunction in part,
as in any analysis of variance. An AND of two independent features of rate p has a conjunction
share of (1 - p) / (1 + p), not 1.

Beware of centering: where one of a set is always active, `b_dec` can hold the set's mean, and rows point from
that mean. `Composition.dictionary` is then `centered`, if rows fit such directions best.
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
"""A latent counts as a conjunction if the conjunction share of its firing is above this."""
ATOMIC = 0.9
"""A latent's row counts as a feature if its absolute cosine to one is above this."""
_RANDOM_ROWS = 256
_CHUNK_LATENTS = 256


@dataclass(frozen=True)
class LatentShare:
    """A share of `n` latents, with Wilson's interval, and the share that chance gives (`null`)."""

    value: float
    low: float
    high: float
    n: int
    null: float


@dataclass(frozen=True, eq=False)
class Firing:
    """How much of each latent's firing the activity of features explains, and by what kind of function.

    The first three are shares of what is explained and sum to 1. They are NaN where the latent is dead, fires
    too seldom to tell, or fires independently of all features.
    """

    main_effect: Float[np.ndarray, " latent"]
    conjunction: Float[np.ndarray, " latent"]
    complement: Float[np.ndarray, " latent"]
    explained: Float[np.ndarray, " latent"]
    """Share of the firing's variance that the activity of features explains at all, without what noise adds;
    0 for a latent that fires independently of all features."""

    def share(self, live: Bool[np.ndarray, " latent"]) -> float:
        """Return the share of live latents that are conjunctions; latents without a value are not."""
        return float(np.mean(np.nan_to_num(self.conjunction[live]) > CONJUNCTION))


@dataclass(frozen=True, eq=False)
class Composition:
    """What every latent is composed of; numbers are NaN where `live` is False."""

    live: Bool[np.ndarray, " latent"]
    """Whether the latent fires on any token of the draw."""
    order: Float[np.ndarray, " latent"]
    """Composition order of the decoder row in terms of the true directions, 1 or more."""
    unexplained: Float[np.ndarray, " latent"]
    """Squared length of what the best non-negative sum of features leaves of the unit row."""
    top_cosine: Float[np.ndarray, " latent"]
    """Largest absolute cosine of the row to a feature."""
    dictionary: str
    """Which of the dictionaries that give the same activations fits the live rows best: `truth`, a name
    of `GeneratorTruth.alternatives`, or `centered`."""
    by_best: Orders
    """Orders, what is unexplained and cosines in terms of that dictionary."""
    firing: Firing
    shuffled: Firing
    """The null of the same firings on other tokens. Shares are NaN for all but a few latents, by chance."""
    random: Firing
    """The null of random directions that fire as often as each latent, on the tokens furthest along them.
    Unlike `shuffled` it keeps what any direction of x has."""
    random_rows: Orders
    """Random directions in terms of the true ones."""

    @property
    def n_live(self) -> int:
        """Return the number of latents that fire."""
        return int(self.live.sum())

    @property
    def main_effect(self) -> Float[np.ndarray, " latent"]:
        """Return the share of the explained variance of firing that sums of single features give."""
        return self.firing.main_effect

    @property
    def conjunction(self) -> Float[np.ndarray, " latent"]:
        """Return the share that takes several features at once, their interaction."""
        return self.firing.conjunction

    @property
    def complement(self) -> Float[np.ndarray, " latent"]:
        """Return the share that takes a feature's absence, a hole."""
        return self.firing.complement

    @property
    def decoder_atomic(self) -> float:
        """Return the share of live latents with an absolute cosine above 0.9 to a feature."""
        return float(np.mean(self.top_cosine[self.live] > ATOMIC))

    @property
    def conjunction_share(self) -> float:
        """Return the share of live latents with a conjunction share above 0.3."""
        return self.firing.share(self.live)

    def atomic(self) -> LatentShare:
        """Return `decoder_atomic` with its interval over latents; the null is that of random directions."""
        return self._counted(self.top_cosine > ATOMIC, self.random_rows.top_cosine > ATOMIC)

    def atomic_by_best(self) -> LatentShare:
        """Return the same share in terms of the best of the dictionaries that give the same activations."""
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
        sae: SAE, whose row lengths do not matter.
        draw: Tokens and their truth; most latents need 20,000 tokens or more.
        seed: Names the draws of the nulls.
        threshold: A latent fires where the length of its contribution, code times row length, exceeds this.

    Source: the score is the package's own. The order is a participation ratio, and the part of the code is a
    functional analysis of variance of firing. Published tables used `threshold` 0.05 with features of
    amplitude 1.

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
    """Return how much the activity of features explains of every column of `fires`.

    Args:
        fires: scipy sparse [token, latent], 1 where a latent fires.
        active: scipy sparse [token, feature], 1 where a feature is active.
    """
    fires, active = fires.tocsc(), active.tocsc()
    parts = {name: np.full(fires.shape[1], np.nan) for name in PARTS}
    for first in range(0, fires.shape[1], _CHUNK_LATENTS):
        chunk = fires[:, first : first + _CHUNK_LATENTS]
        together = (chunk.T @ active).toarray()
        for offset in range(chunk.shape[1]):
            tokens = chunk.indices[chunk.indptr[offset] : chunk.indptr[offset + 1]]
            for name, value in firing_parts(tokens, together[offset], active).items():
                parts[name][first + offset] = value
    return Firing(**parts)


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


def _masked(orders_of_rows: Orders, live: Bool[np.ndarray, " latent"]) -> Orders:
    values: Mapping[str, Float[np.ndarray, " latent"]] = vars(orders_of_rows)
    return Orders(**{name: np.where(live, value, np.nan) for name, value in values.items()})
