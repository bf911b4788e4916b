"""What a dictionary control is: an SAE of which a part is not learned.

Controls of the model and of the data show what an SAE owes to what it reads. These show what it owes to its
own learning: the recipe is that of the trained SAE, but some of its tensors stay as they start. A control
says how the SAE starts and what training leaves alone; `training.Fit` does the rest.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float

from sae_placebo.controls.settings import validated
from sae_placebo.core.errors import ModelError, NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Registry, Spec, generator
from sae_placebo.saes import PARAMETERS, SAE
from sae_placebo.saes.kernels import CHUNK_TOKENS, Workspace
from sae_placebo.saes.selection import Selection, select

Init = Literal["iso", "cov"]
"""The law of random directions: uniform on the sphere, or Gaussian with the activations' covariance."""

DICTIONARY_INVARIANTS: Mapping[str, str] = {
    "recipe": "the SAE's spec, the names and shapes of its tensors, and decoder rows of unit norm",
    "initial_decoder": "the decoder's bits at the start: those of the trained SAE of the same seed",
    "encoder_learned": "training moves W_enc",
    "biases_learned": "training moves b_enc and b_dec",
    "decoder_learned": "training moves W_dec",
    "decoder_free": "training may move a decoder row as far as it likes",
}
"""What an SAE trained as usual has; each control keeps some of it and destroys the rest."""

ALL: frozenset[str] = frozenset(PARAMETERS)
"""What a control without any training freezes: these four, and with them every tensor of an architecture."""

_SCALE_DRAWS = 8192
_LEVEL_DRAWS = 256


@dataclass(frozen=True)
class StreamMoments:
    """The mean and covariance of the activations, in the centered and scaled units of training.

    Attributes:
        mean: Their mean, near zero since activations arrive centered.
        covariance: Their covariance, which is symmetric. Its trace is near `d_in`, since they arrive scaled.
    """

    mean: Float[torch.Tensor, " d_in"]
    covariance: Float[torch.Tensor, "d_in d_in"]

    @functools.cached_property
    def spectrum(
        self,
    ) -> tuple[Float[torch.Tensor, " d_in"], Float[torch.Tensor, "d_in d_in"]]:
        """The variances along the principal directions, largest first, and the directions as columns.

        Both are in float64. Of a direction's two signs, the one with a largest entry above zero is taken.

        Raises:
            ModelError: the covariance holds NaN or infinity.
            NotEstimable: the activations have no variance.
        """
        if not bool(self.covariance.isfinite().all()):
            raise ModelError(
                "the activations' covariance holds NaN or infinity: check the model's dtype at this "
                "hookpoint"
            )
        values, vectors = torch.linalg.eigh(self.covariance.double())
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        if not bool(values[0] > 0):
            raise NotEstimable("the activations have no variance, so they have no directions")
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        return values, vectors * largest.sign()

    @functools.cached_property
    def root(self) -> Float[torch.Tensor, "d_in d_in"]:
        """The symmetric square root of the covariance, in float32."""
        values, vectors = self.spectrum
        root: torch.Tensor = (vectors * values.sqrt()) @ vectors.T
        return root.float()

    def draw(self, n: int, random: torch.Generator) -> Float[torch.Tensor, "token d_in"]:
        """Return n Gaussian points with this mean and covariance."""
        drawn: torch.Tensor = torch.randn(n, len(self.mean), generator=random) @ self.root
        return drawn + self.mean.float()


class DictionaryControl(Spec, ABC):
    """One way to keep an SAE from learning. Each has a file of its own, and is in `DICTIONARY_CONTROLS`."""

    kind: str

    parts_encoder: ClassVar[bool] = False
    """Whether only one of encoder and decoder is held fast, or scaled. An SAE with a single matrix for both
    cannot have such a control."""
    preserves: ClassVar[frozenset[str]]
    """What every control of this kind keeps, in words of `DICTIONARY_INVARIANTS`."""
    destroys: ClassVar[frozenset[str]]
    """What every control of this kind destroys."""
    draws: ClassVar[bool] = True
    """Whether another SAE seed gives another dictionary."""

    def preserved(self) -> frozenset[str]:
        """Return what this control keeps, its settings included."""
        return self.preserves

    def destroyed(self) -> frozenset[str]:
        """Return what this control destroys, its settings included."""
        return self.destroys

    @property
    def needs_moments(self) -> bool:
        """Whether `start` needs the activations' mean and covariance."""
        return False

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the tensors that training leaves alone. With all of `ALL`, no tensor is trained.

        Thresholds that no gradient reaches follow the codes in any case (`SAESpec.buffers`).
        """
        return frozenset()

    @property
    def decoder_cosine(self) -> float | None:
        """The least cosine of each decoder row to its start, throughout training; None for no limit."""
        return None

    @abstractmethod
    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the SAE that training starts from, in the units of `moments`.

        Args:
            sae: The start of the trained SAE of the same seed; it is not changed.
            moments: The moments of the activations; they may be None where `needs_moments` is false.
            seed: The trial's seed.
            sae_seed: The SAE's seed, which `sae` was created with.

        Raises:
            SpecError: moments are needed and missing, or of another width than the SAE.
            ModelError: the moments hold NaN or infinity.
            NotEstimable: the activations have no variance.
        """

    def require(self, moments: StreamMoments | None, sae: SAE) -> StreamMoments:
        """Return `moments`, which this control needs.

        Raises:
            SpecError: there are no moments, or they are of another width than `sae`.
        """
        if moments is None:
            raise SpecError(
                f"dictionary control {self.kind!r} starts from the activations' mean and covariance, "
                "and none were given: measure them on training tokens first"
            )
        if len(moments.mean) != sae.d_in:
            raise SpecError(
                f"the moments are of {len(moments.mean)} dimensions, the SAE reads {sae.d_in}: take "
                "them at the SAE's own hookpoint"
            )
        return moments


class RandomDirections(DictionaryControl, ABC):
    """A control whose dictionary starts at random directions, of one of two laws."""

    init: Init = "iso"
    """`iso` directions are uniform on the sphere, the trained SAE's own initial bits. `cov` directions are
    Gaussian with the activations' covariance, and normalized: the same bits times the covariance's root."""

    def preserved(self) -> frozenset[str]:
        """Return what this kind keeps, and the initial decoder where directions are uniform."""
        return self.preserves | ({"initial_decoder"} if self.init == "iso" else set())

    def destroyed(self) -> frozenset[str]:
        """Return what this kind destroys, and the initial decoder where directions follow the covariance."""
        return self.destroys | ({"initial_decoder"} if self.init == "cov" else set())

    @property
    def needs_moments(self) -> bool:
        """Whether directions follow the activations' covariance."""
        return self.init == "cov"

    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the SAE with random directions, the same ones in encoder and decoder; see the base class.

        A Gaussian vector's direction is uniform and does not depend on its length, so a uniform
        direction times the root of the covariance, normalized, has the law of a normalized Gaussian
        with that covariance. No draw of directions is needed beyond the SAE's own.

        Directions of the covariance overlap far more than uniform ones, and their codes overshoot far
        more, so the encoder then starts at the scale of `scaled_encoder`; uniform ones start at the
        trained SAE's bits.
        """
        if self.init == "iso":
            return replaced(sae)
        moments = self.require(moments, sae)
        bent = sae.params["W_dec"] @ moments.root.to(sae.params["W_dec"])
        rows = torch.nn.functional.normalize(bent, dim=1)
        start = replaced(sae, W_enc=rows.clone().t(), W_dec=rows)
        return scaled_encoder(start, moments, seed, sae_seed)


def scaled_encoder(sae: SAE, moments: StreamMoments, seed: int, sae_seed: int) -> SAE:
    """Return `sae` with its codes multiplied by the one number that lets it explain the most.

    Codes of rows that overlap overshoot: the sum of many is longer than what it reconstructs. Decoder
    rows have unit norm in this package, so the scale goes into `W_enc` and into the tensors that are
    compared with pre-activations (biases, thresholds), which leaves every site as it was. It is the
    least-squares scale, <x, x_hat> / <x_hat, x_hat> with `b_dec` taken off both, on 8,192 Gaussian draws
    with the activations' mean and covariance; no token is encoded. Where L0 is not fixed per token, it is
    measured at the L0 of `at_target_l0`, since a start may be dense where what it becomes is sparse.
    Activations are not Gaussian, so on them it is near the best scale, not the best.

    Args:
        sae: The SAE, which is not changed.
        moments: The moments that Gaussian draws have.
        seed: The trial's seed.
        sae_seed: The SAE's seed.
    """
    sparse = at_target_l0(sae, moments, seed, sae_seed)
    offset = sae.params["b_dec"]
    random = generator(seed, "dictionary", "scale", sae_seed)
    along = energy = 0.0
    for x in torch.split(moments.draw(_SCALE_DRAWS, random).to(offset), CHUNK_TOKENS):
        decoded = (sparse.decode(sparse.encode(x)) - offset).double()
        along += float(((x - offset).double() * decoded).sum())
        energy += float(decoded.square().sum())
    # no latent fires on any draw: no scale is better than another
    scale = along / energy if energy > 0 else 1.0
    scaled = {name: sae.params[name] * scale for name in sae.spec.in_activation_units}
    return replaced(sae, W_enc=(sae.params["W_enc"].t() * scale).t(), **scaled)


def at_target_l0(sae: SAE, moments: StreamMoments, seed: int, sae_seed: int) -> SAE:
    """Return `sae` with as many active latents per token as its recipe aims at, on Gaussian draws.

    One level for all latents is found, above which lie as many pre-activations as are wanted, on
    8,192 draws with the activations' mean and covariance. Thresholds are set to this level; where there are
    none, it is subtracted from `b_enc`. An SAE that fixes L0 per token, or aims at none, is returned as it
    is; so is one that has too few positive pre-activations, or as few as are wanted.

    Args:
        sae: The SAE, which is not changed.
        moments: The moments that Gaussian draws have.
        seed: The trial's seed.
        sae_seed: The SAE's seed.
    """
    target, chosen = sae.spec.l0_target(), sae.spec.selection(sae.params, None)
    if target is None or chosen is None or chosen.kind != "above":
        return replaced(sae)
    random = generator(seed, "dictionary", "level", sae_seed)
    x = moments.draw(_SCALE_DRAWS, random).to(sae.params["b_dec"]) - sae.params["b_dec"]
    guess = None
    for draws in (x[:_LEVEL_DRAWS], x):  # half of a start's sites are positive: few draws go first
        wanted = Selection("batch", target, guess)
        sites = select(draws, sae.params, wanted, Workspace())
        if len(sites.z) < wanted.target(len(draws), sae.d_sae):
            return replaced(sae)
        guess = sites.z.min() * 0.85
    level = sites.z.min()
    if "threshold" in sae.params:
        return replaced(sae, threshold=torch.ones_like(sae.params["threshold"]) * level)
    return replaced(sae, b_enc=sae.params["b_enc"] - level)


def replaced(sae: SAE, **tensors: torch.Tensor) -> SAE:
    """Return a copy of `sae` with some of its tensors replaced."""
    kept = {name: tensor.clone() for name, tensor in sae.params.items() if name not in tensors}
    return SAE(sae.spec, {name: (kept | tensors)[name] for name in sae.params})


def _declared(cls: type[DictionaryControl]) -> None:
    unknown = (cls.preserves | cls.destroys) - set(DICTIONARY_INVARIANTS)
    if unknown:
        raise ValueError(f"{cls.__name__} declares {sorted(unknown)}, not in DICTIONARY_INVARIANTS")


DICTIONARY_CONTROLS: Registry[type[DictionaryControl]] = Registry("dictionary control", _declared)
"""Every dictionary control, by kind; what each declares are words of `DICTIONARY_INVARIANTS`."""


def parse_dictionary(value: object) -> DictionaryControl:
    """Return the control that an arm's `dictionary` names: a kind, or a table with one.

    Args:
        value: A value such as `"pca"` or `{kind = "frozen_decoder", init = "cov"}`.

    Raises:
        SpecError: the value is neither, there is no such kind, or it does not have or allow a setting.
    """
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise SpecError(
            'a dictionary control is a name or a table such as {kind = "frozen_decoder"}; found '
            f"{value!r:.80}"
        )
    kind = value.get("kind")
    if not isinstance(kind, str):
        known = ", ".join(sorted(DICTIONARY_CONTROLS))
        raise SpecError(f"a dictionary control names its `kind`; known: {known}.")
    settings = {key: setting for key, setting in value.items() if key != "kind"}
    return validated(DICTIONARY_CONTROLS[kind], settings, f"dictionary control {kind!r}")
