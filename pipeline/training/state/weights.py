"""Start training from the weights of another training: matched by name and shape, loaded, and reported."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from pipeline.checkpoint.foreign import listed
from pipeline.checkpoint.weight_files import read_weights
from pipeline.errors import UserError

log = logging.getLogger(__name__)

_COMPILED = "_orig_mod."
"""What torch.compile puts into names, anywhere."""
_WRAPPERS = ("model.", "module.", "net.")
"""What modules that only wrap another one call it."""
_SHOWN = 12


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a fit starts from, in JSON's types.

    Attributes:
        url: Of the file, as `pipeline.checkpoint.weight_files.locate_weights` returns it.
        sha256: Its digest, None where no run has committed it.
        weights_only: Whether to refuse a file that would execute pickled code.
        allowed: Patterns of names that need not fit, as `head.*`, separated by commas.
    """

    url: str
    sha256: str | None = None
    weights_only: bool = True
    allowed: str | None = None

    def check(self) -> None:
        """Refuse what is no file of weights, before anything is built.

        Raises:
            UserError: It cannot be loaded, or holds none.
            StorageAway: Its storage does not answer.
        """
        with read_weights(self.url, self.sha256, self.weights_only):
            pass

    def load_into(self, module: nn.Module) -> None:
        """Give a model the weights, and log what it got and what not.

        Raises:
            UserError: Something is missing, left over or of another shape, and is not allowed to be; all of it at once.
            StorageAway: The storage does not answer.
        """
        with read_weights(self.url, self.sha256, self.weights_only) as theirs:
            loaded = _load(theirs, module)
        strict = getattr(module, "strict_loading", True)
        problems = [*loaded.problems(f"weights={self.url!r}", _patterns(self.allowed), strict)]
        if problems:
            raise UserError(*problems)
        for line in loaded.lines(self.url):
            log.info("%s", line)


@dataclass(frozen=True)
class _Loaded:
    """What a model got of a file's tensors, by the model's names.

    Attributes:
        taken: How many of the model's tensors came from the file.
        total: How many the model has.
        renamed: How the file's names were made the model's, "" if they were not.
        casts: How many tensors changed their type, by `old -> new`.
        missing: Those that the file does not have.
        unexpected: Those that the model does not have.
        misfits: Why tensors of the same name differ.
    """

    taken: int
    total: int
    renamed: str
    casts: Mapping[str, int]
    missing: Collection[str]
    unexpected: Collection[str]
    misfits: Mapping[str, str]

    def problems(self, name: str, allowed: Collection[str], strict: bool) -> Iterator[str]:
        """Yield what does not fit and is not allowed to."""
        if not self.taken:
            file, model = [*self.misfits.values(), *self.unexpected], [*self.misfits, *self.missing]
            yield (
                f"{name} fits no tensor of the model. The file has {listed(file)}; the model has {listed(model)}. "
                "Give the weights of the same model"
            )
            return
        found = {"lacks": self.missing, "also has": self.unexpected} if strict else {}
        bad = {
            what: [each for each in names if not any(fnmatchcase(each, pattern) for pattern in allowed)]
            for what, names in {**found, "has another shape or type of": self.misfits}.items()
        }
        needed = ",".join([*allowed, *_covering([each for names in bad.values() for each in names])])
        for what, names in bad.items():
            if names:
                yield (
                    f"{name} {what} {listed([self.misfits.get(each, each) for each in names])}. Give the weights of "
                    f"the same model; if it is meant to differ there, --weights_allow '{needed}' starts without them"
                )

    def lines(self, url: str) -> Iterator[str]:
        """Yield what to log."""
        casts = "".join(f"; {count} cast {how}" for how, count in self.casts.items())
        yield f"weights: {self.taken} of the model's {self.total} tensors taken from {url}{self.renamed}{casts}"
        if self.missing:
            yield f"weights: not in the file, so as the model initialized them: {listed(self.missing)}"
        if self.misfits:
            yield f"weights: of another form, so as the model initialized them: {listed(self.misfits.values())}"
        if self.unexpected:
            yield f"weights: left out, since the model does not have them: {listed(self.unexpected)}"


def _load(theirs: Mapping[str, Tensor], module: nn.Module) -> _Loaded:
    """Load those tensors into a model that fit it by name, shape and kind of number."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state: dict[str, Any] = module.state_dict()
    own = {**parameters, **state}
    names, renamed = _match(theirs, own)
    misfits = {
        ours: f"{ours} ({_form(theirs[name])} in the file, {_form(own[ours])} in the model)"
        for name, ours in names.items()
        if ours in own and not _fits(theirs[name], own[ours])
    }
    chosen: dict[str, Any] = OrderedDict((ours, theirs[name]) for name, ours in names.items() if ours not in misfits)
    if not renamed and hasattr(theirs, "_metadata"):  # by which modules read what an older version of them saved
        chosen._metadata = theirs._metadata  # type: ignore[attr-defined]
    casts = Counter(
        f"{value.dtype} -> {own[name].dtype}".replace("torch.", "")
        for name, value in chosen.items()
        if isinstance(value, Tensor) and isinstance(own.get(name), Tensor) and value.dtype != own[name].dtype
    )
    try:
        answer: Any = module.load_state_dict(chosen, strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the model: {' '.join(str(error).split())}") from error
    # A module's own load_state_dict may return nothing.
    missing, unexpected = answer or (state.keys() - chosen.keys(), chosen.keys() - own.keys())
    tied = {id(parameters[name]) for name in chosen if name in parameters}
    return _Loaded(
        taken=len(chosen) - len(unexpected),
        total=len(state),
        renamed=renamed,
        casts=casts,
        missing=[name for name in missing if name not in misfits and id(parameters.get(name)) not in tied],
        unexpected=list(unexpected),
        misfits=misfits,
    )


def _match(theirs: Mapping[str, Tensor], own: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the model's name of each name in a file, and how they differ, in words.

    torch.compile's prefix is ignored. Another prefix is taken off where all names have it or it only wraps a module,
    and one is put on where the model has it, if more tensors fit then, and more than half of the file's.
    """
    plain = {name.replace(_COMPILED, ""): name for name in own}
    file = {name: name.replace(_COMPILED, "") for name in theirs}

    def renamed(old: str, new: str) -> dict[str, str]:
        found = {name: _rename(each, old, new) for name, each in file.items()}
        return {name: plain.get(each, each) for name, each in found.items()}

    best, most = {tuple(renamed("", "").items()): ("", "")}, 0
    for old in ("", *_prefixes(file.values())):
        if old in ("", *_WRAPPERS) or all(each.startswith(old) for each in file.values()):
            for new in ("", *_prefixes(plain)):
                names = renamed(old, new)
                count = sum(ours in own and _fits(theirs[name], own[ours]) for name, ours in names.items())
                if old == new:
                    most = max(most, count)
                elif count > max(most, len(file) / 2):
                    best, most = {tuple(names.items()): (old, new)}, count
                elif count == most and ("", "") not in best.values():
                    best.setdefault(tuple(names.items()), (old, new))
    # Where one part of the model is as good as another (a student and a teacher), it is not for us to choose.
    old, new = next(iter(best.values())) if len(best) == 1 else ("", "")
    return renamed(old, new), f", names {old}* taken as {new}*" if old or new else ""


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return what names begin with, up to two levels."""
    parts = (name.split(".") for name in names)
    found = (".".join(each[:level]) + "." for each in parts for level in (1, 2) if len(each) > level)
    return list(dict.fromkeys(found))


def _rename(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def _fits(theirs: Any, own: Any) -> bool:
    """Return whether one value can be loaded into another without changing what it means."""
    if not isinstance(theirs, Tensor) or not isinstance(own, Tensor) or nn.parameter.is_lazy(own):
        return True
    kinds = [(each.is_floating_point(), each.is_complex(), each.is_quantized) for each in (theirs, own)]
    return theirs.shape == own.shape and kinds[0] == kinds[1]


def _form(value: Any) -> str:
    shape = "x".join(map(str, value.shape)) or "scalar"
    return f"{shape} {value.dtype}".replace("torch.", "")


def _patterns(allowed: str | None) -> list[str]:
    return [pattern.strip() for pattern in (allowed or "").split(",") if pattern.strip()]


def _covering(names: Collection[str]) -> list[str]:
    """Return few patterns that cover names: of modules, else of the model's parts, else of everything."""
    for level in (-1, 1):
        found = dict.fromkeys(".".join([*each.split(".")[:level], "*"]) if "." in each else each for each in names)
        if len(found) <= _SHOWN:
            return list(found)
    return ["*"]
