"""Every type of masked LM that transformers has, tiny and random, and what a model around it can do.

`python -m tests.interop` makes the tables of docs/models.md; tests/test_interop.py asks the same of single types. Two
columns need packages of the extras `onnx` and `int8`.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tests.models import CLS, FIRST, MASK, PAD, SEP, UNK, VOCAB, wake_time
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.backbones import recognise
from udm_text.decoders import auto_class, make_bidirectional
from udm_text.hub import save_int8
from udm_text.padding import reads_padding

TYPES = tuple(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
REFUSED = ("bart", "mbart", "modernvbert", "mvp", "perceiver", "ultravbert")
"""Types that no model can be put around."""
DECODERS = tuple(
    "bloom cohere falcon gemma gemma2 gemma3_text gpt2 gpt_neo gpt_neox granite llama mamba mistral olmo2 opt phi phi3 "
    "qwen2 qwen3 stablelm".split()
)
"""Twenty types of decoder."""
CAUSAL = ("gpt_neo", "mamba", "stablelm")
"""Those that stay causal, which is found by a probe."""
LONGEST = 40
"""Positions of the tiny models."""

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "hidden_size": 32,
    "dim": 32,
    "d_model": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "entity_emb_size": 16,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_heads": 2,
    "n_head": 2,
    "d_head": 16,
    "head_dim": 16,
    "intermediate_size": 48,
    "hidden_dim": 48,
    "d_inner": 48,
    "initializer_range": 0.3,
    "embed_init_std": 0.3,
    "init_std": 0.3,
    "entity_vocab_size": 8,
    "pronunciation_vocab_size": 8,
    "shape_vocab_size": 8,
    "pronunciation_embed_dim": 32,
    "shape_embed_dim": 32,
    "max_position_embeddings": LONGEST,
    "n_positions": LONGEST,
    "n_embd": 32,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "sliding_window": 8,
    "state_size": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""Fields of small configurations, under the names that the types have for them."""

_NO_DROPOUT = (
    "hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout hidden_dropout activation_dropout "
    "embedding_dropout mlp_dropout local_attention_probs_dropout_prob lsh_attention_probs_dropout_prob "
    "classifier_dropout_prob"
).split()

_SPECIAL = {"bos_token_id": CLS, "eos_token_id": SEP, "sep_token_id": SEP, "cls_token_id": CLS, "mask_token_id": MASK}

_OWN: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full", "block_size": 4, "num_random_blocks": 1},
    "esm": {"position_embedding_type": "rotary", "token_dropout": True},
    "falcon": {"new_decoder_architecture": False, "alibi": False},
    "gpt2": {"n_layer": 2},
    "bloom": {"n_layer": 2, "hidden_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "funnel": {"block_sizes": (1, 1), "num_decoder_layers": 1},
    "longformer": {"attention_window": 8},
    "mobilebert": {"intra_bottleneck_size": 16, "embedding_size": 16, "num_feedforward_networks": 1},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 2.0},
    "neomme": {"embedding_rank": 16, "embedding_dim": 16, "document_token_id": 3, "image_token_id": 4},
    "nystromformer": {"segment_means_seq_len": 8, "num_landmarks": 8, "conv_kernel_size": 9},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1}
    | {"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "reformer": {"attention_head_size": 16, "feed_forward_size": 48, "attn_layers": ("local", "lsh")}
    | {"axial_pos_shape": (5, 8), "axial_pos_embds_dim": (16, 16), "hash_seed": 0, "num_buckets": 2}
    | {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
    "squeezebert": dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 2),
    "tapas": {"type_vocab_sizes": (3, 8, 8, 2, 8, 8, 10)},
    "ultrabert": {"sliding_window": 8, "prediction_head_size": 32},
    "xmod": {"default_language": "en_XX"},
    "yoso": {"hash_code_len": 4, "num_hash": 4},
}
"""What single types need besides."""


def tiny_config(model_type: str, **how: Any) -> PreTrainedConfig:
    """A small configuration of a type of masked LM, without dropout, of the alphabet of tests/models.py."""
    kind = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(kind)} - {"dtype"}
    fields = {**_SMALL, **dict.fromkeys(_NO_DROPOUT, 0.0), **_SPECIAL}
    if model_type in ("modernvbert", "ultravbert"):
        return kind(text_config=tiny_config("modernbert" if model_type == "modernvbert" else "ultrabert").to_dict())
    own = {name: value for name, value in fields.items() if name in known}
    if ("n_head" in own or "d_model" in own) and model_type not in DECODERS:
        own.pop("num_hidden_layers", None)
    return kind(**{**own, **_OWN.get(model_type, {}), **how})


def tiny_masked_lm(model_type: str, seed: int = 0, **how: Any) -> Any:
    """A random masked LM, or decoder made bidirectional, in evaluation mode, its biases and norms random, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(model_type, **how)
        make_bidirectional(config)
        model = auto_class(config).from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model


FIELDS: dict[str, Any] = {
    "mask_token_id": MASK,
    "pad_token_id": PAD,
    "special_token_ids": [UNK],
    "prefix_token_ids": [CLS],
    "suffix_token_ids": [SEP],
}


def wrapped(backbone: Any, process: str = "mask", **fields: Any) -> UDMForMaskedGeneration:
    """The model around a masked LM."""
    config = UDMConfig(text_config=backbone.config, process=process, **{**FIELDS, **fields})
    return UDMForMaskedGeneration(config, backbone=backbone).eval()


_WORDS = [FIRST + 7 * i % (VOCAB - FIRST) for i in range(34)]
LONG = torch.tensor([[CLS, *_WORDS[:2], MASK, *_WORDS[3:5], MASK, *_WORDS[6:], SEP]])
"""36 tokens, which the chunks of Reformer divide."""
SHORT = torch.tensor([[CLS, 11, MASK, MASK, SEP]])


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """A long row and a short one padded behind, (2, L), and where there is a token."""
    ids = torch.cat((LONG, torch.nn.functional.pad(SHORT, (0, LONG.shape[1] - SHORT.shape[1]), value=PAD)))
    return ids, (ids != PAD).long()


def equal(a: torch.Tensor, b: torch.Tensor) -> None:
    if not torch.equal(a, b):
        raise AssertionError(f"differ by {float((a - b).abs().max()):.2g}")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def loads(kind: str, where: Path) -> None:
    plain = tiny_masked_lm(kind)
    plain.save_pretrained(where)
    model = UDMForMaskedGeneration.from_pretrained(where, **FIELDS)
    plain = auto_class(plain.config).from_pretrained(where).eval()
    with torch.no_grad():
        equal(model(input_ids=LONG).logits, plain(input_ids=LONG).logits)


def conditioned(kind: str, where: Path) -> None:
    """With a time embedding that says nothing yet the logits of a row are the plain model's, padding behind or not."""
    plain = tiny_masked_lm(kind)
    model = wrapped(plain, "substitute")
    ids, mask = rows()
    with torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask, t=torch.tensor([3, 3])).logits
        for i, row in enumerate((LONG, SHORT)):
            alone = plain(input_ids=row).logits[0]
            close(model(input_ids=row, t=torch.tensor([3])).logits[0], alone)
            close(both[i, : len(alone)], alone)


def picks(kind: str, where: Path) -> None:
    model = wrapped(tiny_masked_lm(kind))
    ids, mask = rows()
    wanted = (ids == MASK) & mask.bool()
    with torch.no_grad():
        close(
            model(input_ids=ids, attention_mask=mask, positions=wanted).logits,
            model(input_ids=ids, attention_mask=mask).logits[wanted],
        )


def independent(kind: str, where: Path) -> None:
    """A row is filled in, and repaired by a model conditioned on time, as if it were alone in its batch."""
    ids, mask = rows()
    for process, clean, how in (("mask", False, {}), ("substitute", True, {"max_edits": 2})):
        model = wake_time(wrapped(tiny_masked_lm(kind), process))
        given = [x.masked_fill(x == MASK, 7) if clean else x for x in (ids, LONG, SHORT)]
        both = model.generate(given[0], attention_mask=mask, seed=0, **how)
        for i, row in enumerate(given[1:]):
            alone = model.generate(row, seed=0, sample_index=torch.tensor([i]), **how)
            equal(both[i : i + 1, : alone.shape[1]], alone)
        t = None if process == "mask" else torch.tensor([2])
        with torch.no_grad():
            alone = model(input_ids=SHORT, t=t).logits
            beside = model(input_ids=ids, attention_mask=mask, t=None if t is None else t.repeat(2)).logits
        close(beside[1:, : SHORT.shape[1]], alone)


def trains(kind: str, where: Path) -> None:
    model = wrapped(tiny_masked_lm(kind), "substitute").train()
    ids, mask = rows()
    labels = torch.full_like(ids, -100)
    labels[:, 2] = 7
    loss = model(input_ids=ids, attention_mask=mask, t=torch.tensor([2, 1]), labels=labels).loss
    loss.backward()
    assert bool(loss.isfinite())
    for name in ("time_embedding.output.weight",):
        grad = model.get_parameter(name).grad
        assert grad is not None and bool(grad.isfinite().all()) and bool(grad.any()), name
    grad = model.get_input_embeddings().weight.grad
    assert grad is not None and bool(grad.any()), "no gradient of the input embedding"


def saves(kind: str, where: Path) -> None:
    model = wrapped(tiny_masked_lm(kind), "substitute")
    model.save_pretrained(where)
    again, info = UDMForMaskedGeneration.from_pretrained(where, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    t = torch.tensor([2])
    with torch.no_grad():
        equal(again.eval()(input_ids=LONG, t=t).logits, model(input_ids=LONG, t=t).logits)


def exports(kind: str, where: Path) -> None:
    plain = tiny_masked_lm(kind)
    model = wrapped(plain)
    model.backbone.save_pretrained(where)
    with torch.no_grad():
        equal(
            auto_class(plain.config).from_pretrained(where).eval()(input_ids=LONG).logits, model(input_ids=LONG).logits
        )


def fast(kind: str, where: Path) -> None:
    assert recognise(wrapped(tiny_masked_lm(kind))) is not None, "own forward"


def is_exported(kind: str, where: Path) -> None:
    """torch.export makes a program of the forward, whose logits are its own."""
    model = wrapped(tiny_masked_lm(kind))
    program = torch.export.export(model, (), {"input_ids": LONG}, strict=False).module()
    with torch.no_grad():
        close(program(input_ids=LONG).logits, model(input_ids=LONG).logits)


def compiles(kind: str, where: Path) -> None:
    """torch.compile sees the forward as one graph. Inductor's kernels, minutes of a compiler, are not made."""
    model = wrapped(tiny_masked_lm(kind))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        close(compiled(input_ids=LONG).logits, model(input_ids=LONG).logits)


def is_onnx(kind: str, where: Path) -> None:
    """ONNX by torch.onnx's dynamo exporter, of any number and length of rows, gives the logits in onnxruntime.

    Rows are padded where a row does not depend on its padding; a graph cannot run rows of one length at a time.
    """
    import onnxruntime

    model, (ids, mask) = wrapped(tiny_masked_lm(kind)), rows()
    given, free = {"input_ids": ids, "attention_mask": mask}, {0: "rows", 1: "length"}
    how: dict[str, Any] = {"dynamo": True, "verbose": False, "input_names": list(given), "output_names": ["logits"]}
    torch.onnx.export(model, (), where / "model.onnx", kwargs=given, dynamic_shapes=dict.fromkeys(given, free), **how)
    session = onnxruntime.InferenceSession(where / "model.onnx", providers=["CPUExecutionProvider"])
    batches = [(LONG[:, :20].repeat(3, 1), torch.ones(3, 20, dtype=torch.int64)), (SHORT, torch.ones_like(SHORT))]
    for tokens, attended in batches if reads_padding(model, 12) else [*batches, (ids, mask)]:
        found = session.run(["logits"], {"input_ids": tokens.numpy(), "attention_mask": attended.numpy()})[0]
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=attended).logits
        close(torch.from_numpy(found)[attended.bool()], logits[attended.bool()])


def nearly(model: Any, rounded: Any) -> None:
    """Logits of weights of 8 bits are off by less than 15 per cent of their spread, and texts are drawn by them."""
    t = torch.tensor([2])
    with torch.no_grad():
        full, found = (each(input_ids=LONG, t=t).logits for each in (model, rounded))
    off = float((found - full).square().mean().sqrt() / full.std())
    if not 0.0 < off < 0.15:
        raise AssertionError(f"logits are off by {off:.2g} of their spread")
    rounded.generate(LONG.masked_fill(LONG == MASK, FIRST), seed=0, max_edits=1)


def quantises(kind: str, where: Path) -> None:
    """Linear maps of 8 bits by torch.ao.quantization.quantize_dynamic, of a model conditioned on time."""
    model = wake_time(wrapped(tiny_masked_lm(kind), "substitute"))
    linear = {torch.nn.Linear}
    nearly(model, torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), linear, dtype=torch.qint8))


def quantises_by_torchao(kind: str, where: Path) -> None:
    """Weights of 8 bits by torchao, as `udm export --int8` has them, which come back."""
    model = wake_time(wrapped(tiny_masked_lm(kind), "substitute"))
    model.save_pretrained(where / "full")
    small = save_int8(str(where / "full"), None, where / "int8")
    nearly(model, small)
    again = UDMForMaskedGeneration.from_pretrained(where / "int8")
    with torch.no_grad():
        equal(again(input_ids=LONG, t=torch.tensor([2])).logits, small(input_ids=LONG, t=torch.tensor([2])).logits)


def shards(kind: str, where: Path) -> None:
    """Saved in several files, it comes back bit for bit."""
    model = wrapped(tiny_masked_lm(kind))
    model.save_pretrained(where, max_shard_size="20KB")
    assert len(list(where.glob("*.safetensors"))) > 1 and (where / "model.safetensors.index.json").exists()
    again = UDMForMaskedGeneration.from_pretrained(where).eval()
    with torch.no_grad():
        equal(again(input_ids=LONG).logits, model(input_ids=LONG).logits)


def maps_devices(kind: str, where: Path) -> None:
    """Wholly on a disk, and with what `device_map="auto"` finds room for in memory: it fills in as without."""
    model = wrapped(tiny_masked_lm(kind))
    model.save_pretrained(where / "model")
    expected = model.generate(LONG, seed=0)
    size = sum(x.numel() * x.element_size() for x in model.parameters())
    for how in ({"device_map": {"": "disk"}}, {"device_map": "auto", "max_memory": {"cpu": int(0.6 * size)}}):
        away = UDMForMaskedGeneration.from_pretrained(where / "model", offload_folder=str(where / "away"), **how)
        assert any(weight.is_meta for weight in away.parameters()), "all of it is in memory"
        equal(away.generate(LONG, seed=0), expected)


def adapts(kind: str, where: Path) -> None:
    """LoRA of peft in every linear map of the body: untrained it changes nothing, and gradients reach it."""
    from peft import LoraConfig, get_peft_model

    model = wrapped(tiny_masked_lm(kind))
    with torch.no_grad():
        before = model(input_ids=LONG).logits
    names = [name for name, module in model.backbone.base_model.named_modules() if type(module) is torch.nn.Linear]
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name.endswith("pooler.dense")})
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=ends))
    with torch.no_grad():
        close(adapted(input_ids=LONG).logits, before)
    adapted(input_ids=LONG, labels=torch.where(LONG == MASK, 7, -100)).loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for name, p in adapted.named_parameters() if "lora" in name)


CHECKS: dict[str, Callable[[str, Path], None]] = {
    f.__name__: f
    for f in (loads, conditioned, picks, independent, trains, saves, exports, shards, maps_devices, quantises)
    + (quantises_by_torchao, adapts, compiles, is_exported, is_onnx, fast)
}


def ask(check: Callable[[str, Path], None], kind: str) -> str:
    """`yes`, or in a line why not."""
    with tempfile.TemporaryDirectory() as where, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(kind, Path(where))
        except Exception as error:  # whatever goes wrong is what the table says
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "yes"


COLUMNS = {
    "loads": "logits bit for bit",
    "conditioned": "with a new time embedding",
    "independent": "rows for themselves",
    "trains": "trains",
    "saves": "saves",
    "exports": "comes out again",
    "shards": "in several files",
    "maps_devices": "partly on a disk",
    "quantises": "8 bits (torch)",
    "quantises_by_torchao": "8 bits (torchao)",
    "adapts": "LoRA",
    "compiles": "torch.compile",
    "is_exported": "torch.export",
    "is_onnx": "ONNX",
    "fast": "fast path",
}
"""Heads of the table; `picks`, which is no choice of anybody, is left out of it."""


def is_taken(kind: str, where: Path) -> None:
    """A model can be made of the type: raises what is said where it cannot."""
    if kind in DECODERS:
        wrapped(tiny_masked_lm(kind))
    else:
        UDMForMaskedGeneration(UDMConfig(text_config=tiny_config(kind), **FIELDS))


def table(kinds: list[str] | tuple[str, ...], names: list[str] | None = None) -> list[str]:
    """Lines of Markdown: a row a type, below them what single types say where they do not, then those that are refused.

    names: the checks to make, others are left empty; None: all.
    """
    lines = ["| model type | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " :-: |" * len(COLUMNS)]
    notes: dict[str, list[str]] = {}
    for kind in (kind for kind in kinds if kind not in (*REFUSED, *CAUSAL)):
        said = {name: ask(CHECKS[name], kind) for name in COLUMNS if names is None or name in names}
        cells = [{"": "", "yes": "yes"}.get(said.get(name, ""), "-") for name in COLUMNS]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        for name, answer in said.items():
            if answer != "yes" and name != "fast":
                notes.setdefault(f"{kind}: {answer}", []).append(COLUMNS[name])
    refusals = ((kind, ask(is_taken, kind)) for kind in kinds if kind in (*REFUSED, *CAUSAL))
    lines += ["", *(f"* {note} ({', '.join(heads)})" for note, heads in notes.items()), "", "| refused | says |"]
    return [*lines, "| --- | --- |", *(f"| {kind} | {said.partition(': ')[2]} |" for kind, said in refusals)]


if __name__ == "__main__":
    print("\n".join(table(sys.argv[1:] or (*TYPES, *DECODERS))))
