"""The order in which DDP sums gradients, kept over restarts.

DDP rebuilds its buckets after its first step, in the order in which gradients arrived, and over three and more ranks
the last bits of a sum depend on its place in a bucket. The first step of a resumed run would therefore differ from the
same step of a run that never stopped. So the order is recorded in the first step of a run, kept in its checkpoints, and
shown to DDP before the first step of every later attempt.
"""

import logging

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from pipeline.training import compat

log = logging.getLogger(__name__)


class BucketOrder:
    """The trained parameters, by index, in the order in which their gradients arrived in the run's first step."""

    def __init__(self) -> None:
        self.indices: list[int] | None = None
        self._handles: list[RemovableHandle] = []

    def begin(self, trainer: pl.Trainer, known: list[int] | None) -> None:
        """Impose the order of an earlier attempt, or record that of the first step.

        Args:
            trainer: About to train.
            known: From the checkpoint, None without one.
        """
        model = trainer.strategy.model
        if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters or model.static_graph:
            return  # there buckets stay as they are
        if stateful := compat.stateful_comm_hooks(model):
            if trainer.is_global_zero:
                log.warning(
                    "resuming this run is not exact: the state of the DDP communication hook %s is in no checkpoint",
                    " and ".join(stateful),
                )
            return  # showing an order to DDP runs the hook, which would change its state
        trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
        # Other parameters may be trained than before, after a change of the model: then there is no order to keep.
        if known is not None and sorted(known) == list(range(len(trained))):
            compat.backward_in_order(model, trained, known)
            self.indices = known
        else:
            self._record(model, trained)

    def after_batch(self) -> None:
        """Stop recording once the order is known."""
        if self._handles and self.indices is not None:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _record(self, model: DistributedDataParallel, trained: list[Tensor]) -> None:
        arrived: list[int] = []

        def hook(index: int) -> None:
            # Accumulated batches are not reduced; DDP looks at the first that is.
            if model.require_backward_grad_sync:
                arrived.append(index)
                if len(arrived) == len(trained):
                    self.indices = list(arrived)

        self._handles = [
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: hook(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(trained)
        ]
