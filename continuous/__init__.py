"""The companion of udm_text: images by hot and cold diffusion, through the very same loop (`udm_text.core`).

Public names are imported on first use: to sample, training is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoencoders import Autoencoder as Autoencoder
    from .autoencoders import AutoencoderConfig as AutoencoderConfig
    from .control import classifier_guided as classifier_guided
    from .control import edit as edit
    from .control import guided as guided
    from .control import project as project
    from .data import ImageRows as ImageRows
    from .data import load_images as load_images
    from .degradations import Blur as Blur
    from .degradations import Desaturate as Desaturate
    from .degradations import PixelMask as PixelMask
    from .degradations import Pool as Pool
    from .degradations import register as register
    from .distillation import Consistency as Consistency
    from .distillation import Distillation as Distillation
    from .distillation import FewSteps as FewSteps
    from .distillation import Imitation as Imitation
    from .embedded_text import EmbeddedTextConfig as EmbeddedTextConfig
    from .embedded_text import EmbeddedTextModel as EmbeddedTextModel
    from .embedded_text import EmbeddedTextObjective as EmbeddedTextObjective
    from .encoded import EncodedProcess as EncodedProcess
    from .encoded import plus_minus as plus_minus
    from .encoded import sample_encoded as sample_encoded
    from .encoded import sample_means as sample_means
    from .evaluation import frechet_distance as frechet_distance
    from .evaluation import inception_score as inception_score
    from .evaluation import quality as quality
    from .grids import save_grid as save_grid
    from .grids import save_strip as save_strip
    from .likelihood import log_likelihood as log_likelihood
    from .likelihood import nelbo as nelbo
    from .modeling import ImageConfig as ImageConfig
    from .modeling import ImageDenoiser as ImageDenoiser
    from .objectives import ImageObjective as ImageObjective
    from .pipeline import ImagePipeline as ImagePipeline
    from .processes import ColdProcess as ColdProcess
    from .processes import GaussianProcess as GaussianProcess
    from .processes import process_from_dict as process_from_dict
    from .product import ProductProcess as ProductProcess
    from .product import in_turn as in_turn
    from .product import sample_product as sample_product
    from .product import together as together
    from .sampling import ColdPrior as ColdPrior
    from .sampling import ancestral as ancestral
    from .sampling import clip as clip
    from .sampling import ddim as ddim
    from .sampling import ddpm_large as ddpm_large
    from .sampling import dpm_solver as dpm_solver
    from .sampling import encode as encode
    from .sampling import grid as grid
    from .sampling import langevin as langevin
    from .sampling import optimal_variance as optimal_variance
    from .sampling import restore as restore
    from .sampling import reverse_sde as reverse_sde
    from .sampling import sample as sample
    from .sampling import slerp as slerp
    from .sampling import with_variance as with_variance
    from .scheduler_adapter import SchedulerPredictor as SchedulerPredictor
    from .step_control import adaptive as adaptive

_HOMES = {
    "adaptive": "step_control",
    "ColdProcess": "processes",
    "GaussianProcess": "processes",
    "process_from_dict": "processes",
    "Autoencoder": "autoencoders",
    "AutoencoderConfig": "autoencoders",
    "EmbeddedTextConfig": "embedded_text",
    "EmbeddedTextModel": "embedded_text",
    "EmbeddedTextObjective": "embedded_text",
    "EncodedProcess": "encoded",
    "plus_minus": "encoded",
    "sample_encoded": "encoded",
    "sample_means": "encoded",
    "ProductProcess": "product",
    "in_turn": "product",
    "sample_product": "product",
    "together": "product",
    "Blur": "degradations",
    "Desaturate": "degradations",
    "PixelMask": "degradations",
    "Pool": "degradations",
    "register": "degradations",
    "ColdPrior": "sampling",
    "ancestral": "sampling",
    "clip": "sampling",
    "ddim": "sampling",
    "ddpm_large": "sampling",
    "dpm_solver": "sampling",
    "encode": "sampling",
    "grid": "sampling",
    "langevin": "sampling",
    "optimal_variance": "sampling",
    "restore": "sampling",
    "reverse_sde": "sampling",
    "sample": "sampling",
    "slerp": "sampling",
    "with_variance": "sampling",
    "classifier_guided": "control",
    "edit": "control",
    "guided": "control",
    "project": "control",
    "Consistency": "distillation",
    "Distillation": "distillation",
    "FewSteps": "distillation",
    "Imitation": "distillation",
    "SchedulerPredictor": "scheduler_adapter",
    "log_likelihood": "likelihood",
    "nelbo": "likelihood",
    "ImageConfig": "modeling",
    "ImageDenoiser": "modeling",
    "ImageObjective": "objectives",
    "ImagePipeline": "pipeline",
    "ImageRows": "data",
    "load_images": "data",
    "frechet_distance": "evaluation",
    "inception_score": "evaluation",
    "quality": "evaluation",
    "save_grid": "grids",
    "save_strip": "grids",
}
"""The one table from a public name to its room."""

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
