"""What the report says of one run in words and tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.commit import CommitRecord
from pipeline.checkpoint.run_summary import RunSummary
from pipeline.commands.ledger_proof import COLUMNS
from pipeline.commands.report.curve_figures import FIGURES, TELEMETRY, curve_figures, prominent
from pipeline.commands.report.figure import PageTable, ReportFigure, StepMark
from pipeline.commands.report.formats import NONE, count, moment, number, parsed_time, plural, seconds, share, size
from pipeline.commands.report.profile_table import profile_table
from pipeline.commands.report.run_facts import RunFacts
from pipeline.commands.report.score_figure import score_figure
from pipeline.commands.report.score_table import SamplePictures
from pipeline.commands.report.telemetry_figures import slowest_sentence, telemetry_figures
from pipeline.commands.report.time_figure import goodput_figure, goodput_share
from pipeline.run.flat_config import flatten
from pipeline.run.goodput_report import AttemptGoodput

_CONFIG_BYTES = 200_000
_CHECKPOINTS = 200
"""Rows of a table of checkpoints at most."""


@dataclass(frozen=True)
class RunSection:
    """One run on the page.

    Attributes:
        label: The run directory, as a person types it.
        state: How it stands, in words.
        facts: What ran, by the name of each fact.
        results: The results and their proofs, a sentence each.
        metrics: What the evaluation measured.
        curves: What was logged.
        prominent: How many of these figures are shown unfolded.
        more_curves: How many figures are left out.
        throughput: Figures, and a sentence on the slowest ranks.
        slowest: Which ranks were the slowest.
        profiles: The most expensive operators of profiled steps, a table a rank.
        time: Where the time of all attempts went.
        attempts: A table of them.
        epochs: What the ledger says of each epoch.
        checkpoints: A table of them.
        scores: The distributions of the scores.
        pictures: Of the samples at both ends.
        config: The configuration as text.
        missing: What cannot be told.
    """

    label: str
    state: str
    facts: Mapping[str, str]
    results: Sequence[str]
    metrics: PageTable | None
    curves: Sequence[ReportFigure]
    prominent: int
    more_curves: int
    throughput: Sequence[ReportFigure]
    slowest: str
    profiles: Sequence[PageTable]
    time: ReportFigure | None
    attempts: PageTable | None
    epochs: PageTable | None
    checkpoints: PageTable | None
    scores: Sequence[ReportFigure]
    pictures: SamplePictures
    config: str
    missing: Sequence[str]


def run_section(facts: RunFacts, summary: RunSummary | None) -> RunSection:
    """Return all that the page says of a run.

    Args:
        facts: What its directory holds.
        summary: How it stands; None where that cannot be told.
    """
    marks = [StepMark(step, f"attempt {number}") for step, number, _ in facts.restarts]
    measured = bool(len(facts.telemetry.steps))
    curves = {
        name: curve for name, curve in facts.scalars.curves.items() if not (measured and name.startswith(TELEMETRY))
    }
    figures = curve_figures(curves, marks, _monitor(facts.checkpoints))
    config = facts.config_text
    return RunSection(
        label=facts.run.label,
        state=_state(summary),
        facts={name: value for name, value in _what_ran(facts, summary) if value not in ("", NONE)},
        results=[*_evaluation(facts.receipt), *_training_proof(facts), *_hidden(facts)],
        metrics=_metrics(facts.receipt),
        curves=figures[:FIGURES],
        prominent=prominent(figures),
        more_curves=max(0, len(figures) - FIGURES),
        throughput=telemetry_figures(facts.telemetry, marks),
        slowest=slowest_sentence(facts.telemetry),
        profiles=[profile_table(each) for each in facts.profiles],
        time=goodput_figure(facts.goodput),
        attempts=_attempts(facts),
        epochs=None if facts.proof is None else PageTable(COLUMNS, facts.proof.rows, (5, 6), "The ledger by epoch"),
        checkpoints=_checkpoints(facts, summary.best_step if summary else None),
        scores=[score_figure(each) for each in facts.scores],
        pictures=facts.pictures,
        config=config if len(config) <= _CONFIG_BYTES else f"{config[:_CONFIG_BYTES]}\n# ... {len(config)} characters",
        missing=facts.missing,
    )


def _state(summary: RunSummary | None) -> str:
    if summary is None:
        return "how it stands is not known"
    at = "" if summary.step is None else f" at step {number(summary.step)}"
    why = f": {summary.reason}" if summary.reason and summary.reason != "done" else ""
    return f"{summary.state}{at}{why}"


def _what_ran(facts: RunFacts, summary: RunSummary | None) -> list[tuple[str, str]]:
    newest = facts.attempts[max(facts.attempts)] if facts.attempts else {}
    header = facts.telemetry.headers.get(max(facts.telemetry.headers, default=0), {})
    config = flatten(facts.config)
    started = [time for each in facts.attempts.values() if (time := parsed_time(each.get("started")))]
    ended = [time for each in facts.attempts.values() if (time := parsed_time(each.get("ended")))]
    wall = (max(ended) - min(started)).total_seconds() if started and ended else None
    stored = sum(each.bytes for each in facts.checkpoints)
    best, best_step = (summary.best, summary.best_step) if summary else (None, None)
    return [
        ("Model", _named(config, "model.class_path", "model")),
        ("Training data", _named(config, "data.train.class_path", "data.train", "data.class_path", "data")),
        ("Steps", count(summary.step) if summary else NONE),
        ("Started (UTC)", moment(min(started).isoformat()) if started else NONE),
        ("Wall time", seconds(wall)),
        ("Attempts", count(len(facts.attempts) or None)),
        ("Goodput", goodput_share(facts.goodput)),
        ("Nodes", _nodes(newest, header)),
        ("Hosts", _hosts(facts, header)),
        ("Device", str(header.get("device", ""))),
        ("Best checkpoint", f"{best.name} {number(best.value)}, step {count(best_step)}" if best else NONE),
        ("Checkpoints", f"{len(facts.checkpoints):,}, {size(stored)}" if facts.checkpoints else NONE),
        ("Versions", _versions(newest)),
        ("Revision", _revision(newest)),
        ("Image", _text(newest.get("image"))),
    ]


def _named(config: Mapping[str, Any], *keys: str) -> str:
    return next((str(config[key]) for key in keys if isinstance(config.get(key), str)), NONE)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else NONE


def _nodes(attempt: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    world, nodes = attempt.get("world_size", header.get("world_size")), attempt.get("nodes", header.get("nodes"))
    if not isinstance(world, int) or isinstance(world, bool):
        return NONE
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        return f"{world:,} process{'' if world == 1 else 'es'}"
    per_node = world // nodes
    return f"{plural(nodes, 'node')} x {per_node} process{'' if per_node == 1 else 'es'}"


def _hosts(facts: RunFacts, header: Mapping[str, Any]) -> str:
    listed = header.get("hosts")
    hosts = [str(host) for host in listed] if isinstance(listed, list) else []
    hosts = hosts or sorted({host for each in facts.attempts.values() if isinstance(host := each.get("host"), str)})
    unique = list(dict.fromkeys(hosts))
    return ", ".join(unique[:8]) + (f" and {len(unique) - 8} more" if len(unique) > 8 else "")


def _versions(attempt: Mapping[str, Any]) -> str:
    found = attempt.get("versions")
    return ", ".join(f"{name} {value}" for name, value in found.items()) if isinstance(found, dict) else NONE


def _revision(attempt: Mapping[str, Any]) -> str:
    """Return a commit as short as it is still one of a kind."""
    found = _text(attempt.get("revision"))
    return re.sub(r"\b[0-9a-f]{40}\b", lambda commit: commit[0][:12], found)


def _monitor(checkpoints: Sequence[CommitRecord]) -> str | None:
    return next((each.monitor.name for each in checkpoints if each.monitor is not None), None)


def _evaluation(receipt: Mapping[str, Any] | None) -> list[str]:
    if receipt is None:
        return []
    of = f"the checkpoint {_text(receipt.get('checkpoint')).rpartition('/')[2]}"
    how = f"on {number(receipt.get('devices'))} device in {seconds(receipt.get('seconds'))}"
    scored, expected = receipt.get("samples_scored"), receipt.get("samples_expected")
    unproven = receipt.get("unproven")
    if isinstance(unproven, list) and unproven:
        return [f"Not proven: {number(scored)} test samples were scored with {of}: {'; '.join(map(str, unproven))}."]
    missing, twice = receipt.get("missing"), receipt.get("duplicates")
    if missing or twice:
        return [
            f"FAILED: of {number(expected)} test samples {number(missing)} were not scored and {number(twice)} were "
            f"scored more than once, with {of}."
        ]
    return [f"{number(scored)} of {number(expected)} test samples were scored, once each, with {of} {how}."]


def _training_proof(facts: RunFacts) -> list[str]:
    proof = facts.proof
    if proof is None:
        return []
    sentences = [f"FAILED: {problem}." for problem in proof.problems]
    used = sum(int(row[2]) for row in proof.rows)
    if proof.proven:
        sentences.append(
            f"Every training sample is accounted for: {plural(len(proof.rows), 'epoch')} used {used:,} samples, as "
            f"often as each should have been, by the ledger of the checkpoint at step {proof.step:,}. Its bytes were "
            "not hashed for this page: python -m pipeline verify does that."
        )
    return [*sentences, *(f"{note[0].upper()}{note[1:]}." for note in proof.notes)]


def _hidden(facts: RunFacts) -> list[str]:
    hidden = facts.scalars.hidden
    return [f"Curves show each step once: {hidden:,} values that a later attempt logged again are hidden."] * bool(
        hidden
    )


def _metrics(receipt: Mapping[str, Any] | None) -> PageTable | None:
    metrics = (receipt or {}).get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return None
    rows = [(str(name), "not finite" if value is None else number(value)) for name, value in metrics.items()]
    return PageTable(("metric", "value"), rows, caption="What the evaluation measured")


def _attempts(facts: RunFacts) -> PageTable | None:
    if not facts.attempts:
        return None
    spent = {each.number: each for each in facts.goodput.attempts}
    header = (
        "attempt",
        "started (UTC)",
        "took",
        "host",
        "processes",
        "from step",
        "to step",
        "resumed from",
        "goodput",
    )
    rows = [
        (
            *(number(at), moment(each.get("started")), _took(each), _text(each.get("host"))),
            *(count(each.get("world_size")), count(each.get("first_step")), count(each.get("reached_step"))),
            *(_text(each.get("resumed_from")), _useful(spent.get(at)), _text(each.get("reason"))),
        )
        for at, each in facts.attempts.items()
    ]
    return PageTable((*header, "ended"), rows, (1, 3, 7, 9), "The attempts at this run")


def _took(attempt: Mapping[str, Any]) -> str:
    started, ended = parsed_time(attempt.get("started")), parsed_time(attempt.get("ended"))
    return seconds((ended - started).total_seconds()) if started and ended else NONE


def _useful(attempt: AttemptGoodput | None) -> str:
    return NONE if attempt is None else share(attempt.seconds["useful"] / attempt.wall)


def _checkpoints(facts: RunFacts, best: int | None) -> PageTable | None:
    if not facts.checkpoints and not facts.uncommitted:
        return None
    rows = [_checkpoint(each, each.step == best) for each in facts.checkpoints]
    rows += [(f"{step:,}", NONE, NONE, NONE, why, NONE, NONE) for step, why in facts.uncommitted]
    left_out = len(rows) - _CHECKPOINTS
    if left_out > 0:
        rows = [*rows[:_CHECKPOINTS], (f"{left_out:,} more", *[""] * 6)]
    header = ("step", "epoch", "size", _monitor(facts.checkpoints) or "monitor", "saved for", "created (UTC)", "sha256")
    return PageTable(header, rows, (4, 5, 6), "The checkpoints, newest first")


def _checkpoint(record: CommitRecord, best: bool) -> tuple[str, ...]:
    value = NONE if record.monitor is None else f"{number(record.monitor.value)}{' (best)' * best}"
    digest = record.sha256.removeprefix("sha256:")[:12]
    return (
        *(f"{record.step:,}", number(record.epoch), size(record.bytes), value),
        *(", ".join(record.reason), moment(record.created), digest),
    )
