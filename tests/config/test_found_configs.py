"""`--config pipeline/configs/...` means the package's own file where the current folder has none."""

from pathlib import Path

import pytest

from pipeline.config.found_configs import find_config, with_found_configs
from tests.support.commands import ROOT


def test_a_configuration_of_the_package_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("pipeline/configs/digits.yaml") == str(ROOT / "pipeline/configs/digits.yaml")
    assert find_config("pipeline/configs/none.yaml") == "pipeline/configs/none.yaml"
    for flags in (["--config", "pipeline/configs/digits.yaml"], ["--config=pipeline/configs/digits.yaml"]):
        assert with_found_configs(["fit", *flags])[-1].endswith(str(ROOT / "pipeline/configs/digits.yaml"))
    Path("pipeline/configs").mkdir(parents=True)
    Path("pipeline/configs/digits.yaml").touch()
    assert find_config("pipeline/configs/digits.yaml") == "pipeline/configs/digits.yaml", "the user's own"
