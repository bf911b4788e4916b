"""Attribution graphs: weights are gradients of the real model, and pictures are safe and complete."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from test_circuits_edges import sae_at

from architectures import D_IN, VOCABULARY, build, token_ids
from sae_placebo.causal.circuits.drawing import draw, draw_static
from sae_placebo.causal.circuits.graph import Graph, GraphSpec, attribution_graph
from sae_placebo.core.errors import MissingExtra, NotEstimable, SpecError
from sae_placebo.core.pictures import svg_of
from sae_placebo.models.reading import Reader, replaced
from sae_placebo.saes import SAE

HOOKPOINTS = ("resid_post.0", "resid_post.1")
WORDS = [f"<{i}&\x00>" for i in range(VOCABULARY)]
SPEC = GraphSpec(expand=10, least=1e-4, least_edge=1e-6, edges=5000)
PALE = "latent no better than the placebo"


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


def texts_of(figure: Any) -> list[str]:
    """Return all text of a plotly figure that is a node's, an edge's or an axis's."""
    texts: list[str] = [*figure.layout.xaxis.ticktext, *figure.layout.yaxis.ticktext]
    for trace in figure.data:
        for shown in (trace.text, trace.hovertext):
            texts += [shown] if isinstance(shown, str) else shown or []
    return texts


def faded_in(graph: Graph) -> tuple[set[tuple[str, int]], int]:
    """Return a latent of the graph, as `draw` takes it, and how many nodes are of it."""
    pale = next(node for node in graph.nodes if node.kind == "latent")
    of_it = [
        n for n in graph.nodes if (n.kind, n.index, n.depth) == ("latent", pale.index, pale.depth)
    ]
    return {(HOOKPOINTS[pale.depth - 1], pale.index)}, len(of_it)


def test_interactive_picture_is_complete_with_texts_escaped_and_failing_latents_pale() -> None:
    graph = make()
    faded, n_pale = faded_in(graph)
    figure = draw(graph, faded)
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.hovertext]
    marks = {trace.name: trace for trace in figure.data if trace.mode == "markers+text"}
    assert len(lines) == len(graph.edges)
    assert sum(len(trace.x) for trace in marks.values()) == len(graph.nodes)
    assert len(marks[PALE].x) == n_pale
    assert "0.18" in marks[PALE].marker.color
    colors = {True: "#2b6cb0", False: "#c53030"}
    raised = sum(edge.weight > 0 for edge in graph.edges)
    assert sum(line.line.color == colors[True] for line in lines) == raised
    assert sum(line.line.color == colors[False] for line in lines) == len(lines) - raised
    widest = max(lines, key=lambda line: line.line.width)
    assert f"{graph.edges[0].flow:.1%} of the flow" in widest.hovertext
    texts = texts_of(figure)
    assert not any("<" in text or "\x00" in text for text in texts)
    assert sum("&amp;·&gt; (" in text for text in texts) >= len(graph.nodes)
    assert sum("no better than the placebo" in text for text in texts) == n_pale
    legend = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert legend == ["raises", "lowers", "error", PALE, "latent"]
    assert "no better than the placebo" not in str(draw(graph).to_dict())
    (left, right), (bottom, top) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for trace in [*lines, *marks.values()]:
        assert all(left <= x <= right for x in trace.x)
        assert all(bottom <= y <= top for y in trace.y)


def test_static_picture_shows_the_same() -> None:
    graph = make()
    faded, n_pale = faded_in(graph)
    figure = draw_static(graph, faded)
    (axes,) = figure.axes
    assert len(axes.patches) == len(graph.edges)
    marks = {collection.get_label(): collection for collection in axes.collections}
    assert sum(len(collection.get_offsets()) for collection in marks.values()) == len(graph.nodes)
    assert len(marks[PALE].get_offsets()) == n_pale
    assert marks[PALE].get_facecolor()[0, 3] == pytest.approx(0.18)
    assert marks[PALE].get_linestyle()[0][1] is not None  # dashed
    assert PALE in [text.get_text() for text in figure.legends[0].texts]
    assert PALE not in [text.get_text() for text in draw_static(graph).legends[0].texts]
    for trace in draw(graph, faded).data:
        if trace.name in marks and trace.mode == "markers+text":
            points = np.column_stack([trace.x, trace.y])
            assert np.allclose(points, marks[trace.name].get_offsets())
    svg = svg_of(figure, "graph")
    assert svg == svg_of(draw_static(graph, faded), "graph")
    ElementTree.fromstring(svg)
    assert "&amp;·&gt;</text>" in svg
    assert "&·" not in svg


@pytest.mark.parametrize(
    "token",
    ['"/><script>', "$x^$", "\\frac$_{", "\x00\x1b\ud800", "\u0e01\u0e47\ud55c\U0001f642\u202e"],
)
def test_picture_of_a_hostile_token(token: str) -> None:
    graph = make()
    logits = dict.fromkeys(graph.logit_texts, token)
    hostile = replace(graph, tokens=(token,) * len(graph.tokens), logit_texts=logits)
    texts = texts_of(draw(hostile))
    assert not any(set(text) & set("<>$\x00\x1b\ud800\u202e") for text in texts)
    svg = svg_of(draw_static(hostile), "graph")
    assert "<script>" not in svg
    shown = {one.text for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")}
    visible = "".join(c if c.isprintable() else "·" for c in token)
    assert visible in shown or f"⋯ {visible}" in shown


def test_without_matplotlib_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sae-placebo\[plots\]'"):
        draw_static(make())


def test_one_hookpoint_is_enough() -> None:
    model, saes, ids = bed()
    graph = attribution_graph(model, ids, saes[1:], WORDS, SPEC, position=6)
    assert {node.depth for node in graph.nodes} == {0, 1, 2}
    assert len(graph.tokens) == 7
    assert np.isfinite([edge.weight for edge in graph.edges]).all()
    assert draw(graph).layout.yaxis.ticktext == ("tokens", HOOKPOINTS[1], "next token")
    ElementTree.fromstring(svg_of(draw_static(graph), "graph"))
