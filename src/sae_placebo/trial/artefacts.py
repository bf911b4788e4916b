"""The files of each stage: what is written into an artefact's folder, and how it is read back.

| stage | files |
|---|---|
| tokenize | rows.safetensors, names.json, labels.json where text is Python, text.json, vocabulary.json |
| build | recipe.json, card.json, heads.safetensors (harvest and train keep a copy of the recipe) |
| harvest | activations, norms, repeats.safetensors, calibration.safetensors and .json, precision.json |
| train | <hookpoint>/<sae>/seed-<n>/ (SAELens 6), lookup.safetensors, gaussian.json, log.parquet |
| measure | measurements, coverage.parquet, replicates and codes.safetensors |
| profile | latents, measurements, passages, sensitivity.parquet, replicates.safetensors |
| methods | methods.parquet, measurements.parquet, replicates.safetensors |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.baselines.compare import MethodsResult
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.store import read_json, write_json
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.readability import Readability
from sae_placebo.data.text import Rows
from sae_placebo.latents.measurement import Measurement
from sae_placebo.latents.profile import Profile
from sae_placebo.models.activations import Calibration
from sae_placebo.models.gaussian import GaussianNull
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.stages.harvest import HarvestPrecision


def write_rows(folder: Path, splits: Mapping[str, Rows]) -> None:
    """Write tokenized splits, and their labels where there are any."""
    from safetensors.numpy import save_file

    arrays, label_names = {}, {}
    for split, rows in splits.items():
        arrays[f"{split}.token_ids"] = rows.token_ids
        arrays[f"{split}.lengths"] = rows.lengths
        arrays[f"{split}.documents"] = rows.documents
        if rows.labels is not None:
            arrays[f"{split}.labels"] = rows.labels.bits
            arrays[f"{split}.labels_known"] = rows.labels.known
            label_names[split] = list(rows.labels.names)
    save_file(arrays, folder / "rows.safetensors")
    write_json(folder / "names.json", {split: list(rows.names) for split, rows in splits.items()})
    if label_names:
        write_json(folder / "labels.json", label_names)


def read_rows(folder: Path) -> dict[str, Rows]:
    """Return the tokenized splits."""
    from safetensors.numpy import load_file

    arrays, names = load_file(folder / "rows.safetensors"), read_json(folder / "names.json")
    labels = folder / "labels.json"
    label_names = read_json(labels) if labels.exists() else {}
    return {
        split: Rows(
            arrays[f"{split}.token_ids"],
            arrays[f"{split}.lengths"],
            arrays[f"{split}.documents"],
            tuple(names[split]),
            Labels(
                tuple(label_names[split]),
                arrays[f"{split}.labels"],
                arrays[f"{split}.labels_known"],
            )
            if split in label_names
            else None,
        )
        for split in names
    }


def write_text_facts(
    folder: Path, skipped: Mapping[str, int], shared: Mapping[str, int | float]
) -> None:
    """Write which documents gave no rows, and what held-out text is in the training text too."""
    write_json(folder / "text.json", {"skipped": dict(skipped), "shared": dict(shared)})


def read_text_facts(folder: Path) -> dict[str, Any]:
    """Return what `write_text_facts` wrote: `skipped` and `shared`."""
    return dict(read_json(folder / "text.json"))


def write_vocabulary(folder: Path, vocabulary: Sequence[str]) -> None:
    """Write the text of each token id."""
    write_json(folder / "vocabulary.json", list(vocabulary))


def read_vocabulary(folder: Path) -> list[str]:
    """Return the text of each token id."""
    return list(read_json(folder / "vocabulary.json"))


def write_harvest(
    folder: Path,
    activations: Mapping[str, torch.Tensor],
    calibrations: Mapping[str, Calibration],
    precision: HarvestPrecision,
    build: Path,
) -> None:
    """Write held-out activations [token, d_in] in model units, and each hookpoint's calibration."""
    from safetensors.torch import save_file

    save_file(dict(activations), folder / "activations.safetensors")
    norms = {name: x.norm(dim=1) for name, x in activations.items()}
    save_file(norms, folder / "norms.safetensors")
    means = {name: one.mean for name, one in calibrations.items()}
    save_file(means, folder / "calibration.safetensors")
    record = {name: one.record() for name, one in calibrations.items()}
    write_json(folder / "calibration.json", record)
    write_json(folder / "precision.json", precision.record())
    copy_recipe(build, folder)


def read_precision(folder: Path) -> HarvestPrecision:
    """Return the precision that the arm's model ran in, and why."""
    return HarvestPrecision.from_record(read_json(folder / "precision.json"))


def read_calibrations(folder: Path) -> dict[str, Calibration]:
    """Return the calibration of each hookpoint."""
    from safetensors.torch import load_file

    means, records = (
        load_file(folder / "calibration.safetensors"),
        read_json(folder / "calibration.json"),
    )
    return {name: Calibration(mean=means[name], **record) for name, record in records.items()}


def read_activations(folder: Path, hookpoint: str) -> torch.Tensor:
    """Return the held-out activations [token, d_in] of one hookpoint."""
    from safetensors import safe_open

    with safe_open(folder / "activations.safetensors", framework="pt") as stream:
        tensor: torch.Tensor = stream.get_tensor(hookpoint)
    return tensor


def outliers(folder: Path, hookpoint: str) -> np.ndarray:
    """Return which held-out tokens that were read exceed the arm's norm limit: bool [token]."""
    from safetensors.torch import load_file

    limit = read_calibrations(folder)[hookpoint].norm_limit
    norms = load_file(folder / "norms.safetensors")[hookpoint]
    return np.asarray((norms > limit).numpy())


def sae_folder(folder: Path, hookpoint: str, sae: str, sae_seed: int) -> Path:
    """Return where a train artefact keeps one SAE."""
    return folder / hookpoint / sae / f"seed-{sae_seed}"


def write_lookup(folder: Path, tables: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write each hookpoint's table E[x | token]."""
    from safetensors.torch import save_file

    named = {}
    for hookpoint, (ids, table) in tables.items():
        named[f"{hookpoint}.ids"], named[f"{hookpoint}.table"] = ids, table
    save_file(named, folder / "lookup.safetensors")


def read_lookup(folder: Path, hookpoint: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids seen in training [entry] and their table [entry + 1, d_in]."""
    from safetensors import safe_open

    with safe_open(folder / "lookup.safetensors", framework="pt") as stream:
        return stream.get_tensor(f"{hookpoint}.ids"), stream.get_tensor(f"{hookpoint}.table")


def read_gaussian(folder: Path, hookpoint: str, sae: str) -> GaussianNull:
    """Return the Gaussian null of one recipe; all its SAE seeds share it."""
    (record,) = read_json(folder / "gaussian.json")[hookpoint][sae].values()
    return GaussianNull(**record)


def write_heads(folder: Path, heads: Mapping[str, torch.Tensor | None]) -> None:
    """Write W_E and W_U of an arm's model, as far as it has them."""
    from safetensors.torch import save_file

    save_file(
        {n: t.contiguous() for n, t in heads.items() if t is not None}, folder / "heads.safetensors"
    )


def read_head(folder: Path, name: str) -> torch.Tensor | None:
    """Return `embedding` or `unembedding` of an arm's model, if it has it: float32 [vocabulary, width]."""
    from safetensors import safe_open

    with safe_open(folder / "heads.safetensors", framework="pt") as stream:
        if name not in set(stream.keys()):
            return None
        found: torch.Tensor = stream.get_tensor(name)
    return found.float()


def write_repeats(folder: Path, repeats: Mapping[str, torch.Tensor]) -> None:
    """Write the activations on random blocks, if any, as `<hookpoint>.fresh` and `<hookpoint>.repeated`."""
    from safetensors.torch import save_file

    save_file(dict(repeats), folder / "repeats.safetensors")


def read_repeats(folder: Path, hookpoint: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the activations of one hookpoint on fresh and on repeated blocks.

    None is returned where no model was read.
    """
    from safetensors.torch import load_file

    found = load_file(folder / "repeats.safetensors")
    if f"{hookpoint}.fresh" not in found:
        return None
    return found[f"{hookpoint}.fresh"], found[f"{hookpoint}.repeated"]


def write_codes(folder: Path, codes: Any) -> None:
    """Write an SAE's codes on the held-out tokens, a scipy CSR matrix [token, d_sae]."""
    from safetensors.numpy import save_file

    parts = {"offsets": codes.indptr.astype(np.int64), "latents": codes.indices.astype(np.int32)}
    parts |= {"values": codes.data.astype(np.float32), "d_sae": np.array([codes.shape[1]])}
    save_file(parts, folder / "codes.safetensors")


def read_codes(folder: Path) -> Any:
    """Return the codes of `write_codes`."""
    from safetensors.numpy import load_file
    from scipy.sparse import csr_matrix

    parts = load_file(folder / "codes.safetensors")
    shape = (len(parts["offsets"]) - 1, int(parts["d_sae"][0]))
    return csr_matrix((parts["values"], parts["latents"], parts["offsets"]), shape=shape)


def write_measured(folder: Path, measured: Measurement) -> None:
    """Write the tables about one SAE."""
    from safetensors.numpy import save_file

    write_table(folder / "measurements.parquet", measured.measurements)
    write_table(folder / "coverage.parquet", measured.coverage)
    write_codes(folder, measured.codes)
    save_file(measured.replicates, folder / "replicates.safetensors")


def read_replicates(folder: Path) -> dict[str, np.ndarray]:
    """Return metric -> [replicate] of one SAE."""
    from safetensors.numpy import load_file

    return dict(load_file(folder / "replicates.safetensors"))


def write_table(path: Path, table: Any) -> None:
    """Write a data frame as parquet, without its index."""
    table.to_parquet(path, index=False)


def read_table(path: Path) -> Any:
    """Return the data frame in a parquet file."""
    return pandas.read_parquet(path)


def copy_recipe(build: Path, folder: Path) -> None:
    """Copy the recipe of the arm's model to what was made with it."""
    write_json(folder / "recipe.json", read_json(build / "recipe.json"))


def read_hash(folder: Path) -> str:
    """Return the hash of the weights that SAE inputs depend on, of a build, harvest or train artefact."""
    return str(read_json(folder / "recipe.json")["read_hash"])


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a list of flat records as parquet."""
    write_table(path, pandas.DataFrame(list(records)))


def provenance(folder: Path, spec: TrialSpec, one: ArmModel) -> dict[str, Any]:
    """Return what is kept in the metadata of every SAE of an arm: which model it was trained on.

    Args:
        folder: The arm's build artefact.
        spec: The protocol.
        one: The arm and its re-draw.
    """
    recipe = read_json(folder / "recipe.json")
    return {
        "model_name": Path(spec.model.id).name if Path(spec.model.id).exists() else spec.model.id,
        "context_size": spec.text.context_tokens,
        "dataset_path": spec.text.source,
        "training_tokens": spec.text.train_tokens,
        "arm": one.arm,
        **_controls(spec, one.arm),
        "model_seed": one.model_seed,
        "weight_hash": recipe["weight_hash"],
        "read_hash": recipe["read_hash"],
        "touched_tensors": len(recipe["touched"]),
    }


def _controls(spec: TrialSpec, arm: str) -> dict[str, Any]:
    """Return what is controlled in an arm: the model, the data, the dictionary."""
    return dict(spec.arms[arm].model_dump(mode="json"))


def write_readability(folder: Path, found: Readability | None) -> None:
    """Write how far each label can be read off tokens; None where no token has labels."""
    from safetensors.numpy import save_file

    write_json(folder / "readability.json", None if found is None else found.record())
    if found is not None:
        save_file(found.arrays(), folder / "readability.safetensors")


def read_readability(folder: Path) -> Readability | None:
    """Return how far each label can be read off tokens; None where no token has labels."""
    from safetensors.numpy import load_file

    record = read_json(folder / "readability.json")
    if record is None:
        return None
    return Readability.load(record, load_file(folder / "readability.safetensors"))


def write_profile(folder: Path, found: Profile) -> None:
    """Write what is said about the latents of one SAE."""
    from safetensors.numpy import save_file

    for name in ("latents", "measurements", "passages", "sensitivity"):
        write_table(folder / f"{name}.parquet", getattr(found, name))
    save_file(found.replicates, folder / "replicates.safetensors")


def write_methods(
    folder: Path,
    found: MethodsResult,
    measured: Sequence[tuple[str, int, Any, Mapping[str, np.ndarray]]],
) -> None:
    """Write the table of methods, and each SAE's metrics with their values under document weights.

    Args:
        folder: Where to.
        found: Methods and SAEs of one arm.
        measured: SAE's label, its seed, table of metrics, and metric -> [replicate].
    """
    from safetensors.numpy import save_file

    write_table(folder / "methods.parquet", found.table)
    tables: list[Any] = []
    values: dict[str, np.ndarray] = {}
    for label, seed, table, replicates in measured:
        tables.append(table.assign(sae=label, sae_seed=seed))
        values |= {f"{label}/{seed}/{name}": drawn for name, drawn in replicates.items()}
    write_table(folder / "measurements.parquet", pandas.concat(tables, ignore_index=True))
    save_file(values, folder / "replicates.safetensors")
