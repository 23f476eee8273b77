"""udm-text: text by discrete diffusion, around any masked language model of Hugging Face."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForMaskedLM

from .configuration_udm import UDMConfig, UDMGenerationConfig
from .modeling_udm import UDMForMaskedGeneration

__version__ = "0.1.0"

AutoConfig.register("udm", UDMConfig, exist_ok=True)
AutoModelForMaskedLM.register(UDMConfig, UDMForMaskedGeneration, exist_ok=True)

__all__ = ["UDMConfig", "UDMForMaskedGeneration", "UDMGenerationConfig"]
