"""A fault has held if it was injected and nothing was lost."""

from pipeline.commands.drill.fault_result import FaultResult
from pipeline.commands.drill.plan import Fault, FaultKind


def test_only_a_fault_that_was_injected_and_lost_nothing_has_held() -> None:
    fault = Fault(1, FaultKind.EXTEND, 3, 0.0, 0, 0, 0.0)
    assert not FaultResult(fault).held
    assert FaultResult(fault, injected=True).held
    assert not FaultResult(fault, injected=True, problems=["a step was lost"]).held
