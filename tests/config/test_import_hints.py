"""A class path that is not found: the message says what was meant, what fails inside, or how a package is found."""

import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.import_hints import EXTRAS, import_hint, install_hint, nearest
from tests.support.commands import ROOT, Ended, assert_one_message

App = Callable[..., Ended]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of a user's own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_package").mkdir()
    for name, text in {
        "own_half.py": "class Data: pass\n",
        "own_broken.py": "import surely_not_installed.at_all\n",
        "own_package/__init__.py": "",
        "own_package/networks.py": "class Classifier: pass\n",
        "own_package/divides.py": "def share():\n    return 1 / 0\nshare()\n",
        "own_package/unfinished.py": "def f(:\n",
        "own_package/imports.py": "\nfrom own_package.networks import Clasifier\n",
        "own_package/leaves.py": "raise SystemExit('this is a script')\n",
        "own_package/tables.py": "import pyarrow_is_not_here, os\n",
    }.items():
        (tmp_path / name).write_text(text)
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


@pytest.mark.parametrize("flag", ["model", "data.train", "trainer.callbacks"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "own_nowhere.Thing",
            "'own_nowhere' is looked for in the current folder ({cwd}), in the folders of PYTHONPATH",
        ),
        ("own_nowhere.deep.Thing", "install your project (pip install -e .)"),
        ("own_broken.Thing", "own_broken.Thing imports 'surely_not_installed', which is not installed here ("),
        ("own_half.Thing", "'own_half' is {modules}/own_half.py, which defines no Thing ("),
        ("own_package.networks.Clasifier", "defines no Clasifier; did you mean 'own_package.networks.Classifier'?"),
        (
            "own_package.divides.Net",
            "own_package.divides fails: ZeroDivisionError: division by zero ({modules}/own_package/",
        ),
        (
            "own_package.networks",
            "own_package.networks is a module: name a class in it, such as own_package.networks.C",
        ),
        ("own_package.networks:Classifier", "is no import path: write it with dots, as package.module.Class"),
        ("pipeline.my_models.Thing", "the module 'pipeline' is this program's own, from "),
        ("components.parts.Thing", "the module 'components' is this program's own, from "),
    ],
)
def test_a_class_path_that_is_not_found_is_explained(app: App, modules: Path, flag: str, path: str, words: str) -> None:
    flags = {"model": "tests.support.models.Regression", "data": "pipeline.data.DataModule", flag: path}
    ended = app("fit", *(f"--{name}={value}" for name, value in flags.items()), "--run_dir", modules / "run")
    assert_one_message(ended, words.format(cwd=os.getcwd(), modules=modules))
    assert "Expected a path" not in ended.err


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("own_package.networks.Clasifier", "own_package.networks.Classifier"),
        ("own_package.networks.classifier", "own_package.networks.Classifier"),
        ("own_package.netwrks.Classifier", "own_package.networks.Classifier"),
        ("own_pakage.networks.Classifier", "own_package.networks.Classifier"),
        ("own_pakage.netwrks.Clasifier", "own_package.networks.Classifier"),
        ("own_package.Classifier", "own_package.networks.Classifier"),
        ("pipeline.data.DataModul", "pipeline.data.DataModule"),
        ("pipeline.dta.DataModule", "pipeline.data.DataModule"),
        ("pipelne.data.DataModule", "pipeline.data.DataModule"),
        ("torch.optim.Adm", "torch.optim.Adam"),
        ("torch.optm.Adam", "torch.optim.Adam"),
        ("lightning.pytorch.callbacks.EarlyStoping", "lightning.pytorch.callbacks.EarlyStopping"),
        ("own_nowhere.Thing", None),
        ("own_half.Thing", None),
        ("own_package.divide.Thing", None),
    ],
)
@pytest.mark.usefixtures("modules")
def test_the_nearest_class_path_is_offered_and_none_that_does_not_exist(misspelt: str, meant: str | None) -> None:
    assert nearest(misspelt) == meant


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        (
            "own_package.divides.Net",
            "importing own_package.divides fails: ZeroDivisionError: division by zero "
            "({modules}/own_package/divides.py:2)",
        ),
        (
            "own_package.unfinished.Net",
            "importing own_package.unfinished fails: invalid syntax ({modules}/own_package/unfinished.py:1)",
        ),
        (
            "own_package.imports.Net",
            "importing own_package.imports fails: ImportError: cannot import name 'Clasifier' from "
            "'own_package.networks' ({modules}/own_package/networks.py) ({modules}/own_package/imports.py:2)",
        ),
        (
            "own_package.leaves.Net",
            "importing own_package.leaves fails: SystemExit: this is a script ({modules}/own_package/leaves.py:1)",
        ),
        (
            "own_package.networks",
            "own_package.networks is a module: name a class in it, such as own_package.networks.Classifier",
        ),
        ("own_package.networks.Classifier", ""),
        ("Classifier", ""),
        ("not a path", ""),
        ("", ""),
    ],
)
def test_what_fails_inside_a_module_that_exists_is_named_with_its_place(modules: Path, path: str, hint: str) -> None:
    assert import_hint(path) == hint.format(modules=modules)


def test_a_module_that_an_extra_brings_is_named_with_the_command_that_installs_it(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "pyarrow_is_not_here", "parquet")
    assert import_hint("own_package.tables.Rows") == (
        "own_package.tables.Rows imports 'pyarrow_is_not_here', which is not installed here "
        f"({modules}/own_package/tables.py:1): pip install 'torchx-lightning-pipeline[parquet]'"
    )
    assert install_hint("json") == install_hint(None) == ""


def test_each_extra_is_known_by_the_modules_that_it_brings() -> None:
    stands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {"pillow": "PIL"}
    brought = {
        re.split(r"[^\w-]", line)[0]: extra for extra, lines in stands.items() if extra != "dev" for line in lines
    }
    assert {imported.get(name, name): extra for name, extra in brought.items()} == EXTRAS
