"""What each layer of a model was given, returned, computed and had kept in a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass
class LayerFacts:
    """One layer in one step.

    Attributes:
        name: Its path in the model.
        type: Its class.
        parameters: The numbers in its parameters, those of the layers in it among them.
        trained: Those of them that are trained.
        calls: How often it was called.
        input: The sizes of what it was given the first time: of a tensor a list, of several a list of lists.
        output: Those of what it returned.
        flops: Of its forward passes, the layers in it included.
        kept: Bytes that autograd keeps of them for the backward pass, each storage where it was first kept.
    """

    name: str
    type: str
    parameters: int = 0
    trained: int = 0
    calls: int = 0
    input: Any = None
    output: Any = None
    flops: int = 0
    kept: int = 0


class LayerRecord:
    """Sees every call of every layer while it is entered.

    Args:
        model: Whose layers.
        flops: Returns the operations counted so far.
    """

    def __init__(self, model: nn.Module, flops: Callable[[], int]) -> None:
        self._model, self._flops = model, flops
        self._layers: dict[str, LayerFacts] = {}
        self._running: list[tuple[str, int]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # its layers call no hooks
                continue
            self._layers[name] = LayerFacts(name, type(module).__name__)
            self._hooks += [
                module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                module.register_forward_hook(self._after(name), with_kwargs=True, always_call=True),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def kept(self, size: int) -> None:
        """Take note that autograd keeps so many bytes more, of the layers that are running."""
        for name in {name for name, _ in self._running}:
            self._layers[name].kept += size

    def facts(self) -> list[LayerFacts]:
        """Return the layers in the order of the model, without the model itself where it was not called."""
        for name, module in self._model.named_modules():
            if (layer := self._layers.get(name)) is not None:  # counted now: a lazy layer has its parameters only then
                counts = [
                    (each.numel(), each.requires_grad) for each in module.parameters() if not nn.parameter.is_lazy(each)
                ]
                layer.parameters = sum(count for count, _ in counts)
                layer.trained = sum(count for count, trained in counts if trained)
        return [layer for name, layer in self._layers.items() if name or layer.calls]

    def _before(self, name: str) -> Callable[..., None]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            layer = self._layers[name]
            layer.calls += 1
            if layer.calls == 1:
                layer.input = sizes((*args, *kwargs.values()))
            self._running.append((name, self._flops()))

        return before

    def _after(self, name: str) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
            if not any(running == name for running, _ in self._running):
                return
            while True:  # a layer whose error somebody caught has not said that it ended
                ended, before = self._running.pop()
                if ended == name:
                    break
            layer = self._layers[name]
            layer.flops += self._flops() - before
            if layer.output is None:
                layer.output = sizes(output)

        return after


def sizes(value: Any) -> Any:
    """Return the shape of a tensor, of several a list of them; None where there is none to be seen."""
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return None
    found = [each for each in map(sizes, value) if each is not None]
    return found[0] if len(found) == 1 else found or None
