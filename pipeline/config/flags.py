"""The flags that this project adds to those of Lightning's subcommands."""

import argparse
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser

from pipeline.config.compatibility import STOPS_RESUME
from pipeline.process.log_format import VARIABLE as FORMAT_VARIABLE
from pipeline.process.notification import FLAG, VARIABLE
from pipeline.process.patience import AWAY_LIMIT, AWAY_LIMIT_HELP
from pipeline.process.preemption import GRACE, default_grace

FROM_RUN = ("validate", "test", "predict")
"""Subcommands that take model and data from the run's own fit.yaml."""

INSPECTING = ("summary", "data")
"""Subcommands that look at a model or at data, and train nothing for good."""

NOT_SAVED = (
    *("config", "run_dir", "allow_mismatch", "override_optimizer", "world_size"),
    *("grace", "collective_timeout", "away_limit", "memory_checkpoints", "telemetry_every", "metrics_port"),
    *("log_format", "profile", "notify"),
)
"""Flags of one start or one place, which a saved configuration leaves out."""

WEIGHTS = ("weights", "weights_allow")
"""Flags that say what a run began with."""

ONLY_FIT = (*WEIGHTS, "on_nan")
"""Flags that other subcommands than fit accept in YAML alone, where they mean nothing to them."""


def add_flags(parser: LightningArgumentParser, subcommand: str) -> None:
    """Add the flags of one of Lightning's subcommands."""
    if subcommand not in INSPECTING:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run directory: a local path or any fsspec URL (s3://bucket/run). The same one resumes where it "
            "stopped. Default for fit: the next free runs/<name>-<n>.",
        )
        parser.add_argument(
            FLAG,
            type=str | None,
            default=None,
            help="Whom to tell once how this has ended (failed, preempted for good, finished): the URL of a webhook "
            "that takes Slack's JSON, or a command that reads it from stdin. A command line is no secret: a launcher's "
            f"secret may set {VARIABLE} instead.",
        )
        parser.add_argument("--away_limit", type=float, default=AWAY_LIMIT, help=AWAY_LIMIT_HELP)
        parser.add_argument(
            "--log_format",
            type=Literal["text", "json"] | None,
            default=None,
            help="The form of what is logged: lines for people (text), or one JSON object a line with time, level, "
            "rank, logger and message, and in progress lines the figures (json). Default: "
            f"{FORMAT_VARIABLE}, else text.",
        )
    if subcommand == "fit":
        _add_training_flags(parser)
        _add_weights_flags(parser)
    if subcommand == "test":
        parser.add_argument(
            "--unproven",
            type=bool,
            default=False,
            help="Evaluate also where it cannot be proven that each sample is scored once, or what the checkpoint is: "
            "streams, several loaders, samplers of one's own, a checkpoint of another program. The receipt says what "
            "is not proven, and why.",
        )
    if subcommand in INSPECTING:
        _add_inspection_flags(parser, subcommand)
    if subcommand != "fit":
        for name in ONLY_FIT:  # for the YAML of a fit serves these subcommands as well
            parser.add_argument(f"--{name}", type=str | None, default=None, help=argparse.SUPPRESS)
    if subcommand in FROM_RUN:
        parser.add_argument(
            "--checkpoint",
            type=str | None,
            default=None,
            help="Which checkpoint of the run: best, latest or a step. Default: the best if a metric was monitored, "
            "else the latest.",
        )


def _add_inspection_flags(parser: LightningArgumentParser, subcommand: str) -> None:
    for name in ("ckpt_path", "weights_only"):
        parser.add_argument(f"--{name}", type=Any, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=bool, nargs="?", const=True, default=False, help="Print JSON.")
    if subcommand == "summary":
        parser.add_argument(
            "--max_depth", type=int, default=-1, help="Levels of nested layers to show; -1, the default, shows all."
        )
        parser.add_argument(
            "--device_memory",
            type=str | None,
            default=None,
            help="Memory of each device, such as 80GB, where that is not to be asked of the devices here: says whether "
            "a training fits on others.",
        )
        return
    parser.add_argument("--samples", type=int, default=8, help="How many of the first samples are shown. Default: 8.")
    parser.add_argument(
        "--read",
        type=int,
        default=1000,
        help="How many samples of each set are read for ranges and classes, spread evenly over it. Default: 1000.",
    )
    parser.add_argument(
        "--picture",
        type=str | None,
        default=None,
        help="A file for the pictures of the first samples, PNG, of datasets that have a method picture(index). Those "
        "of several sets stand one above the other.",
    )


def _add_training_flags(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--grace",
        type=float,
        default=default_grace(),
        help="Seconds between SIGTERM and the end, within which the last step is saved. Default: "
        f"{GRACE}, which torch's agent sets, else 30.",
    )
    parser.add_argument(
        "--collective_timeout",
        type=float,
        default=120.0,
        help="Seconds that a rank waits for the others in one collective operation before it fails, so that all "
        "are restarted: more than the longest that one rank works while the others wait.",
    )
    parser.add_argument(
        "--memory_checkpoints",
        type=bool,
        default=True,
        help="Also keep the newest states in the host memory of each node, for 0.5 % of the time of training, and "
        "resume from them where the agents restart it. Needs python -m pipeline.agent.",
    )
    parser.add_argument(
        "--on_nan",
        type=Literal["stop", "skip", "continue"],
        default="continue",
        help="What a loss or gradients that are not finite (nan, inf) do. continue: a warning names the step. stop: "
        "training ends with status 2 before that step changes the weights. skip: that step is left out on all ranks. "
        "stop and skip name rank and samples, and look at the gradients of each step.",
    )
    parser.add_argument(
        "--telemetry_every",
        type=float,
        default=10.0,
        help="Seconds for which speed, memory and where a step's time goes are summed up, for the loggers and for "
        "<run_dir>/logs/telemetry. 0: never.",
    )
    parser.add_argument(
        "--metrics_port",
        type=int | None,
        default=None,
        help="Also show the newest of these figures at this port of each node, for Prometheus.",
    )
    parser.add_argument(
        "--profile",
        type=str | None,
        default=None,
        help="Profile these steps on every rank with torch's profiler, as <start>:<stop>, counted from the first step "
        "of this attempt; true: 10:15. Traces and the most expensive operators go to logs/profile/ in the run "
        "directory.",
    )
    parser.add_argument(
        "--allow_mismatch",
        type=str | None,
        default=None,
        help="Mismatches with the resumed run that are intended and must not stop it, separated by commas: "
        f"{', '.join(STOPS_RESUME)}.",
    )
    parser.add_argument(
        "--override_optimizer",
        type=bool,
        default=False,
        help="On a resume, take learning rates, weight decay and other settings of optimizers and learning rate "
        "schedules as they are asked for now; the moments stay. Default: the checkpoint's.",
    )


def _add_weights_flags(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="Start a new run from these weights, with step, epoch and optimizer at their beginning: the URL of a "
        "Lightning checkpoint, a state_dict, a safetensors file (or the .index.json of several), or a run "
        "directory, whose best or else latest checkpoint it is. A run that has a checkpoint resumes from that.",
    )
    parser.add_argument(
        "--weights_allow",
        type=str | None,
        default=None,
        help="Names of tensors that may be missing in --weights, left over or of another shape, as patterns "
        "separated by commas: 'head.*,*.bias'.",
    )
