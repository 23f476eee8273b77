"""Loading what was pushed, in fresh processes: by name, by revision, from the cache, without the package."""

import json
import sysconfig

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.conftest import CARRIED, INSTALLED, SAMPLES
from tests.hub.server import STRANGER, WRITER


def config_of(model_directory, **fields):
    stored = json.loads((model_directory / "config.json").read_text())
    return json.dumps({**stored, **fields}).encode()


@pytest.fixture(scope="session")
def pinned(hub, model_directory):
    """Two commits and a branch of one repository, by the first weight of their embedding."""
    from safetensors.torch import save

    files = {name: (model_directory / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    files["config.json"] = (model_directory / "config.json").read_bytes()
    weights = load_file(model_directory / "model.safetensors")
    key = next(name for name in weights if name.endswith("word_embeddings.weight"))
    shas = {}
    for name, value in (("first", 1.0), ("second", 2.0)):
        changed = {**weights, key: torch.full_like(weights[key], value)}
        shas[name] = hub.add("user/pinned-twice", files | {"model.safetensors": save(changed, {"format": "pt"})})
    repository = hub.repositories["user/pinned-twice"]
    repository.branches["draft"] = [shas["first"]]
    return shas


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="session")
def reader(hub, commands, pinned, cache, model_directory, run_script, tmp_path_factory):
    """What a process with an empty cache found that loaded everything there is."""
    mine = {name: (model_directory / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    files = hub.repositories["user/name"].files()
    hub.add("user/private-copy", files, private=True)
    hub.add("user/clip", {"config.json": b'{"model_type": "clip_text_model"}'})
    hub.add("user/pickle", {"config.json": mine["config.json"], "pytorch_model.bin": b"pickle"})
    plain = json.dumps(json.loads(mine["config.json"])["text_config"]).encode()
    hub.add("user/pickle-plain", {"config.json": plain, "pytorch_model.bin": b"pickle"})
    newer = config_of(model_directory, udm_version=2, process={"name": "new"}, new_field=[1])
    hub.add("user/newer", {**files, "config.json": newer})
    given = {
        "readme": INSTALLED,
        "model": str(model_directory),
        "samples": SAMPLES,
        "pinned": pinned,
        "token": WRITER,
        "stranger": STRANGER,
        "place": str(tmp_path_factory.mktemp("place")),
    }
    return run_script("reader.py", given, home=cache)


def test_a_repository_loads_by_its_name_and_writes_the_local_texts(reader, local_texts):
    assert reader["texts"] == local_texts
    assert reader["class"] == "udm_text.modeling_udm.UDMForMaskedGeneration"
    assert "model.safetensors" in reader["listed"]


def test_weights_arrive_bit_for_bit_with_the_measured_curve(reader, model_directory):
    assert reader["equal"] and reader["loaded-equal"]
    assert reader["curve"] == json.loads((model_directory / "config.json").read_text())["step_curve"]
    assert reader["optimal"] == 1


def test_where_the_package_is_installed_carried_code_is_not_run_and_asks_no_leave(reader, local_texts):
    *modules, texts = reader["carried"]
    assert modules == ["udm_text.modeling_udm", "udm_text.pipeline_udm"] and texts == local_texts
    assert reader["trusting"] == modules and reader["auto"] == "udm_text.modeling_udm"
    assert not {"auto_map", "custom_pipelines"} & set(reader["saved-config"])


def test_a_pinned_revision_is_what_it_was(reader):
    assert reader["pinned"] == {"first": 1.0, "second": 2.0, "main": 2.0, "branch": 1.0, "command": 1.0}


def test_a_private_repository_loads_for_its_owner_alone(reader, local_texts):
    texts, nobody, stranger = reader["private"]
    assert texts == local_texts
    for kind, typed, said in (nobody, stranger):
        assert kind == "OSError" and typed and "user/private-copy" in said and "pass a token" in said


@pytest.mark.parametrize(
    "case, pieces",
    {
        "missing": ("user/missing is not a local folder", "not a valid model identifier"),
        "revision": ("nowhere is not a valid git identifier",),
        "type": ("model type 'clip_text_model'", "no masked LM", "no decoder"),
        "pickle": ("user/pickle holds its weights as pytorch_model.bin only", "pickle", "is refused"),
        "pickle-plain": ("user/pickle-plain holds its weights as pytorch_model.bin only", "is refused"),
        "pickle-auto": ("user/pickle holds its weights as pytorch_model.bin only", "is refused"),
        "newer": ("written by a newer udm-text (udm_version 2, this package reads up to 1)", "pip install -U"),
        "newer-config": ("udm_version 2, this package reads up to 1",),
        "newer-pipeline": ("udm_version 2, this package reads up to 1",),
    }.items(),
)
def test_what_cannot_be_loaded_says_why(reader, case, pieces):
    _, typed, said = reader["refusals"][case]
    assert typed
    for piece in pieces:
        assert piece in said


def test_a_cached_model_needs_no_hub(reader, run_script, cache, pinned, local_texts):
    assert reader["local-only"] and "couldn't find them in the cached files" in reader["not-cached"][2]
    given = {"samples": SAMPLES, "revision": pinned["first"]}
    found = run_script("offline.py", given, home=cache, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert found["texts"] == local_texts and found["pinned"] == 1.0
    assert "couldn't connect" in found["refusal"] or "offline" in found["refusal"]
    assert found["pushers"] == [], "what a push needs is imported by a push"


def test_a_pushed_model_is_trained_further_whole_or_by_lora(reader):
    assert reader["trained"] > 20
    assert reader["trained-lora"] and all("lora_" in name for name in reader["trained-lora"])


@pytest.fixture(scope="session")
def stranger(hub, commands, run_script, tmp_path_factory):
    """What a process found that has no udm_text."""
    paths = sysconfig.get_paths()
    given = {
        "readme": CARRIED,
        "samples": SAMPLES,
        "token": WRITER,
        "place": str(tmp_path_factory.mktemp("stranger")),
        "site-packages": sorted({paths["purelib"], paths["platlib"]}),
    }
    return run_script("stranger.py", given, "-I", "-S", home=tmp_path_factory.mktemp("empty"))


def test_carried_code_writes_the_same_texts_where_the_package_cannot_be_imported(stranger, local_texts):
    assert stranger["importable"] is False and stranger["leaked"] == []
    assert stranger["texts"] == local_texts
    assert all(module.startswith("transformers_modules.user.") for module in stranger["modules"])
    assert stranger["inferred"] == ["UDMGenerationPipeline", local_texts], "the task is known without being named"
    assert "trust_remote_code" in stranger["distrust"]


def test_carried_code_goes_on_when_the_model_is_saved_or_pushed(hub, stranger, local_texts):
    assert stranger["saved"] == local_texts and stranger["fast"]
    before, after = (hub.repositories[name].files() for name in ("user/with-code", "user/passed-on"))
    assert {name for name in before if name.endswith(".py")} <= after.keys()
    # and so do the figures, for the weights are the same
    for name in ("report.json", "loss.png", "model.safetensors"):
        assert after[name] == before[name], name
    assert "bits_per_char" in after["README.md"].decode() and "\ndatasets:" not in after["README.md"].decode()
    assert stranger["passed-on"].startswith("transformers_modules.user.passed_hyphen_on")
