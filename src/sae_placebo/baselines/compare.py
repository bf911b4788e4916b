"""The comparison of an arm's SAEs with simpler baselines, on the same tokens, sparsity and distortions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from sae_placebo.baselines.base import BASELINES, Baseline, BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.document_bits import DocumentBits, by_document, ratio_interval
from sae_placebo.baselines.given import Given
from sae_placebo.baselines.marginal import CodedArm, Marginal, Priced, marginal
from sae_placebo.baselines.principal_components import PCA_DENSE
from sae_placebo.baselines.probing import ProbeTasks, probe, probe_tasks
from sae_placebo.baselines.pursuit import AtomCodes, pursue, pursue_nonnegative
from sae_placebo.baselines.rate import PARTS, CodedVectors, TokenBits, dictionary_bits, token_bits
from sae_placebo.baselines.sae_codes import SAE, encoded, sae_dictionary, strongest_first
from sae_placebo.baselines.sampling import FitText, Sample, as_numpy, draw_sample
from sae_placebo.baselines.token_table import TOKEN_TABLE
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.tables import MODEL_KEYS
from sae_placebo.core.tables.baselines import BASELINES as BASELINES_TABLE
from sae_placebo.data.labels.truth import NO_LABELS
from sae_placebo.latents.base import Encoded, Folds, TokenTable

PURSUIT, ENCODER, DENSE = "pursuit", "encoder", "dense"
"""How the vectors of a row were coded: by pursuit, by the SAE's own encoder, or without any atom."""


class Coded(NamedTuple):
    """The key of bits: a baseline, the name of the SAE (None for others), how it codes, and a distortion."""

    baseline: str
    reading: str | None
    coding: str
    distortion: float


@dataclass(frozen=True, eq=False)
class BaselinesResult:
    """The comparison for one arm at one hookpoint.

    Attributes:
        table: One row for each baseline or SAE and way of coding at each distortion. A baseline that could
            not be fitted has one row, with the reason.
        bits: The bits of each document behind the bits of the table.
        marginal: What latents save beyond existing methods at the first distortion.
        k: Atoms per token at which explained variance is compared.
        n_scored: Tokens that were scored.
        reason: Why there is no comparison at all; None where there is one.
        caveat: What is to be known beside every number; None where there is nothing.
    """

    table: pandas.DataFrame
    bits: Mapping[Coded, DocumentBits]
    marginal: Marginal
    k: int
    n_scored: int
    reason: str | None = None
    caveat: str | None = None

    @property
    def dense_bits(self) -> float:
        """Bits per token of dense PCA at the distortion of `marginal`."""
        dense = next(bits for key, bits in self.bits.items() if key.baseline == PCA_DENSE)
        return float(dense.bits.sum() / dense.tokens.sum())

    def of_sae(self, reading: str, coding: str, distortion: float) -> DocumentBits:
        """Return the bits of the SAE called `reading` at one distortion.

        Raises:
            NotEstimable: they could not be counted; the message says why.
        """
        key = Coded(SAE, reading, coding, distortion)
        if key not in self.bits:
            own = self.table[(self.table["reading"] == reading) & (self.table["coding"] == coding)]
            why = self.reason or next(iter(own["reason"].dropna()), "it was not coded")
            raise NotEstimable(f"its bits cannot be counted: {why}")
        return self.bits[key]


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
    priced: dict[str, Priced] = field(default_factory=dict)

    def add(
        self,
        dictionary: Dictionary,
        coded: CodedVectors,
        coding: str,
        reading: str | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Add the rows of one dictionary and way to code, one at each distortion, and its bits."""
        shared = {
            **self._row(dictionary.name, None, reading, coding),
            "n_atoms": len(dictionary.directions),
            **more,
        }
        of_dictionary = dictionary_bits(dictionary) / self.sample.stream_tokens
        for distortion in self.spec.distortions:
            try:
                bits = token_bits(dictionary, coded, distortion, self.spec)
            except NotEstimable as refusal:
                self.rows.append({**shared, "distortion": distortion, "reason": str(refusal)})
                continue
            if dictionary.name == TOKEN_TABLE:
                bits.parts[0] += self.sample.id_bits
            documents = DocumentBits.of(
                bits.adjusted, self.sample.documents, self.sample.n_documents
            )
            self.bits[Coded(dictionary.name, reading, coding, distortion)] = documents
            self.rows.append({**shared, **_bits_row(bits, documents, of_dictionary)})
            if coding == PURSUIT and distortion == self.spec.distortions[0]:
                chosen = bits.settings
                priced = Priced(documents, chosen.bits, chosen.n_atoms)
                self.priced[reading or dictionary.name] = priced

    def refuse(self, baseline: str, reason: str) -> None:
        """Add the row of a baseline that could not be fitted."""
        self.rows.append(self._row(baseline, reason))

    def _row(
        self,
        baseline: str,
        reason: str | None,
        reading: str | None = None,
        coding: str | None = None,
    ) -> dict[str, Any]:
        return {
            "baseline": baseline,
            "reading": reading,
            "coding": coding,
            "n_tokens": len(self.sample.score),
            "n_chosen": len(self.sample.choose),
            "n_documents": len(np.unique(self.sample.documents)),
            "reason": reason or self.sample.caveat,
        }

    def fidelity(
        self, dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], codes: AtomCodes
    ) -> dict[str, Any]:
        """Return the columns of sparsity and explained variance."""
        if not len(dictionary.directions):  # no sparse code, so that nothing is explained by one
            return {"sparsity": 0.0}
        s, energy = self.sample, self.sample.vectors.energy
        ev, error = explained(dictionary, x, codes, energy)
        parts = [by_document(v, s.documents, s.n_documents) for v in (error, energy)]
        low, high = ratio_interval(*parts)
        lookup = float(np.square(s.looked_up.score, dtype=np.float64).sum())
        return {
            "sparsity": codes.sparsity,
            "explained_variance": ev,
            "ev_low": 1 - high,
            "ev_high": 1 - low,
            "lookup_relative_ev": 1 - float(error.sum()) / lookup if lookup > 0 else np.nan,
        }

    def probes(self, fitted: AtomCodes, codes: AtomCodes) -> dict[str, Any]:
        """Return the columns of probes with 1 and with 5 atoms, or the reason why there are none.

        Args:
            fitted: Codes at the tokens to fit probes on.
            codes: Codes at the scored tokens.
        """
        if self.tasks is None or not codes.n_atoms:
            return {"probe_reason": self.why_no_probe or "it has no atoms to read"}
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
    given: Given,
    seed: int,
    spec: BaselinesSpec | None = None,
    advance: Advance = unheard,
) -> BaselinesResult:
    """Return how every baseline and every SAE of one arm do at the same sparsity and distortions.

    Methods are fitted on the text that is given, probabilities of codes and probes on held-out documents to
    choose on, and everything is scored on the other held-out documents. The same seed and tokens give the
    same samples for every arm, so that arms are paired.

    Args:
        activations: Activations [token, d_in] at the held-out tokens, NumPy or torch.
        tokens: The held-out tokens.
        folds: Which purpose each document serves.
        saes: The arm's SAEs at these tokens, by name.
        given: What is known of the arm beside these.
        seed: The seed that the samples and every baseline's draws are named by.
        spec: The settings; the defaults unless given.
        advance: Called with 1 after each baseline and each SAE.

    Raises:
        NotEstimable: a purpose has fewer than 50 tokens, or the activations do not vary.
    """
    spec = spec or BaselinesSpec()
    text = given.text or FitText.held_out(activations, tokens, folds, saes)
    sample = draw_sample(as_numpy(activations), tokens, folds, text, seed, spec)
    k = spec.k or _usual_k(saes, sample)
    n_atoms = min([spec.n_atoms, *(one.d_sae for one in saes.values())])
    tasks, why = _tasks(tokens, sample, seed, spec)
    table = None if given.embeddings is None else as_numpy(given.embeddings)
    ids = text.ids[sample.fit].astype(np.int64)
    material = Material(sample.x_fit, sample.center, ids, table, n_atoms, seed, spec)
    comparison = _Comparison(sample, k, spec, tasks, why)
    fitted: dict[str, Dictionary] = {}
    for name, baseline in BASELINES.entries.items():
        if (dictionary := _add_baseline(comparison, name, baseline, material)) is not None:
            fitted[name] = dictionary
        advance(1)
    for name, reading in saes.items():
        _add_sae(comparison, name, reading)
        advance(1)
    first = spec.distortions[0]
    dense = comparison.bits[Coded(PCA_DENSE, None, DENSE, first)]
    latents = {
        name: strongest_first(sae, text.codes[name][sample.fit]) for name, sae in saes.items()
    }
    arm = CodedArm(latents, sample, dense, comparison.priced, first, spec)
    gains = marginal(fitted, material, arm, advance, given.common)
    table = methods_frame(comparison.rows)
    n_scored, caveat = len(sample.score), sample.caveat
    return BaselinesResult(table, comparison.bits, gains, k, n_scored, caveat=caveat)


def _add_baseline(
    comparison: _Comparison, name: str, baseline: Baseline, material: Material
) -> Dictionary | None:
    """Add the rows of a baseline that is no SAE, or the reason why it could not be fitted.

    Returns its dictionary; None where it could not be fitted, or has no directions.
    """
    sample, k = comparison.sample, comparison.k
    try:
        dictionary = baseline.fit(material)
        native = _native_ev(dictionary, sample, k)
    except NotEstimable as refusal:
        comparison.refuse(name, str(refusal))
        return None
    has_atoms = len(dictionary.directions) > 0
    vectors = sample.looked_up if name == TOKEN_TABLE else sample.vectors
    coded = CodedVectors.pursued(dictionary, vectors, comparison.spec.most_atoms)
    codes = coded.score(k)
    probed = pursue(sample.vectors.choose[sample.probe], dictionary.directions, k).at(k)
    more = comparison.fidelity(dictionary, sample.vectors.score, codes) | native
    more |= comparison.probes(probed, codes)
    comparison.add(dictionary, coded, PURSUIT if has_atoms else DENSE, more=more)
    return dictionary if has_atoms else None


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
    probed = sample.choose[sample.probe]
    choose, score = tokens.places[probed], tokens.places[sample.score]
    held = labels.at(choose), labels.at(score)
    known = labels.known[choose[:, 0], choose[:, 1]], labels.known[score[:, 0], score[:, 1]]
    ids = tokens.ids.astype(np.int64)
    token_ids = ids[probed], ids[sample.score]
    try:
        return probe_tasks(held, known, token_ids, labels.names, spec.n_labels, seed), None
    except NotEstimable as refusal:
        return None, str(refusal)


def _native_ev(dictionary: Dictionary, sample: Sample, k: int) -> dict[str, float]:
    """Return the columns of the baseline's own code; none where it has no code of its own."""
    if dictionary.native is None:
        return {}
    codes = dictionary.native(sample.vectors.score, k)
    ev, _ = explained(dictionary, sample.vectors.score, codes, sample.vectors.energy)
    return {"native_ev": ev, "native_sparsity": codes.sparsity}


def _add_sae(comparison: _Comparison, name: str, reading: Encoded) -> None:
    """Add the rows of an SAE, coded by its own encoder and, like every other dictionary, by pursuit."""
    sample, k = comparison.sample, comparison.k
    dictionary = sae_dictionary(reading)
    own = encoded(reading, dictionary, sample)
    score = own.vectors.score
    # at k itself, all that the encoder gives, which may be more for some tokens
    codes, fitted = own.score(own.largest), own.choose(own.largest)
    more = comparison.fidelity(dictionary, score, codes)
    more |= comparison.probes(fitted.of_tokens(sample.probe), codes)
    more |= _sae_pursuits(dictionary, score, comparison)
    comparison.add(dictionary, own, ENCODER, name, more)
    pursued = CodedVectors.pursued(dictionary, own.vectors, comparison.spec.most_atoms)
    why = {"probe_reason": "probes read the codes of the SAE's own encoder"}
    more = comparison.fidelity(dictionary, score, pursued.score(k)) | why
    comparison.add(dictionary, pursued, PURSUIT, name, more)


def _sae_pursuits(
    dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], comparison: _Comparison
) -> dict[str, float]:
    """Return what the decoder explains with k atoms where pursuit takes the encoder's place."""
    n, k = min(comparison.spec.sae_pursuit_tokens, len(x)), comparison.k
    if n < 1:
        return {}
    drawn = np.sort(numpy_generator(0, "methods", "pursued").permutation(len(x))[:n])
    part, energy = x[drawn], comparison.sample.vectors.energy[drawn]
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
        "bits_atoms": bits.settings.n_atoms,
        "bits_step": bits.settings.step,
        "coder_ratio": bits.coder_ratio,
    }


COLUMNS = BASELINES_TABLE.without(MODEL_KEYS)
"""Columns of the table, in order."""
_TEXT = ("baseline", "reading", "coding", "probe_reason", "reason")


def methods_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Return the table of these rows; columns that a row lacks are missing there."""
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    numbers = [name for name in COLUMNS if name not in _TEXT]
    return table.astype(dict.fromkeys(numbers, "float64"))
