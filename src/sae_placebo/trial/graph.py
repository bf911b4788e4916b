"""The attribution graph of a prompt in an arm of a trial, beside what the trial says of its latents."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from sae_placebo.causal.circuits.drawing import draw, draw_static
from sae_placebo.causal.circuits.edges import EdgeSpec, edges
from sae_placebo.causal.circuits.graph import Graph, GraphSpec, attribution_graph
from sae_placebo.causal.circuits.heads import HeadSpec, head_scores
from sae_placebo.causal.circuits.sources import sources
from sae_placebo.causal.circuits.writers import Writers, writers
from sae_placebo.causal.use.base import Subject, latent_directions
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.escaping import visible
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.progress import Progress
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.trial.graph_inputs import GraphChoice, GraphInputs, open_inputs
from sae_placebo.trial.graph_latents import latents_of, on_the_same_tokens
from sae_placebo.trial.graph_pages import check_name, write_picture

if TYPE_CHECKING:
    from sae_placebo.trial.results import Trial


@dataclass(frozen=True, eq=False)
class PromptGraph:
    """The graph that leads to a prompt's next token, in one arm of a finished trial.

    Attributes:
        prompt: The prompt.
        token_ids: Its token ids.
        graph: The nodes and edges.
        latents: A DataFrame with one row per latent of the graph, the most influential first: hookpoint,
            latent, influence (summed over positions), n_positions, class, origin, evidence, tied (1 or 0, NaN
            where the trial did not ask), passes.
    """

    prompt: str
    token_ids: Int64[torch.Tensor, " pos"]
    graph: Graph
    latents: pandas.DataFrame
    _inputs: GraphInputs
    _trial: Trial
    _settings: GraphSpec | None

    @property
    def name(self) -> str:
        """Return which SAEs of which trial these are, in words."""
        one, _, sae, seed = self._inputs.places[0]
        return f"trial {self._inputs.artefacts.spec.name}, arm {one.label}, SAE {sae}, seed {seed}"

    @property
    def pale(self) -> frozenset[tuple[str, int]]:
        """Return (hookpoint, latent) of the latents that do not pass the placebo.

        A latent passes where its origin is `not_explained`, or where it is tied to circuitry: what the trial
        found of it is then beyond what its placebo's latents have, or beyond their nulls. One that was
        not judged does not pass.
        """
        failing = self.latents[~self.latents["passes"].astype(bool)]
        return frozenset(
            zip(failing["hookpoint"].astype(str), failing["latent"].astype(int), strict=True)
        )

    def another(self, prompt: str) -> PromptGraph:
        """Return the graph of another prompt, with the same model and SAEs, which are not read again.

        Raises:
            SpecError, NotEstimable: as in `Trial.graph`.
        """
        return _graph_of(self._trial, self._inputs, prompt, self._settings)

    def figure(self) -> Any:
        """Return the graph as an interactive `plotly.graph_objects.Figure`, with failing latents pale."""
        return draw(self.graph, self.pale)

    def static_figure(self) -> Any:
        """Return the same picture as a `matplotlib.figure.Figure`.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        return draw_static(self.graph, self.pale)

    def save(self, path: str | Path) -> Path:
        """Write the picture and return its path: `.html` opens offline, `.svg` and `.png` are to print.

        Raises:
            SpecError: the name ends otherwise.
            StoreError: it cannot be written.
            MissingExtra: an SVG or PNG is wanted and matplotlib is not installed.
        """
        return write_picture(
            Path(path), self.figure, self.static_figure, self.name, self.summary().splitlines()
        )

    def summary(self) -> str:
        """Return what the graph shows in a few lines, for a terminal; tokens have no control characters."""
        graph = self.graph
        logits = [node for node in graph.nodes if node.kind == "logit"]
        said = ", ".join(
            f"{visible(graph.logit_texts[n.index])!r} {n.activation:.1%}" for n in logits
        )
        kinds = {kind: sum(n.kind == kind for n in graph.nodes) for kind in ("latent", "error")}
        passing = int(self.latents["passes"].sum())
        lines = [
            f"{self.name}; {len(graph.tokens)} tokens",
            f"next token: {said}",
            f"{len(graph.nodes)} nodes ({kinds['latent']} of latents, {kinds['error']} of errors), "
            f"{len(graph.edges)} edges",
            f"{passing} of {len(self.latents)} latents pass the placebo; the others are drawn pale",
        ]
        for hookpoint, error in zip(graph.hookpoints, graph.error_influence, strict=True):
            lines.append(
                f"{hookpoint}: {error:.0%} of the influence passes through the SAE's error"
            )
        return "\n".join(lines)

    # --- what the held-out tokens say -----------------------------------------------------------------

    def edges(self, settings: EdgeSpec | None = None) -> pandas.DataFrame:
        """Return edges between latents of neighboring hookpoints, over the held-out tokens, with their tests.

        These are of all latents, and no matter of one prompt: see `causal.circuits.edges`. `in_graph` says
        whether both latents are nodes of this graph.

        Raises:
            NotEstimable: the graph has one hookpoint.
            StoreError: artefacts of the held-out tokens are gone.
        """
        names = self._inputs.hookpoints
        if len(names) < 2:
            raise NotEstimable(
                f"edges lead from latents of one hookpoint to those of a later one, and the graph has only "
                f"{names[0]}; name two hookpoints of the trial"
            )
        self._inputs.require_heldout()
        shown = set(zip(self.latents["hookpoint"], self.latents["latent"].astype(int), strict=True))
        parts = []
        for earlier, later in itertools.pairwise(range(len(names))):
            first, second = on_the_same_tokens(self._encoded(earlier), self._encoded(later))
            subject = Subject(self._behind(earlier), first.tokens, first.activations)
            found = edges(
                subject, latent_directions(first), second, names[later], settings, self._seed
            )
            found.insert(0, "source_hookpoint", names[earlier])
            found.insert(1, "target_hookpoint", names[later])
            ends = zip(found["source"].astype(int), found["target"].astype(int), strict=True)
            found["in_graph"] = [
                (names[earlier], a) in shown and (names[later], b) in shown for a, b in ends
            ]
            parts.append(found)
        return pandas.concat(parts, ignore_index=True)

    def heads(self, n: int = 3) -> pandas.DataFrame:
        """Return the attention heads that write the latents of the graph, over the held-out tokens.

        One row per latent and head, the `n` heads of the largest shares: hookpoint, and the columns of
        `Writers.row`, and head_kind (induction, previous token, both, or nothing). A latent without shares
        has one row, with the reason.

        Raises:
            ModelError: the model's layers do not add attention heads to its residual stream.
            NotEstimable: there are too few held-out tokens.
            StoreError: artefacts of the held-out tokens are gone.
        """
        records = []
        for k, hookpoint in enumerate(self._inputs.hookpoints):
            of_all = self._writers[k]
            heads = np.flatnonzero(of_all.is_head)
            for latent in self._latents_at(hookpoint):
                about = {"hookpoint": hookpoint, "latent": latent, "reason": of_all.reasons[latent]}
                if of_all.reasons[latent] or not len(heads):
                    reason = about["reason"] or f"no head writes to {hookpoint}"
                    records.append(about | {"reason": reason})
                    continue
                order = np.argsort(-of_all.shares[latent, heads], kind="stable")[:n]
                for m in heads[order]:
                    part = of_all.parts[m]
                    kind = self._head_kinds.get((part.layer, part.head), "")
                    records.append(about | of_all.row(latent, int(m)) | {"head_kind": kind})
        return pandas.DataFrame(records)

    def sources(
        self,
        latent: int,
        hookpoint: str | None = None,
        head: tuple[int, int] | None = None,
        n: int = 5,
    ) -> pandas.DataFrame:
        """Return from which tokens of the prompt a head takes what it adds to a latent.

        Args:
            latent: A latent that is active in the prompt.
            hookpoint: Its hookpoint; None where the graph has it at one only.
            head: The layer and the number of the head; None for the one with the largest share of `heads`.
            n: How many tokens are returned for each position at which the latent is active.

        Returns:
            One row per position and source: position, head (its name), and the columns of
            `causal.circuits.sources`.

        Raises:
            SpecError: the graph has no such latent, or at two hookpoints.
            NotEstimable: the latent is not active, no head has shares in it, or there is no such head.
            ModelError: the attention does not return its weights, or heads are not told apart.
        """
        k = self._place_of(latent, hookpoint)
        layer, number = head if head is not None else self._first_head(k, latent)
        subject = self._on_the_prompt(k)
        sae = self._inputs.saes[k]
        codes = sae.encode(subject.activations.float())
        active = codes.tokens()[codes.latents == latent]
        if not len(active):
            raise NotEstimable(f"latent {latent} is not active at any token of the prompt")
        firings = np.sort(active.cpu().numpy()).astype(np.int64)
        found = sources(subject, sae.params["W_enc"][:, latent], layer, number, firings, n)
        found = found.drop(columns=["firing", "row"])
        found.insert(1, "head", f"L{layer}.H{number}")
        return found

    # --- parts ---------------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        return self._inputs.artefacts.spec.seed

    def _latents_at(self, hookpoint: str) -> list[int]:
        here = self.latents["hookpoint"] == hookpoint
        return [int(i) for i in self.latents.loc[here, "latent"]]

    def _behind(self, k: int) -> Downstream:
        return Downstream(self._inputs.model, self._inputs.hookpoints[k])

    def _encoded(self, k: int) -> Encoded:
        return self._inputs.artefacts.encoded(self._inputs.places[k])

    @functools.cached_property
    def _writers(self) -> list[Writers]:
        self._inputs.require_heldout()
        spec, track = self._inputs.artefacts.spec, self._inputs.artefacts.progress.track
        found = []
        for k, sae in enumerate(self._inputs.saes):
            encoded = self._encoded(k)
            subject = Subject(self._behind(k), encoded.tokens, encoded.activations)
            encoder = sae.params["W_enc"].detach().float()
            directions = latent_directions(encoded)
            found.append(
                writers(subject, encoder, directions, spec.circuits.writers, spec.seed, track)
            )
        return found

    @functools.cached_property
    def _head_kinds(self) -> dict[tuple[int, int], str]:
        rows = self._inputs.artefacts.materials.rows_of(self._inputs.one)["heldout"]
        scores = head_scores(self._inputs.model, rows, self._seed, HeadSpec())
        places = zip(scores.layer, scores.head, scores.kind, strict=True)
        return {(int(layer), int(head)): kind for layer, head, kind in places}

    def _place_of(self, latent: int, hookpoint: str | None) -> int:
        names = self._inputs.hookpoints
        having = [name for name in names if latent in self._latents_at(name)]
        if hookpoint is not None:
            having = [name for name in having if name == hookpoint]
        if len(having) != 1:
            at = "" if hookpoint is None else f" at {hookpoint}"
            wrong = f"at {' and '.join(having)}: name one" if having else "nowhere"
            raise SpecError(
                f"the graph has latent {latent}{at} {wrong}; `latents` lists what it has"
            )
        return names.index(having[0])

    def _first_head(self, k: int, latent: int) -> tuple[int, int]:
        found = self._writers[k]
        heads = np.flatnonzero(found.is_head)
        if found.reasons[latent] or not len(heads):
            raise NotEstimable(
                f"latent {latent} has no shares of heads ({found.reasons[latent] or 'no head is before it'});"
                " name a head"
            )
        part = found.parts[heads[np.argmax(found.shares[latent, heads])]]
        return part.layer, part.head

    def _on_the_prompt(self, k: int) -> Subject:
        ids, n = self.token_ids, len(self.token_ids)
        rows = Rows(
            token_ids=ids.numpy().astype(np.int32)[None],
            lengths=np.array([n], dtype=np.int32),
            documents=np.zeros(1, dtype=np.int32),
            names=("prompt",),
        )
        # the first position is read by no SAE
        places = np.stack([np.zeros(n - 1), np.arange(1, n)], axis=1).astype(np.int64)
        model = self._behind(k)
        read = model.read(ids).site[1:]
        return Subject(model, TokenTable(rows, places, self._inputs.vocabulary), read)


def graph_of_trial(
    trial: Trial,
    prompt: str,
    choice: GraphChoice,
    settings: GraphSpec | None = None,
    progress: Progress | None = None,
) -> PromptGraph:
    """Return the attribution graph of a prompt in an arm of a finished trial; see `Trial.graph`."""
    if settings is not None and not isinstance(settings, GraphSpec):
        raise SpecError(f"settings is a GraphSpec or None; found {settings!r:.80}")
    inputs = open_inputs(trial, choice, prompt, progress or Progress())
    return _graph_of(trial, inputs, prompt, settings)


def write_graph(
    trial: Trial,
    prompt: str,
    out: Path,
    choice: GraphChoice,
    progress: Progress | None = None,
) -> PromptGraph:
    """Return the graph of a prompt after its picture is written; a wrong name is refused before all work.

    Raises:
        PlaceboError: as in `Trial.graph` and `PromptGraph.save`.
    """
    check_name(out)
    graph = graph_of_trial(trial, prompt, choice, progress=progress)
    graph.save(out)
    return graph


def _graph_of(
    trial: Trial, inputs: GraphInputs, prompt: str, settings: GraphSpec | None
) -> PromptGraph:
    ids = inputs.token_ids(prompt)
    saes = list(zip(inputs.hookpoints, inputs.saes, strict=True))
    graph = attribution_graph(inputs.model, ids, saes, inputs.vocabulary, settings)
    return PromptGraph(
        prompt, ids, graph, latents_of(trial, inputs, graph), inputs, trial, settings
    )
