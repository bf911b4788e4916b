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

G is what latents add to m atoms of the method, less what m more of its atoms add:

    G = (min(R(PCA), R(B_m)) - min(R(PCA), R(B_m and SAE_m))) - (min(R(PCA), R(B_m)) - min(R(PCA), R(B_2m))).

In an arm whose latents add nothing, G is minus the second term and says nothing of the SAE. So the first term
(`Gain.added`) is told as well, and arms are compared by it too.

G beyond one method and G beyond another are different numbers. So arms are compared beyond a `common` method:
the one that is best in the trained arm, with as many atoms in every arm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Num

from sae_placebo.baselines.base import BASELINES, BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.document_bits import DocumentBits
from sae_placebo.baselines.rate import CodedVectors, token_bits
from sae_placebo.baselines.sampling import Sample, Vectors
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.progress import Advance

BEST = "best"
"""The name of the existing method that needs the fewest bits at 2m atoms on the documents to choose on."""
COMMON = "common"
"""The name of the method that arms are compared beyond: the best one of the trained arm."""


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
        halved: Bits of the existing method with half of these atoms, or the reason why there are none.
        doubled: Bits of the existing method with all of these atoms.
        joined: Bits of the existing method with half of them, and as many latents.
    """

    method: str
    size: int
    dense: DocumentBits
    halved: Priced | str
    doubled: Priced
    joined: Priced

    def added(
        self, weights: Num[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return the bits per token that m latents save beside m atoms, under each column of weights.

        Null 0: latents add nothing. Where the shorter code has the latents alone, it is what that saves.

        Raises:
            NotEstimable: the method has no bits with half of these atoms; the message says why.
        """
        if isinstance(self.halved, str):
            raise NotEstimable(self.halved)
        return self.halved.documents.less(self.joined.documents).per_token(weights)

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
    """An existing method with m atoms and with 2m.

    Attributes:
        method: Its name.
        small: Directions of m atoms.
        large: Directions of 2m.
        n_fitted: How many atoms it has as it was fitted.
    """

    method: str
    small: Float32[np.ndarray, "atom d_in"]
    large: Float32[np.ndarray, "twice d_in"]
    n_fitted: int


def pairs(material: Material, fitted: Mapping[str, Dictionary]) -> Iterator[Pair]:
    """Yield every existing method with m and with 2m atoms.

    Those that can be had with twice as many atoms are fitted again. Of the others, m is half of what they
    have: the half along which the tokens to fit on vary most.

    Args:
        material: What methods are fitted on.
        fitted: Methods as they were fitted on it, by name.
    """
    x = material.activations
    second = x.T @ x
    for name, dictionary in fitted.items():
        rows, n = dictionary.directions, len(dictionary.directions)
        if n == material.n_atoms:
            twice = dataclasses.replace(material, n_atoms=2 * n)
            large = BASELINES.entries[name].fit(twice).directions
            if len(large) == 2 * n:
                yield Pair(name, rows, large, n)
                continue
        spread = np.einsum("ad,ad->a", rows @ second, rows, dtype=np.float64)
        large = rows[np.argsort(-spread, kind="stable")[: 2 * (n // 2)]]
        yield Pair(name, large[: n // 2], large, n)


Alone = dict[tuple[str, int], Priced]
"""Bits of an SAE's strongest latents, by SAE and number of latents."""


@dataclass(frozen=True)
class Choice:
    """The existing method that latents are held against, or the reason why there is none.

    Attributes:
        method: Its name; None where there is none.
        size: Atoms of each of the two dictionaries, 2m.
        reason: Why there is none.
    """

    method: str | None
    size: int = 0
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Marginal:
    """What the latents of every SAE of one arm save beyond existing methods, at one distortion.

    Attributes:
        gains: Gain, or the reason why there is none, by SAE and method.
        best: The method whose 2m atoms need the fewest bits on the documents to choose on. There is none
            where one that might be it could not be coded.
        common: The method that all arms are compared beyond.
        gaussian: The gain beyond these two on Gaussian vectors, or the reason why there is none, by SAE and
            method.
    """

    gains: Mapping[tuple[str, str], Gain | str]
    best: Choice
    common: Choice
    gaussian: Mapping[tuple[str, str], Gain | str]

    def gain(self, reading: str, method: str = COMMON, by_chance: bool = False) -> Gain:
        """Return the gain of the SAE called `reading` beyond a method, `best`, `common` or one by name.

        Args:
            reading: The SAE.
            method: The method.
            by_chance: Whether it is that on Gaussian vectors.

        Raises:
            NotEstimable: there is none; the message says why.
        """
        choice = {BEST: self.best, COMMON: self.common}.get(method, Choice(method))
        if choice.method is None:
            raise NotEstimable(choice.reason or "no existing method could be fitted")
        gains, other = (
            (self.gaussian if by_chance else self.gains),
            f"{choice.method} was not fitted",
        )
        found = gains.get((reading, choice.method), other)
        if isinstance(found, str):
            raise NotEstimable(found)
        if choice.size not in (0, found.size):
            raise NotEstimable(
                f"{choice.method} has {found.size} atoms here and {choice.size} in the trained arm"
            )
        return found


@dataclass(frozen=True, eq=False)
class CodedArm:
    """What the gains of one arm share.

    Attributes:
        latents: Directions of each SAE's latents by name, the strongest on the text to fit on first.
        sample: The tokens to choose and to score on.
        dense: Bits of the dense code.
        whole: Bits by pursuit of each SAE, and of each existing method with all that it has, by name, where
            they could be counted.
        distortion: The share of variance that is left.
        spec: The settings.
    """

    latents: Mapping[str, Float32[np.ndarray, "atom d_in"]]
    sample: Sample
    dense: DocumentBits
    whole: Mapping[str, Priced]
    distortion: float
    spec: BaselinesSpec

    def gains(
        self, pair: Pair, halved: Priced | str, doubled: Priced, vectors: Vectors, alone: Alone
    ) -> dict[str, Gain | str]:
        """Return the gain beyond one method, or the reason why there is none, by SAE.

        Args:
            pair: The method.
            halved: Its bits with m atoms, or the reason why there are none.
            doubled: Its bits with 2m atoms.
            vectors: What is coded.
            alone: Bits of so many latents without any method, by SAE and number; they are added to it.
        """
        found: dict[str, Gain | str] = {}
        for name in self.latents:
            try:
                joined = self._joined(name, pair, doubled, vectors, alone)
            except NotEstimable as refusal:
                found[name] = f"{pair.method} with latents: {refusal}"
                continue
            found[name] = Gain(pair.method, len(pair.large), self.dense, halved, doubled, joined)
        return found

    def of_method(self, pair: Pair, rows: Float32[np.ndarray, "atom d_in"]) -> Priced:
        """Return the bits of so many atoms of a method, which were counted already if they are all it has.

        Raises:
            NotEstimable: the best settings lie on the edge of the largest grid that is allowed.
        """
        if pair.method in self.whole and len(rows) == pair.n_fitted:
            return self.whole[pair.method]
        return self.price(rows, self.sample.vectors)

    def halved(self, pair: Pair) -> Priced | str:
        """Return the bits of m atoms of a method, or the reason why there are none."""
        try:
            return self.of_method(pair, pair.small)
        except NotEstimable as refusal:
            return f"{pair.method} with half of its atoms: {refusal}"

    def _joined(
        self, name: str, pair: Pair, doubled: Priced, vectors: Vectors, alone: Alone
    ) -> Priced:
        """Return the bits of m atoms of the method and m latents, or of these latents if they are fewer."""
        m = len(pair.small)
        latents = self.latents[name][:m]
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
    advance: Advance,
    common: Choice | None = None,
) -> Marginal:
    """Return what the latents of every SAE save beyond every existing method.

    Args:
        fitted: The existing methods' dictionaries, as they were fitted on `material`.
        material: What they were fitted on.
        arm: The SAEs, and what is coded.
        advance: Called with 1 after each method.
        common: The method that arms are compared beyond; the best one of this arm unless given.
    """
    vectors, gains = arm.sample.vectors, dict[tuple[str, str], Gain | str]()
    chosen: dict[str, tuple[float, Pair]] = {}
    alone = {
        (name, len(rows)): arm.whole[name]
        for name, rows in arm.latents.items()
        if name in arm.whole
    }
    reason = None
    for pair in pairs(material, fitted) if arm.latents else ():
        try:
            doubled = arm.of_method(pair, pair.large)
        except NotEstimable as refusal:
            reason = f"{pair.method}: {refusal}"
            gains |= {(name, pair.method): reason for name in arm.latents}
            continue
        found = arm.gains(pair, arm.halved(pair), doubled, vectors, alone)
        gains |= {(name, pair.method): gain for name, gain in found.items()}
        chosen[pair.method] = doubled.chosen_bits, pair
        advance(1)
    best = Choice(None) if reason is None else Choice(None, reason=reason)
    if chosen and reason is None:
        method = min(chosen, key=lambda name: chosen[name][0])
        best = Choice(method, len(chosen[method][1].large))
    common = common or best
    chance: dict[tuple[str, str], Gain | str] = {}
    for name in set(chosen) & {best.method, common.method}:
        by_sae = _by_chance(chosen[name][1], arm, material.seed)
        chance |= {(sae, name): gain for sae, gain in by_sae.items()}
    return Marginal(gains, best, common, chance)


def _by_chance(pair: Pair, arm: CodedArm, seed: int) -> dict[str, Gain | str]:
    """Return the gain beyond one method on Gaussian vectors, or the reason why there is none, by SAE."""
    chance = arm.sample.vectors.gaussian(seed)
    try:
        doubled = arm.price(pair.large, chance)
    except NotEstimable as refusal:
        return dict.fromkeys(arm.latents, f"{pair.method} on a Gaussian: {refusal}")
    return arm.gains(pair, "not counted on Gaussian vectors", doubled, chance, {})
