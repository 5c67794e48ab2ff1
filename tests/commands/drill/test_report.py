"""The report of a drill says what held, what was lost, and why something was left out."""

import json
from dataclasses import replace

from pipeline.commands.drill.compare import Comparison
from pipeline.commands.drill.fault_result import FaultResult
from pipeline.commands.drill.plan import Fault, FaultKind
from pipeline.commands.drill.report import DrillReport, progress_line

OPTIONS = {
    "config": "a.yaml",
    "run_dir": "x",
    "seed": 7,
    "nodes": 2,
    "processes": 1,
    "resize": False,
    "recovery": "memory",
    "args": "",
}
FAULT = Fault(1, FaultKind.KILL_RANK, 3, 0.12345, 1, 0, 4.0)


def a_report(result: FaultResult) -> DrillReport:
    return DrillReport(
        OPTIONS, "2026-11-24T12:00:00.000Z", [result], [Comparison("weights", True, "equal bit for bit")]
    )


def test_a_fault_that_held_is_a_row_and_one_that_did_not_is_named() -> None:
    held = FaultResult(FAULT, True, 3, [], 4, 0, 1.25, source="memory")
    assert a_report(held).holds
    text = a_report(held).text("x")
    assert text.endswith("1 faults, nothing lost")
    assert [line.split() for line in text.splitlines()[2:4]] == [
        ["fault", "kind", "at", "step", "agents", "ended", "resumed", "from", "repeated", "seconds", "held"],
        ["1", "kill_rank", "1.0", "3", "none", "4", "memory", "0", "1.2", "yes"],
    ]
    assert "1 resumed from memory: median 1.2 s to the next new step, 0 steps repeated\n" in text
    assert "from storage" not in text
    assert progress_line(held) == "fault 1: kill_rank 1.0 at 3, next new step after 1.2 s: yes"
    lost = replace(held, problems=["it resumed with step 2, though step 3 was durable"])
    assert not a_report(lost).holds
    assert "FAILED: fault 1: it resumed with step 2" in a_report(lost).text("x")
    assert "FAILED: fault 1 was not injected" in a_report(FaultResult(FAULT)).text("x")
    assert not replace(a_report(held), comparisons=[]).holds


def test_drill_json_holds_all_of_it() -> None:
    found = json.loads(json.dumps(a_report(FaultResult(FAULT, True, 3, [1], 4, 0, 1.256)).as_dict()))
    assert found["verdict"] is True
    assert found["faults"] == [
        {
            "number": 1,
            "kind": "kill_rank",
            "moment": "training",
            "planned_step": 3,
            "delay": 0.123,
            "node": 1,
            "process": 0,
            "injected": True,
            "step": 3,
            "ended": [1],
            "resumed": 4,
            "repeated": 0,
            "seconds": 1.26,
            "source": None,
            "held": True,
            "problems": [],
        }
    ]
