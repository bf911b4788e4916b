"""Marginal structure: bits that an SAE's latents save beyond as many more atoms of an existing method.

With R the bits per token at the stated distortion, B an existing method with so many atoms, and m of the
SAE's latents,

    G = min(R(PCA), R(B_2m)) - min(R(PCA), R(B_m and SAE_m)),

in bits and as a share of R(PCA), the dense code. Both dictionaries have 2m atoms, and both are coded by the
same pursuit with settings chosen in the same way. A code that may have no atoms is never longer than the
dense one, so that the two minima are part of that choice (`settings`), made on the documents to choose on.

Of the second dictionary a code may leave out the method's atoms, and does so where 2m of them are of no use.
So a method's useless atoms are not held against the latents.

No dictionary gets shorter codes by its size alone, since both have the same. What is left of chance is
computed: G of the same dictionaries on Gaussian vectors with the same means and covariances, where no
direction is better than the principal components but for what a quantizer of many directions gains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Num

from sae_placebo.baselines.base import BASELINES, BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.document_bits import DocumentBits
from sae_placebo.baselines.rate import CodedVectors, token_bits
from sae_placebo.baselines.sae_codes import strongest
from sae_placebo.baselines.sampling import Sample, Vectors
from sae_placebo.core.errors import NotEstimable
from sae_placebo.latents.base import Encoded

BEST = "best"
"""The name of the existing method that needs the fewest bits at 2m atoms on the documents to choose on."""


@dataclass(frozen=True, eq=False)
class Priced:
    """The bits of one dictionary by document, and what its settings promised.

    Attributes:
        documents: Bits of each scored document.
        chosen_bits: Bits per token on the documents to choose on.
        n_atoms: The most atoms that a token's code may use.
    """

    documents: DocumentBits
    chosen_bits: float
    n_atoms: int


@dataclass(frozen=True, eq=False)
class Gain:
    """What an SAE's latents save beyond one existing method.

    Attributes:
        method: The existing method.
        size: Atoms of each of the two dictionaries.
        dense: Bits of the dense code, R(PCA).
        doubled: Bits of the existing method with all of these atoms.
        joined: Bits of the existing method with half of them, and as many latents.
    """

    method: str
    size: int
    dense: DocumentBits
    doubled: Priced
    joined: Priced

    def bits(
        self, weights: Num[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return G in bits per token under each column of document weights."""
        return self.doubled.documents.less(self.joined.documents).per_token(weights)

    def share(
        self, weights: Num[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return G as a share of R(PCA) under each column of document weights."""
        dense = self.dense.per_token(weights)
        gain = np.full(len(dense), np.nan)
        np.divide(self.bits(weights), dense, out=gain, where=dense > 0)
        return gain


@dataclass(frozen=True, eq=False)
class Pair:
    """An existing method with m atoms and with 2m."""

    method: str
    small: Float32[np.ndarray, "atom d_in"]
    large: Float32[np.ndarray, "twice d_in"]


def pairs(material: Material, fitted: Mapping[str, Dictionary]) -> Iterator[Pair]:
    """Yield every existing method with m and with 2m atoms.

    Those that can be had with twice as many atoms are fitted again. Of the others, m is half of what they
    have: the half along which the tokens to fit on vary most.

    Args:
        material: What methods are fitted on.
        fitted: Methods as they were fitted on it, by name.
    """
    for name, dictionary in fitted.items():
        rows, n = dictionary.directions, len(dictionary.directions)
        if n == material.n_atoms:
            twice = dataclasses.replace(material, n_atoms=2 * n)
            large = BASELINES.entries[name].fit(twice).directions
            if len(large) == 2 * n:
                yield Pair(name, rows, large)
                continue
        spread = np.square(material.activations @ rows.T).sum(axis=0, dtype=np.float64)
        large = rows[np.argsort(-spread, kind="stable")[: 2 * (n // 2)]]
        yield Pair(name, large[: n // 2], large)


Alone = dict[tuple[str, int], Priced]
"""Bits of an SAE's strongest latents, by SAE and number of latents."""


_NONE = "no existing method could be fitted"


@dataclass(frozen=True, eq=False)
class Marginal:
    """What the latents of every SAE of one arm save beyond existing methods, at one distortion.

    Attributes:
        gains: Gain, or the reason why there is none, by SAE and method.
        best: The method whose 2m atoms need the fewest bits on the documents to choose on; None where
            there is no method, or where one that might be it could not be coded.
        gaussian: The gain beyond `best` on Gaussian vectors, or the reason why there is none, by SAE.
        reason: Why there is no best method; None where there is one.
    """

    gains: Mapping[tuple[str, str], Gain | str]
    best: str | None
    gaussian: Mapping[str, Gain | str]
    reason: str | None = None

    def gain(self, reading: str, method: str = BEST) -> Gain:
        """Return the gain of the SAE called `reading` beyond a method.

        Raises:
            NotEstimable: there is none; the message says why.
        """
        if method == BEST:
            if self.best is None:
                raise NotEstimable(self.reason or _NONE)
            method = self.best
        return _known(self.gains.get((reading, method), f"{method} was not fitted"))

    def by_chance(self, reading: str) -> Gain:
        """Return what `gain` is beyond the best method on Gaussian vectors.

        Raises:
            NotEstimable: there is none; the message says why.
        """
        return _known(self.gaussian.get(reading, self.reason or _NONE))


def _known(found: Gain | str) -> Gain:
    if isinstance(found, str):
        raise NotEstimable(found)
    return found


@dataclass(frozen=True, eq=False)
class CodedArm:
    """What the gains of one arm share.

    Attributes:
        saes: The arm's SAEs, by name.
        sample: The tokens to choose and to score on.
        dense: Bits of the dense code.
        whole: Bits of each SAE by pursuit, where they could be counted.
        distortion: The share of variance that is left.
        spec: The settings.
    """

    saes: Mapping[str, Encoded]
    sample: Sample
    dense: DocumentBits
    whole: Mapping[str, Priced]
    distortion: float
    spec: BaselinesSpec

    def gains(
        self, pair: Pair, doubled: Priced, vectors: Vectors, alone: Alone
    ) -> dict[str, Gain | str]:
        """Return the gain beyond one method, or the reason why there is none, by SAE.

        Args:
            pair: The method.
            doubled: Its bits with 2m atoms.
            vectors: What is coded.
            alone: Bits of so many latents without any method, by SAE and number; they are added to it.
        """
        found: dict[str, Gain | str] = {}
        for name in self.saes:
            try:
                joined = self._joined(name, pair, doubled, vectors, alone)
            except NotEstimable as refusal:
                found[name] = f"{pair.method} with latents: {refusal}"
                continue
            found[name] = Gain(pair.method, len(pair.large), self.dense, doubled, joined)
        return found

    def _joined(
        self, name: str, pair: Pair, doubled: Priced, vectors: Vectors, alone: Alone
    ) -> Priced:
        """Return the bits of m atoms of the method and m latents, or of these latents if they are fewer."""
        m = len(pair.small)
        latents = strongest(self.saes[name], self.sample.fit, m)
        if (name, m) not in alone:
            alone[name, m] = self.price(latents, vectors)
        if not doubled.n_atoms:
            return alone[name, m]
        joined = self.price(np.concatenate([pair.small, latents]), vectors)
        return min(alone[name, m], joined, key=lambda one: one.chosen_bits)

    def price(self, rows: Float32[np.ndarray, "atom d_in"], vectors: Vectors) -> Priced:
        """Return the bits of a dictionary by pursuit.

        Raises:
            NotEstimable: the best settings lie on the edge of the largest grid that is allowed.
        """
        dictionary = Dictionary("", rows, self.sample.center, 0)
        coded = CodedVectors.pursued(dictionary, vectors, self.spec.most_atoms)
        quiet = self.spec.model_copy(update={"coded_tokens": 0})
        bits = token_bits(dictionary, coded, self.distortion, quiet)
        documents = DocumentBits.of(bits.adjusted, self.sample.documents, self.sample.n_documents)
        return Priced(documents, bits.settings.bits, bits.settings.n_atoms)


def marginal(
    fitted: Mapping[str, Dictionary],
    material: Material,
    arm: CodedArm,
    advance: Callable[[int], None],
) -> Marginal:
    """Return what the latents of every SAE save beyond every existing method.

    Args:
        fitted: The existing methods' dictionaries, as they were fitted on `material`.
        material: What they were fitted on.
        arm: The SAEs, and what is coded.
        advance: Called with 1 after each method.
    """
    vectors, gains = arm.sample.vectors, dict[tuple[str, str], Gain | str]()
    chosen: dict[str, tuple[float, Pair]] = {}
    alone = {(name, arm.saes[name].d_sae): bits for name, bits in arm.whole.items()}
    reason = None
    for pair in pairs(material, fitted) if arm.saes else ():
        try:
            doubled = arm.price(pair.large, vectors)
        except NotEstimable as refusal:
            reason = f"{pair.method}: {refusal}"
            gains |= {(name, pair.method): reason for name in arm.saes}
            continue
        found = arm.gains(pair, doubled, vectors, alone)
        gains |= {(name, pair.method): gain for name, gain in found.items()}
        chosen[pair.method] = doubled.chosen_bits, pair
        advance(1)
    if reason is not None or not chosen:
        return Marginal(gains, None, {}, reason)
    best = min(chosen, key=lambda method: chosen[method][0])
    return Marginal(gains, best, _by_chance(chosen[best][1], arm, material.seed))


def _by_chance(pair: Pair, arm: CodedArm, seed: int) -> dict[str, Gain | str]:
    """Return the gain beyond one method on Gaussian vectors, or the reason why there is none, by SAE."""
    chance = arm.sample.vectors.gaussian(seed)
    try:
        return arm.gains(pair, arm.price(pair.large, chance), chance, {})
    except NotEstimable as refusal:
        return dict.fromkeys(arm.saes, f"{pair.method} on a Gaussian: {refusal}")
