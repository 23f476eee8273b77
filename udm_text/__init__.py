"""udm-text: text by discrete diffusion, around any masked language model of Hugging Face."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_udm import UDMConfig, UDMGenerationConfig
from .generation_udm import UDMGenerateOutput
from .modeling_udm import UDMForMaskedGeneration
from .pipeline_udm import UDMGenerationPipeline

__version__ = "0.1.0"

AutoConfig.register("udm", UDMConfig, exist_ok=True)
AutoModelForMaskedLM.register(UDMConfig, UDMForMaskedGeneration, exist_ok=True)

PIPELINE_REGISTRY.register_pipeline(
    "udm-generation", pipeline_class=UDMGenerationPipeline, pt_model=AutoModelForMaskedLM, type="text"
)

__all__ = [
    "UDMConfig",
    "UDMForMaskedGeneration",
    "UDMGenerateOutput",
    "UDMGenerationConfig",
    "UDMGenerationPipeline",
    "UDMTrainer",
    "UDMTrainingArguments",
]


def __getattr__(name: str):
    """Training is imported on first use: `import udm_text` to generate stays light."""
    if name in ("UDMTrainer", "UDMTrainingArguments"):
        from . import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
