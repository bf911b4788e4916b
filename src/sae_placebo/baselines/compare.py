"""Every method and every SAE of one arm, on the same tokens at the same sparsity and distortion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from sae_placebo.baselines.base import METHODS, Dictionary, Material, Method, MethodsSpec
from sae_placebo.baselines.marginal import DocumentBits, ratio_interval
from sae_placebo.baselines.probing import Probe, ProbeTasks, probe, probe_tasks
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
from sae_placebo.data.labels.truth import NO_LABELS
from sae_placebo.latents.base import Encoded, Folds, TokenTable

SAE_METHOD = "sae"


class Coded(NamedTuple):
    """What bits are looked up by: a method, which SAE (None for simpler methods), a distortion."""

    method: str
    reading: str | None
    distortion: float


@dataclass(frozen=True, eq=False)
class MethodsResult:
    """One arm at one hookpoint.

    Attributes:
        table: A row per method or SAE and distortion; a method that could not be fitted has one row
            with its reason.
        bits: The same bits by document.
        k: Atoms per token at which methods were compared.
    """

    table: pandas.DataFrame
    bits: Mapping[Coded, DocumentBits]
    k: int
    reason: str | None = None
    """Why there is no comparison at all; None where there is one."""

    def simpler(self, distortion: float) -> dict[str, DocumentBits]:
        """Return the bits of all methods that are no SAE at one distortion."""
        return {
            key.method: found
            for key, found in self.bits.items()
            if key.reading is None and key.distortion == distortion
        }

    def of_sae(self, reading: str, distortion: float) -> DocumentBits:
        """Return the bits of one SAE at one distortion."""
        return self.bits[Coded(SAE_METHOD, reading, distortion)]


@dataclass(eq=False)
class _Comparison:
    """What all methods of one arm share, and the rows found so far."""

    sample: Sample
    k: int
    spec: MethodsSpec
    tasks: ProbeTasks | None
    why_no_probe: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    bits: dict[Coded, DocumentBits] = field(default_factory=dict)

    def add(
        self, dictionary: Dictionary, split: ChosenAndScored, reading: str | None
    ) -> dict[str, Any]:
        """Add the rows of one dictionary; returns what they share."""
        codes = split.score_codes(self.k)
        shared = {
            **self._row(dictionary.name, reading, None),
            "n_atoms": len(dictionary.directions),
            **self._fidelity(dictionary, split.score, codes),
            **self._probes(split, codes),
        }
        own = dictionary_bits(dictionary) / self.sample.stream_tokens
        for distortion in self.spec.distortions:
            try:
                found = token_bits(dictionary, split, self.k, distortion, self.spec)
            except NotEstimable as refusal:
                self.rows.append({**shared, "distortion": distortion, "reason": str(refusal)})
                continue
            documents = self._documents(found.adjusted)
            self.bits[Coded(dictionary.name, reading, distortion)] = documents
            self.rows.append({**shared, **_bits_row(found, documents, own)})
        return shared

    def refuse(self, method: str, reason: str, reading: str | None = None) -> None:
        """Add the row of a method that could not be fitted."""
        self.rows.append(self._row(method, reading, reason))

    def _row(self, method: str, reading: str | None, reason: str | None) -> dict[str, Any]:
        there = np.unique(self.sample.documents)
        return {
            "method": method,
            "reading": reading,
            "n_tokens": len(self.sample.score),
            "n_documents": len(there),
            "reason": reason,
        }

    def _documents(self, values: Float[np.ndarray, " token"]) -> DocumentBits:
        s = self.sample
        ones = np.ones(len(values))
        return DocumentBits(
            by_document(values, s.documents, s.n_documents),
            by_document(ones, s.documents, s.n_documents),
        )

    def _fidelity(
        self, dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], codes: AtomCodes
    ) -> dict[str, float]:
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
        if self.tasks is None or not codes.n_atoms:
            return {"probe_reason": self.why_no_probe or "it has no atoms to read"}
        fitted = split.choose_codes(self.k)
        found: dict[str, Any] = {}
        for k in (1, 5):
            try:
                one: Probe = probe(fitted, codes, self.tasks, k)
            except NotEstimable as refusal:
                return {"probe_reason": str(refusal)}
            end = "" if k == 5 else f"_{k}"
            found |= {
                f"probe_auc{end}": one.auc,
                f"probe_selectivity{end}": one.selectivity,
                f"probe_accuracy{end}": one.accuracy,
                "probe_labels": one.n_labels,
            }
        return found


def compare_methods(
    activations: Any,
    tokens: TokenTable,
    folds: Folds,
    saes: Mapping[str, Encoded],
    embeddings: Any,
    seed: int,
    spec: MethodsSpec | None = None,
    advance: Advance = unheard,
) -> MethodsResult:
    """Return every method and every SAE of one arm at the same sparsity and distortions.

    Methods see the tokens of the documents to fit on; codes' probabilities and probes are fitted on those
    to choose on; everything is scored on those to score on. The same seed and tokens give the same
    samples for every arm, so that arms are paired.

    Args:
        activations: [token, d_in] at the held-out tokens, NumPy or torch.
        tokens: What is known of them.
        folds: Which documents serve what.
        saes: The arm's SAEs at these tokens, by name.
        embeddings: Rows of the arm's W_E, NumPy or torch; None where there are none.
        seed: Names the samples and every method's draws.
        spec: Settings; None: the defaults.
        advance: Told of each method and each SAE.

    Raises:
        NotEstimable: a purpose has fewer than 50 tokens, or activations do not vary.
    """
    spec = spec or MethodsSpec()
    sample = draw_sample(as_numpy(activations), tokens, folds, seed, spec)
    k = spec.k or _usual_k(saes, sample)
    n_atoms = min([spec.n_atoms, *(one.d_sae for one in saes.values())])
    tasks, why = _tasks(tokens, sample, seed, spec)
    table = None if embeddings is None else as_numpy(embeddings)
    ids = tokens.ids[sample.fit].astype(np.int64)
    material = Material(sample.x_fit, sample.center, ids, table, n_atoms, seed, spec)
    found = _Comparison(sample, k, spec, tasks, why)
    for name, method in METHODS.entries.items():
        _add_method(found, name, method, material)
        advance(1)
    for name, one in saes.items():
        _add_sae(found, name, one)
        advance(1)
    return MethodsResult(_frame(found.rows), found.bits, k)


def _add_method(found: _Comparison, name: str, method: Method, material: Material) -> None:
    """Add a method that is no SAE, or why it could not be fitted."""
    sample, k = found.sample, found.k
    try:
        dictionary = method.fit(material)
        native = _native_ev(dictionary, sample, k)
    except NotEstimable as refusal:
        found.refuse(name, str(refusal))
        return
    before = len(found.rows)
    found.add(dictionary, _pursued(dictionary, sample, k), None)
    for row in found.rows[before:]:
        row |= native


def explained(
    dictionary: Dictionary,
    x: Float32[np.ndarray, "token d_in"],
    codes: AtomCodes,
    energy: Float[np.ndarray, " token"],
) -> tuple[float, Float[np.ndarray, " token"]]:
    """Return the share of variance that a code explains, and each token's squared error."""
    left = x - codes.decode(dictionary.directions)
    error = np.einsum("td,td->t", left, left, dtype=np.float64)
    return 1 - float(error.sum()) / float(energy.sum()), error


def _usual_k(saes: Mapping[str, Encoded], sample: Sample) -> int:
    if not saes:
        return max(1, int(sample.x_fit.shape[1]) // 8)
    used = [np.diff(one.codes.indptr)[sample.score].mean() for one in saes.values()]
    return max(1, round(float(np.mean(used))))


def _tasks(
    tokens: TokenTable, sample: Sample, seed: int, spec: MethodsSpec
) -> tuple[ProbeTasks | None, str | None]:
    labels = tokens.labels
    if labels is None:
        return None, NO_LABELS
    places = [tokens.places[part] for part in (sample.choose, sample.score)]
    held = tuple(labels.at(place) for place in places)
    known = tuple(labels.known[place[:, 0], place[:, 1]] for place in places)
    ids = tuple(tokens.ids[part].astype(np.int64) for part in (sample.choose, sample.score))
    try:
        tasks = probe_tasks(
            _pair(held), _pair(known), _pair(ids), labels.names, spec.n_labels, seed
        )
    except NotEstimable as refusal:
        return None, str(refusal)
    return tasks, None


def _pair(parts: tuple[Any, ...]) -> tuple[Any, Any]:
    first, second = parts
    return first, second


def _pursued(dictionary: Dictionary, sample: Sample, k: int) -> ChosenAndScored:
    """Return both samples as orthogonal matching pursuit writes them."""
    choose = pursue(sample.x_choose, dictionary.directions, k)
    score = pursue(sample.x_score, dictionary.directions, k)
    return ChosenAndScored(sample.x_choose, sample.x_score, choose.at, score.at)


def _native_ev(dictionary: Dictionary, sample: Sample, k: int) -> dict[str, float]:
    if dictionary.native is None:
        return {}
    codes = dictionary.native(sample.x_score, k)
    ev, _ = explained(dictionary, sample.x_score, codes, sample.energy)
    return {"native_ev": ev, "native_sparsity": codes.sparsity}


def _add_sae(found: _Comparison, name: str, one: Encoded) -> None:
    """Add an SAE with the code of its own encoder; pursuit on its decoder is scored beside it.

    With fewer than k atoms, it is the largest of the encoder's, with refitted coefficients.
    """
    sample = found.sample
    dictionary = sae_dictionary(one)
    shift = sample.center - dictionary.center
    lengths = np.linalg.norm(as_numpy(one.sae.params["W_dec"]), axis=1)

    def coded(tokens: Int64[np.ndarray, " token"]) -> AtomCodes:
        codes = AtomCodes.of(one.codes[tokens].tocsr())
        return AtomCodes(codes.atoms, codes.values * lengths[codes.atoms], codes.n_atoms)

    choose, score = coded(sample.choose), coded(sample.score)
    widest = max(choose.values.shape[1], score.values.shape[1])

    def code(codes: AtomCodes, x: Float32[np.ndarray, "token d_in"]) -> Callable[[int], AtomCodes]:
        def at(k: int) -> AtomCodes:
            # at k itself, all that the encoder gives, which may be more for some tokens
            if k >= found.k:
                return codes.largest(widest)
            return refitted(codes.largest(k), x, dictionary.directions)

        return at

    x_choose, x_score = sample.x_choose + shift, sample.x_score + shift
    split = ChosenAndScored(x_choose, x_score, code(choose, x_choose), code(score, x_score))
    before = len(found.rows)
    found.add(dictionary, split, name)
    beside = _sae_pursuits(dictionary, split.score, found)
    for row in found.rows[before:]:
        row |= beside


def sae_dictionary(reading: Encoded) -> Dictionary:
    """Return an SAE's decoder as a dictionary: unit rows, and its bias as the center."""
    decoder = as_numpy(reading.sae.params["W_dec"]).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    center = reading.sae.params["b_dec"].detach().cpu().numpy().astype(np.float32)
    return Dictionary(SAE_METHOD, (decoder / lengths).astype(np.float32), center, decoder.size)


def _sae_pursuits(
    dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], found: _Comparison
) -> dict[str, float]:
    """Return what the decoder explains with k atoms where pursuit takes the encoder's place."""
    n = min(found.spec.sae_pursuit_tokens, len(x))
    if n < 1:
        return {}
    some: Bool[np.ndarray, " token"] = np.zeros(len(x), dtype=bool)
    some[numpy_generator(0, "methods", "pursued").permutation(len(x))[:n]] = True
    part, energy = x[some], found.sample.energy[some]
    signed = pursue(part, dictionary.directions, found.k).at(found.k)
    positive = pursue_nonnegative(part, dictionary.directions, found.k)
    return {
        "pursuit_ev": explained(dictionary, part, signed, energy)[0],
        "pursuit_nonnegative_ev": explained(dictionary, part, positive, energy)[0],
        "pursuit_tokens": n,
    }


def _bits_row(found: TokenBits, documents: DocumentBits, own: float) -> dict[str, Any]:
    low, high = documents.interval
    total = float(found.parts.sum(axis=0).mean())
    return {
        "distortion": found.distortion,
        "reached_distortion": found.reached,
        "bits": total,
        "bits_low": low,
        "bits_high": high,
        **{
            f"bits_{part}": float(bits.mean())
            for part, bits in zip(PARTS, found.parts, strict=True)
        },
        "bits_dictionary": own,
        "bits_with_dictionary": total + own,
        "bits_atoms": found.n_atoms,
        "coder_ratio": found.coder_ratio,
    }


COLUMNS = (
    *("method", "reading", "n_atoms", "sparsity", "explained_variance", "ev_low", "ev_high"),
    *("lookup_relative_ev", "native_ev", "native_sparsity"),
    *("pursuit_ev", "pursuit_nonnegative_ev", "pursuit_tokens"),
    *("distortion", "reached_distortion", "bits", "bits_low", "bits_high"),
    *("bits_indices", "bits_values", "bits_residual", "bits_dictionary", "bits_with_dictionary"),
    *("bits_atoms", "coder_ratio"),
    *("probe_auc", "probe_selectivity", "probe_accuracy"),
    *("probe_auc_1", "probe_selectivity_1", "probe_accuracy_1", "probe_labels", "probe_reason"),
    *("n_tokens", "n_documents", "reason"),
)
_TEXT = ("method", "reading", "probe_reason", "reason")


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    numbers = [name for name in COLUMNS if name not in _TEXT]
    return table.astype(dict.fromkeys(numbers, "float64"))
