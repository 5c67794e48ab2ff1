"""The resolved configuration that each subcommand leaves in its run, and what later starts take from it."""

import argparse
import re
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace

from pipeline.config.flags import FROM_RUN, NOT_SAVED, WEIGHTS
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import raise_for_user


def with_run_config(subcommand: str, arguments: list[str]) -> list[str]:
    """Let the subcommands that look at a run start from the configuration that it was trained with.

    It goes before the user's own flags, so they override it. For validate, test and predict it is only what makes model
    and data: the rest of training's configuration (callbacks, limits, topology) is not evaluation's. For explain_resume
    it is all of it, unless the user names a configuration, as the next fit would.

    Args:
        subcommand: Any one of Lightning's, or explain_resume.
        arguments: Those after its name.

    Raises:
        UserError: No run is named, or it cannot be read, or nothing was trained there.
    """
    explains = subcommand == "explain_resume"
    if (subcommand not in FROM_RUN and not explains) or (explains and _any(arguments, "-c", "--config", "--model=")):
        return arguments
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--run_dir")
    try:
        url = finder.parse_known_args(arguments)[0].run_dir
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if url is None:
        if not _any(arguments, "-c", "--config", "-h", "--help", "--model"):
            raise UserError(f"run_dir is missing: name the run whose model and data to {subcommand}, --run_dir <url>")
        return arguments
    saved = _trained_with(
        url, needed=not (_any(arguments, "--ckpt_path") and _any(arguments, "-c", "--config", "--model"))
    )
    if saved is None:
        return arguments
    if explains:
        base = {key: value for key, value in saved.items() if key != "ckpt_path"}
    else:
        base = {key: saved[key] for key in ("seed_everything", "model", "data") if saved.get(key) is not None}
        base["trainer"] = {key: saved["trainer"][key] for key in ("accelerator", "precision")}
    return ["--config", dump(base).decode(), *arguments]


def _any(arguments: list[str], *prefixes: str) -> bool:
    return any(argument.startswith(prefixes) for argument in arguments)


def _trained_with(url: str, needed: bool) -> dict[str, Any] | None:
    try:
        saved = load(RunDir(url), "fit")
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"run_dir={url!r} cannot be read", "Fix the name, or this user's permissions there")
    if saved is None and needed:
        raise UserError(
            f"run_dir={url!r} holds no fit.yaml: nothing was trained there. Train first, or name the right directory"
        )
    return saved


def load(run: RunDir, subcommand: str) -> dict[str, Any] | None:
    """Return the resolved configuration that a subcommand left in its run, or None.

    Raises:
        UserError: It is damaged, or another program's.
    """
    data = run.read(RunDir.config(subcommand))
    if data is None:
        return None
    name = f"{run}/{RunDir.config(subcommand)}"
    advice = "Restore it, or start a new run with another --run_dir"
    value: dict[str, Any]
    try:
        value = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is damaged: {' '.join(str(error).split())}. {advice}") from error
    if not _is_configuration(value):
        raise UserError(f"{name} is not a configuration that this program wrote. {advice}")
    return value


def _is_configuration(value: Any) -> bool:
    """Return whether a value has the parts of a configuration that are read without its parser."""
    if not isinstance(value, dict) or not isinstance(value.get("trainer"), dict):
        return False
    classes = [value[key] for key in ("model", "data") if value.get(key) is not None]
    return {"accelerator", "precision"} <= value["trainer"].keys() and all(
        isinstance(each, dict)
        and isinstance(each.get("class_path"), str)
        and isinstance(each.get("init_args") or {}, dict)
        for each in classes
    )


def dump(config: dict[str, Any]) -> bytes:
    """Return a configuration as YAML."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def resolve(dumped: str, ckpt_path: str | None, subcommand: str | None = None) -> dict[str, Any]:
    """Return a whole configuration without what belongs to the launcher, the place and a single start.

    Args:
        dumped: The parsed configuration with every default, as the parser dumps it.
        ckpt_path: What the user gave for it.
        subcommand: The key under which it is, None: at the top.
    """
    parsed = yaml.safe_load(dumped)
    config: dict[str, Any] = parsed if subcommand is None else parsed[subcommand]
    config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in ("devices", "num_nodes")}
    return {**{key: value for key, value in config.items() if key not in NOT_SAVED}, "ckpt_path": ckpt_path}


def keep_weights(saved: dict[str, Any] | None, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that names the weights that its run began with: a resume loads no others."""
    kept = {key: value for key, value in (saved or {}).items() if key in WEIGHTS}
    return {**{key: value for key, value in resolved.items() if key not in WEIGHTS}, **kept}


def require_same_model(
    run: RunDir, saved: dict[str, Any] | None, resolved: dict[str, Any], arguments_too: bool = False
) -> None:
    """Refuse to load a run's checkpoint into another model: of another class, or with other arguments.

    Raises:
        UserError: The run was trained with another one.
    """
    trained, asked = (saved or {}).get("model"), resolved["model"]
    if trained is None:
        return
    if trained["class_path"] != asked["class_path"]:
        raise UserError(
            f"model.class_path={asked['class_path']!r}, but {run} was trained with {trained['class_path']!r}: give the "
            "run's own configuration, or another --run_dir"
        )
    if arguments_too and trained != asked:
        ours, theirs = asked.get("init_args") or {}, trained.get("init_args") or {}
        raise UserError(
            *(
                f"model.{key}={ours.get(key)!r}, but {run} was trained with {theirs.get(key)!r}: leave the flag out, "
                "the model comes from the run"
                for key in {**theirs, **ours}
                if ours.get(key) != theirs.get(key)
            )
        )


def changes(saved: dict[str, Any] | None, asked: dict[str, Any]) -> list[str]:
    """Return what a configuration changes of the saved one, `key old -> new` each."""

    def flat(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {key: value}
        return {name: leaf for part in value for name, leaf in flat(value[part], f"{key}.{part}".lstrip(".")).items()}

    if saved is None:
        return []
    old, new = flat(saved, ""), flat(asked, "")
    return [f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)]


def run_name(config: Namespace) -> str:
    """Return `digits` for --config .../digits.yaml, else the model's class in lower case."""
    named = [str(file) for file in config.get("config") or [] if file is not None]
    if named:
        return re.sub(r"\W+", "-", named[-1].rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return str(config.model.class_path).rsplit(".", 1)[-1].lower()


def save(run: RunDir, subcommand: str, resolved: dict[str, Any]) -> None:
    """Leave the resolved configuration of a subcommand in its run."""
    run.write(RunDir.config(subcommand), dump(resolved))


class SaveConfiguration(pl.Callback):
    """Writes fit.yaml of a fit that commits nothing, once the model is built.

    Otherwise it is written with the first commit: it says how the newest checkpoint was trained, and a start that is
    killed before its first commit has changed nothing.

    Args:
        run: Where to write it.
        resolved: What was asked for.
    """

    def __init__(self, run: RunDir, resolved: dict[str, Any]) -> None:
        self.run = run
        self.resolved = resolved

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it on rank 0."""
        if trainer.is_global_zero:
            save(self.run, "fit", self.resolved)
