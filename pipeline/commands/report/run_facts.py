"""Everything of a run that the report tells, read from its run directory; what cannot be read is missing, and said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import yaml

from pipeline.checkpoint.commit import CommitRecord, examined
from pipeline.checkpoint.plain_values import plain_values
from pipeline.commands.ledger_proof import LedgerProof, judge
from pipeline.commands.report.profile_table import RankProfile, read_profiles
from pipeline.commands.report.score_table import SamplePictures, ScoreDistribution, read_pictures, read_scores
from pipeline.commands.report.telemetry_windows import TelemetryWindows, telemetry_windows
from pipeline.errors import StorageAway, UserError
from pipeline.run import order_values
from pipeline.run.event_files import LoggedScalars, read_scalars
from pipeline.run.goodput_report import GoodputReport
from pipeline.run.run_dir import RECEIPT, RunDir
from pipeline.run.storage_errors import storage_error
from pipeline.run.telemetry_record import read_telemetry
from pipeline.training.state.run_state import RunState

_JUDGED = 100_000_000
"""Samples whose hashes are computed at most, which takes some seconds."""

T = TypeVar("T")


@dataclass(frozen=True)
class RunFacts:
    """What a run directory holds.

    Attributes:
        run: The run directory.
        attempts: The record of each attempt by its number; empty where it cannot be read.
        goodput: Where the time of all attempts went.
        config: The configuration of the training, as a mapping and as its text.
        checkpoints: The committed ones, newest first.
        uncommitted: Steps that have left files but no checkpoint, each with the reason.
        proof: What the ledger proves.
        receipt: Of the evaluation.
        scores: The distribution of each column of scores.
        pictures: Of the samples at both ends of the first one.
        scalars: What was logged.
        telemetry: What was measured of each window of steps.
        profiles: What profiled steps spent their time on, by rank.
        missing: What cannot be told, in words.
    """

    run: RunDir
    attempts: dict[int, Mapping[str, Any]]
    goodput: GoodputReport
    config: dict[str, Any]
    config_text: str
    checkpoints: list[CommitRecord]
    uncommitted: list[tuple[int, str]]
    proof: LedgerProof | None
    receipt: Mapping[str, Any] | None
    scores: list[ScoreDistribution]
    pictures: SamplePictures
    scalars: LoggedScalars
    telemetry: TelemetryWindows
    profiles: list[RankProfile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def first_steps(self) -> dict[int, int]:
        """From which step each attempt trained, by its number."""
        return _first_steps(self.attempts)

    @property
    def restarts(self) -> list[tuple[int, int, str]]:
        """Where later attempts resumed: the step, the number of the attempt, and from where."""
        steps = self.first_steps
        return [
            (step, number, str(self.attempts[number].get("resumed_from") or "nothing"))
            for number, step in steps.items()
            if number != min(steps)
        ]


def read_facts(run: RunDir) -> RunFacts:
    """Read a run directory.

    Raises:
        StorageAway: The storage does not answer.
    """
    missing: list[str] = []

    def part(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except StorageAway:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged part must not hide the others
            missing.append(f"{what} cannot be read: {storage_error(error)}")
            return otherwise

    attempts: dict[int, Mapping[str, Any]] = part("the attempts", lambda: _attempts(run), {})
    text = part("fit.yaml", lambda: str(run.read(RunDir.config("fit")) or b"", "utf-8"), "")
    found: list[tuple[int, CommitRecord | str]] = part("the checkpoints", lambda: list(examined(run)), [])
    checkpoints = [each for _, each in found if isinstance(each, CommitRecord)]
    nothing: tuple[list[ScoreDistribution], list[str]] = ([], [])
    scores, left_out = part("the scores", lambda: read_scores(run), nothing)
    scalars = part("what was logged", lambda: read_scalars(run, list(attempts.values())), LoggedScalars({}, 0, 0, []))
    first_steps = _first_steps(attempts)
    facts = RunFacts(
        run=run,
        attempts=attempts,
        goodput=part("goodput", lambda: GoodputReport.of(run), GoodputReport([])),
        config=part("fit.yaml", lambda: _mapping(yaml.safe_load(text)), {}),
        config_text=text,
        checkpoints=checkpoints,
        uncommitted=[(step, each) for step, each in found if isinstance(each, str)],
        proof=_proof(run, checkpoints, missing),
        receipt=part("the receipt", lambda: run.read_json(RECEIPT), None),
        scores=scores,
        pictures=part("the pictures", lambda: read_pictures(run), SamplePictures()),
        scalars=scalars,
        telemetry=part("telemetry", lambda: telemetry_windows(read_telemetry(run), first_steps), TelemetryWindows()),
        profiles=part("the profiles", lambda: read_profiles(run), []),
        missing=missing,
    )
    missing += [*left_out, *scalars.damage, *_absent(facts)]
    return facts


def _attempts(run: RunDir) -> dict[int, Mapping[str, Any]]:
    numbers = sorted(run.attempts())
    records = run.read_jsons(RunDir.attempt(number) for number in numbers)
    return {number: records[RunDir.attempt(number)] or {} for number in numbers}


def _first_steps(attempts: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    steps = {number: record.get("first_step") for number, record in attempts.items()}
    return {number: step for number, step in steps.items() if isinstance(step, int) and not isinstance(step, bool)}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _proof(run: RunDir, checkpoints: list[CommitRecord], missing: list[str]) -> LedgerProof | None:
    """Judge the ledger of the newest checkpoint, of which only numbers and strings are read."""
    if not checkpoints:
        return None
    newest = checkpoints[0]
    try:
        state = RunState.of_checkpoint(plain_values(run.url_of(newest.name)), newest.name)
        if state is None or state.ledger is None:
            missing.append("the newest checkpoint holds no ledger: training samples are not accounted for")
            return None
        return judge(state.ledger, newest, run.label, _JUDGED, partial(order_values.read, run))
    except (UserError, TypeError, ValueError, OverflowError) as error:
        missing.append(f"what the ledger proves: {storage_error(error)}")
        return None


def _absent(facts: RunFacts) -> list[str]:
    """Return what a complete run has and this one has not."""
    absent = []
    if not facts.attempts:
        absent.append("no attempt is recorded: nothing was trained here, or another program did it")
    if not facts.config_text:
        absent.append("there is no fit.yaml: the configuration is not known")
    if not facts.checkpoints:
        absent.append("there is no checkpoint")
    if not facts.scalars.curves:
        absent.append("nothing was logged for TensorBoard: there are no curves")
    if not len(facts.telemetry.steps):
        absent.append("there is no telemetry: throughput over time is not known")
    if facts.receipt is None:
        absent.append("the run was not evaluated, or its receipt cannot be read: python -m pipeline test")
    elif not facts.scores:
        absent.append("test_step returned no score of each sample: there is no distribution")
    elif not facts.pictures.pictures:
        absent.append("the test dataset offers no picture(index): there are no pictures of samples")
    return absent
