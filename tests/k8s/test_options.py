"""The run options: defaults, and the table of the documentation."""

from k8s.options import OPTIONS, RunOptions, default_of
from tests.support.commands import ROOT


def test_the_options_table_of_the_documentation_equals_the_options() -> None:
    defaults = {name: default_of(name) for name in OPTIONS}
    shown = {name: "" if value in ("", [], {}) else f"`{value}`" for name, value in defaults.items()}
    rows = [f"| `{name}` | {shown[name]} | {option.metadata['help']} |" for name, option in OPTIONS.items()]
    page = (ROOT / "docs/kubernetes.md").read_text()
    assert page.split("| Option | Default | |\n| --- | --- | --- |\n")[1].split("\n\n")[0].splitlines() == rows


def test_an_option_without_a_value_has_its_default() -> None:
    assert RunOptions.of({"ttl": 5, "deadline": None}).deadline == default_of("deadline")
    assert RunOptions.of({"ttl": 5, "image_repo": "no option of ours"}).ttl == 5
