"""Run by a process of its own with the cache of another, and no Hub to be reached."""

import json
import sys

from transformers import pipeline

import udm_text

given = json.loads(sys.argv[1])
found = {"texts": pipeline("udm-generation", model="user/name")("", **given["samples"])}
pinned = udm_text.UDMForMaskedGeneration.from_pretrained("user/pinned-twice", revision=given["revision"])
found["pinned"] = float(pinned.get_input_embeddings().weight[0, 0])
try:
    pipeline("udm-generation", model="user/never-seen")
except OSError as error:
    found["refusal"] = str(error)
found["pushers"] = sorted({"udm_text.hub", "udm_text.card"} & sys.modules.keys())
print(json.dumps(found))
