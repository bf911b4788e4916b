"""The control that takes another checkpoint of the same model, such as an early step of its training."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sae_placebo.controls.model.base import CONTROLS, INVARIANTS, Control, Record, SampleText
from sae_placebo.controls.model.tensors import tensors, tie_notes
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.models.loading import load_model
from sae_placebo.models.specs import ModelSpec, check_weights_of, identify

# settings of a config that decide no activation
_INERT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",  # the tensors themselves are compared
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


@CONTROLS.add
class Revision(Control):
    """It puts the tensors of another checkpoint into the reference's architecture.

    Without `source`, the checkpoint is another revision of the reference itself: of its hub id, or a folder
    `revisions/<name>` beside its weights. It must have the same tensors, of the same shapes and tied alike.
    Where its config differs, the reference's holds, and the recipe notes it. Buffers stay those of the
    reference. Nothing is drawn, so there is one model whatever the seeds.

    It destroys what training changed between the two checkpoints. What that is cannot be known beforehand, so
    nothing but the shapes is declared preserved. A tensor with the same bits in both is listed as kept.

    Source: "Step-0" of Heap, Lawson, Farnik and Aitchison 2025 (arXiv 2501.17727), which is
    `revision = "step0"` of a Pythia model.
    """

    kind: Literal["revision"] = "revision"
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of a hub id, or the name of a folder's revision."""
    source: str | None = Field(None, min_length=1)
    """Folder or hub id of the other checkpoint; that of the reference unless given."""

    preserves: ClassVar[frozenset[str]] = frozenset({"shapes", "token_identity"})
    destroys: ClassVar[frozenset[str]] = frozenset(INVARIANTS) - {"shapes", "token_identity"}

    @property
    def draws(self) -> bool:
        """Return False: there is one such model."""
        return False

    @model_validator(mode="after")
    def _names_a_checkpoint(self) -> Revision:
        if not (self.revision or self.source):
            raise SpecError(
                'name another checkpoint: revision = "step1000", or source = a folder or a hub id.'
            )
        return self

    def other(self, model: ModelSpec | None) -> ModelSpec:
        """Return the checkpoint that is loaded where the reference is `model`.

        Raises:
            ModelError: it would be a revision of a model that is not known, or that has no revisions.
        """
        if self.source:
            return ModelSpec(id=self.source, revision=self.revision)
        if model is None:
            raise ModelError(
                f"revision {self.revision!r} is of the reference, and where that came from was not "
                "said; give control 'revision' a source."
            )
        if model.is_packaged:
            raise ModelError(
                f"{model.id} comes as one checkpoint, without revisions; give control 'revision' a "
                "source: a folder or a hub id of the same architecture."
            )
        return ModelSpec(id=model.id, revision=self.revision)

    def identity(self, model: ModelSpec) -> Any:
        """Return what identifies the other checkpoint, by `models.specs.identify`."""
        return identify(self.other(model))

    def check_source(self, model: ModelSpec) -> None:
        """Refuse a checkpoint that a local folder lacks or has no weights of, or that no model can have.

        Raises:
            ModelError: there is no such checkpoint.
        """
        check_weights_of(self.other(model))

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Copy the other checkpoint's tensors into `model`; see the base class.

        Raises:
            ModelError: the checkpoint cannot be loaded, is of another architecture, or is the reference
                itself.
        """
        spec = self.other(source)
        name = f"{spec.id} at {spec.revision}" if spec.revision else spec.id
        other = load_model(spec.id, spec.revision)
        found, theirs = tensors(model), {t.name: t for t in tensors(other)}
        _check({t.name: t.also for t in found}, {t.name: t.also for t in theirs.values()}, name)
        record = Record(notes=[*tie_notes(found), *_differences(model, other, name)])
        for tensor in found:
            value = theirs[tensor.name].parameter
            if value.shape != tensor.parameter.shape:
                raise ModelError(
                    f"{name} is no checkpoint of the same model: its {tensor.name} is "
                    f"{tuple(value.shape)}, the reference's {tuple(tensor.parameter.shape)}."
                )
            value = value.to(tensor.parameter.device, tensor.parameter.dtype)
            if torch.equal(value, tensor.parameter):
                record.kept[tensor.name] = "the same in both"
            else:
                tensor.parameter.copy_(value)
                record.touched.append(tensor.name)
        if not record.touched:
            raise ModelError(f"{name} has the reference's weights; name another checkpoint.")
        return record


def _check(ours: dict[str, tuple[str, ...]], theirs: dict[str, tuple[str, ...]], name: str) -> None:
    """Refuse a checkpoint whose tensors have other names than ours, or are tied in another way."""
    missing, extra = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if missing or extra:
        reasons = [f"it lacks {missing[0]}"] if missing else []
        reasons += [f"it has {extra[0]}, which the reference lacks"] if extra else []
        raise ModelError(
            f"{name} is no checkpoint of the same model: {' and '.join(reasons)}; "
            f"{len(missing) + len(extra)} tensors differ in name."
        )
    for tensor, also in ours.items():
        if also != theirs[tensor]:
            raise ModelError(
                f"{name} is no checkpoint of the same model: {tensor} is tied to "
                f"{', '.join(theirs[tensor]) or 'nothing'} in it, and to {', '.join(also) or 'nothing'} "
                "in the reference."
            )


def _differences(model: Any, other: Any, name: str) -> list[str]:
    """Return a note on the settings in which the checkpoint's config differs, where it does."""
    ours, theirs = model.config.to_dict(), other.config.to_dict()
    keys = sorted((ours.keys() | theirs.keys()) - _INERT)
    differ = [key for key in keys if ours.get(key) != theirs.get(key)]
    if not differ:
        return []
    return [f"the config of {name} differs in {', '.join(differ)}; the reference's holds"]
