"""Run by an isolated process (python -I -S) that cannot import the package: uses the code of a repository."""

import importlib
import json
import sys

given = json.loads(sys.argv[1])
sys.path += given["site-packages"]  # by hand, so that no .pth file adds the checkout


class Hidden:
    """Nothing is found under the package's name, should it be among the other packages after all."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "udm_text":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Hidden())
found: dict = {}
try:
    importlib.import_module("udm_text")
    found["importable"] = True
except ModuleNotFoundError:
    found["importable"] = False

from transformers import AutoModelForMaskedLM, pipeline  # noqa: E402

try:
    pipeline("udm-generation", model="user/with-code", trust_remote_code=False)
except ValueError as error:
    found["distrust"] = str(error)
places: dict = {}
exec(given["readme"], places)
pipe, found["texts"] = places["pipe"], places["texts"]
found["modules"] = [type(pipe).__module__, type(pipe.model).__module__, type(pipe.model.config).__module__]
inferred = pipeline(model="user/with-code", trust_remote_code=True)
found["inferred"] = [type(inferred).__name__, inferred("", **given["samples"])]
pipe.save_pretrained(given["place"] + "/saved")
saved = pipeline("udm-generation", model=given["place"] + "/saved", trust_remote_code=True)
found["saved"] = saved("", **given["samples"])
beside = type(saved.model.config).__module__.rpartition(".")[0]  # where the predictors are, not where the model is
found["fast"] = importlib.import_module(f"{beside}.backbones").recognise(saved.model) is not None
pipe.push_to_hub("user/passed-on", token=given["token"])
again = AutoModelForMaskedLM.from_pretrained("user/passed-on", trust_remote_code=True)
found["passed-on"] = type(again).__module__
found["leaked"] = sorted(name for name in sys.modules if name.split(".")[0] == "udm_text")
print(json.dumps(found))
