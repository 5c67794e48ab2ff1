"""The page: one HTML file with all that it needs in it, which asks no network for anything.

Everything that comes from a run is escaped where it is put in. A Content-Security-Policy allows the scripts of this
file by their digests, and nothing else: no other script runs, and nothing is fetched.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from pipeline.commands.report.comparison import RunComparison
from pipeline.commands.report.figure import ReportFigure
from pipeline.commands.report.sections import RunSection
from pipeline.errors import UserError, install_command
from pipeline.run.run_dir import now

INSTALL = install_command("report")
"""What gives the report its libraries."""

_FOLDER = "pipeline.commands.report"
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass
class _Numbered:
    """Hands out the ids of figures as the template meets them."""

    used: int = 0

    def __call__(self) -> str:
        self.used += 1
        return f"figure-{self.used}"


def render(sections: Sequence[RunSection], comparison: RunComparison | None = None) -> str:
    """Return the page.

    Args:
        sections: The runs, at least one.
        comparison: Of several.

    Raises:
        UserError: What the page needs is not installed here.
    """
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - an extra
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(f"the report needs a package that is not installed here ({error}): {INSTALL}") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["json"] = _json
    figures = any(_figures(sections, comparison))
    scripts = [get_plotlyjs(), _own("page.js")] if figures else []
    return environment.from_string(_own("page.html")).render(
        sections=sections,
        comparison=comparison,
        created=now(),
        title=sections[0].label if comparison is None else f"{len(sections)} runs",
        style=_own("page.css"),
        scripts=[_inline(script) for script in scripts],
        policy=_policy(scripts),
        next_id=_Numbered(),
    )


def _figures(sections: Sequence[RunSection], comparison: RunComparison | None) -> Iterator[ReportFigure]:
    yield from comparison.curves if comparison is not None else ()
    for each in sections:
        yield from (*each.curves, *each.throughput, *each.scores, *([] if each.time is None else [each.time]))


def _policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy; plotly writes styles of its own, and draws with data URLs."""
    digests = (b64encode(sha256(_inline(script).encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _inline(script: str) -> str:
    """Return a script as it may stand within an element: nothing in it ends that element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(value: Any) -> Any:
    """Return JSON that may stand within a script element, whatever a run has put into it."""
    from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2

    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPES))  # noqa: S704 - escaped


def _own(name: str) -> str:
    return files(_FOLDER).joinpath(name).read_text(encoding="utf-8")
