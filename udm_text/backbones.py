"""Backbones whose parts the fast path knows, and what it does with their linear maps.

A body names the modules of a backbone by their role: embeddings, projections, what a layer does behind its attention,
the head. Known are those built like BERT (RoBERTa, XLM-RoBERTa, CamemBERT) and like ModernBERT, recognised by their
modules.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask


class Linear(nn.Module):
    """The linear maps of some nn.Linear of the same input, side by side; packed for the CPU once `pack` is called."""

    def __init__(self, *modules: nn.Linear, start: int = 0, end: int | None = None):
        """start, end: the outputs wanted."""
        super().__init__()
        weights: list[Tensor] = [module.weight for module in modules]
        biases: list[Any] = [module.bias for module in modules]
        joined = len(modules) > 1
        bias = None if biases[0] is None else torch.cat(biases) if joined else biases[0]
        self.weight = (torch.cat(weights) if joined else weights[0]).detach()[start:end]
        self.bias = None if bias is None else bias.detach()[start:end]
        self.packed: Tensor | None = None

    def pack(self, rows: int) -> None:
        """Lays the weights out as the kernels of oneDNN like them for about so many rows."""
        if can_pack(self.weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in); returns (..., out)."""
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has kernels with weights laid out beforehand for such a weight."""
    mkldnn = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def packed_copy(module: nn.Module, rows: int) -> nn.Module:
    """The module, its classes' own code and its weights, with every nn.Linear in it packed. The module stays."""
    if type(module) is nn.Linear and untouched(module):
        linear = Linear(module)
        linear.pack(rows)
        return linear
    clone = copy.copy(module)
    clone._modules = {name: child and packed_copy(child, rows) for name, child in module._modules.items()}
    return clone


class Bert:
    """Bodies built like BERT's: normed embeddings, attention.{self, output}, intermediate, output."""

    rotary = False
    """Whether queries and keys are turned by their position."""
    length = 0
    """Length of the rows."""

    def __init__(self, backbone: Any):
        self.backbone, self.body = backbone, backbone.base_model
        self.config, self.embeddings = self.body.config, self.body.embeddings
        self.layers: Any = self.body.encoder.layer
        self.heads = self.layers[0].attention.self.num_attention_heads
        self.decoder = backbone.get_output_embeddings()

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool = False) -> list[nn.Module] | None:
        """The modules whose own forward is not called, or None where the structure is another one.

        all_layers: whether the layers between the first and the last are run by their parts, too.
        """
        body = backbone.base_model
        head: Any = getattr(backbone, "cls", None) or getattr(backbone, "lm_head", None)
        if not (_children(body) <= {"embeddings", "encoder", "pooler"} and _children(backbone) - {_prefix(backbone)}):
            return None
        if _children(getattr(body, "embeddings", None)) != {
            "word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm", "dropout"
        }:  # fmt: skip
            return None
        layers = getattr(getattr(body, "encoder", None), "layer", None)
        if layers is None or _children(body.encoder) != {"layer"}:
            return None
        for layer in layers:
            if _children(layer) != {"attention", "intermediate", "output"}:
                return None
            attention = layer.attention
            if _children(attention) != {"self", "output"} or layer.is_decoder:
                return None
            if _children(attention.self) != {"query", "key", "value", "dropout"}:
                return None
            if not {"dense", "LayerNorm", "dropout"} == _children(attention.output) == _children(layer.output):
                return None
        inner: Any = getattr(head, "predictions", head)
        known = _children(inner) == {"transform", "decoder"} or _children(inner) == {"dense", "layer_norm", "decoder"}
        if not known or _children(backbone) != {_prefix(backbone), "cls" if inner is not head else "lm_head"}:
            return None
        passed = list(layers) if all_layers else [layers[0], layers[-1]]
        passed += [layer.attention for layer in passed]
        own = [module.self for module in passed if hasattr(module, "self")]
        own += [map_ for module in own for map_ in (module.query, module.key, module.value)]
        return [backbone, body, body.encoder, head, inner, inner.decoder, *passed, *own]

    def position_ids(self, tokens: Tensor) -> Tensor | None:
        """(B, L) position ids where they depend on the tokens (RoBERTa counts what is not padding)."""
        count = getattr(self.embeddings, "create_position_ids_from_input_ids", None)
        return None if count is None else count(tokens, self.embeddings.padding_idx)

    @property
    def first_position_id(self) -> int:
        """Position id of the first token where places do not depend on the tokens (given embeddings)."""
        counts = hasattr(self.embeddings, "create_position_ids_from_input_ids")
        return self.embeddings.padding_idx + 1 if counts else 0

    def embed(self, tokens: Tensor, position_ids: Tensor, shift: Tensor | None = None) -> Tensor:
        """(N, H) from tokens (N,) at position ids (N,). shift: (N, H), added to the embeddings of the tokens."""
        if shift is None:
            return self.embeddings(input_ids=tokens[None], position_ids=position_ids[None])[0]
        word = self.backbone.get_input_embeddings()(tokens) + shift
        return self.embeddings(inputs_embeds=word[None], position_ids=position_ids[None])[0]

    def masks(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """The masks that the backbone makes, (B or 1, 1, L, L) or None, by the kind of layer. like: (B, L, 1)."""
        return {"": create_bidirectional_mask(self.config, like, attention_mask)}

    def kind(self, layer: Any) -> str:
        return ""

    def project(self, layer: Any, start: int = 0, end: int | None = None) -> Linear:
        """Outputs start to end of the queries, keys and values of a layer."""
        own = layer.attention.self
        return Linear(own.query, own.key, own.value, start=start, end=end)

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        """What the projections of a layer see of x (..., H)."""
        return x

    def apply_rotary(self, layer: Any, x: Tensor, where: Tensor) -> Tensor:
        """Queries or keys (N, heads, d), made to know their positions (N,)."""
        return x

    def run(self, layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return layer(x, mask)

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        """(..., H) after a layer: attention output, MLP, residuals. context: what its attention gathered."""
        return layer.feed_forward_chunk(layer.attention.output(context, x))

    def head_transform(self, x: Tensor) -> Tensor:
        """What the decoder sees of the last layer's output (N, H)."""
        head = getattr(self.backbone, "cls", None)
        if head is not None:
            return head.predictions.transform(x)
        head = self.backbone.lm_head
        return head.layer_norm(F.gelu(head.dense(x)))


class ModernBert(Bert):
    """Bodies built like ModernBERT's: norms before, rotary positions, one projection, local and global attention."""

    rotary = True

    def __init__(self, backbone: Any):
        self.backbone, self.body = backbone, backbone.base_model
        self.config, self.embeddings = self.body.config, self.body.embeddings
        self.layers = self.body.layers
        self.heads = self.config.num_attention_heads
        self.decoder = backbone.get_output_embeddings()
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool = False) -> list[nn.Module] | None:
        body = backbone.base_model
        if _children(backbone) != {_prefix(backbone), "head", "decoder"}:
            return None
        if _children(body) != {"embeddings", "layers", "final_norm", "rotary_emb"}:
            return None
        if _children(body.embeddings) != {"tok_embeddings", "norm", "drop"} or not len(body.layers):
            return None
        for layer in body.layers:
            if _children(layer) != {"attn_norm", "attn", "mlp_norm", "mlp"}:
                return None
            if _children(layer.attn) != {"Wqkv", "Wo", "out_drop"}:
                return None
        ropes = set(body.rotary_emb.rope_type.values())
        if ropes != {"default"} or not isinstance(body.layers[0].attn_norm, nn.Identity):
            return None
        passed = list(body.layers) if all_layers else [body.layers[0], body.layers[-1]]
        own = [module for layer in passed for module in (layer.attn, layer.attn.Wqkv)]
        return [backbone, body, backbone.decoder, *passed, *own]

    def position_ids(self, tokens: Tensor) -> Tensor | None:
        return None

    def embed(self, tokens: Tensor, position_ids: Tensor, shift: Tensor | None = None) -> Tensor:
        if shift is None:
            return self.embeddings(input_ids=tokens[None])[0]
        return self.embeddings(inputs_embeds=(self.backbone.get_input_embeddings()(tokens) + shift)[None])[0]

    def masks(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        return {
            "full_attention": create_bidirectional_mask(self.config, like, attention_mask),
            "sliding_attention": create_bidirectional_sliding_window_mask(self.config, like, attention_mask),
        }

    def kind(self, layer: Any) -> str:
        return layer.attention_type

    def project(self, layer: Any, start: int = 0, end: int | None = None) -> Linear:
        return Linear(layer.attn.Wqkv, start=start, end=end)

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        return layer.attn_norm(x)

    def angles(self, layer: Any, like: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (1, length, d) of the positions."""
        kind = layer.attention_type
        if kind not in self._angles or self._angles[kind][0].shape[1] < length:
            number = torch.arange(length, device=like.device)[None]
            self._angles[kind] = self.body.rotary_emb(like, number, kind)
        cos, sin = self._angles[kind]
        return cos[:, :length], sin[:, :length]

    def apply_rotary(self, layer: Any, x: Tensor, where: Tensor) -> Tensor:
        cos, sin = (angle[0, where, None] for angle in self.angles(layer, x, self.length))
        first, second = x.float().chunk(2, dim=-1)
        return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)

    def run(self, layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        return layer(x, attention_mask=mask, position_embeddings=self.angles(layer, x, x.shape[1]))

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        x = x + layer.attn.out_drop(layer.attn.Wo(context))
        return x + layer.mlp(layer.mlp_norm(x))

    def head_transform(self, x: Tensor) -> Tensor:
        return self.backbone.head(self.body.final_norm(x))


def _children(module: Any) -> set[str]:
    return set() if module is None else {name for name, child in module.named_children() if not _is_loss(child)}


def _is_loss(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.loss._Loss)


def _prefix(backbone: Any) -> str:
    return backbone.base_model_prefix


def untouched(module: nn.Module, own: bool = False) -> bool:
    """No adapter, hook or compiled forward in it: its class says what it computes. What only records is let pass."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(not getattr(hook, "__module__", "").startswith("transformers.utils") for hook in hooks):
        return False
    plain = "forward" not in vars(module) and module._compiled_call_impl is None and not hasattr(module, "_hf_hook")
    home = type(module).forward.__module__.split(".")[0]
    return plain and (own or type(module) is nn.Linear or home == "transformers")


def recognise(model: Any, all_layers: bool = False) -> Bert | None:
    """The structure of the model's backbone, where it is a known one and nothing in it was changed.

    all_layers: whether all layers are run by their parts, so that nothing may have been changed in any of them.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None or type(model).forward.__module__ != f"{__package__}.modeling_udm":
        return None
    for kind in (Bert, ModernBert):
        try:
            bypassed = kind.bypassed(backbone, all_layers)
        except (AttributeError, TypeError):  # a module of that name, built otherwise
            continue
        if bypassed is not None:
            body = kind(backbone)
            config = body.config
            if config._attn_implementation not in ("sdpa", "eager") or len(body.layers) < 2:
                return None
            if config.output_attentions or config.output_hidden_states:
                return None
            if len({(weight.dtype, weight.device) for weight in model.parameters()}) > 1:
                return None
            return body if untouched(model, own=True) and all(map(untouched, bypassed)) else None
    return None
