"""The command line: verbs over the public API, and no logic of their own."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sae_placebo.cli.examine import examine
from sae_placebo.cli.options import Device, Overrides, Replace, StoreFolder, TrialFile, Wait
from sae_placebo.cli.spikes import spikes
from sae_placebo.cli.toy import toy
from sae_placebo.cli.world import world
from sae_placebo.core.errors import PlaceboError, StoreError, in_one_line
from sae_placebo.core.interrupts import EXIT_CODES, listening
from sae_placebo.core.progress import for_terminal

app = typer.Typer(
    help="Placebo-controlled trials for sparse autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(toy, name="toy")
app.command()(spikes)
app.command()(examine)
app.add_typer(world, name="world")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("trial.toml"),
) -> None:
    """Write a commented trial file to start from."""
    from sae_placebo.trial.template import TEMPLATE

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except (FileExistsError, IsADirectoryError):
        raise StoreError(f"{str(path)!r} exists already; give another path or remove it") from None
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written ({error.strerror})") from None
    typer.echo(f"wrote {path}; next: sae-placebo check {shlex.quote(str(path))}")


@app.command()
def check(trial: TrialFile, store: StoreFolder = Path("runs"), overrides: Overrides = None) -> None:
    """Resolve a trial file and print it, or say what is wrong and where.

    Whether this machine's memory and the store's disk can hold the trial, whether the store can be written,
    and whether the model's folder has weights and a tokenizer, which token ids need not, is checked as well.
    """
    from sae_placebo.core.refusals import check_writable
    from sae_placebo.data.text import holds_ids
    from sae_placebo.models.specs import check_folder, is_hub_id
    from sae_placebo.trial.reference import module_inputs
    from sae_placebo.trial.sizes import check_sizes
    from sae_placebo.trial.spec import load_trial

    spec = load_trial(trial, overrides=overrides or [])
    check_writable(store)
    check_sizes(spec, store)
    check_folder(spec.model, needs_tokenizer=not holds_ids(spec.text))
    resolved = {**spec.model_dump(mode="json"), "device": spec.device}
    typer.echo(json.dumps(resolved, indent=2, ensure_ascii=False))
    if off := module_inputs(spec.hookpoints):
        sys.stderr.write(
            f"note: {', '.join(off)} is the input of a module and no part of the residual stream: readers "
            "and writers of its latents, their ties to circuitry and the tokens that they promote are not "
            "looked for, and are empty in the tables\n"
        )
    if is_hub_id(spec.model):
        sys.stderr.write(
            f"note: {spec.model.id!r} is no folder here, so it is taken for a model's id on the hub; "
            "whether the hub has it was not checked\n"
        )


@app.command()
def plan(
    trial: TrialFile,
    store: StoreFolder = Path("runs"),
    overrides: Overrides = None,
    probe: Annotated[
        bool, typer.Option(help="Time a few batches on this machine to estimate minutes.")
    ] = True,
) -> None:
    """Print the stages, say which of them are done, and estimate what the rest will cost."""
    from sae_placebo.trial.costs import plan_table

    typer.echo(
        plan_table(trial, store, overrides=overrides or [], probe=probe, progress=for_terminal())
    )


@app.command()
def run(
    trial: TrialFile,
    store: StoreFolder = Path("runs"),
    overrides: Overrides = None,
    wait: Wait = 0.0,
    device: Device = None,
    replace: Replace = False,
) -> None:
    """Run a trial, or what is left of it, and say where the report is."""
    from sae_placebo.trial.run import run as run_trial

    settings = (overrides or []) + ([] if device is None else [f'device="{device}"'])
    result = run_trial(
        trial,
        store,
        overrides=settings,
        progress=for_terminal(),
        wait_seconds=wait,
        replace=replace,
    )
    typer.echo(result.summary())
    typer.echo(f"report: {result.report}")


@app.command()
def status(
    trial: TrialFile, store: StoreFolder = Path("runs"), overrides: Overrides = None
) -> None:
    """Print which stages of a trial are done, and whether its results are as they were written."""
    from sae_placebo.trial.costs import plan_table
    from sae_placebo.trial.results import described, trial_folder
    from sae_placebo.trial.spec import load_trial

    typer.echo(
        plan_table(trial, store, overrides=overrides or [], probe=False, progress=for_terminal())
    )
    spec = load_trial(trial, overrides=overrides or [])
    typer.echo(described(trial_folder(store, spec.name), spec))


@app.command()
def report(
    trial: TrialFile, store: StoreFolder = Path("runs"), overrides: Overrides = None
) -> None:
    """Write the report again from the finished tables, and say where it is."""
    from sae_placebo.report import build_report
    from sae_placebo.trial.costs import unfinished
    from sae_placebo.trial.result_folders import not_yet
    from sae_placebo.trial.results import is_result_of, trial_folder
    from sae_placebo.trial.spec import load_trial

    spec = load_trial(trial, overrides=overrides or [])
    folder = trial_folder(store, spec.name)
    left = unfinished(spec, store)
    if left or not is_result_of(folder, spec):
        settings = [word for setting in overrides or [] for word in ("--set", setting)]
        command = ["sae-placebo", "run", str(trial), "--store", str(store), *settings]
        raise StoreError(not_yet(folder, spec, left, shlex.join(command)))
    with for_terminal().track("report", 1, "page") as advance:
        page = build_report(folder)
        advance(1)
    typer.echo(f"report: {page}")


@app.command()
def power(
    difference: Annotated[float, typer.Option(help="The difference to detect.")] = 0.05,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of a finished trial, <store>/trials/<name>."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="A metric of that trial; else share_token_family.")
    ] = None,
    control: Annotated[str | None, typer.Option(help="One of its controls; else all.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Held-out tokens.")] = None,
    latents: Annotated[int | None, typer.Option(help="Latents of an SAE (d_sae).")] = None,
    sae_seeds: Annotated[int | None, typer.Option(help="SAE seeds.")] = None,
    model_seeds: Annotated[int | None, typer.Option(help="Re-draws of the control.")] = None,
) -> None:
    """Print which differences a design detects, and the tokens, latents and seeds that it takes."""
    from sae_placebo.trial.power import answer

    text = answer(
        difference,
        source,
        metric=metric,
        control=control,
        heldout_tokens=tokens,
        d_sae=latents,
        sae_seeds=sae_seeds,
        model_seeds=model_seeds,
    )
    typer.echo(text)


@app.command()
def graph(
    trial: Annotated[
        Path, typer.Argument(help="Folder of a finished trial, <store>/trials/<name>.")
    ],
    prompt: Annotated[str, typer.Option(help="The text whose next token is explained.")],
    out: Annotated[
        Path, typer.Option("--out", help="Where to write it: .html, .svg or .png.")
    ] = Path("graph.html"),
    arm: Annotated[str | None, typer.Option(help="An arm; else the trained one.")] = None,
    sae: Annotated[str | None, typer.Option(help="Label of the SAEs; else the first.")] = None,
    hookpoints: Annotated[
        list[str] | None,
        typer.Option("--hookpoint", help="A hookpoint, once for each; else all on the stream."),
    ] = None,
    sae_seed: Annotated[int | None, typer.Option(help="SAE seed; else the first.")] = None,
    model_seed: Annotated[
        int | None, typer.Option(help="Re-draw of the arm; else the first.")
    ] = None,
) -> None:
    """Draw which tokens and latents lead to a prompt's next token, in an arm of a finished trial."""
    from sae_placebo.trial.graph import write_graph
    from sae_placebo.trial.graph_inputs import GraphChoice
    from sae_placebo.trial.results import Trial

    choice = GraphChoice(arm, sae, hookpoints, sae_seed, model_seed)
    found = write_graph(Trial(trial), prompt, out, choice, for_terminal())
    typer.echo(found.summary())
    typer.echo(f"graph: {out}")


def main() -> None:
    """Run the command line.

    An error that the user can mend is printed as one sentence, and the exit code is 1; with `--debug`,
    it is raised with its traceback.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        with listening():
            app(arguments)
    except PlaceboError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {in_one_line(str(error))}\n")
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code in EXIT_CODES:
            sys.stderr.write("stopped; run the same command again to go on\n")
        raise


if __name__ == "__main__":
    main()
