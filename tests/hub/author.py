"""Run by a process of its own: pushes of every kind, and through every fault of the server."""

import contextlib
import io
import json
import os
import shlex
import sys
import threading
import traceback
import types
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub.utils._http as http
import torch
from huggingface_hub import HfApi, constants
from transformers import pipeline

import udm_text
from tests.hub.server import READER, STRANGER, WRITER
from udm_text import hub
from udm_text.cli import main
from udm_text.hub import PushError

given = json.loads(sys.argv[1])
http.time = types.SimpleNamespace(sleep=lambda seconds: None)  # the client waits 23 s before it gives up
api = HfApi(token=WRITER)
found: dict = {}


def ask(path, value=None):
    data = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(constants.ENDPOINT + path, data) as answer:
        return json.load(answer)


def outcome(call):
    """The commit, or what went wrong."""
    try:
        return {"oid": call().oid}
    except PushError as error:
        return {"error": str(error)}


def load(name=given["model"]):
    return udm_text.UDMForMaskedGeneration.from_pretrained(name)


def command(*words):
    """What the command prints and how it ends."""
    sys.argv = ["udm", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = traceback.format_exc()
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


# The commands of the README, with nothing in the cache.
os.chdir(given["place"])
os.environ["HF_TOKEN"] = WRITER
found["readme"] = [command(*shlex.split(line)[1:]) for line in given["commands"]]
del os.environ["HF_TOKEN"]
found["evaluated"] = [
    command("evaluate", "user/name", *more, "--json")
    for more in (["--data", "shapes.txt", "--split", "validation"], ["--data", "shapes.txt", "--draws", "1"], [])
]

# Of a pipeline: private, twice the same, on a branch; then with other weights.
pipe = pipeline("udm-generation", model=given["model"])
found["private"] = pipe.push_to_hub("user/private", private=True, token=WRITER).oid
first = pipe.push_to_hub("user/pinned", token=WRITER).oid
again = pipe.push_to_hub("user/pinned", token=WRITER).oid
model = pipe.model
with torch.no_grad():
    model.get_input_embeddings().weight += 0.5
second = model.push_to_hub("user/pinned", token=WRITER, commit_message="other weights", tags=["shapes"]).oid
branch = pipe.push_to_hub("user/pinned", token=WRITER, revision="draft", commit_message="a draft").oid
found["pinned"] = {"first": first, "again": again, "second": second, "draft": branch}
proposed = model.push_to_hub("user/pinned", token=STRANGER, create_pr=True, commit_message="a proposal", license="mit")
found["proposed"] = [proposed.oid, proposed.pr_num]
found["history"] = ask("/_state/user/pinned")["branches"]

# A card that a person edited is kept; code that is no longer wanted goes, other files stay.
model = load()
model.push_to_hub("user/edited", token=WRITER, include_code=True)
edited = "---\nlicense: mit\n---\n\n# Mine\n"
for path, text in (("README.md", edited), ("notes.txt", "mine")):
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id="user/edited")
model.push_to_hub("user/edited", token=WRITER)

# Two at once into one repository, each with weights of its own.
pair = [load(), load()]
with torch.no_grad():
    for number, one in enumerate(pair):
        one.get_input_embeddings().weight += 2.0 + number
together = threading.Barrier(2)
folders = []


def noted(directory, *args, **how):
    folders.append(str(directory))
    together.wait(timeout=60)
    return write_repository(directory, *args, **how)


write_repository, hub.write_repository = hub.write_repository, noted
with ThreadPoolExecutor(2) as pool:
    pushed = list(pool.map(lambda one: outcome(lambda: hub.push(one, "user/both", token=WRITER)), pair))
hub.write_repository = write_repository
found["both"] = {"pushed": pushed, "folders": folders}

# Who may not.
found["refused"] = {
    "nobody": outcome(lambda: model.push_to_hub("user/new")),
    "unknown": outcome(lambda: model.push_to_hub("user/new", token="hf_unknown")),
    "reader": outcome(lambda: model.push_to_hub("user/pinned", token=READER)),
    "stranger": outcome(lambda: model.push_to_hub("user/new", token=STRANGER)),
    "public": outcome(lambda: model.push_to_hub("user/pinned", token=WRITER, private=True)),
}

# Every fault of the server; then the same push again.
FAULTS = {
    "create": ("POST /api/repos/create", "status", 500),
    "token": ("POST /api/repos/create", "status", 401),
    "preupload": ("POST .*/preupload/", "status", 503),
    "upload": ("PUT /lfs/", "drop", 100_000),
    "upload-answer": ("PUT /lfs/", "status", 500),
    "commit": ("POST .*/commit/", "status", 500),
    "commit-dropped": ("POST .*/commit/", "drop", 1000),
    "commit-lost": ("POST .*/commit/", "lost", 0),
    "commit-slow": ("POST .*/commit/", "slow", 3),
    "commit-forgets": ("POST .*/commit/", "forget", 0),
    "confirmation": (r"GET .*/tree/\w{40}", "status", 500),
}
found["faults"] = {}
model.config.step_curve = None  # it is of other weights
for number, (name, (where, kind, value)) in enumerate(FAULTS.items()):
    with torch.no_grad():  # weights that the server has not seen yet
        model.get_input_embeddings().weight += 1 + number
    repository = f"user/fault-{name}"
    ask("/_faults", [{"where": where, "kind": kind, "value": value, "times": 99}])
    report = outcome(lambda: model.push_to_hub(repository, token=WRITER, timeout=1))  # noqa: B023
    state = ask(f"/_state/{repository}")
    report |= {"hits": state["hits"], "history": state["branches"].get("main", [])}
    ask("/_faults", [])
    report["repeated"] = outcome(lambda: model.push_to_hub(repository, token=WRITER))  # noqa: B023
    report["sha"] = api.model_info(repository).sha
    report["files"] = api.list_repo_files(repository)
    found["faults"][name] = report
# A single fault is got over without a word.
ask("/_faults", [{"where": "PUT /lfs/", "kind": "drop", "value": 100_000, "times": 1}])
with torch.no_grad():
    model.get_input_embeddings().weight += 1
found["once"] = outcome(lambda: model.push_to_hub("user/once", token=WRITER)) | {
    "hits": ask("/_state/user/once")["hits"]
}


ask("/_faults", [{"where": "POST .*/commit/", "kind": "status", "value": 500, "times": 99}])
found["command-nobody"] = command("push", given["model"], "user/command")
os.environ["HF_TOKEN"] = WRITER
found["command-fault"] = command("push", given["model"], "user/command", "--private")
ask("/_faults", [])
found["command-again"] = command("push", given["model"], "user/command", "--private", "--message", "by command")
found["command-history"] = ask("/_state/user/command")["branches"]
found["command-name"] = command("push", given["model"], "not a name")
found["command-licence"] = command("push", given["model"], "user/command", "--license", "My Own")
found["command-missing"] = command("generate", "user/missing")
found["command-other"] = command("generate", "user/gpt2")
found["command-weightless"] = command("generate", "user/broken-line")
ask("/_faults", [{"where": "HEAD .*/config.json", "kind": "slow", "value": 1.5, "times": 1}])
found["command-slow"] = command("generate", "user/with-code", "-n", "3", "--seed", "0")
ask("/_faults", [{"where": "GET .*/resolve/", "kind": "drop", "value": 10, "times": 99}])
found["command-broken"] = command("generate", "user/dropped-line")
ask("/_faults", [])
print(json.dumps(found))
