"""Backbones whose parts the fast path knows, and what it does with their linear maps.

A `Body` names the parts of a backbone by their role: embeddings, projections, what a layer does behind its attention,
the head. Known are those built like BERT (RoBERTa, XLM-RoBERTa, CamemBERT), like ModernBERT and like NomicBERT,
recognised by their modules, and decoders like Llama made bidirectional, by their class: others are built of the same
modules, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)


class Linear(nn.Module):
    """The linear maps of some nn.Linear of the same input, side by side; packed for the CPU once `pack` is called."""

    def __init__(self, *modules: nn.Linear | Repeated, start: int = 0, end: int | None = None):
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

    def first(self, x: Tensor, outputs: int) -> Tensor:
        """(..., outputs), as many of its outputs for x (..., in)."""
        return F.linear(x, self.weight[:outputs], None if self.bias is None else self.bias[:outputs])

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


class Angles(NamedTuple):
    """What queries and keys are turned by, each by its position's."""

    cos: Tensor
    """(1, L, d)."""
    sin: Tensor
    """(1, L, d)."""
    turned_in: torch.dtype | None = None
    """The type that queries and keys are turned in; None: their own."""


class Sight(NamedTuple):
    """What the attention of the layers of one kind goes by."""

    mask: Tensor | None
    """The mask that the backbone makes, (b or 1, 1, L, L), bool or added; None where everything is seen."""
    angles: Angles | None
    """Where queries and keys are turned by their positions."""

    def cut(self, index: Any, length: int) -> Sight:
        """That of the rows `index` and their first `length` positions."""
        mask, angles = self.mask, self.angles
        if mask is not None:
            mask = (mask[index] if len(mask) > 1 else mask)[..., :length, :length]
        if angles is not None:
            angles = angles._replace(cos=angles.cos[:, :length], sin=angles.sin[:, :length])
        return Sight(mask, angles)


def rotate(x: Tensor, angles: Angles | None, where: Any = slice(None)) -> Tensor:
    """Queries or keys, turned by their positions: (n, heads, d) by `where` (n,), or (b, L, heads, d) by all L."""
    if angles is None:
        return x
    cos, sin = (angle[0, where, None] for angle in angles[:2])
    wide = x if angles.turned_in is None else x.to(angles.turned_in)
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Norms(NamedTuple):
    """What queries and keys (..., heads, d) go through, each for itself, before they are turned."""

    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]


def turned(
    projected: Tensor, norms: Norms | None, angles: Angles | None, where: Any = slice(None)
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (..., heads, d) of projected (..., 3, heads, d), the first two turned as by `rotate`."""
    query, key, value = projected.unbind(dim=-3)
    if norms is not None:
        return rotate(norms.query(query), angles, where), rotate(norms.key(key), angles, where), value
    if angles is not None:
        both = rotate(projected[..., :2, :, :].flatten(-3, -2), angles, where)
        query, key = both.unflatten(-2, (2, -1)).unbind(dim=-3)
    return query, key, value


class Body(Protocol):
    """The parts of a backbone by their role, on b rows of L positions, H numbers each; heads are d = W / heads wide."""

    layers: Any
    """Its layers, from the first to the last."""
    heads: int
    """Heads of each layer."""
    width: int
    """W, of the queries of a position in all heads: H but in some decoders."""

    def __init__(self, backbone: Any):
        """backbone: a masked language model of transformers whose modules `bypassed` knows."""

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool) -> list[nn.Module] | None:
        """The modules whose own forward is not called, or None where the structure is another one.

        all_layers: whether the layers between the first and the last are run by their parts, too.
        """

    def position_ids(self, tokens: Tensor, embedded: bool) -> Tensor:
        """(b, L) int64, the ids that the positions of tokens (b, L) are embedded under.

        embedded: whether the backbone is given embeddings, so that no id can depend on the tokens.
        """

    def embed(self, tokens: Tensor, position_ids: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """(b, L, H), the input of the first layer, from tokens (b, L).

        position_ids: (b, L), or None for the backbone's own. shift: added to the embeddings of the tokens, (b, L, H)
        or what broadcasts to it.
        """

    def sights(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Sight]:
        """By the kind of layer. like: (b, L, 1), dtype and device of the weights. attention_mask: (b, L) int64."""

    def kind(self, layer: Any) -> str:
        """Whose sight a layer has."""

    def projections(self, layer: Any) -> list[Any]:
        """What makes the queries, keys and values of a layer: 3W outputs in this order, by one map or several, each a
        nn.Linear or with its weight and bias as one has them."""

    def norms(self, layer: Any) -> Norms | None:
        """Those of the queries and keys of a layer, the scale of its scores but for 1/sqrt(d) among them."""

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        """(..., H), what the projections of a layer see of its input x (..., H)."""

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        """(..., H) behind a layer with input x (..., H), from the context (..., W) that its attention gathered."""

    def run(self, layer: Any, x: Tensor, sight: Sight) -> Tensor:
        """(b, L, H) behind a layer, from its input x (b, L, H), by its own forward."""

    def head_transform(self, x: Tensor) -> Tensor:
        """(n, H), what the decoder sees of the last layer's output x (n, H)."""


class BertBody:
    """Built like BERT: normed embeddings, attention.{self, output}, intermediate, output."""

    def __init__(self, backbone: Any):
        self.backbone, self.body = backbone, backbone.base_model
        self.layers: Any = self.body.encoder.layer
        self.heads: int = self.layers[0].attention.self.num_attention_heads
        self.width: int = self.body.config.hidden_size

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool) -> list[nn.Module] | None:
        body, layers = backbone.base_model, backbone.base_model.encoder.layer
        name = "cls" if hasattr(backbone, "cls") else "lm_head"
        head = getattr(backbone, name)
        inner = head.predictions if name == "cls" else head
        output = "dense LayerNorm dropout"
        parts = [
            (backbone, f"{backbone.base_model_prefix} {name}"),
            (body.embeddings, "word_embeddings position_embeddings token_type_embeddings LayerNorm dropout"),
            (body.encoder, "layer"),
            (inner, "transform decoder" if name == "cls" else "dense layer_norm decoder"),
        ]
        for layer in layers:
            attention = layer.attention
            parts += [(layer, "attention intermediate output"), (layer.output, output)]
            parts += [(attention, "self output"), (attention.output, output)]
            parts += [(attention.self, "query key value dropout")]
        known = _built(parts) and _children(body) <= {"embeddings", "encoder", "pooler"}
        if not known or any(layer.is_decoder for layer in layers):
            return None
        passed = list(layers) if all_layers else [layers[0], layers[-1]]
        own = [layer.attention.self for layer in passed]
        own += [map_ for module in own for map_ in (module.query, module.key, module.value)]
        return [backbone, body, body.encoder, head, inner, inner.decoder, *passed, *(x.attention for x in passed), *own]

    def position_ids(self, tokens: Tensor, embedded: bool) -> Tensor:
        embeddings = self.body.embeddings
        if not hasattr(embeddings, "create_position_ids_from_input_ids"):
            return _in_order(tokens)
        if embedded:
            return _in_order(tokens, embeddings.padding_idx + 1)
        return embeddings.create_position_ids_from_input_ids(tokens, embeddings.padding_idx)  # counts all but padding

    def embed(self, tokens: Tensor, position_ids: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return self.body.embeddings(position_ids=position_ids, **_words(self.backbone, tokens, shift))

    def sights(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Sight]:
        mask: Any = create_bidirectional_mask(self.body.config, like, attention_mask)
        return {"": Sight(mask, angles=None)}

    def kind(self, layer: Any) -> str:
        return ""

    def projections(self, layer: Any) -> list[nn.Linear]:
        own = layer.attention.self
        return [own.query, own.key, own.value]

    def norms(self, layer: Any) -> None:
        return None

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        return x

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        return layer.feed_forward_chunk(layer.attention.output(context, x))

    def run(self, layer: Any, x: Tensor, sight: Sight) -> Tensor:
        return layer(x, sight.mask)

    def head_transform(self, x: Tensor) -> Tensor:
        head = getattr(self.backbone, "cls", None)
        if head is not None:
            return head.predictions.transform(x)
        head = self.backbone.lm_head
        return head.layer_norm(F.gelu(head.dense(x)))


class ModernBertBody:
    """Built like ModernBERT: norms before, rotary positions, one projection, local and global attention."""

    def __init__(self, backbone: Any):
        self.backbone, self.body = backbone, backbone.base_model
        self.layers: Any = self.body.layers
        self.heads: int = self.body.config.num_attention_heads
        self.width: int = self.body.config.hidden_size

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool) -> list[nn.Module] | None:
        body, layers = backbone.base_model, backbone.base_model.layers
        parts = [
            (backbone, f"{backbone.base_model_prefix} head decoder"),
            (body, "embeddings layers final_norm rotary_emb"),
            (body.embeddings, "tok_embeddings norm drop"),
        ]
        for layer in layers:
            parts += [(layer, "attn_norm attn mlp_norm mlp"), (layer.attn, "Wqkv Wo out_drop")]
        if not _built(parts) or not len(layers) or not isinstance(layers[0].attn_norm, nn.Identity):
            return None
        if set(body.rotary_emb.rope_type.values()) != {"default"}:
            return None
        passed = list(layers) if all_layers else [layers[0], layers[-1]]
        own = [module for layer in passed for module in (layer.attn, layer.attn.Wqkv)]
        return [backbone, body, backbone.decoder, *passed, *own]

    def position_ids(self, tokens: Tensor, embedded: bool) -> Tensor:
        return _in_order(tokens)

    def embed(self, tokens: Tensor, position_ids: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return self.body.embeddings(**_words(self.backbone, tokens, shift))

    def sights(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Sight]:
        config, where = self.body.config, torch.arange(like.shape[1], device=like.device)[None]
        masks: dict[str, Any] = {
            "full_attention": create_bidirectional_mask(config, like, attention_mask),
            "sliding_attention": create_bidirectional_sliding_window_mask(config, like, attention_mask),
        }
        kinds = {self.kind(layer) for layer in self.layers}
        angles = {kind: Angles(*self.body.rotary_emb(like, where, kind)) for kind in kinds}
        return {kind: Sight(masks[kind], angles[kind]._replace(turned_in=torch.float32)) for kind in kinds}

    def kind(self, layer: Any) -> str:
        return layer.attention_type

    def projections(self, layer: Any) -> list[nn.Linear]:
        return [layer.attn.Wqkv]

    def norms(self, layer: Any) -> None:
        return None

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        return layer.attn_norm(x)

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        x = x + layer.attn.out_drop(layer.attn.Wo(context))
        return x + layer.mlp(layer.mlp_norm(x))

    def run(self, layer: Any, x: Tensor, sight: Sight) -> Tensor:
        return layer(x, attention_mask=sight.mask, position_embeddings=sight.angles and sight.angles[:2])

    def head_transform(self, x: Tensor) -> Tensor:
        return self.backbone.head(self.body.final_norm(x))


class NomicBertBody:
    """Built like NomicBERT: norms behind, as in BERT, rotary positions, a gated MLP."""

    def __init__(self, backbone: Any):
        self.backbone, self.body = backbone, backbone.base_model
        self.layers: Any = self.body.layers
        self.heads: int = self.body.config.num_attention_heads
        self.width: int = self.body.config.hidden_size

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool) -> list[nn.Module] | None:
        body, layers = backbone.base_model, backbone.base_model.layers
        head = backbone.cls
        parts = [
            (backbone, f"{backbone.base_model_prefix} cls"),
            (body, "embeddings rotary_emb layers"),
            (body.embeddings, "word_embeddings token_type_embeddings LayerNorm dropout"),
            (head.predictions, "transform decoder"),
        ]
        norms = "post_attention_layernorm post_mlp_layernorm post_attention_dropout post_mlp_dropout"
        for layer in layers:
            parts += [(layer, f"self_attn mlp {norms}"), (layer.self_attn, "q_proj k_proj v_proj o_proj")]
        if not _built(parts) or body.rotary_emb.rope_type != "default":
            return None
        if body.config.head_dim * body.config.num_attention_heads != body.config.hidden_size:
            return None
        passed = list(layers) if all_layers else [layers[0], layers[-1]]
        own = [layer.self_attn for layer in passed]
        own += [map_ for module in own for map_ in (module.q_proj, module.k_proj, module.v_proj)]
        return [backbone, body, head, head.predictions, head.predictions.decoder, *passed, *own]

    def position_ids(self, tokens: Tensor, embedded: bool) -> Tensor:
        return _in_order(tokens)

    def embed(self, tokens: Tensor, position_ids: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return self.body.embeddings(**_words(self.backbone, tokens, shift))

    def sights(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Sight]:
        mask: Any = create_bidirectional_mask(self.body.config, like, attention_mask)
        where = torch.arange(like.shape[1], device=like.device)[None]
        return {"": Sight(mask, Angles(*self.body.rotary_emb(like, where)))}

    def kind(self, layer: Any) -> str:
        return ""

    def projections(self, layer: Any) -> list[nn.Linear]:
        own = layer.self_attn
        return [own.q_proj, own.k_proj, own.v_proj]

    def norms(self, layer: Any) -> None:
        return None

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        return x

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        x = layer.post_attention_layernorm(x + layer.post_attention_dropout(layer.self_attn.o_proj(context)))
        return layer.post_mlp_layernorm(x + layer.post_mlp_dropout(layer.mlp(x)))

    def run(self, layer: Any, x: Tensor, sight: Sight) -> Tensor:
        return layer(x, attention_mask=sight.mask, position_embeddings=sight.angles and sight.angles[:2])

    def head_transform(self, x: Tensor) -> Tensor:
        return self.backbone.cls.predictions.transform(x)


class Repeated(NamedTuple):
    """The linear map of grouped keys or values, with outputs for each head that shares them: what `Linear` reads."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Linear, groups: int, heads: int) -> Repeated:
        """groups: of keys in the module. heads: that share them, `heads / groups` each, side by side."""

        def widened(x: Tensor) -> Tensor:
            return x.detach().unflatten(0, (groups, -1)).repeat_interleave(heads // groups, dim=0).flatten(0, 1)

        return cls(widened(module.weight), None if module.bias is None else widened(module.bias))


class LlamaBody:
    """Llama and its kin, bidirectional: RMS norms before, in Gemma 3 behind, too, rotary positions, grouped keys, local
    layers. Heads may be wider or narrower than their share of a hidden state, queries and keys have norms."""

    names = tuple(f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma3"))
    rotary = ("default", "linear", "llama3")
    """Kinds of rotary positions whose angles do not depend on how long the longest row is."""

    def __init__(self, backbone: Any):
        self.backbone, self.body = backbone, backbone.base_model
        self.layers: Any = self.body.layers
        self.heads: int = self.body.config.num_attention_heads
        self.width: int = self.layers[0].self_attn.q_proj.out_features

    @staticmethod
    def bypassed(backbone: Any, all_layers: bool) -> list[nn.Module] | None:
        body, layers, config = backbone.base_model, backbone.base_model.layers, backbone.config
        name = type(backbone).__name__
        between = " pre_feedforward_layernorm post_feedforward_layernorm" if name == "Gemma3ForCausalLM" else ""
        normed = " q_norm k_norm" if name in ("Qwen3ForCausalLM", "Gemma3ForCausalLM") else ""
        parts = [(backbone, f"{backbone.base_model_prefix} lm_head"), (body, "embed_tokens layers norm rotary_emb")]
        for layer in layers:
            parts += [(layer, f"self_attn mlp input_layernorm post_attention_layernorm{between}")]
            parts += [(layer.self_attn, f"q_proj k_proj v_proj o_proj{normed}")]
        if name not in LlamaBody.names or not _built(parts) or config.is_causal:
            return None
        rope = body.rotary_emb.rope_type
        if not set(rope.values() if isinstance(rope, dict) else [rope]) <= set(LlamaBody.rotary):
            return None
        # Gemma: logits that are capped, a mask of its own, and a version that scales what it is given
        changed = getattr(config, "final_logit_softcapping", None) or getattr(
            config, "use_bidirectional_attention", None
        )
        if changed or ("Gemma" in name and not hasattr(body.embed_tokens, "embed_scale")):
            return None
        passed = list(layers) if all_layers else [layers[0], layers[-1]]
        own = [layer.self_attn for layer in passed]
        own += [map_ for module in own for map_ in (module.q_proj, module.k_proj, module.v_proj)]
        return [backbone, body, backbone.lm_head, *passed, *own]

    def position_ids(self, tokens: Tensor, embedded: bool) -> Tensor:
        return _in_order(tokens)

    def embed(self, tokens: Tensor, position_ids: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = self.body.embed_tokens(tokens)
        return x if shift is None else x + shift

    def sights(self, like: Tensor, attention_mask: Tensor | None) -> dict[str, Sight]:
        where = torch.arange(like.shape[1], device=like.device)[None]
        made: dict[str, Any] = {
            "full_attention": create_causal_mask,
            "sliding_attention": create_sliding_window_causal_mask,
        }
        given: dict[str, Any] = {"attention_mask": attention_mask, "past_key_values": None, "position_ids": where}
        kinds = {self.kind(layer) for layer in self.layers}
        by_kind = isinstance(self.body.rotary_emb.rope_type, dict)
        angles = {kind: Angles(*self.body.rotary_emb(like, where, *([kind] if by_kind else []))) for kind in kinds}
        return {kind: Sight(made[kind](self.body.config, like, **given), angles[kind]) for kind in kinds}

    def kind(self, layer: Any) -> str:
        everywhere = (
            "full_attention" if getattr(self.body.config, "sliding_window", None) is None else "sliding_attention"
        )
        return getattr(layer.self_attn, "layer_type", None) or everywhere

    def projections(self, layer: Any) -> list[Any]:
        own, groups = layer.self_attn, self.body.config.num_key_value_heads
        return [own.q_proj, *(Repeated.of(module, groups, self.heads) for module in (own.k_proj, own.v_proj))]

    def norms(self, layer: Any) -> Norms | None:
        own, width = layer.self_attn, self.width // self.heads
        scale = own.scaling * width**0.5
        if not hasattr(own, "q_norm"):
            return None if scale == 1.0 else Norms(lambda x: x * scale, lambda x: x)
        return Norms(own.q_norm if scale == 1.0 else lambda x: own.q_norm(x) * scale, own.k_norm)

    def attention_input(self, layer: Any, x: Tensor) -> Tensor:
        return layer.input_layernorm(x)

    def attention_output_and_mlp(self, layer: Any, context: Tensor, x: Tensor) -> Tensor:
        found, behind = layer.self_attn.o_proj(context), layer.post_attention_layernorm
        if not hasattr(layer, "pre_feedforward_layernorm"):
            x = x + found
            return x + layer.mlp(behind(x))
        x = x + behind(found)
        return x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))

    def run(self, layer: Any, x: Tensor, sight: Sight) -> Tensor:
        angles = sight.angles and sight.angles[:2]
        return layer(x, attention_mask=sight.mask, position_embeddings=angles, use_cache=False, is_causal=False)

    def head_transform(self, x: Tensor) -> Tensor:
        return self.body.norm(x)


_KNOWN: tuple[type[Body], ...] = (BertBody, ModernBertBody, NomicBertBody, LlamaBody)


def _in_order(tokens: Tensor, start: int = 0) -> Tensor:
    """The positions (b, L) of tokens (b, L), counted from `start`."""
    return torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)


def _words(backbone: Any, tokens: Tensor, shift: Tensor | None) -> dict[str, Tensor]:
    """What embeddings of transformers are called with: the tokens, or their embeddings where a shift is added."""
    if shift is None:
        return {"input_ids": tokens}
    return {"inputs_embeds": backbone.get_input_embeddings()(tokens) + shift}


def _built(parts: list[tuple[nn.Module, str]]) -> bool:
    """Whether each module has the children named beside it, and no others."""
    return all(_children(module) == set(names.split()) for module, names in parts)


def _children(module: nn.Module) -> set[str]:
    return {name for name, child in module.named_children() if not isinstance(child, nn.modules.loss._Loss)}


def untouched(module: nn.Module, own: bool = False) -> bool:
    """No adapter, hook or compiled forward in it: its class says what it computes. What only records is let pass."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(not getattr(hook, "__module__", "").startswith("transformers.utils") for hook in hooks):
        return False
    plain = "forward" not in vars(module) and module._compiled_call_impl is None and not hasattr(module, "_hf_hook")
    home = type(module).forward.__module__.split(".")[0]
    return plain and (own or type(module) is nn.Linear or home == "transformers")


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is a tensor of torch itself, and neither quantised nor spread over processes."""
    return type(weight.data) is Tensor


def has_known_structure(backbone: Any) -> bool:
    """Whether the modules of a backbone are those of a known one, changed or not."""
    for kind in _KNOWN:
        try:
            if kind.bypassed(backbone, False) is not None:
                return True
        except (AttributeError, TypeError):  # a module of that name, built otherwise
            continue
    return False


def recognise(model: Any, all_layers: bool = False) -> Body | None:
    """The structure of the model's backbone, where it is a known one and nothing in it was changed.

    all_layers: whether all layers are run by their parts, so that nothing may have been changed in any of them.
    """
    backbone = getattr(model, "backbone", None)
    # by the name of the file alone: transformers copies what a folder carries once for each class that it loads from it
    if backbone is None or type(model).forward.__module__.rpartition(".")[2] != "modeling_udm":
        return None
    for kind in _KNOWN:
        try:
            bypassed = kind.bypassed(backbone, all_layers)
        except (AttributeError, TypeError):  # a module of that name, built otherwise
            continue
        if bypassed is not None:
            body, config = kind(backbone), backbone.base_model.config
            if config._attn_implementation not in ("sdpa", "eager") or len(body.layers) < 2:
                return None
            if config.output_attentions or config.output_hidden_states:
                return None
            if all_layers and model.config.shift_logits:  # what is asked about is not what is read
                return None
            if len({(weight.dtype, weight.device) for weight in model.parameters()}) > 1:
                return None
            if not all(map(is_plain, model.parameters())):
                return None
            return body if untouched(model, own=True) and all(map(untouched, bypassed)) else None
    return None
