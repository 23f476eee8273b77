"""Run by a process of its own with an empty cache, where the package is installed: loads what was pushed."""

import contextlib
import io
import json
import logging
import sys
import types

import huggingface_hub.utils._http as http
import torch
from datasets import Dataset
from huggingface_hub import HfApi, hf_hub_download
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from udm_text import UDMConfig, UDMForMaskedGeneration, UDMTrainer, UDMTrainingArguments
from udm_text.cli.terminal import load_pipeline

given = json.loads(sys.argv[1])
SAMPLES = given["samples"]
http.time = types.SimpleNamespace(sleep=lambda seconds: None)
found: dict = {}


def refusal(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, isinstance(error, OSError | ValueError), str(error)]
    return None


# The lines of the README.
places: dict = {}
exec(given["readme"], places)
pipe, found["texts"] = places["pipe"], places["texts"]
found["class"] = f"{type(pipe.model).__module__}.{type(pipe.model).__name__}"
found["listed"] = HfApi().list_repo_files("user/name")

# Bit-equal weights, settings and curve.
local = load_file(f"{given['model']}/model.safetensors")
pushed = load_file(hf_hub_download("user/name", "model.safetensors"))
found["equal"] = local.keys() == pushed.keys() and all(torch.equal(local[name], pushed[name]) for name in local)
state = pipe.model.state_dict()
found["loaded-equal"] = all(torch.equal(local[name], state[name]) for name in local)
found["curve"] = pipe.model.config.step_curve
found["optimal"] = len(pipe("", schedule="optimal", num_steps=2, seed=0))

# Code that a repository carries is not used here, and needs no leave.
carried = pipeline("udm-generation", model="user/with-code")
found["carried"] = [type(carried.model).__module__, type(carried).__module__, carried("", **SAMPLES)]
trusting = pipeline("udm-generation", model="user/with-code", trust_remote_code=True)
found["trusting"] = [type(trusting.model).__module__, type(trusting).__module__]
found["auto"] = type(AutoModelForMaskedLM.from_pretrained("user/with-code")).__module__
carried.save_pretrained(given["place"] + "/saved")
found["saved-config"] = sorted(json.load(open(given["place"] + "/saved/config.json")))


# A revision is what it was.
def first_weight(**where):
    return float(
        UDMForMaskedGeneration.from_pretrained("user/pinned-twice", **where).get_input_embeddings().weight[0, 0]
    )


found["pinned"] = {name: first_weight(revision=sha) for name, sha in given["pinned"].items()}
found["pinned"]["main"] = first_weight()
found["pinned"]["branch"] = first_weight(revision="draft")
asked = load_pipeline("user/pinned-twice", "draft")  # as `udm generate --revision draft` does
found["pinned"]["command"] = float(asked.model.get_input_embeddings().weight[0, 0])

# What cannot be loaded.
load = UDMForMaskedGeneration.from_pretrained
found["private"] = [
    pipeline("udm-generation", model="user/private-copy", token=given["token"])("", **SAMPLES),
    refusal(lambda: load("user/private-copy", cache_dir=given["place"] + "/other")),
    refusal(lambda: load("user/private-copy", token=given["stranger"], cache_dir=given["place"] + "/other")),
]
found["refusals"] = {
    "missing": refusal(lambda: load("user/missing")),
    "revision": refusal(lambda: load("user/name", revision="nowhere")),
    "type": refusal(lambda: load("user/clip")),
    "pickle": refusal(lambda: load("user/pickle")),
    "pickle-plain": refusal(lambda: load("user/pickle-plain")),
    "pickle-auto": refusal(lambda: AutoModelForMaskedLM.from_pretrained("user/pickle")),
    "newer": refusal(lambda: load("user/newer")),
    "newer-config": refusal(lambda: UDMConfig.from_pretrained("user/newer")),
    "newer-pipeline": refusal(lambda: pipeline("udm-generation", model="user/newer")),
}
found["local-only"] = load("user/name", local_files_only=True).config.step_curve == found["curve"]
found["not-cached"] = refusal(lambda: load("user/other-missing", local_files_only=True))

# Further training, of all weights and of LoRA's.
tokenizer = AutoTokenizer.from_pretrained("user/name")
rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in ("red small circle", "blue large")])


def train_one_step(model, name):
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 0.1}
    arguments = UDMTrainingArguments(f"{given['place']}/{name}", max_steps=1, warmup_steps=0, **options)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    with contextlib.redirect_stdout(io.StringIO()):
        UDMTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()
    return sorted(key for key, value in model.named_parameters() if not torch.equal(before[key], value))


logging.disable(logging.WARNING)
found["trained"] = len(train_one_step(load("user/name"), "whole"))
adapted = get_peft_model(load("user/name"), LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
found["trained-lora"] = train_one_step(adapted, "lora")
print(json.dumps(found))
