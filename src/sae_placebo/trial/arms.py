"""An arm is a control of the model, of the data, of the dictionary, or of several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from sae_placebo.controls import Control, Trained, parse_control
from sae_placebo.controls.data import DataControl, parse_data
from sae_placebo.controls.dictionary import DictionaryControl, parse_dictionary
from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Spec


def _model_control(value: Any) -> Any:
    return value if isinstance(value, Control) else parse_control(value)


def _data_control(value: Any) -> Any:
    return value if value is None or isinstance(value, DataControl) else parse_data(value)


def _dictionary_control(value: Any) -> Any:
    given = value is None or isinstance(value, DictionaryControl)
    return value if given else parse_dictionary(value)


class ArmSpec(Spec):
    """An arm of a trial: what is changed in it. Where nothing is changed, it is the trained arm.

    Attributes:
        control: What is done to the model.
        data: What is done to the text, or to the activations; None: nothing.
        dictionary: What is done to the SAEs' training; None: nothing.
    """

    control: Annotated[SerializeAsAny[Control], BeforeValidator(_model_control)] = Trained()
    data: Annotated[SerializeAsAny[DataControl] | None, BeforeValidator(_data_control)] = None
    dictionary: Annotated[
        SerializeAsAny[DictionaryControl] | None, BeforeValidator(_dictionary_control)
    ] = None

    @property
    def is_trained(self) -> bool:
        """Return whether this is the trained arm, of which the others are controls."""
        return self.control.kind == "trained" and self.data is None and self.dictionary is None

    @property
    def draws_data(self) -> bool:
        """Return whether another model seed gives other data."""
        return self.data is not None and self.data.draws

    @property
    def draws(self) -> bool:
        """Return whether another model seed gives another arm."""
        return self.control.draws or self.draws_data

    @property
    def is_fair(self) -> bool:
        """Return whether the arm is a placebo that headlines are claimed against; see `stats.claims`."""
        if self.dictionary is not None:
            return False
        model = self.control.kind == "trained" or self.control.is_fair
        return model and (self.control.is_fair if self.data is None else self.data.is_fair)

    @property
    def family(self) -> str:
        """Return in a word what is drawn: arms of one family are taken to vary alike between re-draws."""
        if self.control.draws:
            drawn = self.control.drawn
            every_layer = {"block_weights", "other_layers"} <= drawn.destroyed()
            return "weights" if every_layer else drawn.kind
        return f"data: {self.data.kind}" if self.data is not None else ""

    @property
    def rewrites_text(self) -> bool:
        """Return whether the arm reads other tokens than the trained one."""
        return self.data is not None and not self.data.of_activations

    @property
    def kind(self) -> str:
        """Return the kinds of its controls, joined: `redraw`, `trained + shuffle_tokens`."""
        parts = (self.control.drawn, self.control, self.data, self.dictionary)
        return " + ".join(dict.fromkeys(part.kind for part in parts if part is not None))


def arm_label(arm: str, model_seed: int | None) -> str:
    """Return the name of one re-draw of an arm, for folders and progress."""
    return arm if model_seed is None else f"{arm}-{model_seed}"


def parse_arm(table: object) -> ArmSpec:
    """Return the arm of a trial file's table, such as `{control = "redraw", data = "markov"}`.

    `control` names the control of the model, whose settings stand beside it; left out, the model is
    the trained one. `data` and `dictionary` are names, or tables with a `kind`. An arm's own dump is
    read as well.

    Raises:
        SpecError: not a table, no such control, or a setting that it does not have or allow.
    """
    if isinstance(table, ArmSpec):
        return table
    if not isinstance(table, Mapping):
        raise SpecError(f'an arm is a table such as {{control = "redraw"}}; found {table!r:.80}')
    settings = dict(table)
    data, dictionary = settings.pop("data", None), settings.pop("dictionary", None)
    if isinstance(settings.get("control"), Mapping | Control) and len(settings) == 1:
        control = settings["control"]
    elif settings:
        control = settings
    elif data is None and dictionary is None:
        raise SpecError(
            "an arm names a control, a data control or a dictionary control; found none"
        )
    else:
        control = Trained()
    return ArmSpec(control=control, data=data, dictionary=dictionary)
