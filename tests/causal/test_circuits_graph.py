"""Attribution graphs: weights are gradients of the real model, and pictures are safe and complete."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from test_circuits_edges import sae_at

from architectures import D_IN, VOCABULARY, build, token_ids
from sae_placebo.causal.circuits.drawing import draw
from sae_placebo.causal.circuits.graph import Graph, GraphSpec, attribution_graph
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.models.reading import Reader, replaced
from sae_placebo.saes import SAE

HOOKPOINTS = ("resid_post.0", "resid_post.1")
WORDS = [f"<{i}&\x00>" for i in range(VOCABULARY)]
SPEC = GraphSpec(expand=10, least=1e-4, least_edge=1e-6, edges=5000)


def bed(name: str = "llama") -> tuple[torch.nn.Module, list[tuple[str, SAE]], torch.Tensor]:
    model = build(name)
    read = Reader(model, list(HOOKPOINTS)).read(token_ids(20))
    saes = [(h, sae_at(read[h].reshape(-1, D_IN), 40, i)) for i, h in enumerate(HOOKPOINTS)]
    return model, saes, token_ids(1, 9, seed=5)[0]


def make(name: str = "llama", spec: GraphSpec = SPEC) -> Graph:
    model, saes, ids = bed(name)
    return attribution_graph(model, ids, saes, WORDS, spec)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "bloom"])
def test_weights_are_slopes_of_the_real_model(name: str) -> None:
    """A latent's edge to a logit is what a small change of it does, as a forward with the edit says."""
    model, saes, ids = bed(name)
    model.double()
    graph = attribution_graph(model, ids, saes, WORDS, SPEC)
    encoder = saes[1][1].params["W_enc"].double()
    checked = {"logit": 0, "latent": 0}
    for edge in graph.edges:
        source, target = graph.nodes[edge.source], graph.nodes[edge.target]
        if source.kind != "latent" or checked[target.kind] >= 4:
            continue
        checked[target.kind] += 1
        decoder = saes[source.depth - 1][1].params["W_dec"].double()
        step = 1e-4

        def value(size: float, source=source, target=target, decoder=decoder) -> float:  # type: ignore[no-untyped-def]
            def edit(x: torch.Tensor) -> torch.Tensor:
                out = x.clone()
                out[:, source.position] += size * source.activation * decoder[source.index]
                return out

            with torch.no_grad(), replaced(model, HOOKPOINTS[source.depth - 1], edit):
                if target.kind == "logit":
                    logits = model(input_ids=ids[None], use_cache=False).logits[0, -1]
                    return float(logits[target.index] - logits.mean())
                x = Reader(model, [HOOKPOINTS[1]]).read(ids[None])[HOOKPOINTS[1]]
                return float(x[0, target.position] @ encoder[:, target.index])

        slope = (value(step) - value(-step)) / (2 * step)
        assert edge.weight == pytest.approx(slope, rel=2e-2, abs=2e-3)
    assert checked == {"logit": 4, "latent": 4}


def test_influence_is_shared_out_among_inputs() -> None:
    graph = make()
    logits = [node for node in graph.nodes if node.kind == "logit"]
    assert sum(node.influence for node in logits) == pytest.approx(1)
    assert len(logits) == 3
    for i, node in enumerate(graph.nodes):
        flows = [edge.flow for edge in graph.edges if edge.target == i]
        if node.kind in ("latent", "logit"):
            assert sum(flows) <= node.influence * (1 + 1e-6)
    deepest = [n.influence for n in graph.nodes if n.depth == 2]
    assert sum(deepest) <= 1 + 1e-6
    assert 0 < graph.error_influence[1] < 1
    assert all(0 < share <= 1 for share in graph.traced_influence)


def test_edges_join_neighboring_depths_and_never_look_ahead() -> None:
    graph = make()
    for edge in graph.edges:
        source, target = graph.nodes[edge.source], graph.nodes[edge.target]
        assert source.depth + 1 == target.depth
        assert source.position <= target.position
    assert not any(n.kind == "latent" and n.position == 0 for n in graph.nodes)
    assert [e.flow for e in graph.edges] == sorted((e.flow for e in graph.edges), reverse=True)


def test_settings_prune() -> None:
    small = make(spec=GraphSpec(expand=3, least=0.05, edges=10))
    assert sum(node.kind == "latent" for node in small.nodes) <= 6
    assert len(small.edges) <= 10


def test_parameters_keep_no_gradients() -> None:
    model, saes, ids = bed()
    model.requires_grad_(True)
    attribution_graph(model, ids, saes[:1], WORDS, SPEC)
    assert all(p.grad is None for p in model.parameters())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_what_cannot_be_drawn_is_refused() -> None:
    model, saes, ids = bed()
    with pytest.raises(SpecError, match="not behind"):
        attribution_graph(model, ids, saes[::-1], WORDS)
    with pytest.raises(SpecError, match="mlp_out"):
        attribution_graph(model, ids, [("mlp_out.1", saes[0][1])], WORDS)
    with pytest.raises(NotEstimable, match="nothing before"):
        attribution_graph(model, ids, saes, WORDS, position=0)


def test_picture_is_xml_with_texts_escaped_and_failing_latents_pale() -> None:
    graph = make()
    pale = next(node for node in graph.nodes if node.kind == "latent")
    faded = {(HOOKPOINTS[pale.depth - 1], pale.index)}
    svg = draw(graph, faded)
    root = ElementTree.fromstring(svg)
    shapes = [e for e in root.iter() if e.tag.endswith(("circle", "rect", "path"))]
    assert len(shapes) >= len(graph.nodes) + len(graph.edges)
    dashed = [e for e in root.iter() if e.tag.endswith("circle") and e.get("stroke-dasharray")]
    of_it = [n for n in graph.nodes if n.index == pale.index and n.depth == pale.depth]
    assert len(dashed) == len([n for n in of_it if n.kind == "latent"]) + 1  # and the legend's
    assert "<3&" not in svg
    assert "no better than the placebo" in svg
    assert "no better than the placebo" not in draw(graph)
    for element in root.iter():
        for name in ("cx", "x"):
            value = element.get(name)
            assert value is None or -20 <= float(value) <= 1020


def test_picture_of_a_hostile_token() -> None:
    graph = make()
    hostile = tuple('"/><script>' for _ in graph.tokens)
    svg = draw(replace(graph, tokens=hostile))
    assert "<script>" not in svg
    ElementTree.fromstring(svg)


def test_one_hookpoint_is_enough() -> None:
    model, saes, ids = bed()
    graph = attribution_graph(model, ids, saes[1:], WORDS, SPEC, position=6)
    assert {node.depth for node in graph.nodes} == {0, 1, 2}
    assert len(graph.tokens) == 7
    assert np.isfinite([edge.weight for edge in graph.edges]).all()
    ElementTree.fromstring(draw(graph))
