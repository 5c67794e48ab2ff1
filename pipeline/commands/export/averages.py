"""Which weights a checkpoint holds: those that were being trained, and an average of them where a callback keeps one.

WeightAveraging and EMAWeightAveraging put the average into the place of the model and the model beside it, also before
the first update, when their average is the untrained model. StochasticWeightAveraging keeps its average in its own
state until training ends; that has no statistics of BatchNorm of its own.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError

_SWA = "StochasticWeightAveraging"
_WEIGHT_AVERAGING = "WeightAveraging"


@dataclass(frozen=True)
class ChosenWeights:
    """Weights by name, and what they are.

    Attributes:
        state: As the model's `load_state_dict` takes them.
        kind: `averaged`, `current`, or `trained` where there is no average.
        said: The same in words.
    """

    state: dict[str, Any]
    kind: str
    said: str


def chosen_weights(checkpoint: dict[str, Any], average: bool | None, parameters: Collection[str]) -> ChosenWeights:
    """Return the weights to export.

    Args:
        checkpoint: As Lightning saved it.
        average: Whether the averaged ones are asked for; None: where there are any.
        parameters: Names of the model's parameters, beside which its buffers are in no average.

    Raises:
        UserError: An average is asked for, and there is none.
    """
    current, averaged, by, updates = _found(checkpoint, parameters)
    if averaged is None or (not updates and average is not True):
        if average:
            raise UserError(
                "average=true, but this checkpoint holds no averaged weights: its run had none of the callbacks "
                "EMAWeightAveraging, WeightAveraging and StochasticWeightAveraging. Leave --average out"
            )
        note = "" if averaged is None else f"; the average of {by} has not begun"
        return ChosenWeights(current, "trained", f"as trained{note}")
    if average is False:
        return ChosenWeights(current, "current", f"those being trained, not the average of {by}")
    if not updates:
        raise UserError(f"average=true, but the average of {by} has not begun at this step: name a later --checkpoint")
    return ChosenWeights(averaged, "averaged", f"averaged by {by}, {updates} updates; --average false takes the others")


def _found(
    checkpoint: dict[str, Any], parameters: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any] | None, str, int]:
    """Return the weights being trained, the averaged ones, whose they are, and how many updates they have had."""
    state, callbacks = checkpoint["state_dict"], checkpoint.get("callbacks") or {}
    names = [str(key).partition("{")[0] for key in callbacks]
    if (average := checkpoint.get("averaging_state")) is not None and "current_model_state" in checkpoint:
        by = next((name for name in names if name.endswith(_WEIGHT_AVERAGING) and name != _SWA), _WEIGHT_AVERAGING)
        return checkpoint["current_model_state"], state, by, int(average.get("n_averaged", 1))
    for name, kept in zip(names, callbacks.values(), strict=True):
        if isinstance(kept, dict) and isinstance(kept.get("average_model_state"), dict) and "n_averaged" in kept:
            average = kept["average_model_state"]
            taken = {key: average[key] for key in state if key in parameters and key in average}
            return state, {**state, **taken}, name, int(kept["n_averaged"])
    return state, None, "", 0
