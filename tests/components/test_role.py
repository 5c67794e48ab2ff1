"""What all components have in common."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.evaluate import evaluate
from components.role import LaunchRequirements
from components.train import train
from pipeline.errors import UserError


@pytest.mark.parametrize("component", [train, evaluate])
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"secrets": ["KEY=value"]}, "secrets='KEY'"),
        ({"shm": -1}, "shm=-1"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_each_component_reports_what_cannot_work(component: Any, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        component(run_dir="runs/one", **parameters)
    assert words in str(error.value)
    assert "value" not in str(error.value.problems[0]).split(":")[0], "what may be a secret is not shown"


@pytest.mark.parametrize("component", [train, evaluate])
def test_the_launch_requirements_of_a_role_travel_with_it(component: Any) -> None:
    (role,) = component(run_dir="runs/one", secrets=["A", "B"], shm=64, retries=1).roles
    required = LaunchRequirements.of(role)
    assert (required.secrets, required.shm, role.max_retries) == (("A", "B"), 64, 1)
    assert json.loads(json.dumps(role.metadata)) == role.metadata, "any scheduler may write it down"


@pytest.mark.parametrize(
    ("file", "env"),
    [
        ("pipeline.py", {"PYTHONSAFEPATH": "1"}),
        ("pipeline/__init__.py", {"PYTHONSAFEPATH": "1"}),
        ("pipeline/notes.txt", {}),
        ("my/pipeline.py", {}),
    ],
)
@pytest.mark.parametrize("component", [train, evaluate])
def test_beside_a_pipeline_of_the_users_own_python_is_told_to_look_for_theirs_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, component: Any, file: str, env: dict[str, str]
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path)
    (role,) = component(run_dir="runs/one").roles
    assert {name: value for name, value in role.env.items() if name == "PYTHONSAFEPATH"} == env
    (role,) = component(run_dir="runs/one", env={"PYTHONSAFEPATH": ""}).roles
    assert role.env["PYTHONSAFEPATH"] == "", "the user decides"
