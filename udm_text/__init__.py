"""udm-text: text by discrete diffusion, around any masked language model of Hugging Face.

Importing the package registers the model type "udm" and the pipeline task "udm-generation" with transformers.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_udm import UDMConfig
    from .generation_configuration_udm import UDMGenerationConfig
    from .generation_options import Skeleton
    from .generation_udm import UDMGenerateOutput
    from .modeling_udm import UDMForMaskedGeneration
    from .pipeline_udm import UDMGenerationPipeline
    from .training import UDMTrainer, UDMTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "Skeleton",
    "UDMConfig",
    "UDMForMaskedGeneration",
    "UDMGenerateOutput",
    "UDMGenerationConfig",
    "UDMGenerationPipeline",
    "UDMTrainer",
    "UDMTrainingArguments",
    "register",
]

_HOMES = {
    "Skeleton": "generation_options",
    "UDMConfig": "configuration_udm",
    "UDMForMaskedGeneration": "modeling_udm",
    "UDMGenerateOutput": "generation_udm",
    "UDMGenerationConfig": "generation_configuration_udm",
    "UDMGenerationPipeline": "pipeline_udm",
    "UDMTrainer": "training",
    "UDMTrainingArguments": "training",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use: to generate, training is not needed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def register() -> None:
    """Tell transformers of the model type and the pipeline task. Done by the import; doing it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_udm import UDMConfig
    from .modeling_udm import UDMForMaskedGeneration, UDMModel
    from .pipeline_udm import UDMGenerationPipeline

    AutoConfig.register("udm", UDMConfig, exist_ok=True)
    AutoModel.register(UDMConfig, UDMModel, exist_ok=True)
    AutoModelForMaskedLM.register(UDMConfig, UDMForMaskedGeneration, exist_ok=True)
    if "udm-generation" not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            "udm-generation", pipeline_class=UDMGenerationPipeline, pt_model=AutoModelForMaskedLM, type="text"
        )


def _is_the_command() -> bool:
    """Whether this process is the `udm` that pip wrote beside its interpreter; no other program is, whatever its name.

    That one calls `register` once it knows that a model is wanted, so `udm --help` does not wait for torch.
    """
    program = getattr(sys.modules["__main__"], "__file__", None) or ""
    folder, name = os.path.split(os.path.realpath(program))
    return name == "udm" and folder == os.path.realpath(os.path.dirname(sys.executable))


if not _is_the_command():
    register()
