"""The command `sae-placebo spikes`; each of its parameters is an option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_placebo.cli.options import Overrides, StoreFolder, TrialFile, Wait
from sae_placebo.core.progress import for_terminal


def spikes(
    trial: TrialFile,
    store: StoreFolder = Path("runs"),
    arm: Annotated[str | None, typer.Option(help="An arm; else the trained one.")] = None,
    hookpoint: Annotated[str | None, typer.Option(help="A hookpoint; else the first.")] = None,
    sae: Annotated[str | None, typer.Option(help="Label of an SAE; else the first.")] = None,
    frequencies: Annotated[
        str | None, typer.Option(help="Shares of tokens with a feature, such as 0.004,0.008.")
    ] = None,
    magnitudes: Annotated[
        str | None,
        typer.Option(help="Lengths over the activations' rms distance from their mean: 0.2,0.5."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Features of each frequency and magnitude.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="All are planted once with each, such as 0,1.")] = "0",
    composed: Annotated[
        bool, typer.Option("--composed", help="Plant pairs that occur together: are they merged?")
    ] = False,
    kinds: Annotated[
        str | None, typer.Option(help="With --composed: kinds of SAE; else topk,relu.")
    ] = None,
    together: Annotated[
        float | None,
        typer.Option(help="With --composed: how often the second is where the first is; else 0.8."),
    ] = None,
    overrides: Overrides = None,
    wait: Wait = 0.0,
) -> None:
    """Plant known features into a finished trial's activations, and say what its SAE finds of them."""
    from sae_placebo.trial.spikes.run import spikes as plant_spikes

    found = plant_spikes(
        trial,
        store,
        overrides=overrides or [],
        progress=for_terminal(),
        wait_seconds=wait,
        arm=arm,
        hookpoint=hookpoint,
        sae=sae,
        frequencies=frequencies,
        magnitudes=magnitudes,
        repeats=repeats,
        seeds=seeds,
        composed=composed,
        kinds=kinds,
        together=together,
    )
    typer.echo(found.text())
    typer.echo(f"tables: {found.folder}")
    if found.report is not None:
        typer.echo(f"report: {found.report}")
