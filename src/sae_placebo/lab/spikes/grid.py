"""Spikes over a grid of frequencies and magnitudes, and how many of them share a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.lab.spikes.plant import Spike


class Grid(Spec):
    """Spikes over frequencies and magnitudes, and how they share trainings."""

    frequencies: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    magnitudes: tuple[float, ...] = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75)
    """In units of the activations' rms norm about their mean."""
    repeats: int = Field(6, ge=1)
    """Plantings of each cell."""
    per_training: int = Field(40, ge=1)
    """Most spikes in one training."""
    energy_share: float = Field(0.04, gt=0)
    """Most that is planted in one training, as a share of the activations' energy about their mean."""
    amplitude: Literal["constant", "uniform", "lognormal"] = "lognormal"
    direction: Literal["isotropic", "covariance"] = "isotropic"

    def trainings(self, seed: int) -> list[list[Spike]]:
        """Return the spikes of each training; cells are spread over trainings at random.

        Raises:
            SpecError: a single spike is more than may be planted at a time.
        """
        spikes = [
            self.spike(f, m, f"{f:g} {m:g} {k}")
            for k in range(self.repeats)
            for f in self.frequencies
            for m in self.magnitudes
        ]
        order = numpy_generator(seed, "spike grid").permutation(len(spikes))
        return packed([spikes[i] for i in order], self.per_training, self.energy_share)

    def spike(self, frequency: float, magnitude: float, name: str) -> Spike:
        """Return a spike of the grid's laws."""
        return Spike(
            name=name,
            frequency=frequency,
            magnitude=magnitude,
            amplitude=self.amplitude,
            direction=self.direction,
        )


def packed(spikes: Sequence[Spike], most: int, energy_share: float) -> list[list[Spike]]:
    """Return spikes in groups of at most `most`, each within `energy_share`, first fit.

    Raises:
        SpecError: a single spike is more than that.
    """
    groups: list[list[Spike]] = []
    energies: list[float] = []
    for spike in spikes:
        energy = spike.frequency * spike.squared_amplitude() * spike.magnitude**2
        if energy > energy_share:
            raise SpecError(
                f"a spike of frequency {spike.frequency:g} and magnitude {spike.magnitude:g} is "
                f"{energy:.1%} of the activations' energy, more than the {energy_share:.1%} that may "
                "be planted at a time: make it smaller or raise energy_share"
            )
        fits = (
            i
            for i, group in enumerate(groups)
            if len(group) < most and energies[i] + energy <= energy_share
        )
        i = next(fits, len(groups))
        if i == len(groups):
            groups.append([])
            energies.append(0.0)
        groups[i].append(spike)
        energies[i] += energy
    return groups
