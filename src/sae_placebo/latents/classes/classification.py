"""The class of each latent, by a decision list: a latent is in the first class whose rule it meets.

The classes are in the order of what they need of a model, the least first, so that a latent is in the
simplest class that describes it:

1. How often it fires (`dead`, `ultra_rare`, `dense`). Nothing can be said of what a latent fires on before
   this is known.
2. `single_token`: one row of a table describes the latent completely. It comes before the artefacts because
   a frequent token is itself a direction of high variance.
3. `artefact`: directions that any cloud of activations has. They come before all that is only a
   tendency, since a principal component or the norm drifts with position, domain and groups of tokens.
4. What can be read off the position or a few tokens (`positional`, `n_gram`, `previous_token`). Position
   comes first, since the first token after BOS also has a constant previous token.
5. One token whose context decides (`token_in_context`), then any few tokens (`token_family`), which
   takes what the stricter rules on few tokens have left.
6. `induction`, `context` and `attribute`: these need attention, a bag of tokens, or a parse. A copy is shown
   by intervention and so comes before the two that are shown by correlation. A bag is simpler than a parse.
7. `output`: nothing so far describes what the latent fires on, but the tokens that it promotes come next.
8. `arbitrary_subset`: a negative result within a domain, given only after every positive one was tried.
9. What the ladder says of the rest (`pair_set`, `token_set`, `bag_or_window`, `partly_explained`,
   `unexplained`). A pair that tells much more than either token comes before the token. Where the ladder is
   not known, a latent that met no rule is `undecided`.

The classes are a description, not a verdict. Nearly all of them are known or expected to occur in SAEs on
random models too, and what counts is how their shares differ between arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, Num, Shaped

from sae_placebo.core.lazy import pandas
from sae_placebo.latents.classes.thresholds import ClassThresholds as ClassThresholds


@dataclass(frozen=True)
class LatentClass:
    """One class of latents.

    Attributes:
        name: The class's name in tables.
        definition: Its rule in words.
        on_random_models: Whether random models are known to have such latents, in words.
        needs: Sets of columns, any one of which is enough to decide the class.
        unclaimed: Why not .9 of planted latents of this class are recovered; empty where they are.
    """

    name: str
    definition: str
    on_random_models: str
    needs: tuple[tuple[str, ...], ...] = ()
    unclaimed: str = ""

    @property
    def claimed(self) -> bool:
        """Whether at least .9 of planted latents of this class are found as such."""
        return not self.unclaimed


_TOKENS = ("top_token_mass", "top_token_recall")
_RUNGS = (("r2_token",), ("r2_pair",), ("r2_window",))

CLASSES: tuple[LatentClass, ...] = (
    LatentClass(
        "dead",
        "Never active on the held-out tokens.",
        "Yes: known for every architecture and any activations.",
        (("n_active",),),
    ),
    LatentClass(
        "ultra_rare",
        "Active on fewer than min_firings held-out tokens, or with a density below "
        "ultra_rare_density: too few to say what it is active on.",
        "Yes: reported for trained models by Bricken et al. (2023); expected for random ones.",
        (("n_active", "density"),),
    ),
    LatentClass(
        "dense",
        "Density above dense_density.",
        "Yes: the mean direction, norm and leading principal components exist in any model; "
        "their share there has not been published.",
        (("density",),),
    ),
    LatentClass(
        "single_token",
        "One token id holds at least `mass` of the latent's activation, and the latent is active "
        "on at least `recall` of that token's occurrences.",
        "Yes: the dominant class there (Bricken et al. 2023; Heap et al. 2025).",
        (_TOKENS,),
    ),
    LatentClass(
        "artefact",
        "Its activation follows the norm of the activations (norm_correlation), or its decoder one "
        "of their ten leading principal components (pc_cosine), or another latent is its mirror "
        "image (antipodality).",
        "Expected: norm and principal components exist in any model. Not measured by anyone.",
        (("norm_correlation",), ("pc_cosine",), ("antipodality",)),
    ),
    LatentClass(
        "positional",
        "Position alone has an R2 of at least position_r2, or tells at least position_bits about "
        "whether the latent is active.",
        "Not seen there by readers of features; it depends on whether position embeddings are kept "
        "or positions are rotary.",
        (("r2_position",), ("position_bits",)),
    ),
    LatentClass(
        "n_gram",
        "Five n-grams cover at least ngram_cover of its active positions while it is active on less "
        "than `recall` of its top token's occurrences.",
        "Some by chance: random attention lets the previous token through. Not measured by anyone.",
        (("ngram_cover", "top_token_recall"),),
    ),
    LatentClass(
        "previous_token",
        "The previous token has an R2 of at least previous_r2, and a higher one than the current "
        "token.",
        "Weakly: in training such latents appear after 1,000 to 5,000 steps (Ge et al. 2025).",
        (("r2_previous", "r2_token"),),
    ),
    LatentClass(
        "token_in_context",
        "One token id holds at least `mass` of the activation, the latent is active on less than "
        "context_recall of its occurrences, and what came before raises the R2 of the current token "
        "by gain_r2 or more: a bag of previous tokens, on that token alone (context_gain), or the "
        "embeddings of a window.",
        "Not known; a threshold on the token plus the mean of the prefix would make some.",
        (
            (*_TOKENS, "context_gain"),
            (*_TOKENS, "r2_token", "r2_window"),
        ),
    ),
    LatentClass(
        "token_family",
        "One family of tokens, equal but for case, leading space and suffix, holds at least `mass` "
        "of the activation, or the effective number of tokens is at most effective_tokens. A "
        "latent on one token that is active on only some of its occurrences is here too, unless it "
        "is a token in context.",
        "Not reported anywhere; plausible where the embeddings are the trained ones. With re-drawn "
        "embeddings, families "
        "of more than one token can arise by chance alone.",
        (("family_mass", "effective_tokens"),),
    ),
    LatentClass(
        "induction",
        "Rises by at least induction_d standard deviations on the second occurrence of a random "
        "block of tokens.",
        "No: copying needs two attention heads composed.",
        (("induction_d",),),
    ),
    LatentClass(
        "context",
        "A decayed bag of previous tokens has an R2 of at least bag_r2, at least gain_r2 above that "
        "of the previous and current token, and the current token one below bag_token_r2: a domain "
        "that linear averaging of tokens recognizes.",
        "Yes in principle: random attention averages embeddings. It is no evidence of a model.",
        (("r2_bag", "r2_token", "r2_pair"),),
        "of planted latents 95 of 100 were found on 203,200 tokens (interval down to .89), 67 of 75 on "
        "half of them; the rest were unexplained, so it is undercounted on little text",
    ),
    LatentClass(
        "attribute",
        "One attribute of the token, orthographic or syntactic, explains at least attribute_r2 of "
        "its variance, and it is spread over more than attribute_tokens tokens.",
        "Letters and parts of speech need trained embeddings: expected where these are kept, and "
        "not where they are re-drawn.",
        (("attribute_r2", "effective_tokens"),),
    ),
    LatentClass(
        "output",
        "The kurtosis of its direct effect on the vocabulary is above `kurtosis`, and the tokens it "
        "promotes come next more than output_lift times as often as the current token alone says.",
        "Not with a re-drawn W_U; with a trained one only where a direction of W_E is copied.",
        (("unembedding_kurtosis", "output_lift"),),
    ),
    LatentClass(
        "arbitrary_subset",
        "At least domain_precision of its active tokens lie in one recognizable domain, it is active "
        "on less than domain_recall of that domain's tokens, inside it no lookup of the current "
        "or previous token, no position and no linear bag reaches an AUC of domain_auc, and no latent "
        "of another SAE seed correlates with it at seed_r.",
        "Yes: Bricken et al. (2023) saw it there, by eye. Never counted by anyone.",
        (("domain_precision", "domain_recall", "domain_auc", "seed_r"),),
    ),
    LatentClass(
        "pair_set",
        "Previous and current token together have an R2 of at least set_r2, and one higher by gain_r2 "
        "than either of them alone, or the current token alone stays below set_r2.",
        "Some by chance: random attention lets the previous token through. Not measured by anyone.",
        (("r2_pair", "r2_token", "r2_previous"),),
    ),
    LatentClass(
        "token_set",
        "The current token alone has an R2 of at least set_r2: a table with one number per token "
        "describes the latent, which is on too many tokens for a family.",
        "Yes: a random direction of an embedding is one. The most frequent class there, next to "
        "`unexplained`.",
        (("r2_token",),),
    ),
    LatentClass(
        "bag_or_window",
        "Position, previous and current token, a decayed bag of the tokens before and the embeddings of "
        "the last tokens have an R2 of at least set_r2 together.",
        "Yes in principle: random attention averages embeddings.",
        (("r2_window",),),
    ),
    LatentClass(
        "partly_explained",
        "The best of these (token, pair, bag and window) has an R2 of at least partly_r2, below set_r2.",
        "Yes: where blocks dilute the token, most latents that are described at all are here.",
        _RUNGS,
    ),
    LatentClass(
        "unexplained",
        "The best of these has an R2 below partly_r2. This is about simple predictors, not about the "
        "latent's origin, and no evidence of anything by itself.",
        "Yes: what random blocks add to the stream is hardly a function of the last tokens.",
        _RUNGS,
    ),
    LatentClass(
        "undecided",
        "None of the above, and no R2 of the ladder is known of it: it never varies on the documents that "
        "are scored, or the arm's text has no ladder.",
        "It says nothing about models.",
    ),
)
CLASS_NAMES: tuple[str, ...] = tuple(kind.name for kind in CLASSES)

Array = Num[np.ndarray, "..."]
Rule = Bool[np.ndarray, "..."]

# with this allowance nine activations out of ten are a mass of 0.9 in single precision, too
_ROUNDING = 1e-6


class _RuleTable(dict[str, Any]):
    """Columns by name; a missing one is NaN everywhere, which satisfies no comparison."""

    def __missing__(self, name: str) -> Any:
        return np.float64(np.nan)


def decide(
    columns: Mapping[str, Num[np.ndarray, "..."]], thresholds: ClassThresholds
) -> Int8[np.ndarray, "..."]:
    """Return each latent's class as an index into `CLASSES`.

    Args:
        columns: `n_active` and those that are known of the columns that `CLASSES` names in `needs`. The
            arrays have one shape, [latent] or [latent, fold]. A missing column, or NaN, satisfies no rule.
        thresholds: Where the classes end.

    Source: the definitions are those of Bricken et al. (2023), Sun et al. (2025) and Heap et al. (2025)
        where `CLASSES` names them. The others, the order, and every threshold for which no paper is named
        are ours.
    """
    table = _RuleTable(columns)
    rules = {
        **_by_frequency(table, thresholds),
        **_by_tokens(table, thresholds),
        **_by_geometry(table, thresholds),
        **_by_ladder(table, thresholds),
        **_by_model(table, thresholds),
        **_by_what_explains(table, thresholds),
    }
    # from the bottom of the list up, so that the first rule that holds is written last
    last = len(CLASSES) - 1
    classes = np.full(np.shape(table["n_active"]), last, dtype=np.int8)
    for index in reversed(range(last)):
        np.copyto(classes, np.int8(index), where=rules[CLASS_NAMES[index]])
    return classes


def _by_frequency(c: _RuleTable, t: ClassThresholds) -> dict[str, Any]:
    return {
        "dead": c["n_active"] == 0,
        "ultra_rare": (c["n_active"] < t.min_firings) | (c["density"] < t.ultra_rare_density),
        "dense": c["density"] > t.dense_density,
    }


def _by_tokens(c: _RuleTable, t: ClassThresholds) -> dict[str, Any]:
    mass, recall = t.mass - _ROUNDING, t.recall - _ROUNDING
    few = c["effective_tokens"] <= t.effective_tokens * (1 + _ROUNDING)
    on_one = c["top_token_mass"] >= mass
    in_context = np.fmax(c["context_gain"], c["r2_window"] - c["r2_token"]) >= t.gain_r2 - _ROUNDING
    return {
        "single_token": on_one & (c["top_token_recall"] >= recall),
        "n_gram": (c["ngram_cover"] >= t.ngram_cover - _ROUNDING)
        & (c["top_token_recall"] < recall),
        "token_in_context": on_one & (c["top_token_recall"] < t.context_recall) & in_context,
        # a token is of its own family where nobody knows of others
        "token_family": (np.fmax(c["family_mass"], c["top_token_mass"]) >= mass) | few,
    }


def _by_geometry(c: _RuleTable, t: ClassThresholds) -> dict[str, Any]:
    return {
        "artefact": (np.abs(c["norm_correlation"]) > t.norm_correlation)
        | (np.abs(c["pc_cosine"]) > t.pc_cosine)
        | (c["antipodality"] > t.antipodality)
    }


def _by_ladder(c: _RuleTable, t: ClassThresholds) -> dict[str, Any]:
    return {
        "positional": (c["r2_position"] >= t.position_r2) | (c["position_bits"] >= t.position_bits),
        "previous_token": (c["r2_previous"] >= t.previous_r2) & (c["r2_previous"] > c["r2_token"]),
        "context": (c["r2_bag"] >= t.bag_r2)
        & (c["r2_bag"] - c["r2_pair"] >= t.gain_r2 - _ROUNDING)
        & (c["r2_token"] < t.bag_token_r2),
        "attribute": (c["attribute_r2"] >= t.attribute_r2)
        & (c["effective_tokens"] > t.attribute_tokens),
    }


def _by_what_explains(c: _RuleTable, t: ClassThresholds) -> dict[str, Any]:
    """Return the rules on the R2 of the ladder for what is in no class above."""
    gain = c["r2_pair"] - np.fmax(c["r2_token"], c["r2_previous"]) >= t.gain_r2 - _ROUNDING
    best = np.fmax(np.fmax(c["r2_token"], c["r2_pair"]), c["r2_window"])
    return {
        "pair_set": (c["r2_pair"] >= t.set_r2) & (gain | (c["r2_token"] < t.set_r2)),
        "token_set": c["r2_token"] >= t.set_r2,
        "bag_or_window": c["r2_window"] >= t.set_r2,
        "partly_explained": best >= t.partly_r2,
        "unexplained": best < t.partly_r2,
    }


def _by_model(c: _RuleTable, t: ClassThresholds) -> dict[str, Any]:
    arbitrary = is_arbitrary(c, t)
    if t.seed_r < 1:
        arbitrary = arbitrary & (c["seed_r"] < t.seed_r)
    return {
        "induction": c["induction_d"] >= t.induction_d,
        "output": (c["unembedding_kurtosis"] > t.kurtosis) & (c["output_lift"] > t.output_lift),
        "arbitrary_subset": arbitrary,
    }


def is_arbitrary(columns: Mapping[str, Any], thresholds: ClassThresholds) -> Any:
    """Return whether each latent marks a subset of a domain that nothing simple predicts.

    It does not depend on other SAE seeds, so that one can count how often such latents are found again.
    """
    table = _RuleTable(columns)
    return _marks_subset(table, thresholds) & (table["domain_auc"] < thresholds.domain_auc)


def _marks_subset(c: _RuleTable, t: ClassThresholds) -> Any:
    """Return whether each latent is within the limits on domain_precision and domain_recall."""
    precise = c["domain_precision"] >= t.domain_precision - _ROUNDING
    return precise & (c["domain_recall"] < t.domain_recall)


def not_estimable(
    columns: Mapping[str, Num[np.ndarray, "..."]], thresholds: ClassThresholds | None = None
) -> dict[str, str]:
    """Return the classes that cannot be decided for an SAE, each with the reason.

    A class can be decided where one of the sets of columns in its `needs` is known of at least one
    latent. A class that cannot be decided has no share, which is not the same as a share of 0. Where no
    latent is within the limits on domain_precision and domain_recall, none is on an arbitrary subset,
    whatever its AUC.
    """
    table = _RuleTable(columns)
    candidates = _marks_subset(table, thresholds or ClassThresholds())
    settled = {"domain_auc"} if not np.any(candidates) else set()

    def known(name: str) -> bool:
        return name in settled or bool(np.any(np.isfinite(table[name])))

    return {
        kind.name: "nothing is known of "
        + ", or of ".join(
            " and ".join(name for name in needed if not known(name)) for needed in kind.needs
        )
        + " for any latent"
        for kind in CLASSES
        if kind.needs and not any(all(known(name) for name in needed) for needed in kind.needs)
    }


def classify(
    table: pandas.DataFrame, thresholds: ClassThresholds | None = None
) -> Shaped[np.ndarray, " latent"]:
    """Return the class name of every row of a latent table.

    Args:
        table: Has `n_active` and other columns that `decide` reads; nulls are allowed.
        thresholds: Where the classes end; the defaults where none are given.
    """
    names = dict.fromkeys(
        ["n_active", *(name for kind in CLASSES for needed in kind.needs for name in needed)]
    )
    columns = {
        name: table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in names
        if name in table.columns
    }
    classes = decide(columns, thresholds or ClassThresholds())
    names_of: Shaped[np.ndarray, " latent"] = np.array(CLASS_NAMES, dtype=object)[classes]
    return names_of
