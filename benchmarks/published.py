"""What was published of the figures that the laboratory replicates."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A published number.

    Attributes:
        value: The number.
        width: How exactly it is known: half its last digit, or more where it was read off a plot.
        note: Where it is from, and what is different.
        comparable: Whether it is of the same setting, so that ours can agree with it or differ.
    """

    value: float
    width: float
    note: str = ""
    comparable: bool = True


_NOTE = "research note of this project, 6 runs from one base seed"


def _sets() -> dict[tuple[str, str], Published]:
    rows = {
        "m 8, constant": (0.993, 0.00, 0.02, 0.73),
        "m 8, shared": (0.980, 0.00, 0.06, 0.67),
        "m 8, independent": (0.987, 0.94, 0.00, 0.97),
        "m 8, constant, 25% solo": (0.991, 0.85, 0.02, 0.97),
        "m 8, constant, 75% solo": (0.997, 1.00, 0.00, 1.00),
        "m 24, constant": (0.997, 0.02, 0.80, 0.80),
        "m 24, shared": (0.993, 0.00, 0.95, 0.76),
        "m 24, independent": (0.988, 0.67, 0.31, 0.99),
        "m 24, independent, lambda .02": (0.999, 0.75, 0.11, 0.98),
        "m 24, independent, lambda .3": (0.913, 0.49, 0.52, 0.96),
        "m 24, independent, lambda .6": (0.710, 0.32, 0.60, 0.90),
    }
    names = ("ev", "atomic", "conjunctions", "mmcs")
    widths = (0.0005, 0.005, 0.005, 0.005)
    return {
        (f"{start}: {case}", name): Published(value, width, _NOTE)
        for start in ("composed sets", "composed sets, tied start")
        for case, values in rows.items()
        for name, value, width in zip(names, values, widths, strict=True)
    }


_KORZNIKOV = "arXiv 2602.14111; length of training not given"
_CHANIN = "arXiv 2409.14507"
_HEDGING = "note, after arXiv 2505.11756"
_WRONG = "arXiv 2508.16560; which k is not said"
_TREE = "Nabeshima 2024, in words: vanilla absorbs, Matryoshka recovers"

PUBLISHED: dict[tuple[str, str], Published] = {
    **_sets(),
    ("composed sets: TopK, m 16", "conjunctions"): Published(0.69, 0.005, _NOTE),
    ("parent and child: hierarchical", "child latent, cosine to child"): Published(
        0.707, 0.0005, _CHANIN
    ),
    ("parent and child: hierarchical", "child latent, cosine to parent"): Published(
        0.707, 0.0005, _CHANIN
    ),
    ("parent and child: hierarchical", "parent latent, recall without child"): Published(
        1.0, 0.005, _CHANIN
    ),
    ("parent and child: hierarchical", "parent latent, recall with child"): Published(
        0.0, 0.005, _CHANIN
    ),
    ("parent and child: independent", "child latent, cosine to child"): Published(
        1.0, 0.005, _CHANIN
    ),
    ("parent and child: independent", "child latent, cosine to parent"): Published(
        0.0, 0.005, _CHANIN
    ),
    ("hedging: independent", "cosine to parent"): Published(1.0, 0.005, _HEDGING),
    ("hedging: independent", "cosine to child"): Published(0.0, 0.005, _HEDGING),
    ("hedging: hierarchical", "cosine to parent"): Published(0.971, 0.0005, _HEDGING),
    ("hedging: hierarchical", "cosine to child"): Published(0.239, 0.0005, _HEDGING),
    ("hedging: partial", "cosine to parent"): Published(0.976, 0.0005, _HEDGING),
    ("hedging: partial", "cosine to child"): Published(0.22, 0.0005, _HEDGING),
    ("hedging: anti", "cosine to parent"): Published(0.94, 0.005, _HEDGING),
    ("hedging: anti", "cosine to child"): Published(-0.34, 0.005, _HEDGING),
    ("wrong L0: k 5 of 11", "squared error, true"): Published(4.88, 0.005, _WRONG),
    ("wrong L0: k 5 of 11", "squared error, trained"): Published(2.73, 0.005, _WRONG),
    ("high expansion: constant, batchtopk", "ev"): Published(0.67, 0.005, _KORZNIKOV),
    ("high expansion: constant, batchtopk", "features above .8"): Published(3, 0.5, _KORZNIKOV),
    ("high expansion: variable, batchtopk", "ev"): Published(0.71, 0.005, _KORZNIKOV),
    ("high expansion: variable, batchtopk", "features above .8"): Published(297, 0.5, _KORZNIKOV),
    ("high expansion: constant, batchtopk, rate 2e-3", "ev"): Published(0.67, 0.005, _KORZNIKOV),
    ("high expansion: constant, batchtopk, rate 2e-3", "features above .8"): Published(
        3, 0.5, _KORZNIKOV
    ),
    ("high expansion: variable, batchtopk, rate 2e-3", "ev"): Published(0.71, 0.005, _KORZNIKOV),
    ("high expansion: variable, batchtopk, rate 2e-3", "features above .8"): Published(
        297, 0.5, _KORZNIKOV
    ),
    ("high expansion: variable, jumprelu", "features above .8"): Published(225, 0.5, _KORZNIKOV),
    ("synthetic bench, 1/8: batchtopk", "mcc"): Published(
        0.676,
        0.0005,
        "arXiv 2602.14687, at full scale (16,384 features, 200M tokens); not this scale",
        comparable=False,
    ),
    ("synthetic bench, 1/8: matryoshka", "f1"): Published(
        0.88, 0.005, "as above, best published", comparable=False
    ),
    ("solvable pair: 0 of the crossover", "angle"): Published(45, 0.5, "closed form"),
    ("solvable pair: 2 of the crossover", "angle"): Published(80, 1, "closed form"),
    ("solvable pair: 4 of the crossover", "angle"): Published(85, 1, "closed form"),
}
