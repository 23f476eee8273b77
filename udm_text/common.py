"""Small things that every room needs: names, places, whole numbers, bars, a model's mode, whole files and folders."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import numbers
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

Part = TypeVar("Part")


def choices(names: Collection[str]) -> str:
    """'a', 'b' or 'c': for error messages."""
    *rest, last = [repr(name) for name in names]
    return f"{', '.join(rest)} or {last}" if rest else last


def is_whole(value: Any, least: int | None = None) -> bool:
    """Whether a value is an integer of 64 bits (no bool), and at least so much."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and (-(2**63) if least is None else least) <= int(value) < 2**63


def check_whole(least: int, **values: Any) -> None:
    """Raises ValueError for the first that is no integer of 64 bits that is at least so much, naming it."""
    for name, value in values.items():
        if not is_whole(value):
            raise ValueError(f"{name} must be an integer of 64 bits, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def takes(function: Any, arguments: int) -> bool:
    """Whether a value can be called with so many arguments; one that does not say what it takes is believed."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:  # a function of C without a signature
        return True
    return True


def share_in_words(share: float, error: float | None, count: int | None, form: str = ".1%", sign: str = "+-") -> str:
    """A share and one standard error: "12.3% +- 1.2%". Of none or all of them, whose standard error of 0 says nothing,
    how far the share of the whole may be off: "0 of 40 (at most 7.2% at 95 %)".

    That limit is the share of which so many independent draws would give none with a probability of 5 %.

    Args:
        count: of how many it is a share; None: not known, and a share of none or all then has no error. form, sign: of
            the numbers, and what stands between them.
    """
    if share in (0.0, 1.0) and count:
        limit = 1.0 - 0.05 ** (1.0 / count)
        most = f"at most {limit:{form}}" if share == 0.0 else f"at least {1.0 - limit:{form}}"
        return f"{round(share * count)} of {count} ({most} at 95 %)"
    if share in (0.0, 1.0):
        return format(share, form)
    return f"{share:{form}} {sign} {'unknown' if error is None else format(error, form)}"


def is_connection_error(error: BaseException) -> bool:
    """Whether an error, of whichever library carries it, is that the connection to the Hub broke."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")


def near_path(name: str, files: bool = False) -> str | None:
    """The folder here, or with `files` the file, whose path is nearest to one that is not there; None: none is near."""
    parts = Path(name).expanduser().parts
    for i, part in enumerate(parts):
        parent = Path(*parts[:i])
        if (parent / part).is_dir():
            continue
        try:
            beside = [path.name for path in parent.iterdir() if not path.name.startswith(".")]
        except OSError:
            return None
        for close in difflib.get_close_matches(part, beside, n=3):
            if (found := parent.joinpath(close, *parts[i + 1 :])).is_dir() or (files and found.is_file()):
                return str(found)
        return None
    return None


def reads_as_path(name: str) -> bool:
    """Whether a name is a path and none on the Hub: it begins with ".", "/", "~" or "runs/", or has several slashes."""
    return name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1


def refuse_missing(name: str, what: str = "model directory") -> None:
    """Raises FileNotFoundError for what reads as a path and is not there; it names one that is near."""
    if reads_as_path(name) and not Path(name).exists():
        raise FileNotFoundError(f"there is no {what} {name}{did_you_mean(name)}")


def did_you_mean(name: str, files: bool = False) -> str:
    """The end of a message on a path that is not there: the one that is near (`near_path`), if any."""
    near = near_path(name, files)
    return "" if near is None else f"; did you mean {near}?"


def check_place(name: str, what: str = "model directory", revision: str | None = None, kind: str = "model") -> None:
    """Raises OSError where no model or data set is to be had at a place, before anything is loaded from it.

    A path is looked up (`refuse_missing`), and a name on the Hub of which nothing is cached asked for once, with ten
    seconds of patience (HF_HUB_ETAG_TIMEOUT, where that is more): loading
    would ask for each of several files six times, for most of a minute, before it said that the Hub is not there. What
    the Hub answers is left to the loading, but that it has none where a folder here has nearly that name.

    Args:
        name: a path, or a name on the Hub. what: of a path, in words. revision: on the Hub. kind: "model" or "dataset".
    """
    if Path(name).exists():
        return
    refuse_missing(name, what)
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    files = {"model": ("config.json", "tokenizer_config.json", "tokenizer.json"), "dataset": ("README.md",)}[kind]
    try:
        if any(try_to_load_from_cache(name, file, revision=revision, repo_type=kind) for file in files):
            return
        patience = max(10.0, constants.HF_HUB_ETAG_TIMEOUT)
        get_hf_file_metadata(hf_hub_url(name, files[0], revision=revision, repo_type=kind), timeout=patience)
    except RepositoryNotFoundError as error:
        if said := did_you_mean(name):
            raise FileNotFoundError(
                f"there is no {what} {name} here, and no {kind} of that name on the Hub{said}"
            ) from error
    except (HfHubHTTPError, HFValidationError):
        return
    except Exception as error:
        if not (is_connection_error(error) or isinstance(error, OSError)):
            raise
        raise OSError(
            f"there is no {what} {name} here, and the Hub could not be asked for a {kind} of that name: "
            f"{' '.join(str(error).split())}{did_you_mean(name)}"
        ) from error


Bar = Callable[[Collection[Any], str], Iterable[Any]]
"""What shows how far a loop is: its parts, and what they do -> the parts."""

_watch: ContextVar[tuple[Bar | None, Callable[[], None] | None]] = ContextVar("_watch", default=(None, None))
"""Of `watched`: the bar that is shown, and what is called between the parts of a loop."""


@contextmanager
def watching(bar: Bar | None = None, between: Callable[[], None] | None = None) -> Iterator[None]:
    """Within it, long loops of measurements (`watched`) show a bar, and call `between` before each part.

    between: may raise, which ends the measurement.
    """
    token = _watch.set((bar, between))
    try:
        yield
    finally:
        _watch.reset(token)


def watched(parts: Collection[Part], what: str) -> Iterator[Part]:
    """The parts of a long loop, one by one, as `watching` has it. what: what they do, in a word or two."""
    bar, between = _watch.get()
    for part in parts if bar is None else bar(parts, what):
        if between is not None:
            between()
        yield part


_mode_lock = threading.Lock()
_users: dict[Any, tuple[int, bool]] = {}
"""Modules that are in evaluation mode within `eval_mode`: how many blocks want that, and their mode before."""


CONFIG_EXTRAS = frozenset(
    "auto_map _name_or_path name_or_path torch_dtype attn_implementation experts_implementation num_labels "
    "_commit_hash output_attentions model_type tie_word_embeddings is_decoder use_cache quantization_config "
    "distributed_config".split()
)
"""What transformers itself puts into a config besides its declared fields."""


def refuse_unknown(given: Collection[str], known: Collection[str], what: str) -> None:
    """ValueError for a field that the config `what` does not have. known: those of any config of transformers."""
    if unknown := sorted(set(given) - set(known) - CONFIG_EXTRAS):
        raise ValueError(f"unknown argument {unknown[0]!r} of {what}")


def refuse_newer(version: int, known: int) -> None:
    """ValueError for the udm_version of a config that a newer package wrote; this one reads up to `known`."""
    if version > known:
        raise ValueError(
            f"this model was written by a newer version (udm_version {version}, this package reads up to {known}); "
            "upgrade with `pip install -U udm-text`"
        )


def load_exactly(load: Callable[..., Any], name: Any, *args: Any, **kwargs: Any) -> Any:
    """load(name, ...), a `from_pretrained` of transformers; ValueError where weights are missing or left over."""
    wanted = kwargs.pop("output_loading_info", False)
    model, info = load(name, *args, output_loading_info=True, **kwargs)
    for kind in ("missing_keys", "unexpected_keys"):
        if info.get(kind):
            raise ValueError(f"{name}: {kind.replace('_', ' ')} {sorted(info[kind])[:3]}")
    return (model, info) if wanted else model


def load_int8(kind: Any, name: str, **how: Any) -> Any:
    """A model of the class `kind`, the weights of its linear maps as int8: each row whole numbers and one scale.

    torchao's, by way of transformers; what is no linear map stays as it is. how: of `from_pretrained`.

    Raises:
        ImportError: without torchao.
        ValueError: where the model is quantised already.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError:
        raise ImportError("int8 weights need torchao: pip install '.[int8]' in the folder of udm-text") from None
    from transformers import TorchAoConfig

    if "quantization_config" in kind.config_class.get_config_dict(name)[0]:
        raise ValueError(f"{name} is quantised already: give the model that it was made of")
    return kind.from_pretrained(name, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), **how)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """The model in evaluation mode, each of its modules put back as it was, also after an error.

    Several threads may be within it with one model: the mode is put back when the last of them leaves. Weights that
    FSDP2 has gathered for a forward, and leaves whole behind it, are spread out again: an optimiser that is made of the
    whole ones would train what nobody reads.
    """
    modules = list(model.modules())
    with _mode_lock:
        for module in modules:
            users, training = _users.get(module, (0, module.training))
            _users[module] = users + 1, training
        model.eval()
    try:
        yield
    finally:
        with _mode_lock:
            for module in modules:
                users, training = _users.pop(module)
                if users > 1:
                    _users[module] = users - 1, training
                    continue
                if training:
                    module.training = True
                if hasattr(module, "reshard"):
                    module.reshard()


@contextmanager
def written_whole(path: str | Path, keep: bool = True) -> Iterator[Path]:
    """A file to write, beside `path`, which it takes the place of when the block ends without an error.

    keep: False only tries whether such a file can be made, and leaves `path` as it is.

    A reader sees the old file or the new one, never a part. The file is new (O_EXCL), so nothing that lies there under
    its name is followed or overwritten; after an error it is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
        if keep:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_new_folder(directory: str | Path) -> Path:
    """The folder, if it can be written: empty or not there yet. Raises OSError before anything is computed for it."""
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} is not an empty folder: give another; nothing was written")
    above = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise NotADirectoryError(f"{directory} cannot be written, since {above} is no folder that may be written to")
    return directory


@contextmanager
def staged_folder(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`, which becomes it as a whole when the block ends without an error.

    Two processes that write into one folder each have a folder of their own; the first to be ready has it, and the
    other raises FileExistsError. After an error nothing is left.
    """
    folder = directory.with_name(f".{directory.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    folder.mkdir(parents=True)
    try:
        try:
            yield folder
        except SafetensorError as error:  # as a full disk is to it
            raise OSError(f"{directory} could not be written ({error}): nothing is left of it") from error
        try:
            if directory.is_dir() and os.name == "nt":  # elsewhere an empty folder gives way by itself
                directory.rmdir()
            folder.rename(directory)
        except OSError as error:
            if directory.is_dir() and any(directory.iterdir()):
                raise FileExistsError(
                    f"{directory} was written by another process meanwhile, and is left as it is: give another folder"
                ) from error
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: null for NaN and infinity, at any depth."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, **how: Any) -> str:
    """Strict JSON: null for NaN and infinity, and what JSON does not know as its string. how: of `json.dumps`."""
    return json.dumps(finite(value), default=str, allow_nan=False, **how)


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds; raises ValueError, naming the file, where it holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {json.dumps(value)[:40]}")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Writes a file of strict JSON (`to_json`), whole or not at all."""
    with written_whole(path) as part:
        part.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")
