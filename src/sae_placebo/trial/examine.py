"""Examine an SAE that one already has: an ordinary trial in which the trained arm's SAE is given.

The trial is written to a file (`examine_file`), so that it can be repeated and changed. Its arms are the
trained model with the given SAE, the trained model with the same recipe retrained, and the two fair placebos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_placebo.core.progress import Progress
from sae_placebo.trial.examine_file import ExamineSpec, write_trial
from sae_placebo.trial.examine_table import latents_of, summary_of

if TYPE_CHECKING:
    from sae_placebo.trial.results import Trial

__all__ = ["ExamineSpec", "Examined", "examine", "examined", "write_trial"]


class Examined:
    """A finished examination.

    Attributes:
        trial: The trial behind it, with all tables.
    """

    def __init__(self, trial: Trial) -> None:
        """Read the examination whose trial is finished."""
        self.trial = trial

    @property
    def report(self) -> Path:
        """Return the path of the report's page."""
        return self.trial.report

    @property
    def table(self) -> Path:
        """Return the path of `latents.csv`, the table of latents for people."""
        return self.trial.folder / "latents.csv"

    def summary(self) -> str:
        """Return how many latents are no better than a placebo's, in a few lines for a terminal."""
        return summary_of(self.trial)

    @property
    def latents(self) -> Any:
        """Return one row per latent of the given and of the retrained SAE; see `examine_table`."""
        return latents_of(self.trial)


def examine(
    sae: Any,
    model: str,
    text: str | Path | Sequence[str | Path],
    store: str | Path = "runs",
    *,
    hookpoint: str | None = None,
    settings: ExamineSpec | None = None,
    progress: Progress | None = None,
    replace: bool = False,
) -> Examined:
    """Examine an SAE: which of its latents are no better than a placebo's?

    Args:
        sae: The folder or file of an SAE, or several of other seeds; see `read_sae` for the formats. Or an
            object: an SAE of SAELens, or any with `encode`, `decode` and `W_dec` (`saes.formats.objects`).
        model: The model that it was trained on: a hub id, a folder, or a model that comes with a package.
        text: Text to train placebos on and to measure on: a file, a folder, a pattern, or several files.
        store: Folder of artefacts and results.
        hookpoint: Where the SAE reads, such as `resid_post.6`; what its file says unless given.
        settings: How many tokens and latents, and the trial's name.
        progress: Where progress is shown; nowhere by default.
        replace: Whether results of other settings under that name are replaced.

    Raises:
        PlaceboError: anything that a user can mend, in one sentence.
    """
    path = write_trial(sae, model, text, store, hookpoint, settings or ExamineSpec(), progress)
    return examined(path, store, progress, replace)


def examined(
    path: Path, store: str | Path, progress: Progress | None = None, replace: bool = False
) -> Examined:
    """Run the trial that `write_trial` wrote, write `latents.csv` into its results, and return them."""
    from sae_placebo.trial.run import run

    found = Examined(run(path, store, progress=progress, replace=replace))
    found.latents.to_csv(found.table, index=False)
    return found
