"""`pipeline("udm-generation")`: text in, text out."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Pipeline
from transformers.pipelines.base import GenericTensor

from .configuration_udm import UDMConfig, UDMGenerationConfig


class UDMGenerationPipeline(Pipeline):
    """Text generation by diffusion.

    What is done follows from the input: text with [MASK] is filled in; with `max_edits` a text is repaired (models of the
    substitute process); any other text is continued; an empty string is written from nothing.

    ```python
    >>> import udm_text
    >>> from transformers import pipeline
    >>> pipe = pipeline("udm-generation", model="runs/unicode-names")
    >>> pipe("", num_return_sequences=4, seed=0)
    >>> pipe("LATIN SMALL LETTER A WITH [MASK]", seed=0)
    ```

    Every argument of [`UDMGenerationConfig`] may be given to the pipeline or to a call. A result depends on its input, the
    seed and its number among `num_return_sequences` only: not on the other inputs, nor on `batch_size`. So equal inputs under
    one seed give equal texts; ask for several by `num_return_sequences`.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    _calls = ("generation_config", "streamer", "callback_on_step_end", "generator")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if getattr(self.model.config, "model_type", None) != UDMConfig.model_type:
            raise ValueError(
                f"udm-generation needs a UDM model, got {type(self.model).__name__} (model type "
                f"{self.model.config.model_type!r}). Wrap a masked LM by UDMForMaskedGeneration.from_pretrained(...), train it "
                "with `udm train` and use what that wrote."
            )
        if self.tokenizer is None:
            raise ValueError("udm-generation needs a tokenizer: give tokenizer=..., or a model directory that holds one")
        self.tokenizer.padding_side = "right"

    def _sanitize_parameters(self, return_full_text: bool | None = None, **kwargs: Any):
        known = (*UDMGenerationConfig._defaults, *self._calls)
        for name in kwargs:
            if name not in known:
                raise ValueError(
                    f"unknown argument {name!r} of udm-generation. Known: {', '.join((*known, 'return_full_text'))}"
                )
        after = {} if return_full_text is None else {"return_full_text": return_full_text}
        return {}, kwargs, after

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs (`str`, `list[str]`, or an iterable such as a dataset column): the texts.
            kwargs: arguments of `UDMGenerationConfig`; `return_full_text=False` gives the generated tokens alone; `batch_size`.

        Returns:
            For one text a list of `{"generated_text": str}`, `num_return_sequences` of them; for several texts a list of such
            lists. With `output_trajectory=True` each also holds `"trajectory"`, the text after every step.
        """
        return super().__call__(inputs, **kwargs)

    def preprocess(self, text: str, **parameters: Any) -> dict[str, GenericTensor]:
        if not isinstance(text, str):
            raise ValueError(f"udm-generation reads strings, got {type(text).__name__}")
        ids = self.tokenizer(text)["input_ids"]
        input_ids = torch.tensor([ids], dtype=torch.int64)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def _forward(self, inputs: dict[str, torch.Tensor], **parameters: Any) -> dict[str, Any]:
        stored = parameters.get("generation_config") or self.model.generation_config
        number = parameters.get("num_return_sequences", stored.num_return_sequences)
        seed = parameters.get("seed", stored.seed)
        rows = len(inputs["input_ids"])
        index = None
        if seed is not None:  # under one seed a row is told apart by its number among the samples of its input
            index = torch.arange(number).repeat(rows)
        output = self.model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            sample_index=index,
            **{**parameters, "return_dict_in_generate": True},
        )

        def by_input(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(rows, number, *x.shape[1:])

        result = {name: by_input(output[name]) for name in ("sequences", "attention_mask", "editable")}
        if output.trajectory is not None:
            result["trajectory"] = by_input(torch.stack(output.trajectory, dim=1))
        return result

    def postprocess(self, outputs: dict[str, torch.Tensor], return_full_text: bool = True) -> list[dict[str, Any]]:
        records = []
        wanted = outputs["attention_mask"] if return_full_text else outputs["editable"]
        for i in range(outputs["sequences"].shape[1]):
            record: dict[str, Any] = {
                "generated_text": self.tokenizer.decode(
                    outputs["sequences"][0, i][wanted[0, i].bool()].tolist(), skip_special_tokens=True
                )
            }
            if "trajectory" in outputs:
                keep = outputs["attention_mask"][0, i].bool()
                record["trajectory"] = [
                    self.tokenizer.decode(xt[keep].tolist(), skip_special_tokens=False)
                    for xt in outputs["trajectory"][0, i]
                ]
            records.append(record)
        return records
