"""The predictor of whole rows: a decoder writes x0_hat from left to right, with its cache (autoregressive.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core import Prediction, recover_noise
from .decoding import guide
from .predictors import Predictor, draw_tokens, static_scores


class Writer:
    """The decoder of an encoder-decoder, before the first token: rows are written column by column.

    Args:
        backbone: an encoder-decoder of transformers.
        read: what its encoder said of the rows, (B, L, H) in a model output. attention_mask: (B, L) int64, of the rows.
        start: the token that the decoder begins with.
    """

    def __init__(self, backbone: Any, read: Any, attention_mask: Tensor, start: int):
        self.backbone, self.read, self.attention_mask, self.start = backbone, read, attention_mask, start
        self.cache: Any = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, V) logits of the next column, behind the tokens (B, n) that follow those of the calls before."""
        if self.cache is None:
            begin = tokens.new_full((len(tokens), 1), self.start)
            tokens = torch.cat((begin, tokens), dim=1)
        output = self.backbone(
            encoder_outputs=self.read,
            attention_mask=self.attention_mask,
            decoder_input_ids=tokens,
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
        )
        self.cache = output.past_key_values
        return output.logits[:, -1]


class JointPredictor(Predictor):
    """Draws x0_hat as a whole. What may not change, and what xt shows to be right, is given to the decoder as it is.

    Runs of such columns are read in one call of the decoder; a draw of x0_hat counts as one call of the network.
    Temperature, top_k, top_p and constraints act on each token as it is written, and a processor is shown the row as it
    stands then. Which of the positions a step settles is left to the process, in the order that is asked for.
    """

    def begin(self, xt: Tensor, grid: list[list[int]]) -> None:
        super().begin(xt, grid)
        self._scores = None if self.config.churn else self._order(xt)

    def _order(self, xt: Tensor) -> Tensor | None:
        return static_scores(self.config.order, xt, self.editable, self.random)

    def __call__(self, xt: Tensor, t: Tensor, s: Tensor) -> Prediction:
        before, after = self._counts()
        uniforms = self.random.uniform(xt.shape[1])
        x0 = xt
        if any(a > b for a, b in zip(before, after, strict=True)):
            open_places = self.process.unsettled(xt, self.editable) & (t > s)[:, None]
            x0 = self._write(xt, t, open_places, uniforms)
        scores = self._order(xt) if self.config.churn else self._scores
        noise, churn = None, self.config.churn
        if scores is not None:
            how: dict[str, Any] = {"editable": self.editable, "random": self.random, "scores": scores}
            noise = recover_noise(self.process, xt, x0, t, churn, **how)
        if not churn:
            t, s = self.process.recounted(x0, xt, t, s)
        return Prediction(x0, noise, t=t, s=s)

    def _write(self, xt: Tensor, t: Tensor, open_places: Tensor, uniforms: Tensor) -> Tensor:
        """xt (B, L), its open places (B, L) drawn by uniforms (B, L), from left to right."""
        self.num_calls += self.readings
        config, rows = self.config, self._readings(xt)
        write = self.model.begin_writing(rows, self.attention_mask.long(), t.repeat(self.readings), self.lengths)
        x0, done = xt, 0
        for column in open_places.any(dim=0).nonzero()[:, 0].tolist():
            logits = write(self._readings(x0)[:, done:column])
            done = column
            if self.readings == 2:
                conditional, unconditional = logits.chunk(2)
                logits = guide(conditional, unconditional, self.scale)
            own = open_places[:, column].nonzero()[:, 0]
            here = own, torch.full_like(own, column)
            lawful = self.constraints(logits[own], x0, *here)
            tokens, _, _ = draw_tokens(config, None, lawful, uniforms[here])
            x0 = x0.index_put(here, tokens)
        return x0

    def _readings(self, rows: Tensor) -> Tensor:
        """Rows (B, L); under guidance the same once more, with [MASK] in place of what was given."""
        if self.condition is None:
            return rows
        return torch.cat((rows, rows.masked_fill(self.condition, self.model.config.mask_token_id)))
