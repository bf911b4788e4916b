"""Every term that the report uses: what it is, its unit, its null, where it comes from."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.terms import class_terms, metric_terms

WORDS: tuple[tuple[str, str], ...] = (
    ("SAE", "Sparse autoencoder: a dictionary trained to write each activation as a sum of few of "
     "its directions."),
    ("Latent", "One unit of an SAE. This report does not call it a feature: whether it is one is "
     "the question."),
    ("Arm", "One of the things compared: the reference model with one control applied. All arms "
     "read the same tokens in the same order, and their SAEs share recipe, data order and initial "
     "weights."),
    ("Control", "The change that makes an arm, such as drawing the weights anew. The trained arm "
     "has none."),
    ("Placebo", "An arm in which the learning in question has been destroyed. What an SAE shows "
     "there is no evidence of learning."),
    ("Interaction", "The effect of one thing where another is real, minus the same effect where "
     "the other is random. Its null is 0: the two add up."),
    ("Effect", "The first arm's value minus the second arm's, on the same held-out tokens."),
    ("Interval", "The range of effects that the data do not rule out, from resampling documents, "
     "crossed with SAE seeds and model seeds. If it holds the null, this trial cannot tell."),
    ("Null", "The value that a score takes where there is nothing to find. An effect's null is 0; "
     "a metric's own null is often not."),
    ("A/A", "The same calculation between two draws of one control, where nothing but chance "
     "differs. An effect that is no larger than its A/A interval is no finding."),
    ("n", "What a number was computed over: documents, SAE seeds, models, latents or tokens. "
     "“Models 1 vs 2” counts the model draws in the first and the second arm."),
    ("Model seed", "One re-draw of a control: another random model from the same recipe."),
    ("SAE seed", "One initialization of the SAE, the same in every arm."),
    ("Hookpoint", "Where in the model activations are read: resid_post.3 is the residual stream "
     "after block 3."),
    ("EV, L0", "Explained variance: the share of the activations' variance that an SAE "
     "reconstructs. L0: the number of latents active on a token."),
    ("Density", "Share of held-out tokens on which a latent is active."),
    ("Token entropy", "Entropy, in bits, of a latent's activation over token ids: 0 when one token "
     "holds all of it. It grows with the number of active positions, so that each latent is set "
     "beside as many random positions: its null."),
    ("Top token, mass, recall", "The token id that holds most of a latent's activation; the share "
     "that it holds; the share of that token's occurrences on which the latent is active."),
    ("Residual norm", "Mean length of the activation vectors at the hookpoint."),
    ("Block output / embedding", "Norm of what the blocks add, over the norm of the token's "
     "embedding. How much of the token is left in the activation is said by R², not by this."),
    ("R² on current token", "Share of the activations' variance that a table with one vector per "
     "token id explains: how much of the token is left in them."),
    ("Participation ratio", "Effective number of dimensions that the activations use: (sum of "
     "variances)² over the sum of squared variances, along principal axes."),
    ("Attention entropy", "Mean entropy of the attention weights: high when heads spread evenly "
     "over the prefix; “possible” is what an even spread would give."),
    ("Norm outliers", "Tokens whose activation is many times longer than the median: the masking "
     "rule leaves them out."),
)  # fmt: skip


def build(view: View) -> Content:
    """Return the report's words, the metrics that the trial has, and the classes."""
    used = set(view.tables.effects["metric"].dropna())
    used |= set(view.tables.measurements["metric"].dropna())
    metrics = metric_terms(view.tables.trial.get("metrics"))
    known = {term["name"] for term in metrics}
    values = {
        "words": WORDS,
        "metrics": [term for term in metrics if term["name"] in used or not used],
        "reads": any(term["reads"] for term in metrics),
        "undefined": sorted(str(m) for m in used - known),
        "classes": class_terms(),
        "thresholds": _thresholds(view),
    }
    return Content(values, {})


def _thresholds(view: View) -> dict[str, Any]:
    spec = view.tables.trial.get("spec")
    measurement = spec.get("measurement") if isinstance(spec, dict) else None
    found = measurement.get("thresholds") if isinstance(measurement, dict) else None
    return found if isinstance(found, dict) else {}


SECTIONS.add("definitions", Section("definitions", "Definitions", ("trial",), build))
