"""The files of tokenized text: rows, labels, the vocabulary, and how far labels can be read off tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_placebo.core.store import read_json, write_json
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.readability import Readability
from sae_placebo.data.rows import Rows


def write_rows(folder: Path, splits: Mapping[str, Rows]) -> None:
    """Write tokenized splits, and their labels where there are any."""
    from safetensors.numpy import save_file

    arrays, label_names = {}, {}
    for split, rows in splits.items():
        arrays[f"{split}.token_ids"] = rows.token_ids
        arrays[f"{split}.lengths"] = rows.lengths
        arrays[f"{split}.documents"] = rows.documents
        if rows.left_out is not None:
            arrays[f"{split}.left_out"] = rows.left_out
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
            arrays.get(f"{split}.left_out"),
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
