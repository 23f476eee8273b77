"""Sharing: a model as one commit on the Hub, with or without its code; its backbone as transformers has it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    eval_result_entries_to_yaml,
    get_token,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import get_session, validate_repo_id, yaml_dump
from safetensors import safe_open
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .card import draw_prices, eval_entries, example_texts, is_edited, make_card, price_rows, write_samples
from .common import check_new_folder, is_connection_error, load_int8, staged_folder, write_json
from .decoders import auto_class, tokenizer_for
from .framing import load_tokenizer
from .run_report import public, read_report

logger = logging.get_logger(__name__)

CODE = ("configuration_udm", "modeling_udm", "pipeline_udm")
"""The modules that a repository names; what they import by relative imports goes along."""

_CODE_FIELDS = {
    "auto_map": {
        "AutoConfig": "configuration_udm.UDMConfig",
        "AutoModelForMaskedLM": "modeling_udm.UDMForMaskedGeneration",
    },
    "custom_pipelines": {
        "udm-generation": {
            "impl": "pipeline_udm.UDMGenerationPipeline",
            "pt": ["AutoModelForMaskedLM"],
            "type": "text",
        }
    },
}
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILE = "tokenizer_config.json"
_AGAIN = "the push is not confirmed; to push again is safe"


class PushError(OSError):
    """A push that was not confirmed. What it says is one sentence: what happened, and what would help."""


def push(
    model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    source: str | Path | None = None,
    include_code: bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    tags: list[str] | None = None,
    max_shard_size: int | str = "50GB",
    token: bool | str | None = None,
    timeout: float = 120.0,
) -> CommitInfo:
    """Publishes a model in one commit, and returns when the Hub was seen to hold every file of it.

    Args:
        model: `UDMForMaskedGeneration`. repo_id: `user/name`; made if it is not there.
        tokenizer: None takes the one beside the weights the model was loaded from.
        source: directory or repository with the `report.json` and `loss.png` of these weights; None: where the model
            was loaded from. They are used only if the weights there are those of the model, bit for bit.
        include_code: whether the code goes along, so that the repository works without the package
            (`trust_remote_code=True`); None: where it came with the model.
        private: of a new repository. revision: branch, made if it is not there; None: `main`.
        license: identifier of the licence of the weights, as `apache-2.0`.
        base_model: name on the Hub of the model that the training started from, for the card; None: what the
            `report.json` says, which does not know that of a folder that came without its name.
        tags, max_shard_size, commit_message, commit_description, create_pr, token: as in transformers.
        timeout: seconds of silence after which the Hub counts as gone.

    A card that a person edited on the Hub is kept. Weights and code of an earlier push that are no longer wanted are
    deleted in the same commit; other files are left alone.

    Raises:
        PushError: the Hub refused, was gone or holds something else; nothing half-done is visible.
        ValueError: for an argument that cannot work, before anything is sent.
    """
    validate_repo_id(repo_id)
    if token is False or (token in (None, True) and get_token() is None):
        raise PushError("no token was found: log in with `hf auth login`, set HF_TOKEN, or give token=...")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, _in_one_sentence(repo_id, api), _patience(timeout):
        made = Path(folder)
        write_repository(
            made,
            model,
            repo_id,
            tokenizer=tokenizer,
            source=source,
            include_code=include_code,
            license=license,
            base_model=base_model,
            tags=tags,
            max_shard_size=max_shard_size,
        )
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise PushError(
                f"{repo_id} is there already and is public, which a push does not change: make it private in its "
                "settings, or push to a new name; nothing was sent"
            )
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        if "README.md" in there and is_edited(_read_card(api, repo_id, revision)):
            logger.warning(f"the card of {repo_id} was edited by a person and is kept; delete it to get a new one")
            (made / "README.md").unlink()
        files = {str(path.relative_to(made).as_posix()): path for path in made.rglob("*") if path.is_file()}
        stale = sorted(name for name in there if name not in files and _is_ours(name))
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
        _confirm(api, repo_id, commit.oid, made, stale)
    return commit


def write_folder(model: Any, repo_id: str, directory: str | Path, **how: Any) -> list[str]:
    """Writes the files that `push` would send, card included, into a new folder; returns their names. Sends nothing.

    A push keeps a card that a person edited on the Hub, which is not asked here.

    Args:
        repo_id: the name that the card shows. directory: not there yet, or empty. how: tokenizer, source, include_code,
            license, base_model, tags and max_shard_size of `push`.

    Raises:
        ValueError: for an argument that cannot work. FileExistsError: the directory is not empty.
    """
    validate_repo_id(repo_id)
    directory = check_new_folder(directory)
    with staged_folder(directory) as folder:
        write_repository(folder, model, repo_id, **how)
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def write_repository(
    directory: Path,
    model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    source: str | Path | None = None,
    include_code: bool | None = None,
    license: str | None = None,
    base_model: str | None = None,
    tags: list[str] | None = None,
    max_shard_size: int | str = "50GB",
) -> None:
    """Writes all that `push` sends into an empty directory; for the arguments see there."""
    source = str(source or model.config.name_or_path or "")
    if tokenizer is None:
        tokenizer = _tokenizer_of(source)
        tokenizer = tokenizer and tokenizer_for(model.config, tokenizer)
    if tokenizer is None:
        logger.warning("the model is pushed without a tokenizer: give tokenizer=... to make it usable by its name")
    with_code = model.is_remote_code() if include_code is None else include_code
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    write_code(directory) if with_code else _drop_code(directory)

    published = _published(model, source)
    report = None
    if (stored := published.get("report.json")) is not None:
        report = read_report(stored) | ({} if base_model is None else {"base_model": base_model})
    images = ["loss.png"] if "loss.png" in published else []
    if images:
        shutil.copyfile(published["loss.png"], directory / "loss.png")
    length, rows = price_rows(model.config, report or {})
    if rows and draw_prices(length, rows, directory / "prices.png"):
        images.append("prices.png")
    if report is not None:
        write_json(directory / "report.json", public(report))
        entries = eval_entries(report)
        if entries:
            (directory / ".eval_results").mkdir()
            text = yaml_dump(eval_result_entries_to_yaml(entries))
            (directory / ".eval_results/udm-text.yaml").write_text(text, encoding="utf-8")
    card = make_card(
        model,
        repo_id,
        report=report,
        samples=write_samples(model, tokenizer, report or {}),
        examples=example_texts(model, tokenizer, report or {}),
        images=tuple(images),
        with_code=with_code,
        licence=license,
        base=base_model,
        tags=[*(model.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])],
    )
    (directory / "README.md").write_text(card, encoding="utf-8", newline="")


def write_code(directory: str | Path) -> None:
    """Puts the code of model and pipeline beside a saved model, and names it in its config.json."""
    for path in _modules():
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.name}, which the model needs, was not downloaded with it: load it by pipeline("
                "'udm-generation', model=..., trust_remote_code=True) first, which reads all of its code"
            )
        shutil.copyfile(path, Path(directory) / path.name)
    _name_code(Path(directory), _CODE_FIELDS)


def _modules() -> list[Path]:
    """The files of the code that goes along: those a repository names and, of them, all relative imports."""
    named = [Path(__file__).with_name(f"{module}.py") for module in CODE]
    found = (get_relative_import_files(module) for module in named if module.is_file())
    return sorted({*named, *(Path(path) for paths in found for path in paths)})


def _drop_code(directory: Path) -> None:
    for path in directory.glob("*.py"):
        path.unlink()
    _name_code(directory, {})


def _name_code(directory: Path, fields: dict[str, Any]) -> None:
    """Puts these in place of the fields of config.json that name code; written as transformers writes it."""
    config = directory / "config.json"
    stored = json.loads(config.read_text(encoding="utf-8"))
    kept = {name: value for name, value in stored.items() if name not in _CODE_FIELDS}
    config.write_text(json.dumps(kept | fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_backbone(model: Any, tokenizer: Any, directory: str | Path) -> None:
    """Writes the masked LM inside a model, with its tokenizer, as transformers itself would: `fill-mask` works on it.

    A decoder stays bidirectional: AutoModelForCausalLM loads it with `is_causal=False`, as its config.json says.

    Raises:
        ValueError: where the backbone alone is not the model: it is conditioned on time, or was changed so that
            transformers would not load all of it; or weights of it are not finite; or the tokenizer has no mask token.
        FileExistsError: the directory is not empty.
    """
    directory = check_new_folder(directory)
    if model.gap_head is not None:
        raise ValueError(
            f"a model of process {model.config.process!r} cannot be exported as a plain masked LM: the scores of its "
            "gaps would be lost; `model.backbone.save_pretrained(...)` writes the rest"
        )
    if model.config.writes_rows:
        raise ValueError(
            "a model with predictor 'autoregressive' is an encoder-decoder and no masked LM; "
            "`model.backbone.save_pretrained(...)` writes it as transformers itself would"
        )
    time = model.time_embedding
    if time is not None and any(bool(parameter.any()) for parameter in time.output.parameters()):
        raise ValueError(
            "this model is conditioned on time and cannot be exported as a plain masked LM: the embedding of t/l that "
            "it adds to its input would be lost, and with it what it predicts; `model.backbone.save_pretrained(...)` "
            "writes the rest"
        )
    broken = [name for name, weight in model.backbone.named_parameters() if not bool(weight.isfinite().all())]
    if broken:
        raise ValueError(f"{broken[0]} of the backbone holds NaN or infinity: what it predicts would be none")
    if tokenizer is None or tokenizer.mask_token is None:
        raise ValueError("fill-mask needs a tokenizer with a mask token, and this model has none")
    with staged_folder(directory) as folder:
        model.backbone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        load = auto_class(model.config.text_config).from_pretrained
        _, info = load(folder, output_loading_info=True, trust_remote_code=False)
        changed = sorted(
            {*info["missing_keys"], *info["unexpected_keys"], *(key[0] for key in info["mismatched_keys"])}
        )
        if changed:
            raise ValueError(
                f"the backbone was changed and is no plain {type(model.backbone).__name__} any more: "
                f"{', '.join(changed[:4])} would be lost; merge adapters into it first"
            )


def save_int8(path: str, tokenizer: Any, directory: str | Path, trust_remote_code: bool = False) -> Any:
    """Writes a model of ours with the weights of its linear maps as int8, and its tokenizer; returns the model so read.

    Each row of a matrix is stored as whole numbers of 8 bits and one scale, and multiplied as such; embeddings, the
    last map and all that is no matrix stay as they are (weights only, torchao by way of transformers). The folder is
    read by `from_pretrained` and the pipeline where torchao is installed, without any argument; it is safetensors.

    Raises:
        ImportError: without torchao.
        ValueError: where the model is quantised already.
        FileExistsError: the directory is not empty.
    """
    from .modeling_udm import UDMForMaskedGeneration

    directory = check_new_folder(directory)
    model = load_int8(UDMForMaskedGeneration, path, trust_remote_code=trust_remote_code)
    with staged_folder(directory) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return model


def _tokenizer_of(source: str) -> Any:
    return load_tokenizer(source) if find_file(source, _TOKENIZER_FILE) else None


def find_file(source: str, name: str) -> Path | None:
    """A file of a model's directory or repository, or None."""
    if not source:
        return None
    try:
        found = cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # the place is gone
        return None
    return None if found is None else Path(found)


def _published(model: Any, source: str) -> dict[str, Path]:
    """report.json and loss.png of the place a model was loaded from, if the weights there are still its own."""
    found = {name: path for name in ("report.json", "loss.png") if (path := find_file(source, name)) is not None}
    if found and not _same_weights(model, source):
        logger.warning(f"the weights are not those of {source} any more: its figures are left out of the card")
        return {}
    return found


def _same_weights(model: Any, source: str) -> bool:
    state = model.state_dict()
    single, index = find_file(source, _WEIGHTS), find_file(source, _INDEX)
    if single is not None:
        names = [_WEIGHTS]
    elif index is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        return False
    seen = set(model.all_tied_weights_keys)
    for name in names:
        path = find_file(source, name)
        if path is None:
            return False
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # the file is no dictionary
                stored = file.get_tensor(key)
                if key not in state or state[key].dtype != stored.dtype or not torch.equal(state[key].cpu(), stored):
                    return False
                seen.add(key)
    return {name for name, _ in model.named_parameters()} <= seen


def _is_ours(name: str) -> bool:
    """Whether a file that an earlier push may have left behind would contradict or mislead beside the new ones."""
    if "/" in name:
        return name == ".eval_results/udm-text.yaml"
    weights = name.startswith(("model", "pytorch_model")) and name.endswith((".safetensors", ".index.json", ".bin"))
    code = name in {path.name for path in _modules()}
    return weights or code or name in ("loss.png", "prices.png", "report.json")


def _read_card(api: HfApi, repo_id: str, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, "README.md", revision=revision, local_dir=folder)
        return Path(path).read_text(encoding="utf-8")


def _confirm(api: HfApi, repo_id: str, commit: str, made: Path, stale: list[str]) -> None:
    """Raises PushError unless the commit holds every file of a folder, by its hash, and none of the stale ones."""
    seen = api.verify_repo_checksums(repo_id, revision=commit, local_dir=made)
    for name in (*seen.extra_paths, *(found["path"] for found in seen.mismatches)):  # extra: here, and not there
        raise PushError(f"the Hub does not hold {name} of {repo_id} as it was sent: {_AGAIN}")
    for name in stale:
        if name in seen.missing_paths:
            raise PushError(f"the Hub still holds {name} of {repo_id}, which was deleted: {_AGAIN}")


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """The Hub's client waits without end; within this it gives up after so many seconds of silence."""
    if not seconds > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, got {seconds}")
    client = get_session()
    before = client.timeout
    client.timeout = seconds
    try:
        yield
    finally:
        client.timeout = before


@contextmanager
def _in_one_sentence(repo_id: str, api: HfApi) -> Iterator[None]:
    """Every failure of the Hub or the line to it leaves as a PushError of one sentence."""
    try:
        yield
    except PushError:
        raise
    except Exception as error:
        said = _sentence(error, repo_id, api.endpoint)
        if said is None:
            raise
        raise PushError(said) from error


def _sentence(error: BaseException, repo_id: str, endpoint: str) -> str | None:
    """What to say of an error of the Hub's client or of what caused it; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, repo_id)
        if is_connection_error(cause):
            return f"the connection to {endpoint} broke ({type(cause).__name__}) while pushing {repo_id}: {_AGAIN}"
        cause = cause.__cause__ or cause.__context__
    return None


def _refusal(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub does not know the token it was given for {repo_id} (401): log in again with `hf auth login`"
    if status == 403:
        return f"the token may not write to {repo_id} (403): it needs the right to write, in a namespace of its owner"
    if isinstance(error, EntryNotFoundError) or status == 404:
        return f"the Hub has no {repo_id}, or no such branch of it, for this token (404)"
    if status == 429:
        return f"the Hub asks to wait before more is pushed to {repo_id} (429): {_AGAIN}"
    said = " ".join((error.server_message or "").split())
    return f"the Hub answered {status}{f' ({said})' if said else ''} while pushing {repo_id}: {_AGAIN}"
