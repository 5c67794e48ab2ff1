"""The README and the pages say what is so: targets, links, versions (its commands: test_docs.py)."""

import re
import subprocess
import tomllib
from importlib.metadata import distributions, requires

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.data.permutation import Permutation
from pipeline.data.sampler import Batches, PositionedSampler
from tests.support.commands import ROOT, command

README = (ROOT / "README.md").read_text()


def test_the_drawing_of_the_order_shows_the_real_one() -> None:
    drawing = (ROOT / "docs/data_order.md").read_text().split("## The rules")[0]
    order = re.findall(r"\d+", re.findall(r"permutation (.*)", drawing)[0])
    assert order == [str(index) for index in Permutation(11, 0, 0)(np.arange(11))]
    ranks = [[int(number) for number in re.findall(r"\d+", line)] for line in re.findall(r"rank \d(.*)│", drawing)]
    expected = [(2, rank, 2, 0) for rank in range(2)] + [(4, rank, 1, 4) for rank in range(4)]
    for found, (world, rank, batch_size, position) in zip(ranks, expected, strict=True):
        batches = Batches(PositionedSampler(range(11), world, rank, position=position), batch_size)
        assert found == [index for batch in batches for index in batch], (world, rank)


def test_every_make_target_that_the_readme_names_is_explained_by_make() -> None:
    explained = command("make").out
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", README))
    assert {"pipeline", "test", "setup", "check"} <= named
    for target in named:
        assert f"make {target}" in explained


TARGETS = re.findall(r"^([a-z][a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_made(target: str) -> None:
    assert command("make", "-n", target).status == 0
    assert re.search(rf"^\.PHONY:(.|\\\n)* {target}( |$|\n)", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_targets_are_found() -> None:
    assert {"help", "setup", "test", "image", "k8s-submit"} <= set(TARGETS)


def test_a_second_setup_has_nothing_to_do() -> None:
    first = subprocess.run(["make", "-n", "setup"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install" not in first.stdout, "make test has just set it up"


def test_every_file_that_the_readme_links_to_is_there() -> None:
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path.partition("#")[0]).exists(), path
    for page in ROOT.glob("docs/*.md"):
        for path in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
            assert (page.parent / path.partition("#")[0]).exists(), (page, path)


def pins(name: str) -> dict[str, str]:
    """The versions that a file of constraints pins, by the normalized name."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(each): version for each, version in found}


def required(requirements: list[str]) -> set[str]:
    """The packages that are installed for some requirements, as their installed versions say."""
    wanted, known = [Requirement(each) for each in requirements], set()
    while wanted:
        one = wanted.pop()
        for extra in one.extras or {""}:
            if (key := (canonicalize_name(one.name), extra)) not in known:
                known.add(key)
                more = map(Requirement, requires(one.name) or [])
                wanted += [each for each in more if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in known}


def test_every_version_that_gets_installed_stands_in_the_constraints() -> None:
    pinned = pins("constraints.txt") | pins("constraints-dev.txt")
    assert not pins("constraints.txt").keys() & pins("constraints-dev.txt").keys()
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in ("pip", "torchx-lightning-pipeline"):
            continue  # pip comes with Python here, and with the image as it is pinned
        assert pinned.get(name) == distribution.version.split("+")[0], name


def test_what_a_user_adds_is_held_to_the_versions_of_what_runs_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for name, more in project["optional-dependencies"].items() if name != "dev" for each in more]
    runs = required([*project["dependencies"], *extras])
    # torch's build with CUDA, which is not installed here, and what the image itself has.
    pinned = pins("constraints.txt").keys()
    of_image = {name for name in pinned if name.startswith(("nvidia-", "cuda-"))} | {"triton", "pip"}
    assert pinned == runs | of_image
    assert re.search(r"^torch==\d+\.\d+\.\d+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
