"""Telemetry is read whole or torn, and each step of a run that restarted counts once."""

import json

import numpy as np
import pytest

from pipeline.commands.report.telemetry_windows import telemetry_windows
from pipeline.run.run_dir import RunDir
from pipeline.run.telemetry_record import read_telemetry
from tests.support.reported import telemetry_part, window


def test_parts_of_all_attempts_are_joined_on_each_storage(storage: str) -> None:
    run = RunDir(storage)
    run.write("logs/telemetry/0001-0001.jsonl", telemetry_part(1, window(10), window(20)))
    run.write("logs/telemetry/0001-0002.jsonl", telemetry_part(1, window(30), window(40)))
    run.write("logs/telemetry/0002-0001.jsonl", telemetry_part(2, window(40, mfu=0.4)))
    found = telemetry_windows(read_telemetry(run), {1: 0, 2: 30})
    assert found.steps.tolist() == [10, 20, 30, 40]
    assert np.isnan(found.columns["mfu"][:3]).all()
    assert found.columns["mfu"][3] == 0.4
    assert found.headers[2]["hosts"] == ["a", "b"]
    assert found.hosts["b"]["samples_per_second"].tolist() == [880.0] * 4
    assert found.slowest == {"rank 1 on b": 4}


def test_two_nodes_on_one_host_are_apart(tmp_path: str) -> None:
    nodes = [{"host": "a", "samples_per_second": rate} for rate in (1.0, 2.0)]
    run = RunDir(str(tmp_path))
    run.write("logs/telemetry/0001-0001.jsonl", telemetry_part(1, window(10, nodes=nodes)))
    found = telemetry_windows(read_telemetry(run), {})
    assert [(host, each["samples_per_second"].tolist()) for host, each in found.hosts.items()] == [
        ("a", [1.0]),
        ("a (2)", [2.0]),
    ]


def test_torn_and_foreign_lines_are_left_out(tmp_path: str) -> None:
    run = RunDir(str(tmp_path))
    whole = telemetry_part(1, window(10), window(20))
    run.write("logs/telemetry/0001-0001.jsonl", whole[:-9])
    found = telemetry_windows(read_telemetry(run), {})
    assert found.steps.tolist() == [10]
    run.write("logs/telemetry/0001-0001.jsonl", b'{"torn\n[1]\n{"step": "x"}\n{"schema": 7}\n' + whole)
    found = telemetry_windows(read_telemetry(run), {})
    assert found.steps.tolist() == [10, 20]


@pytest.mark.parametrize("nodes", [None, 3, [3], [{}], [{"host": 3}], [{"host": "a", "samples_per_second": "x"}]])
def test_foreign_values_in_a_window_are_left_out(tmp_path: str, nodes: object) -> None:
    run = RunDir(str(tmp_path))
    line = {**window(10), "nodes": nodes, "samples_per_second": "many", "slowest_rank": None}
    run.write("logs/telemetry/0001-0001.jsonl", telemetry_part(1, line))
    found = telemetry_windows(read_telemetry(run), {})
    assert found.steps.tolist() == [10]
    assert "samples_per_second" not in found.columns
    assert not found.slowest


def test_a_run_without_telemetry_has_no_windows(storage: str) -> None:
    run = RunDir(storage)
    run.write("logs/telemetry/notes.txt", json.dumps(window(1)).encode())
    assert len(telemetry_windows(read_telemetry(run), {}).steps) == 0
