"""Tell what was found: the laws in JSON, plots and tables in the docs."""

import json
import math
from pathlib import Path
from typing import Any

from tests.benchmarks.growth import paper
from tests.benchmarks.growth.curve import ORDER, amount, as_text, costs_of, fits, law
from tests.benchmarks.growth.plot import Drawn, plot
from tests.benchmarks.report import about

BEGIN, END = (f"<!-- made by `make growth`: {edge} -->" for edge in ("begin", "end"))
_STEPS = 60


def completed(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the law of each quantity, and, where all curves are there, the job on paper."""
    laws = {each["curve"]: fits(each) for each in result["curves"]}
    for each in result["curves"]:
        for line in each["lines"]:
            found = laws[each["curve"]][line["name"]]
            line |= {"law": law(found, line["unit"]), **found.__dict__}
    on_paper = paper.as_json(laws) if laws.keys() == set(ORDER) else None
    return {**result, "on paper": on_paper}


def merged(result: dict[str, Any], kept_in: Path) -> dict[str, Any]:
    """The result, with the curves of an earlier one of the same machine that were not measured now."""
    kept = json.loads(kept_in.read_text()) if kept_in.exists() else result
    curves = {each["curve"]: each for each in kept["curves"] if kept["machine"] == result["machine"]}
    curves |= {each["curve"]: each for each in result["curves"]}
    return completed({**result, "curves": [curves[name] for name in ORDER if name in curves]})


def write_docs(result: dict[str, Any], project: Path) -> None:
    """Write docs/growth.json, docs/growth/*.svg, and the section of docs/performance.md."""
    docs = project / "docs"
    whole = merged(result, docs / "growth.json")
    (docs / "growth.json").write_text(as_text(whole))
    (docs / "growth").mkdir(exist_ok=True)
    parts = [about(whole)]
    for one in whole["curves"]:
        (docs / f"growth/{one['curve']}.svg").write_text(drawing(one))
        parts.append(told(one))
    parts += [told_on_paper(whole["on paper"])] if whole["on paper"] else []
    page = docs / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    text = "\n\n".join(parts)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def described(one: dict[str, Any]) -> str:
    """The text alternative of a plot."""
    lines = "; ".join(f"{line['name']}: {line['law']}" for line in one["lines"])
    sizes = [each["size"] for each in one["points"]]
    return f"{one['title']}, over {min(sizes):,} to {max(sizes):,} {one['over']}. {lines}"


def drawing(one: dict[str, Any]) -> str:
    """The plot of a curve."""
    lines, laws = [], fits(one)
    for line in one["lines"]:
        sizes, costs = costs_of(one, line["name"])
        first = math.sqrt(min(sizes) * max(sizes))  # from where on the law was fitted
        along = [first * (max(sizes) / first) ** (step / _STEPS) for step in range(_STEPS + 1)]
        drawn = [(size, laws[line["name"]].at(size)) for size in along]
        lines.append(Drawn(line["name"], line["unit"], list(zip(sizes, costs, strict=True)), drawn))
    return plot(one["title"], described(one), one["over"], lines)


def told(one: dict[str, Any]) -> str:
    """The table and the plot of a curve."""
    units = {line["name"]: line["unit"] for line in one["lines"]}
    rows = [[one["over"], *units], ["---:"] * (1 + len(units))]
    for point in one["points"]:
        costs = [amount(point["costs"][name]["value"], unit) for name, unit in units.items()]
        rows.append([f"{point['size']:,}", *costs])
    rows.append(["grows", *(line["law"] for line in one["lines"])])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    scale = "" if one["scale"] == "full" else f", {one['scale']}"
    run = f"`{one['curve']}`{scale}: load {one['load'][0]} before and {one['load'][1]} after"
    ends = f"\n\nIt ends before {one['ends']}." if one["ends"] else ""
    image = f"![{described(one)}](growth/{one['curve']}.svg)"
    return f"### {one['title']}\n\n{run}, commit {one['commit'][:8]}.\n\n{table}{ends}\n\n{image}"


def told_on_paper(found: dict[str, Any]) -> str:
    """The job that nobody has run."""
    head = (
        f"### On paper: {found['nodes']:,} nodes of {found['processes']} ranks, a state of "
        f"{found['megabytes'] / 1000:,.0f} GB\n\nComputed from the laws above; a node fails once in "
        f"{found['hours between failures of a node']:,} hours. Nothing of it was measured at that size."
    )
    rows = [("What", "Cost"), ("---", "---"), *found["an hour"].items()]
    costs = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    walls = [("Wall", "It stands at", "Of this job", "What would move it"), ("---", "---:", "---:", "---")]
    stands = "\n".join(f"| {' | '.join(row)} |" for row in [*walls, *map(tuple, found["walls"])])
    first = f"The first wall stands at {found['walls'][0][1]}: {found['walls'][0][0]}."
    of_nodes = next(wall for wall in found["walls"] if wall[1].endswith("nodes"))
    then = f"The first one of nodes stands at {of_nodes[1]}: {of_nodes[0]}."
    return f"{head}\n\n{costs}\n\n{first} {then}\n\n{stands}"
