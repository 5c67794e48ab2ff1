"""Have fit check the flags of all trials before anything is launched, and say which metric it monitors.

fit needs torch, which a submitter may not have, and the modules of the user, which may be in the image only. Then the
first trial tells what is wrong.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import yaml

from components.sweep.space import Value
from pipeline.config.found_configs import find_config
from pipeline.errors import USER_MUST_CHANGE, UserError

_MODES = ("min", "max")


class MonitoredMetric(NamedTuple):
    """What makes a checkpoint the best one.

    Attributes:
        name: Of the metric; empty for none.
        mode: `min` or `max`.
    """

    name: str
    mode: str


def preview(
    config: str, run_dir: str, flags: Sequence[str], values: Iterable[tuple[str, Value]], here: bool
) -> MonitoredMetric | None:
    """Return what the trials will monitor, once fit has accepted their flags.

    Args:
        config: The YAML file.
        run_dir: Of a trial.
        flags: Those that all trials share.
        values: Each key with each value that a trial may have.
        here: Whether the trials run in this Python, so that fit must accept them here.

    Returns:
        What fit monitors; None where that cannot be told here.

    Raises:
        UserError: fit refuses a flag.
    """
    if any(find_spec(name) is None for name in ("torch", "lightning")):
        return None
    command = [sys.executable, "-m", "pipeline", "fit", "--config", find_config(config), "--run_dir", run_dir, *flags]
    tried = [f"--{key}={value}" for key, value in values]
    refused, printed = _printed([*command, *tried])
    if refused and not here and _printed(command)[0]:
        return None  # not the keys are wrong: something of the image is not here
    if refused:
        raise UserError(*refused)
    return _monitored(printed)


def chosen_metric(found: MonitoredMetric | None, name: str, mode: str) -> tuple[MonitoredMetric, list[str]]:
    """Return what trials are compared by, and the flags that have fit monitor it.

    Args:
        found: What the configuration monitors; None: unknown.
        name: What the user names; empty for what is monitored.
        mode: The same.

    Raises:
        UserError: There is none.
    """
    if not name and found is None:
        raise UserError("metric: this machine cannot read the configuration as fit does; name one by --metric val_loss")
    if not name and found is not None and not found.name:
        raise UserError(
            "metric: the configuration monitors none (checkpoints.monitor); name one that the model logs, such as "
            "--metric val_loss"
        )
    same = found is not None and name in ("", found.name)
    metric = MonitoredMetric(name or (found.name if found else ""), mode or (found.mode if same and found else "min"))
    own = [f"--checkpoints.monitor={metric.name}", f"--checkpoints.mode={metric.mode}"]
    return metric, [] if metric == found else own


def _printed(command: list[str]) -> tuple[list[str], str]:
    """Return what fit refuses of a command line, and the configuration that it makes of it otherwise."""
    ended = subprocess.run([*command, "--print_config"], capture_output=True, text=True, check=False)
    told = [line for line in ended.stderr.splitlines() if line.strip()]
    if ended.returncode == 0:
        return [], ended.stdout
    problems = [line.removeprefix("error: ") for line in told if line.startswith("error: ")] or told[-1:]
    if ended.returncode != USER_MUST_CHANGE:
        problems = [f"fit --print_config ended with status {ended.returncode}: {' '.join(problems)}"]
    return problems, ""


def _monitored(printed: str) -> MonitoredMetric | None:
    try:
        found: Any = yaml.safe_load(printed)["checkpoints"]
        mode = str(found["mode"])
        return MonitoredMetric(str(found["monitor"] or ""), mode) if mode in _MODES else None
    except (yaml.YAMLError, KeyError, TypeError):
        return None
