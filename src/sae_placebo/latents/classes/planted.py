"""Latents that belong to a known class by construction, and how many of them the decision list finds.

Text is drawn, with stems in several forms, documents that each belong to one of several domains, and pairs of
tokens that recur. Latents are then written down as activations on that text, with errors of both kinds, and
the statistics are computed as for a real SAE. Columns for which a model is needed (placebos, other SAE seeds,
rows of repeated blocks) are drawn from what the class implies and take the place of the statistics. For these
columns the confusion matrix tests the list, not the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int8, Int32, Int64
from pydantic import Field

from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Columns, Encoded, Folds, TokenTable
from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.latents.columns.domains import domains_of
from sae_placebo.latents.ladder.fit_text import LadderText, Stacked
from sae_placebo.latents.ladder.ladder import ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import LadderSpec, TokenFeatures
from sae_placebo.latents.latent_blocks import on_every_fold
from sae_placebo.latents.metrics.tokens import token_evidence
from sae_placebo.latents.profile import statistics
from sae_placebo.saes import SAE, parse_sae
from sae_placebo.stats.proportions import wilson

_FORMS: tuple[tuple[str, float], ...] = (
    *(("{}", 0.55), (" {}", 0.2), ("{}s", 0.09), ("{}ing", 0.06)),
    *(("{}ed", 0.05), ("{}ly", 0.05)),
)


class PlantedSpec(Spec):
    """Settings of the text and of the latents that are drawn."""

    documents: int = Field(400, ge=16)
    rows_per_document: int = Field(4, ge=1)
    context: int = Field(128, ge=16)
    stems: int = Field(150, ge=50)
    domains: int = Field(16, ge=12)
    per_class: int = Field(25, ge=1)
    miss: float = Field(0.05, ge=0, lt=1)
    """How often a latent is silent where its class should be active, as a share of those tokens."""
    stray: float = Field(0.03, ge=0, lt=1)
    """Share of a latent's active tokens that are drawn from the whole text."""
    d_in: int = Field(256, ge=64)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Planted:
    """Latents of known classes on drawn text.

    Attributes:
        reading: Codes and activations; encoder and decoder rows are such as the classes need.
        truth: [latent] index of the class in `CLASSES`.
        unembedding: W_U.
        embeddings: W_E, which encodes the domains in which a token is frequent, and its form, with noise.
        given: Columns that cannot be computed from text or activations, one value per latent.
    """

    reading: Encoded
    truth: Int8[np.ndarray, " latent"]
    unembedding: Float[torch.Tensor, "vocabulary d_in"]
    embeddings: Float[np.ndarray, "vocabulary d_embed"]
    given: Mapping[str, Float[np.ndarray, " latent"]]


@dataclass(frozen=True, eq=False)
class _Scene:
    """The text that latents are planted on, with what is known of each token by construction."""

    spec: PlantedSpec
    tokens: TokenTable
    domain: Int64[np.ndarray, " token"]
    stem: Int64[np.ndarray, " token"]
    form: Int64[np.ndarray, " token"]
    norm: Float[np.ndarray, " token"]
    along: Float[np.ndarray, "token direction"]
    embeddings: Float[np.ndarray, "vocabulary d_embed"]
    draw: np.random.Generator

    def frequent(self, ids: Int32[np.ndarray, " token"], low: int, high: int) -> int:
        """Return a random id whose rank by frequency is at least `low` and below `high`."""
        order = np.argsort(-np.bincount(ids, minlength=len(self.tokens.vocabulary)), kind="stable")
        return int(order[self.draw.integers(low, high)])


Where = Bool[np.ndarray, " token"]


def plant(spec: PlantedSpec) -> Planted:
    """Return planted latents, `per_class` of each class; artefacts are of three kinds in turn.

    None is `undecided`, which says that the ladder is not known.
    """
    scene = _draw_text(spec)
    makers: dict[str, Callable[[_Scene, int], Where]] = {
        "dead": lambda s, i: np.zeros(len(s.tokens), dtype=bool),
        "ultra_rare": lambda s, i: _some(s, np.ones(len(s.tokens), bool), 5),
        "dense": lambda s, i: s.draw.random(len(s.tokens)) < 0.2,
        "single_token": lambda s, i: s.tokens.ids == s.frequent(s.tokens.ids, 5, 150),
        "artefact": _artefact,
        "positional": lambda s, i: np.isin(
            s.tokens.positions, s.draw.integers(1, 60) + np.arange(3)
        ),
        "n_gram": _n_gram,
        "previous_token": lambda s, i: s.tokens.previous == s.frequent(s.tokens.previous, 5, 100),
        "token_in_context": _token_in_context,
        "token_family": lambda s, i: s.stem == s.draw.integers(3, 40),
        "induction": _repeats,
        "context": lambda s, i: s.domain == i % s.spec.domains,
        "attribute": lambda s, i: s.form == 2 + i % (len(_FORMS) - 2),
        "output": lambda s, i: _before(s, _promoted(s, i, 2), 0.7),
        "arbitrary_subset": lambda s, i: (
            (s.domain == i % s.spec.domains) & (s.draw.random(len(s.tokens)) < 0.15)
        ),
        "pair_set": _pair_set,
        "token_set": lambda s, i: np.isin(s.tokens.ids, _token_set(s, 40)),
        "bag_or_window": _bag_or_tokens,
        "partly_explained": lambda s, i: (
            np.isin(s.tokens.ids, _token_set(s, 40)) & (s.draw.random(len(s.tokens)) < 0.45)
        ),
        "unexplained": lambda s, i: s.draw.random(len(s.tokens)) < 0.01,
    }
    where, truth = [], []
    for index, name in enumerate(CLASS_NAMES):
        for i in range(spec.per_class if name in makers else 0):
            active = makers[name](scene, i)
            where.append(active if name in ("dead", "ultra_rare") else _with_errors(scene, active))
            truth.append(index)
    return _planted(scene, where, np.array(truth, dtype=np.int8))


def planted_columns(planted: Planted, folds: Folds) -> Columns:
    """Return every column that `decide` reads, computed from text and weights where that is possible.

    The others are those of `Planted.given`.
    """
    reading, embeddings = planted.reading, planted.embeddings
    evidence, domains = token_evidence(reading), domains_of(reading.tokens, 0)
    columns, _ = statistics(reading, evidence, folds, domains, planted.unembedding, embeddings)
    text = LadderText.within(reading.tokens, folds, 0)
    readouts = Readouts.of(TokenFeatures.of(text, embeddings, 0, LadderSpec()), ())
    columns |= ladder(Stacked([reading.codes]), readouts, None).columns()
    return columns | {name: on_every_fold(c, folds) for name, c in planted.given.items()}


def confusion(
    truth: Int8[np.ndarray, " latent"], found: Int8[np.ndarray, " latent"]
) -> pandas.DataFrame:
    """Return one row for each pair of planted and found class that occurs or is on the diagonal.

    Columns: planted, found, n (latents of the planted class in the found class), n_planted, share (n of
    n_planted), low and high (Wilson's 95% interval).
    """
    rows = []
    for true, name in enumerate(CLASS_NAMES):
        total = int((truth == true).sum())
        for other, answer in enumerate(CLASS_NAMES):
            n = int(((truth == true) & (found == other)).sum())
            if total and (n or true == other):
                low, high = wilson(n, total)
                rows.append((name, answer, n, total, n / total, low, high))
    return pandas.DataFrame(
        rows, columns=["planted", "found", "n", "n_planted", "share", "low", "high"]
    )


def _draw_text(spec: PlantedSpec) -> _Scene:
    draw = numpy_generator(spec.seed, "planted text")
    stems = np.array(["".join(draw.choice(list("bcdfgklmnprt"), 5)) for _ in range(spec.stems)])
    weights = 1 / np.arange(1, spec.stems + 1) ** 0.7
    tilted = weights * draw.lognormal(0, 0.9, (spec.domains, spec.stems))
    tilted /= tilted.sum(1, keepdims=True)
    forms = np.array([share for _, share in _FORMS])
    n_rows = spec.documents * spec.rows_per_document
    documents = np.repeat(np.arange(spec.documents), spec.rows_per_document)
    domains = np.arange(spec.documents) % spec.domains
    stem = np.stack(
        [
            draw.choice(spec.stems, spec.context, p=tilted[domains[document]])
            for document in documents
        ]
    )
    form = draw.choice(len(_FORMS), (n_rows, spec.context), p=forms)
    ids = stem * len(_FORMS) + form
    # a share of the tokens is followed by the token that is their follower
    follower = draw.permutation(spec.stems)
    for position in range(1, spec.context):
        follows = draw.random(n_rows) < 0.15
        before, form_before = np.divmod(ids[follows, position - 1], len(_FORMS))
        ids[follows, position] = follower[before] * len(_FORMS) + form_before
    vocabulary = tuple(form.format(stem) for stem in stems for form, _ in _FORMS)
    rows = Rows(
        token_ids=ids.astype(np.int32),
        lengths=np.full(n_rows, spec.context, dtype=np.int32),
        documents=documents.astype(np.int32),
        names=tuple(f"document {i}" for i in range(spec.documents)),
    )
    tokens = TokenTable(rows, np.argwhere(rows.usable()).astype(np.int64), vocabulary)
    stem_of, form_of = np.divmod(tokens.ids.astype(np.int64), len(_FORMS))
    return _Scene(
        spec=spec,
        tokens=tokens,
        domain=domains[tokens.documents],
        stem=stem_of,
        form=form_of,
        norm=draw.lognormal(0, 0.4, len(tokens)),
        along=draw.standard_normal((len(tokens), 12)),
        embeddings=_embeddings(np.log(tilted / tilted.mean(0)), draw),
        draw=draw,
    )


def _embeddings(
    profile: Float[np.ndarray, "domain stem"], draw: np.random.Generator
) -> Float[np.ndarray, "vocabulary d_embed"]:
    forms = np.tile(np.eye(len(_FORMS)), (profile.shape[1], 1))
    rows = np.hstack([np.repeat(profile.T, len(_FORMS), axis=0), forms])
    wide = rows @ draw.standard_normal((rows.shape[1], 64)) / np.sqrt(rows.shape[1])
    noisy: Float[np.ndarray, "vocabulary d_embed"] = wide + 0.3 * draw.standard_normal(wide.shape)
    return noisy


def _some(scene: _Scene, where: Where, n: int) -> Where:
    kept = np.zeros(len(where), dtype=bool)
    places = np.flatnonzero(where)
    kept[scene.draw.choice(places, min(n, len(places)), replace=False)] = True
    return kept


def _with_errors(scene: _Scene, where: Where) -> Where:
    kept = where & (scene.draw.random(len(where)) >= scene.spec.miss)
    share = kept.mean() * scene.spec.stray / (1 - scene.spec.stray)
    return np.asarray(kept | (scene.draw.random(len(where)) < share))


def _artefact(scene: _Scene, i: int) -> Where:
    kind = i % 3
    if kind == 0:
        return np.asarray(scene.norm > np.quantile(scene.norm, 0.94))
    if kind == 1:
        return np.asarray(scene.along[:, i // 3 % 8] > 1.7)
    return np.asarray(scene.draw.random(len(scene.norm)) < 0.01)


def _n_gram(scene: _Scene, i: int) -> Where:
    pairs = scene.tokens.previous.astype(np.int64) * len(scene.tokens.vocabulary) + scene.tokens.ids
    names, counts = np.unique(pairs, return_counts=True)
    totals = np.bincount(scene.tokens.ids, minlength=len(scene.tokens.vocabulary))
    share = counts / totals[names % len(totals)]
    # the pair is frequent, and its second token mostly comes after others
    rare = np.flatnonzero(share < 0.6)
    fits = rare[counts[rare] >= min(30, int(np.sort(counts[rare])[-20:][0]))]
    return np.asarray(pairs == names[scene.draw.choice(fits)])


def _token_set(
    scene: _Scene, n: int, ranks: tuple[int, int] = (20, 500)
) -> Int64[np.ndarray, " chosen"]:
    """Return random ids of these ranks by frequency."""
    order = np.argsort(-np.bincount(scene.tokens.ids, minlength=len(scene.tokens.vocabulary)))
    return scene.draw.choice(order[slice(*ranks)], n, replace=False)


def _pair_set(scene: _Scene, i: int) -> Where:
    """Return where one of many pairs is, neither token of which tells it."""
    pairs = scene.tokens.previous.astype(np.int64) * len(scene.tokens.vocabulary) + scene.tokens.ids
    names, counts = np.unique(pairs, return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")[:150]]
    return np.isin(pairs, scene.draw.choice(frequent, 25, replace=False))


def _bag_or_tokens(scene: _Scene, i: int) -> Where:
    """Return where the domain is one of some, or the token one of a set."""
    return np.asarray(
        (scene.domain == i % scene.spec.domains)
        | np.isin(scene.tokens.ids, _token_set(scene, 17, (80, 200)))
    )


def _token_in_context(scene: _Scene, i: int) -> Where:
    chosen = scene.draw.permutation(scene.spec.domains)[: scene.spec.domains // 4]
    token = scene.frequent(scene.tokens.ids, 0, 30)
    return np.asarray((scene.tokens.ids == token) & np.isin(scene.domain, chosen))


def _repeats(scene: _Scene, i: int) -> Where:
    """Return a random three tenths of the tokens whose pair occurred earlier in the row."""
    places = scene.tokens.places[:, 0] * len(scene.tokens.vocabulary)
    pairs = (places + scene.tokens.previous) * len(scene.tokens.vocabulary) + scene.tokens.ids
    _, first = np.unique(pairs, return_index=True)
    again = np.ones(len(pairs), dtype=bool)
    again[first] = False
    return np.asarray(again & (scene.draw.random(len(pairs)) < 0.3))


def _promoted(scene: _Scene, i: int, n: int) -> Int64[np.ndarray, " promoted"]:
    size = len(scene.tokens.vocabulary)
    chosen = numpy_generator(scene.spec.seed, "promoted tokens", n, i).permutation(size // 3)[:n]
    return chosen.astype(np.int64) * 3 + 1


def _before(scene: _Scene, promoted: Int64[np.ndarray, " promoted"], share: float) -> Where:
    n = len(scene.tokens)
    hits = np.isin(scene.tokens.following, promoted) & (scene.draw.random(n) < share)
    return np.asarray(hits | (scene.draw.random(n) < 0.3 * hits.mean()))


def _planted(scene: _Scene, where: Sequence[Where], truth: Int8[np.ndarray, " latent"]) -> Planted:
    from scipy.sparse import csc_matrix

    spec, draw = scene.spec, scene.draw
    n, m = len(scene.tokens), len(where)
    tokens = np.concatenate([np.flatnonzero(active) for active in where])
    owners = np.repeat(np.arange(m), [int(active.sum()) for active in where])
    values = draw.lognormal(0, 0.2, len(tokens)).astype(np.float32)
    codes = csc_matrix((values, (tokens, owners)), shape=(n, m)).tocsr()
    unembedding = draw.standard_normal((len(scene.tokens.vocabulary), spec.d_in))
    directions, _ = np.linalg.qr(draw.standard_normal((spec.d_in, scene.along.shape[1])))
    decoder = draw.standard_normal((m, spec.d_in))
    for latent, index in enumerate(truth):
        name, i = CLASS_NAMES[index], latent % spec.per_class
        if name == "output":
            decoder[latent] = unembedding[_promoted(scene, i, 2)].sum(0)
        elif name == "artefact" and i % 3 == 1:
            decoder[latent] = directions[:, i // 3 % 8]
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    artefacts = np.flatnonzero(truth == CLASS_NAMES.index("artefact"))
    twins = artefacts[artefacts % spec.per_class % 3 == 2]
    # every second one is the mirror image of the one before it, and an odd last one that of the first
    decoder[twins[1::2]] = -decoder[twins[: len(twins) // 2 * 2 : 2]]
    if len(twins) % 2 and len(twins) > 1:
        decoder[twins[-1]] = -decoder[twins[0]]
    # scales fall, so that the first directions are the principal components
    scales = np.linspace(6, 4, scene.along.shape[1])
    x = (scene.along * scales) @ directions.T + 0.3 * draw.standard_normal((n, spec.d_in))
    x = (x + codes @ decoder) * scene.norm[:, None]
    return Planted(
        reading=Encoded(
            sae=_sae(decoder),
            tokens=scene.tokens,
            codes=codes,
            activations=torch.from_numpy(x).float(),
        ),
        truth=truth,
        unembedding=torch.from_numpy(unembedding).float(),
        embeddings=scene.embeddings,
        given=_given(truth, draw),
    )


def _sae(decoder: Float[np.ndarray, "latent d_in"]) -> SAE:
    spec = parse_sae({"kind": "topk", "d_sae": len(decoder), "k": 8})
    rows = torch.from_numpy(decoder).float()
    params = {
        "W_enc": rows.t().contiguous(),
        "b_enc": torch.zeros(len(rows)),
        "W_dec": rows,
        "b_dec": torch.zeros(rows.shape[1]),
    }
    return SAE(spec, params)


def _given(
    truth: Int8[np.ndarray, " latent"], draw: np.random.Generator
) -> dict[str, Float[np.ndarray, " latent"]]:
    """Return the columns for which a model is needed, as the classes imply them; others are random."""
    n = len(truth)

    def of(*names: str) -> Bool[np.ndarray, " latent"]:
        return np.isin(truth, [CLASS_NAMES.index(name) for name in names])

    unseen = of("arbitrary_subset", "unexplained")
    copies = of("induction")
    return {
        "induction_d": np.where(copies, draw.normal(1.6, 0.3, n), draw.normal(0, 0.25, n)),
        "seed_r": np.where(unseen, draw.beta(6, 30, n), draw.random(n)),
    }
