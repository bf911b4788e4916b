"""The report of a trial is one page that opens from disk, made from the trial's tables alone."""

from __future__ import annotations

from sae_placebo.report.build import build_report as build_report
from sae_placebo.report.build import render as render
from sae_placebo.report.tables import Tables as Tables
from sae_placebo.report.tables import read_tables as read_tables

__all__ = ["Tables", "build_report", "read_tables", "render"]
