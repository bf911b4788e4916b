"""An attribution graph of one prompt: which tokens, latents and errors lead to the next token's logits.

Everything that reaches a later hookpoint on the residual stream passes through the activation at the one
before, which is the sum of latents, the SAE's error and a bias. So edges lead from one hookpoint to the next,
and no path is counted twice. Edges are linear attributions on the model itself, with its own activations and
gradients; nothing is replaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field

from sae_placebo.causal.circuits.streams import later_than
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec
from sae_placebo.models.hookpoints import ON_STREAM, Hookpoint, parse_hookpoint
from sae_placebo.models.sites import resolve
from sae_placebo.saes import SAE

NodeKind = Literal["token", "latent", "error", "logit"]


class GraphSpec(Spec):
    """How much of a graph is computed, and how much of that is kept."""

    logits: int = Field(3, ge=1)
    """The graph leads to so many next tokens, the most likely ones."""
    expand: int = Field(14, ge=1)
    """So many latents at each hookpoint are traced back, those of the most influence."""
    least: float = Field(0.01, gt=0, lt=1)
    """Tokens and errors are kept if they have at least this influence, as a share of the whole."""
    least_edge: float = Field(0.0015, gt=0, lt=1)
    """An edge is kept if at least this share of all influence flows along it."""
    edges: int = Field(120, ge=1)
    """The number of edges that are kept at most; those with the largest flow stay."""


@dataclass(frozen=True)
class Node:
    """A token's embedding, a latent or the SAE's error at a token, or a logit.

    Attributes:
        kind: Which of these it is.
        depth: 0 for tokens, 1 for the first hookpoint, and so on; logits are the deepest.
        position: The position in the prompt.
        index: The token id, or the latent; -1 for an error.
        activation: The activation of a latent, the probability of a logit, or the norm of an error or of
            an embedding.
        influence: The share of what leads to the logits that passes through the node, 0 to 1, signs left
            aside.
        traced: Whether the node's inputs have been computed. It is true of tokens, which have none.
    """

    kind: NodeKind
    depth: int
    position: int
    index: int
    activation: float
    influence: float
    traced: bool


@dataclass(frozen=True)
class Edge:
    """An attribution between two nodes of neighboring depths.

    Attributes:
        source: The index of the node that it comes from.
        target: The index of the node that it leads to.
        weight: What the source adds to the target, to first order: to a latent's pre-activation, or to
            a logit less the mean of all logits.
        flow: The share of what leads to the logits that passes along the edge, 0 to 1.
    """

    source: int
    target: int
    weight: float
    flow: float


@dataclass(frozen=True)
class Graph:
    """The nodes and edges that lead to a prompt's next token.

    Attributes:
        nodes: The nodes that are kept, deepest first.
        edges: The edges that are kept, those of the largest flow first.
        tokens: The texts of the prompt's tokens.
        hookpoints: The names of the hookpoints, shallowest first.
        logit_texts: The text of each logit node, by token id.
        error_influence: By hookpoint, the influence of all errors together, which is what the dictionary
            does not explain.
        traced_influence: By hookpoint, the influence of the latents traced back, as a share of that of all
            latents.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    tokens: tuple[str, ...]
    hookpoints: tuple[str, ...]
    logit_texts: dict[int, str]
    error_influence: tuple[float, ...]
    traced_influence: tuple[float, ...]


def attribution_graph(
    model: torch.nn.Module,
    token_ids: Int64[torch.Tensor, " pos"],
    saes: Sequence[tuple[str, SAE]],
    vocabulary: Sequence[str],
    spec: GraphSpec | None = None,
    position: int = -1,
) -> Graph:
    """Return the graph that leads to the prediction at one position of a prompt.

    A target is a logit less the mean of all logits, or the pre-activation e_j . x_t of a latent. Let g_s be
    its gradient at the activation of token s at the hookpoint before. Then the weight of the edge to it is

        from a latent i at s:       a_is d_i . g_s,
        from the SAE's error at s:  (x_s - x_hat_s) . g_s,
        from the embedding of s:    E_s . g_s.

    Influence starts at the logits, in proportion to their probabilities, and is passed on to the inputs of
    each node in proportion to |weight|. The bias b_dec of an SAE is no node. SAEs never code the first
    position, so it is all error.

    Args:
        model: A causal language model.
        token_ids: The prompt.
        saes: Hookpoints on the residual stream, each with its SAE in model units.
        vocabulary: The text of each token id.
        spec: The settings.
        position: The position whose next token the graph leads to.

    Raises:
        SpecError: there are no hookpoints, or they are out of order or off the residual stream.
        NotEstimable: the position has nothing before it.

    Source: attribution graphs, Ameisen et al. 2025; sparse feature circuits, Marks et al.
    (arXiv 2403.19647). Differs: gradients pass through attention and norms as they are, not frozen, and
    SAEs explain the model's activations instead of replacing them.
    """
    spec = spec or GraphSpec()
    places = [parse_hookpoint(name) for name, _ in saes]
    _check(places)
    ids = token_ids[: position + 1 if position >= 0 else len(token_ids) + position + 1]
    if len(ids) < 2:
        raise NotEstimable(f"a prompt of {len(ids)} token has nothing before it; two are needed")
    run = _run(model, ids, places)
    levels = [_tokens(ids, run.leaves[0])]
    levels += [
        _coded(i + 1, sae, x)
        for i, ((_, sae), x) in enumerate(zip(saes, run.leaves[1:], strict=True))
    ]
    targets, logits = _logits(run.logits, spec.logits, len(saes) + 1, len(ids) - 1)
    traced = _traced(run, levels, [sae for _, sae in saes], targets, logits, spec)
    texts = {node.index: vocabulary[node.index] for node in targets}
    names = tuple(place.name for place in places)
    return _kept(traced, spec, tuple(vocabulary[int(i)] for i in ids), names, texts)


def _check(places: list[Hookpoint]) -> None:
    """Refuse hookpoints that are off the residual stream or out of order."""
    off = [p.name for p in places if p.site not in ON_STREAM]
    if not places or off:
        raise SpecError(
            f"a graph was asked for at {', '.join(off) or 'no hookpoint'}; one or more of resid_pre and "
            "resid_post are needed, which all paths pass through."
        )
    for earlier, later in itertools.pairwise(places):
        if not later_than(later, earlier):
            raise SpecError(f"{later.name} is not behind {earlier.name}; name hookpoints in order.")


# --- one forward -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Run:
    """A forward pass that is cut at the embedding and at every hookpoint.

    Attributes:
        leaves: The states that go on from each cut, as leaves for gradients.
        arrived: The states that came to each hookpoint, as a function of the leaf before.
        logits: The logits at the last position, as a function of the last leaf.
    """

    leaves: list[torch.Tensor]
    arrived: list[torch.Tensor]
    logits: torch.Tensor


def _run(model: Any, ids: Int64[torch.Tensor, " pos"], places: list[Hookpoint]) -> _Run:
    """Return a forward pass of the prompt that is cut at the embedding and these hookpoints."""
    cuts = [Hookpoint("resid_pre", 0), *places]
    if places[0] == cuts[0]:
        raise SpecError("resid_pre.0 is the embedding itself; take a hookpoint behind it.")
    leaves: dict[Hookpoint, torch.Tensor] = {}
    arrived: dict[Hookpoint, torch.Tensor] = {}

    def cut(place: Hookpoint) -> Any:
        def action(x: torch.Tensor) -> torch.Tensor:
            arrived[place] = x
            leaves[place] = x.detach().requires_grad_()
            return leaves[place].clone()  # since layers may write into what they are given

        return action

    sites = resolve(model, cuts)
    device = next(model.parameters()).device
    with torch.enable_grad(), sites.hooked({place: cut(place) for place in cuts}):
        logits = model(input_ids=ids[None].to(device), use_cache=False).logits[0, -1].float()
    return _Run([leaves[p] for p in cuts], [arrived[p] for p in places], logits)


# --- nodes of one depth ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Level:
    """The nodes of one depth, those that are kept and those that are not.

    Attributes:
        nodes: The nodes.
        positions: Their positions in the prompt.
        vectors: What each adds to the stream at its position.
    """

    nodes: list[Node]
    positions: torch.Tensor
    vectors: Float[torch.Tensor, "node d_in"]

    def weights(self, gradient: Float[torch.Tensor, "pos d_in"]) -> Float[np.ndarray, " node"]:
        """Return what each node adds to a target, given the target's gradient at this depth."""
        return np.asarray((self.vectors * gradient[self.positions]).sum(1).double().cpu().numpy())


def _tokens(ids: torch.Tensor, embedded: torch.Tensor) -> _Level:
    """Return the embeddings of the prompt's tokens as nodes."""
    x = embedded[0].detach()
    nodes = [Node("token", 0, s, int(i), float(x[s].norm()), 0.0, True) for s, i in enumerate(ids)]
    return _Level(nodes, torch.arange(len(ids)), x)


def _coded(depth: int, sae: SAE, leaf: torch.Tensor) -> _Level:
    """Return the latents and the errors at a hookpoint as nodes."""
    x = leaf[0].detach().float()
    codes = sae.encode(x)
    positions, latents, values = codes.tokens(), codes.latents, codes.values
    later = positions > 0  # the first position is read by no SAE
    positions, latents, values = positions[later], latents[later], values[later]
    parts = values[:, None] * sae.params["W_dec"][latents]
    error = x - sae.params["b_dec"]
    error = error.index_add(0, positions, -parts)
    coded = zip(positions.tolist(), latents.tolist(), values.tolist(), strict=True)
    nodes = [Node("latent", depth, s, i, v, 0.0, False) for s, i, v in coded]
    sizes = error.norm(dim=1).tolist()
    nodes += [Node("error", depth, s, -1, size, 0.0, False) for s, size in enumerate(sizes)]
    at = torch.cat([positions, torch.arange(len(x), device=positions.device)])
    return _Level(nodes, at, torch.cat([parts, error]))


def _logits(
    logits: torch.Tensor, most: int, depth: int, position: int
) -> tuple[list[Node], list[torch.Tensor]]:
    """Return the most likely next tokens as nodes, and the logit of each less the mean of all logits."""
    chances = logits.detach().softmax(-1)
    top = chances.topk(min(most, len(chances)))
    total = float(top.values.sum())
    nodes, values = [], []
    for chance, i in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        nodes.append(Node("logit", depth, position, i, chance, chance / total, True))
        values.append(logits[i] - logits.mean())
    return nodes, values


# --- tracing back ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Traced:
    """All nodes with their influence, and the edges into those that were traced back.

    Attributes:
        nodes: The nodes, deepest first.
        edges: The edges, by places in `nodes`; some that are too weak to be kept are left out.
        error_influence: As in `Graph`.
        traced_influence: As in `Graph`.
    """

    nodes: list[Node]
    edges: list[Edge]
    error_influence: tuple[float, ...]
    traced_influence: tuple[float, ...]


def _traced(
    run: _Run,
    levels: list[_Level],
    saes: list[SAE],
    targets: list[Node],
    values: list[torch.Tensor],
    spec: GraphSpec,
) -> _Traced:
    """Return the nodes with their influence, traced back from the logits, one depth after the other.

    Args:
        run: The forward pass.
        levels: The nodes at the embedding and at every hookpoint, shallowest first.
        saes: The SAE of each hookpoint.
        targets: The logit nodes.
        values: The value of each of them, as a function of the last leaf.
        spec: The settings.
    """
    nodes, edges = list(targets), list[Edge]()
    above = list(range(len(targets)))
    errors, covered = [], []
    for depth in reversed(range(len(levels))):
        level = levels[depth]
        influence, start = np.zeros(len(level.nodes)), len(nodes)
        for target, value in zip(above, values, strict=True):
            (gradient,) = torch.autograd.grad(value, run.leaves[depth], retain_graph=True)
            weights = level.weights(gradient[0].detach())
            flow = np.abs(weights)
            flow = nodes[target].influence * flow / max(flow.sum(), 1e-30)
            influence += flow
            strong = np.flatnonzero(flow >= spec.least_edge / 4)
            edges += [
                Edge(start + int(i), target, float(weights[i]), float(flow[i])) for i in strong
            ]
        is_latent = np.array([node.kind == "latent" for node in level.nodes])
        order = np.argsort(-np.where(is_latent, influence, -1), kind="stable")
        chosen = [int(i) for i in order[: spec.expand] if is_latent[i] and influence[i] > 0]
        picked = set(chosen)
        for i, node in enumerate(level.nodes):
            nodes.append(
                replace(node, influence=float(influence[i]), traced=node.traced or i in picked)
            )
        if depth:
            is_error = np.array([node.kind == "error" for node in level.nodes])
            errors.append(float(influence[is_error].sum()))
            of_latents = float(influence[is_latent].sum())
            covered.append(float(influence[chosen].sum()) / max(of_latents, 1e-30))
            encoder, x = saes[depth - 1].params["W_enc"], run.arrived[depth - 1][0].float()
            at = [(level.nodes[i].position, level.nodes[i].index) for i in chosen]
            values = [x[s] @ encoder[:, i] for s, i in at]
            above = [start + i for i in chosen]
    return _Traced(nodes, edges, tuple(reversed(errors)), tuple(reversed(covered)))


def _kept(
    traced: _Traced,
    spec: GraphSpec,
    tokens: tuple[str, ...],
    hookpoints: tuple[str, ...],
    texts: dict[int, str],
) -> Graph:
    """Return the graph of the nodes and edges that have enough influence."""
    kept = [
        i
        for i, node in enumerate(traced.nodes)
        if node.kind == "logit"
        or (node.kind == "latent" and node.traced)
        or (node.kind != "latent" and node.influence >= spec.least)
    ]
    place = {old: new for new, old in enumerate(kept)}
    edges = [
        Edge(place[e.source], place[e.target], e.weight, e.flow)
        for e in sorted(traced.edges, key=lambda e: -e.flow)
        if e.source in place and e.target in place and e.flow >= spec.least_edge
    ]
    return Graph(
        nodes=tuple(traced.nodes[i] for i in kept),
        edges=tuple(edges[: spec.edges]),
        tokens=tokens,
        hookpoints=hookpoints,
        logit_texts=texts,
        error_influence=traced.error_influence,
        traced_influence=traced.traced_influence,
    )
