"""Draw costs over sizes on logarithmic axes, as an SVG that is readable in light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tests.benchmarks.growth.curve import amount

_COLORS = ("#2f81f7", "#d1600a", "#2da44e", "#a371f7", "#d63384")
_STYLE = (
    "text{font:12px sans-serif;fill:#1f2328}.grid{stroke:#8b949e;stroke-opacity:.35}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _LINE = 360, 240, 70, 30, 18


@dataclass(frozen=True)
class Drawn:
    """A line: what was measured as points, and the law through them."""

    name: str
    unit: str
    points: Sequence[tuple[float, float]]
    law: Sequence[tuple[float, float]]


def _decades(values: list[float]) -> range:
    low = math.floor(math.log10(min(values)))
    return range(low, max(math.ceil(math.log10(max(values))), low + 1) + 1)


def _panel(lines: Sequence[Drawn], over: str, left: float, names: dict[str, str]) -> list[str]:
    """One pair of axes, for lines of one unit."""
    xs = _decades([x for line in lines for x, _ in line.points])
    ys = _decades([y for line in lines for _, y in line.points])
    unit = lines[0].unit

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log10(x) - xs[0]) / (len(xs) - 1), (math.log10(y) - ys[0]) / (len(ys) - 1)
        return left + _WIDTH * across, _TOP + _HEIGHT * (1 - up)

    made = [f'<text x="{left}" y="16">{escape(unit)} over {escape(over)}</text>']
    for power in xs:
        x, y = at(10.0**power, 10.0 ** ys[0])
        made.append(f'<path class="grid" d="M{x:.1f} {y:.1f}V{_TOP}"/>')
        made.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_short(10.0**power)}</text>')
    for power in ys:
        x, y = at(10.0 ** xs[0], 10.0**power)
        made.append(f'<path class="grid" d="M{x:.1f} {y:.1f}h{_WIDTH}"/>')
        label = amount(10.0**power, unit) if unit in ("s", "bytes") else _short(10.0**power)
        made.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for line in lines:
        color = names[line.name]
        inside = [at(x, y) for x, y in line.law if 10.0 ** ys[0] <= y <= 10.0 ** ys[-1]]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in inside)
        made.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-dasharray="4 3"/>' if inside else "")
        spots = [at(*each) for each in line.points]
        made += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in spots]
    return made


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1 <= value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def plot(title: str, described: str, over: str, lines: Sequence[Drawn]) -> str:
    """Return an SVG with a panel for each unit; the description is its text alternative."""
    units = list(dict.fromkeys(line.unit for line in lines))
    names = {line.name: _COLORS[place % len(_COLORS)] for place, line in enumerate(lines)}
    width, legend = len(units) * (_WIDTH + _LEFT + 20), _TOP + _HEIGHT + 42
    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {legend + _LINE * len(lines)}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc><style>{_STYLE}</style>",
    ]
    for place, unit in enumerate(units):
        left = _LEFT + place * (_WIDTH + _LEFT + 20)
        made += _panel([line for line in lines if line.unit == unit], over, left, names)
    for place, line in enumerate(lines):
        y = legend + _LINE * place
        made.append(f'<circle cx="{_LEFT}" cy="{y - 4}" r="4" fill="{names[line.name]}"/>')
        made.append(f'<text x="{_LEFT + 12}" y="{y}">{escape(line.name)}</text>')
    return "\n".join([*filter(None, made), "</svg>"]) + "\n"
