"""Draw costs over sizes on logarithmic axes, as an SVG that is readable in light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tests.benchmarks.growth.curve import amount

_COLORS = ("#2f81f7", "#d1600a", "#2da44e", "#a371f7", "#d63384")
_STYLE = (
    "text{font:12px sans-serif;fill:#1f2328}.grid{stroke:#8b949e;stroke-opacity:.35}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _LINE = 360, 240, 70, 30, 18
_APART = _WIDTH + _LEFT + 20


class Drawn(NamedTuple):
    """A line: what was measured as points, and the law through them."""

    name: str
    unit: str
    points: list[tuple[float, float]]
    law: list[tuple[float, float]]


def _decades(values: list[float]) -> range:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return range(low, max(high, low + 1) + 1)


def _panel(lines: Sequence[Drawn], over: str, left: float, names: dict[str, str]) -> list[str]:
    """One pair of axes, for lines of one unit."""
    xs, ys = (_decades([point[axis] for line in lines for point in line.points]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log10(x) - xs[0]) / (len(xs) - 1), (math.log10(y) - ys[0]) / (len(ys) - 1)
        return left + _WIDTH * across, _TOP + _HEIGHT * (1 - up)

    unit = lines[0].unit
    made = [f'<text x="{left}" y="16">{escape(unit)} over {escape(over)}</text>']
    for power in xs:
        x, y = at(10.0**power, 10.0 ** ys[0])
        made.append(f'<path class="grid" d="M{x:.1f} {y:.1f}V{_TOP}"/>')
        made.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_label(10.0**power)}</text>')
    for power in ys:
        x, y = at(10.0 ** xs[0], 10.0**power)
        made.append(f'<path class="grid" d="M{x:.1f} {y:.1f}h{_WIDTH}"/>')
        made.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_label(10.0**power, unit)}</text>')
    for line in lines:
        inside = [at(x, y) for x, y in line.law if 10.0 ** ys[0] <= y <= 10.0 ** ys[-1]]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in inside)
        made += (
            [f'<path d="M{path}" fill="none" stroke="{names[line.name]}" stroke-dasharray="4 3"/>'] if inside else []
        )
        made += [_spot(*at(*each), names[line.name]) for each in line.points]
    return made


def _spot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>'


def _label(value: float, unit: str = "") -> str:
    if unit in ("s", "bytes"):
        return amount(value, unit)
    return f"{value:,.0f}" if 1 <= value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def plot(title: str, described: str, over: str, lines: Sequence[Drawn]) -> str:
    """Return an SVG with a panel for each unit; the description is its text alternative."""
    units = list(dict.fromkeys(line.unit for line in lines))
    names = {line.name: _COLORS[place % len(_COLORS)] for place, line in enumerate(lines)}
    width, legend = len(units) * _APART, _TOP + _HEIGHT + 42
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {legend + _LINE * len(lines)}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc><style>{_STYLE}</style>",
    ]
    for place, unit in enumerate(units):
        made += _panel([line for line in lines if line.unit == unit], over, _LEFT + place * _APART, names)
    for place, line in enumerate(lines):
        y = legend + _LINE * place
        made.append(_spot(_LEFT, y - 4, names[line.name]))
        made.append(f'<text x="{_LEFT + 12}" y="{y}">{escape(line.name)}</text>')
    return "\n".join([*made, "</svg>"]) + "\n"
