"""`python -m pipeline runs` lists what is there, and says what is wrong with what was asked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import Ended, command
from tests.support.recorded import attempt, lease, recorded
from tests.support.runs import fit

App = Callable[..., Ended]

NUMBER = {"type": ["number", "null"]}
COUNT = {"type": ["integer", "null"], "minimum": 0}
TEXT = {"type": ["string", "null"]}
TIME = {"type": ["string", "null"], "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
RUN = {
    "url": {"type": "string"},
    "label": {"type": "string"},
    "name": {"type": "string"},
    "state": {"enum": ["running", "finished", "preempted", "interrupted", "failed", "lost", "unknown"]},
    "status": {"type": ["integer", "null"]},
    "reason": TEXT,
    "started": TIME,
    "updated": TIME,
    "attempts": COUNT,
    "world_size": COUNT,
    "step": COUNT,
    "committed_step": COUNT,
    "epoch": COUNT,
    "max_steps": COUNT,
    "max_epochs": COUNT,
    "best": {
        "type": ["object", "null"],
        "required": ["name", "value", "mode", "step"],
        "additionalProperties": False,
        "properties": {"name": TEXT, "value": NUMBER, "mode": {"enum": ["min", "max"]}, "step": COUNT},
    },
    "goodput": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "bytes": COUNT,
    "checkpoints": COUNT,
    "config": {"type": "object"},
    "metrics": {"type": ["object", "null"], "additionalProperties": NUMBER},
    "problems": {"type": "array", "items": {"type": "string"}},
}
SCHEMA = {
    "type": "object",
    "required": ["schema", "url", "differing_keys", "runs"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": 1},
        "url": {"type": "string"},
        "differing_keys": {"type": "array", "items": {"type": "string"}},
        "runs": {
            "type": "array",
            "items": {"type": "object", "required": list(RUN), "additionalProperties": False, "properties": RUN},
        },
    },
}
"""What scripts rely on."""


@pytest.fixture
def three(storage: str) -> str:
    """A URL with a run that finished, a better one that failed, and one that is running."""
    recorded(f"{storage}/a", attempt(), learning_rate=0.1).write_json(RECEIPT, {"metrics": {"test_loss": 0.5}})
    recorded(f"{storage}/group/b", attempt(1, 1, started="2026-11-24T13:00:00.000Z"), learning_rate=0.2)
    lease(recorded(f"{storage}/c", attempt(1, None, started="2026-11-24T14:00:00.000Z"), learning_rate=0.3))
    return storage


def rows(ended: Ended) -> list[list[str]]:
    assert ended.status == 0, ended.text
    return [line.split() for line in ended.out.splitlines()]


def test_runs_are_listed_newest_first_with_what_they_differ_in(app: App, three: str) -> None:
    title, *found = rows(app("runs", three))
    assert title == ["name", "state", "progress", "val_loss", "learning_rate", "goodput", "size", "started", "reason"]
    assert [(row[0], row[1]) for row in found] == [("c", "running"), ("group/b", "failed"), ("a", "finished")]
    assert found[2][2:8] == ["epoch", "1/20,", "step", "4", "0.25", "0.1"]
    assert found[1][-2:] == ["crash:", "x"]


def test_they_are_sorted_and_filtered(app: App, three: str) -> None:
    def names(*flags: str) -> list[str]:
        return [row[0] for row in rows(app("runs", three, *flags))[1:]]

    assert names("--sort", "name") == ["a", "c", "group/b"]
    assert names("--sort=state") == ["c", "group/b", "a"]
    assert names("--filter", "state=failed") == ["group/b"]
    assert names("--filter=model.learning_rate>0.15", "--filter=state!=failed") == ["c"]
    assert names("--filter", "test_loss<1") == ["a"]
    assert rows(app("runs", three, "--columns", "status,name,model.class_path")) == [
        ["status", "name", "class_path"],
        ["c", "m.Model"],
        ["1", "group/b", "m.Model"],
        ["0", "a", "m.Model"],
    ]
    ended = app("runs", three, "--filter", "metric>7")
    assert (ended.status, ended.out) == (0, "")
    assert "no run of 3 in" in ended.err


def test_scripts_get_all_of_it(app: App, three: str) -> None:
    ended = app("runs", three, "--json", "--sort=name")
    found = json.loads(ended.out)
    jsonschema.validate(found, SCHEMA)
    assert found["differing_keys"] == ["model.learning_rate"]
    first = found["runs"][0]
    assert first["best"] == {"name": "val_loss", "value": 0.25, "mode": "min", "step": 2}
    assert (first["state"], first["started"], first["goodput"]) == ("finished", "2026-11-24T12:10:00.000Z", 0.75)
    assert (first["metrics"], first["config"]["model.layers"]) == ({"test_loss": 0.5}, [8, 8])
    assert first["url"] == RunDir(f"{three}/a").url


def test_json_is_json_whatever_a_configuration_holds(app: App, tmp_path: Path) -> None:
    run = recorded(str(tmp_path), attempt())
    run.write("fit.yaml", b"a: .nan\nb: [.inf, 2026-01-01, 2026-01-01 12:00:00]\n3: {4: !!set {x}}\nc: !!binary aGk=\n")
    found = json.loads(app("runs", tmp_path, "--json").out, parse_constant=pytest.fail)
    jsonschema.validate(found, SCHEMA)
    assert found["runs"][0]["config"]["a"] == "nan"


def test_what_is_damaged_is_said_and_the_others_are_shown(app: App, three: str) -> None:
    RunDir(three).write("a/attempts/0001.json", b'{"torn')
    ended = app("runs", three, "--sort=name")
    assert [row[1] for row in rows(ended)[1:]] == ["unknown", "running", "failed"]
    assert f"{RunDir(three).label}/a: attempts/0001.json is damaged" in ended.err
    assert json.loads(app("runs", three, "--json", "--sort=name").out)["runs"][0]["problems"]


def test_a_real_run_and_its_own_directory(app: App, storage: str) -> None:
    monitored = ("--checkpoints.monitor=val_loss", "--checkpoints.every_n_steps=2")
    assert fit(app, storage, 2, *monitored).status == 0
    title, row = rows(app("runs", storage))
    assert row[:6] == [RunDir(storage).label, "finished", "epoch", "2/2,", "step", "14"]
    assert "val_loss" in title
    (found,) = json.loads(app("runs", storage, "--json").out)["runs"]
    assert (found["problems"], found["attempts"], found["max_epochs"]) == ([], 1, 2)
    assert found["config"]["checkpoints.monitor"] == "val_loss"
    assert fit(app, storage, 3, "--checkpoints.monitor=nope").status == 2
    title, row = rows(app("runs", storage))
    assert row[1:3] == ["failed", "(2)"]


def test_nothing_there_is_no_mistake_but_a_url_that_is_not_there_is(app: App, tmp_path: Path) -> None:
    ended = app("runs", tmp_path)
    assert (ended.status, ended.out) == (0, "")
    assert f"no runs in {tmp_path}" in ended.err
    assert json.loads(app("runs", tmp_path, "--json").out)["runs"] == []
    ended = app("runs", tmp_path / "none")
    assert ended.status == 2
    assert "does not exist" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sort=age",), "invalid choice: 'age'"),
        (("--filter=state=fail",), "did you mean 'failed'"),
        (("--filter=model.lerning_rate=1",), "did you mean 'model.learning_rate'"),
        (("--columns=stat",), "columns='stat': no run here has it; did you mean 'state"),
        (("--columns=",), "must name one at least"),
        (("--jsn",), "unrecognized argument --jsn"),
    ],
)
def test_a_mistake_gets_one_clear_message(app: App, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    recorded(f"{tmp_path}/a", attempt())
    ended = app("runs", tmp_path, *arguments)
    assert ended.status == 2
    assert said in ended.err
    assert "Traceback" not in ended.text


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--sort=metric", "--filter=state=finished")])
def test_it_starts_without_torch_lightning_and_fsspec_s_client(s3: str, arguments: tuple[str, ...]) -> None:
    url = f"{s3}/without-torch"
    recorded(f"{url}/a", attempt())
    program = (
        "import sys; from pipeline.__main__ import run\n"
        "assert run() == 0\n"
        "print([name for name in 'torch lightning jsonargparse numpy s3fs aiobotocore'.split() if name in sys.modules])"
    )
    ended = command(sys.executable, "-c", program, "runs", url, *arguments)
    assert ended.out.splitlines()[-1] == "[]", ended.text
