"""The comparison of an arm's SAEs with simpler baselines, on the same tokens, sparsity and distortions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.baselines.base import BASELINES, Baseline, BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.marginal import DocumentBits, ratio_interval
from sae_placebo.baselines.probing import ProbeTasks, probe, probe_tasks
from sae_placebo.baselines.pursuit import AtomCodes, pursue, pursue_nonnegative, refitted
from sae_placebo.baselines.rate import (
    PARTS,
    ChosenAndScored,
    TokenBits,
    by_document,
    dictionary_bits,
    token_bits,
)
from sae_placebo.baselines.sampling import Sample, as_numpy, draw_sample
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.tables import MODEL_KEYS
from sae_placebo.core.tables.baselines import BASELINES as BASELINES_TABLE
from sae_placebo.data.labels.truth import NO_LABELS
from sae_placebo.latents.base import Encoded, Folds, TokenTable

SAE_BASELINE = "sae"
"""The name that tables give to SAEs as a baseline."""


class Coded(NamedTuple):
    """The key of bits: a baseline, the name of the SAE (None for simpler baselines), and a distortion."""

    baseline: str
    reading: str | None
    distortion: float


@dataclass(frozen=True, eq=False)
class BaselinesResult:
    """The comparison for one arm at one hookpoint.

    Attributes:
        table: One row for each baseline or SAE at each distortion. A baseline that could not be fitted has
            one row, with the reason.
        bits: The bits of each document behind the bits of the table.
        k: Atoms per token at which baselines were compared.
        reason: Why there is no comparison at all; None where there is one.
    """

    table: pandas.DataFrame
    bits: Mapping[Coded, DocumentBits]
    k: int
    reason: str | None = None

    def simpler(self, distortion: float) -> dict[str, DocumentBits]:
        """Return the bits of all baselines that are no SAE, by name, at one distortion."""
        return {
            key.baseline: bits
            for key, bits in self.bits.items()
            if key.reading is None and key.distortion == distortion
        }

    def of_sae(self, reading: str, distortion: float) -> DocumentBits:
        """Return the bits of the SAE called `reading` at one distortion.

        Raises:
            KeyError: they could not be counted.
        """
        return self.bits[Coded(SAE_BASELINE, reading, distortion)]


@dataclass(eq=False)
class _Comparison:
    """What all baselines of one arm share, and the rows and bits so far."""

    sample: Sample
    k: int
    spec: BaselinesSpec
    tasks: ProbeTasks | None
    why_no_probe: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    bits: dict[Coded, DocumentBits] = field(default_factory=dict)

    def add(self, dictionary: Dictionary, split: ChosenAndScored, reading: str | None) -> None:
        """Add the rows of one dictionary, one at each distortion, and its bits by document."""
        codes = split.score_codes(self.k)
        shared = {
            **self._row(dictionary.name, reading, None),
            "n_atoms": len(dictionary.directions),
            **self._fidelity(dictionary, split.score, codes),
            **self._probes(split, codes),
        }
        of_dictionary = dictionary_bits(dictionary) / self.sample.stream_tokens
        for distortion in self.spec.distortions:
            try:
                bits = token_bits(dictionary, split, self.k, distortion, self.spec)
            except NotEstimable as refusal:
                self.rows.append({**shared, "distortion": distortion, "reason": str(refusal)})
                continue
            documents = self._documents(bits.adjusted)
            self.bits[Coded(dictionary.name, reading, distortion)] = documents
            self.rows.append({**shared, **_bits_row(bits, documents, of_dictionary)})

    def refuse(self, baseline: str, reason: str, reading: str | None = None) -> None:
        """Add the row of a baseline that could not be fitted."""
        self.rows.append(self._row(baseline, reading, reason))

    def _row(self, baseline: str, reading: str | None, reason: str | None) -> dict[str, Any]:
        return {
            "baseline": baseline,
            "reading": reading,
            "n_tokens": len(self.sample.score),
            "n_documents": len(np.unique(self.sample.documents)),
            "reason": reason,
        }

    def _documents(self, values: Float[np.ndarray, " token"]) -> DocumentBits:
        """Return the sums of values over each document, with the number of its tokens."""
        s = self.sample
        parts = (values, np.ones(len(values)))
        return DocumentBits(*(by_document(part, s.documents, s.n_documents) for part in parts))

    def _fidelity(
        self, dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], codes: AtomCodes
    ) -> dict[str, float]:
        """Return the columns of sparsity and explained variance."""
        if not len(dictionary.directions):  # no sparse code, so that nothing is explained by one
            return {"sparsity": 0.0}
        s = self.sample
        ev, error = explained(dictionary, x, codes, s.energy)
        parts = [by_document(v, s.documents, s.n_documents) for v in (error, s.energy)]
        low, high = ratio_interval(*parts)
        lookup = float(s.lookup_error.sum())
        return {
            "sparsity": codes.sparsity,
            "explained_variance": ev,
            "ev_low": 1 - high,
            "ev_high": 1 - low,
            "lookup_relative_ev": 1 - float(error.sum()) / lookup if lookup > 0 else np.nan,
        }

    def _probes(self, split: ChosenAndScored, codes: AtomCodes) -> dict[str, Any]:
        """Return the columns of probes with 1 and with 5 atoms, or the reason why there are none."""
        if self.tasks is None or not codes.n_atoms:
            return {"probe_reason": self.why_no_probe or "it has no atoms to read"}
        fitted = split.choose_codes(self.k)
        columns: dict[str, Any] = {}
        for k, suffix in ((1, "_1"), (5, "")):
            try:
                means = probe(fitted, codes, self.tasks, k)
            except NotEstimable as refusal:
                return {"probe_reason": str(refusal)}
            columns |= {
                f"probe_auc{suffix}": means.auc,
                f"probe_selectivity{suffix}": means.selectivity,
                f"probe_accuracy{suffix}": means.accuracy,
                "probe_labels": means.n_labels,
            }
        return columns


def compare_baselines(
    activations: Any,
    tokens: TokenTable,
    folds: Folds,
    saes: Mapping[str, Encoded],
    embeddings: Any,
    seed: int,
    spec: BaselinesSpec | None = None,
    advance: Advance = unheard,
) -> BaselinesResult:
    """Return how every baseline and every SAE of one arm do at the same sparsity and distortions.

    Methods are fitted on documents to fit on, probabilities of codes and probes on documents to choose on,
    and everything is scored on documents to score on. The same seed and tokens give the same samples for
    every arm, so that arms are paired.

    Args:
        activations: Activations [token, d_in] at the held-out tokens, NumPy or torch.
        tokens: The held-out tokens.
        folds: Which purpose each document serves.
        saes: The arm's SAEs at these tokens, by name.
        embeddings: Rows of the arm's W_E, NumPy or torch; None where they are not known.
        seed: The seed that the samples and every baseline's draws are named by.
        spec: The settings; the defaults unless given.
        advance: Called with 1 after each baseline and each SAE.

    Raises:
        NotEstimable: a purpose has fewer than 50 tokens, or the activations do not vary.
    """
    spec = spec or BaselinesSpec()
    sample = draw_sample(as_numpy(activations), tokens, folds, seed, spec)
    k = spec.k or _usual_k(saes, sample)
    n_atoms = min([spec.n_atoms, *(one.d_sae for one in saes.values())])
    tasks, why = _tasks(tokens, sample, seed, spec)
    table = None if embeddings is None else as_numpy(embeddings)
    ids = tokens.ids[sample.fit].astype(np.int64)
    material = Material(sample.x_fit, sample.center, ids, table, n_atoms, seed, spec)
    comparison = _Comparison(sample, k, spec, tasks, why)
    for name, baseline in BASELINES.entries.items():
        _add_baseline(comparison, name, baseline, material)
        advance(1)
    for name, reading in saes.items():
        _add_sae(comparison, name, reading)
        advance(1)
    return BaselinesResult(methods_frame(comparison.rows), comparison.bits, k)


def _add_baseline(
    comparison: _Comparison, name: str, baseline: Baseline, material: Material
) -> None:
    """Add the rows of a baseline that is no SAE, or the reason why it could not be fitted."""
    sample, k = comparison.sample, comparison.k
    try:
        dictionary = baseline.fit(material)
        native = _native_ev(dictionary, sample, k)
    except NotEstimable as refusal:
        comparison.refuse(name, str(refusal))
        return
    before = len(comparison.rows)
    comparison.add(dictionary, _pursued(dictionary, sample, k), None)
    for row in comparison.rows[before:]:
        row |= native


def explained(
    dictionary: Dictionary,
    x: Float32[np.ndarray, "token d_in"],
    codes: AtomCodes,
    energy: Float[np.ndarray, " token"],
) -> tuple[float, Float[np.ndarray, " token"]]:
    """Return the share of variance that a code explains, and each token's squared error.

    Args:
        dictionary: The directions.
        x: Activations less the dictionary's center.
        codes: Their code.
        energy: Squared distance of each activation from their mean.
    """
    left = x - codes.decode(dictionary.directions)
    error = np.einsum("td,td->t", left, left, dtype=np.float64)
    return 1 - float(error.sum()) / float(energy.sum()), error


def _usual_k(saes: Mapping[str, Encoded], sample: Sample) -> int:
    """Return the mean L0 of the SAEs on scored tokens; an eighth of d_in without an SAE."""
    if not saes:
        return max(1, int(sample.x_fit.shape[1]) // 8)
    used = [np.diff(sae.codes.indptr)[sample.score].mean() for sae in saes.values()]
    return max(1, round(float(np.mean(used))))


def _tasks(
    tokens: TokenTable, sample: Sample, seed: int, spec: BaselinesSpec
) -> tuple[ProbeTasks | None, str | None]:
    """Return the tasks of probes, or None and the reason why there are none."""
    labels = tokens.labels
    if labels is None:
        return None, NO_LABELS
    choose, score = tokens.places[sample.choose], tokens.places[sample.score]
    held = labels.at(choose), labels.at(score)
    known = labels.known[choose[:, 0], choose[:, 1]], labels.known[score[:, 0], score[:, 1]]
    ids = tokens.ids.astype(np.int64)
    token_ids = ids[sample.choose], ids[sample.score]
    try:
        return probe_tasks(held, known, token_ids, labels.names, spec.n_labels, seed), None
    except NotEstimable as refusal:
        return None, str(refusal)


def _pursued(dictionary: Dictionary, sample: Sample, k: int) -> ChosenAndScored:
    """Return both samples as orthogonal matching pursuit writes them."""
    choose = pursue(sample.x_choose, dictionary.directions, k)
    score = pursue(sample.x_score, dictionary.directions, k)
    return ChosenAndScored(sample.x_choose, sample.x_score, choose.at, score.at)


def _native_ev(dictionary: Dictionary, sample: Sample, k: int) -> dict[str, float]:
    """Return the columns of the baseline's own code; none where it has no code of its own."""
    if dictionary.native is None:
        return {}
    codes = dictionary.native(sample.x_score, k)
    ev, _ = explained(dictionary, sample.x_score, codes, sample.energy)
    return {"native_ev": ev, "native_sparsity": codes.sparsity}


def _add_sae(comparison: _Comparison, name: str, reading: Encoded) -> None:
    """Add the rows of an SAE, coded by its own encoder, with the score of pursuit on its decoder.

    A code with fewer than k atoms takes the encoder's largest ones, with refitted coefficients.
    """
    sample = comparison.sample
    dictionary = sae_dictionary(reading)
    shift = sample.center - dictionary.center
    lengths = np.linalg.norm(as_numpy(reading.sae.params["W_dec"]), axis=1)

    def coded(tokens: Int64[np.ndarray, " token"]) -> AtomCodes:
        codes = AtomCodes.of(reading.codes[tokens].tocsr())
        return AtomCodes(codes.atoms, codes.values * lengths[codes.atoms], codes.n_atoms)

    choose, score = coded(sample.choose), coded(sample.score)
    widest = max(choose.values.shape[1], score.values.shape[1])

    def code(codes: AtomCodes, x: Float32[np.ndarray, "token d_in"]) -> Callable[[int], AtomCodes]:
        def at(k: int) -> AtomCodes:
            # at k itself, all that the encoder gives, which may be more for some tokens
            if k >= comparison.k:
                return codes.largest(widest)
            return refitted(codes.largest(k), x, dictionary.directions)

        return at

    x_choose, x_score = sample.x_choose + shift, sample.x_score + shift
    split = ChosenAndScored(x_choose, x_score, code(choose, x_choose), code(score, x_score))
    before = len(comparison.rows)
    comparison.add(dictionary, split, name)
    pursuits = _sae_pursuits(dictionary, split.score, comparison)
    for row in comparison.rows[before:]:
        row |= pursuits


def sae_dictionary(reading: Encoded) -> Dictionary:
    """Return an SAE's decoder as a dictionary, with unit rows and the decoder bias as the center."""
    decoder = as_numpy(reading.sae.params["W_dec"]).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    center = reading.sae.params["b_dec"].detach().cpu().numpy().astype(np.float32)
    return Dictionary(SAE_BASELINE, (decoder / lengths).astype(np.float32), center, decoder.size)


def _sae_pursuits(
    dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], comparison: _Comparison
) -> dict[str, float]:
    """Return what the decoder explains with k atoms where pursuit takes the encoder's place."""
    n, k = min(comparison.spec.sae_pursuit_tokens, len(x)), comparison.k
    if n < 1:
        return {}
    drawn = np.sort(numpy_generator(0, "methods", "pursued").permutation(len(x))[:n])
    part, energy = x[drawn], comparison.sample.energy[drawn]
    signed = pursue(part, dictionary.directions, k).at(k)
    positive = pursue_nonnegative(part, dictionary.directions, k)
    return {
        "pursuit_ev": explained(dictionary, part, signed, energy)[0],
        "pursuit_nonnegative_ev": explained(dictionary, part, positive, energy)[0],
        "pursuit_tokens": n,
    }


def _bits_row(bits: TokenBits, documents: DocumentBits, of_dictionary: float) -> dict[str, Any]:
    """Return the columns of bits at one distortion, all per token."""
    low, high = documents.interval
    total = float(bits.parts.sum(axis=0).mean())
    return {
        "distortion": bits.distortion,
        "reached_distortion": bits.reached,
        "bits": total,
        "bits_low": low,
        "bits_high": high,
        **{f"bits_{p}": float(part.mean()) for p, part in zip(PARTS, bits.parts, strict=True)},
        "bits_dictionary": of_dictionary,
        "bits_with_dictionary": total + of_dictionary,
        "bits_atoms": bits.n_atoms,
        "coder_ratio": bits.coder_ratio,
    }


COLUMNS = BASELINES_TABLE.without(MODEL_KEYS)
"""Columns of the table, in order."""
_TEXT = ("baseline", "reading", "probe_reason", "reason")


def methods_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Return the table of these rows; columns that a row lacks are missing there."""
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    numbers = [name for name in COLUMNS if name not in _TEXT]
    return table.astype(dict.fromkeys(numbers, "float64"))
