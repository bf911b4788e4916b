"""What dictionaries that learned nothing reach on features that are random as well, at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sae_placebo.core.errors import SpecError
from sae_placebo.core.progress import Track, untracked
from sae_placebo.lab.scores.null_tables import MatchingNull, random_null
from sae_placebo.lab.sizes import check_dictionaries
from sae_placebo.lab.text_tables import in_columns

Size = tuple[int, int, int]
SIZES: tuple[Size, ...] = (
    (2, 4, 4),
    (20, 5, 5),
    (50, 4, 4),
    (100, 50, 50),
    (256, 512, 512),
    (256, 512, 4096),
)
"""Sizes (d_in, features, latents) of the usual table."""
_TITLES = {
    "mmcs": "feature to latent (MMCS)",
    "mmcs_of_latents": "latent to feature",
    "mean_max_abs": "either sign",
    "mcc": "one to one (MCC)",
    "mcc_signed": "with signs",
    "uniqueness": "nearest features per latent",
}


def sizes_of(d_in: int | None, n_features: int | None, d_sae: int | None) -> tuple[Size, ...]:
    """Return the one size that is given, or `SIZES` where none is.

    Raises:
        SpecError: some of the three numbers are given and others not.
    """
    if d_in is not None and n_features is not None and d_sae is not None:
        return ((d_in, n_features, d_sae),)
    if (d_in, n_features, d_sae) != (None, None, None):
        raise SpecError("give all three of dimensions, features and latents, or none of them")
    return SIZES


def null_table(
    sizes: Sequence[Size] = SIZES, seed: int = 0, track: Track = untracked
) -> dict[Size, MatchingNull]:
    """Return `random_null` at each size (d_in, features, latents).

    Raises:
        SpecError: a size is below 1, or more than this machine's memory can hold.
    """
    nulls = {}
    for size in sizes:
        check_dictionaries(*size)
    with track("draw dictionaries", len(sizes), "sizes") as advance:
        for size in sizes:
            nulls[size] = random_null(*size, seed)
            advance(1)
    return nulls


def in_lines(nulls: Mapping[Size, MatchingNull]) -> str:
    """Return a table of text: the mean over draws and the standard deviation between draws."""
    rows = [("d_in", "features", "latents", *_TITLES.values(), "draws")]
    for size, null in nulls.items():
        values = [getattr(null, name) for name in _TITLES]
        cells = [f"{value.mean:.3f} ± {value.sd:.3f}" for value in values]
        rows.append((*(f"{n:,}" for n in size), *cells, str(null.mmcs.draws)))
    return in_columns(rows)
