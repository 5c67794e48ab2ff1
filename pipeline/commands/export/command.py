"""The command line of `python -m pipeline export`, and its steps: load, find inputs, write, compare, place, report."""

import argparse

from pipeline.commands.command_parser import add_run_dir, boolean, readable_run
from pipeline.commands.export.description import ENDINGS
from pipeline.commands.export.destination import Destination
from pipeline.errors import DONE
from pipeline.process.output import drop_lost_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    add_run_dir(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=ENDINGS,
        help="safetensors, state_dict: the weights by name. pt2: the module as torch.export keeps it. onnx: the module "
        "for onnxruntime and others.",
    )
    parser.add_argument("--submodule", default="", help="Only this part of the model, such as encoder or net.backbone.")
    parser.add_argument("--checkpoint", help="best, latest or a step. Default: the best, else the latest.")
    parser.add_argument(
        "--average",
        type=boolean,
        metavar="true|false",
        help="Whether to take the averaged weights of EMAWeightAveraging, WeightAveraging or "
        "StochasticWeightAveraging. Default: where the checkpoint has them.",
    )
    parser.add_argument(
        "--input_shape",
        help="Shapes of what the module's forward takes, batch first, where neither the run's data nor an "
        "example_input_array say it: 2,3,224,224; several by ';'; token ids as 2,16:int64.",
    )
    parser.add_argument(
        "--dynamic_batch",
        type=boolean,
        default=True,
        metavar="true|false",
        help="Whether pt2 and onnx take batches of any size. Default: true.",
    )
    parser.add_argument("--output", help="Where to, a path or any URL. Default: <run_dir>/exports/.")
    parser.add_argument(
        "--overwrite", type=boolean, default=False, metavar="true|false", help="Replace another file of that name."
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, compare, print what was done, and return the exit status.

    Raises:
        UserError: What the user must change; nothing was written then.
        StorageAway: A storage does not answer.
    """
    run_dir = readable_run(arguments.run_dir)
    destination = None if arguments.output is None else Destination(arguments.output, run_dir)
    from pipeline.commands.export.exporter import export  # noqa: PLC0415 - imports Lightning

    report = export(run_dir, arguments, destination)
    try:
        print(report, flush=True)  # noqa: T201 - it is what was asked for
    except OSError:  # its reader is gone
        drop_lost_output()
    return DONE
