"""A grid makes spikes over frequencies and magnitudes, and packs them into trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.lab.spikes.planting import Spike


class Grid(Spec):
    """Frequencies and magnitudes of spikes, and how the spikes share trainings."""

    frequencies: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    """Probabilities that a spike is active on a token."""
    magnitudes: tuple[float, ...] = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75)
    """Mean lengths of a spike, in units of the activations' rms norm about their mean."""
    repeats: int = Field(6, ge=1)
    """Number of spikes of each frequency and magnitude."""
    per_training: int = Field(40, ge=1)
    """Largest number of spikes in one training."""
    energy_share: float = Field(0.04, gt=0)
    """Largest energy of the spikes in one training, as a share of the activations' about their mean."""
    amplitude: Literal["constant", "uniform", "lognormal"] = "lognormal"
    """Law of the spikes' lengths, as in `Spike`."""
    direction: Literal["isotropic", "covariance"] = "isotropic"
    """Law of the spikes' directions, as in `Spike`."""

    def trainings(self, seed: int) -> list[list[Spike]]:
        """Return the spikes of each training; cells are spread over trainings at random.

        Args:
            seed: Seed of the order in which spikes are packed.

        Raises:
            SpecError: a single spike has more energy than `energy_share`.
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
        """Return a spike whose amplitude and direction follow the grid's laws."""
        return Spike(
            name=name,
            frequency=frequency,
            magnitude=magnitude,
            amplitude=self.amplitude,
            direction=self.direction,
        )


def packed(spikes: Sequence[Spike], most: int, energy_share: float) -> list[list[Spike]]:
    """Return spikes in groups; each spike joins the first group that has room for it.

    Args:
        spikes: The spikes, in the order in which they are packed.
        most: Largest number of spikes in a group.
        energy_share: Largest energy of a group, as a share of the activations' energy about their mean.

    Raises:
        SpecError: a single spike has more energy than `energy_share`.
    """
    return packed_together([[spike] for spike in spikes], most, energy_share)


def packed_together(
    units: Sequence[Sequence[Spike]], most: int, energy_share: float
) -> list[list[Spike]]:
    """Return spikes in groups, as `packed` does; the spikes of one unit stay in one group.

    Raises:
        SpecError: a single unit has more energy than `energy_share`, or more spikes than `most`.
    """
    groups: list[list[Spike]] = []
    energies: list[float] = []
    for unit in units:
        energy = sum(spike.energy for spike in unit)
        _check_room(unit, energy, most, energy_share)
        fits = (
            i
            for i, group in enumerate(groups)
            if len(group) + len(unit) <= most and energies[i] + energy <= energy_share
        )
        i = next(fits, len(groups))
        if i == len(groups):
            groups.append([])
            energies.append(0.0)
        groups[i] += unit
        energies[i] += energy
    return groups


def _check_room(unit: Sequence[Spike], energy: float, most: int, energy_share: float) -> None:
    first, one = unit[0], len(unit) == 1
    what = "a spike" if one else f"{len(unit)} spikes that are planted together,"
    named = f"{what} of frequency {first.frequency:g} and magnitude {first.magnitude:g}"
    if energy > energy_share:
        raise SpecError(
            f"{named} {'is' if one else 'are'} {energy:.1%} of the activations' energy, more than the "
            f"{energy_share:.1%} that may be planted at a time: make {'it' if one else 'them'} smaller "
            "or rarer"
        )
    if len(unit) > most:
        raise SpecError(
            f"{named} are more than the {most} that may be planted at a time, and half of the activations' "
            "width is the most"
        )
