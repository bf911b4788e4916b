"""The report's sections, imported in the order of the page; each is one file and one template."""

from __future__ import annotations

from sae_placebo.report.sections import (  # isort: skip
    arms as arms,
    headline as headline,
    claims as claims,
    given as given,
    matching as matching,
    effects as effects,
    designs as designs,
    dose as dose,
    data as data,
    coverage as coverage,
    classes as classes,
    origin as origin,
    fit_curve as fit_curve,
    use as use,
    circuits as circuits,
    partners as partners,
    ladder as ladder,
    baselines as baselines,
    spikes as spikes,
    misleading as misleading,
    entropy as entropy,
    latents as latents,
    cards as cards,
    calibrated as calibrated,
    validity as validity,
    settings as settings,
    definitions as definitions,
    limits as limits,
)
from sae_placebo.report.sections.base import SECTIONS as SECTIONS
from sae_placebo.report.sections.base import Content as Content
from sae_placebo.report.sections.base import Section as Section
from sae_placebo.report.sections.base import View as View

__all__ = ["SECTIONS", "Content", "Section", "View"]
