"""Decoders train like any other backbone: every process, LoRA, gradient checkpointing, and on from what was written."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.helpers import weights_in
from tests.models import TEXTS, decoder_config, make_rows, save_decoder, wrap
from tests.test_train_text import train
from udm_text import UDMForMaskedGeneration
from udm_text.decoders import decoder_tokenizer
from udm_text.training.adapters import add_adapter, merge_adapter


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(f"{text[: 5 + i % 9]}\n" for i in range(40) for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("decoders")
    return {family: save_decoder(root / family, family, spare=4) for family in ("llama", "gpt2", "gemma2")}


@pytest.mark.parametrize(
    "family, process",
    [
        ("llama", "mask"),
        ("gpt2", "delete"),
        pytest.param("gpt2", "substitute", marks=pytest.mark.slow),
        pytest.param("gemma2", "delete", marks=pytest.mark.slow),
    ],
)
def test_a_plain_decoder_is_trained_with_its_tokenizer_and_what_is_written_goes_on(
    texts, plain, family, process, tmp_path
):
    report = train(texts, tmp_path / "first", "--model", plain[family], "--process", process, "--max_steps", 4)
    assert report["process"] == process and report["learning_rate"] == 1e-4
    assert report["validation"]["nelbo_nats_per_token"] > 0
    model = UDMForMaskedGeneration.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert model.config.from_decoder and decoder_tokenizer(tokenizer) is tokenizer
    assert tokenizer.mask_token_id == model.config.mask_token_id
    before = AutoModelForCausalLM.from_pretrained(plain[family])
    assert model.config.vocab_size == before.config.vocab_size, "spare rows are used"
    moved = [float((p - before.state_dict()[name]).abs().max()) for name, p in model.backbone.state_dict().items()]
    assert max(moved) > 0
    pipe = pipeline("udm-generation", model=str(tmp_path / "first"))
    assert isinstance(pipe("", seed=0)[0]["generated_text"], str)
    second = train(texts, tmp_path / "second", "--model", tmp_path / "first", "--max_steps", 4)
    assert second["process"] == process and second["base_model"] == report["base_model"]


def test_an_adapter_learns_with_the_mask_it_has_never_read_and_merges(texts, plain, tmp_path):
    lora = ["--lora_rank", 2, "--learning_rate", 1e-2, "--max_steps", 4]
    report = train(texts, tmp_path / "out", "--model", plain["llama"], *lora)
    assert report["trained_parameters"] < report["parameters"] / 2
    base, model = (UDMForMaskedGeneration.from_pretrained(path) for path in (plain["llama"], tmp_path / "out"))
    assert not [name for name in weights_in(tmp_path / "out") if "lora" in name or "token_adapter" in name]
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["r"] == 2
    mask, old, new = model.config.mask_token_id, base.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert float((new[mask] - old[mask]).detach().abs().max()) > 1e-4
    others = torch.arange(len(old)) != mask
    assert torch.equal(new[others], old[others]) and torch.equal(
        model.get_output_embeddings().weight, base.get_output_embeddings().weight
    )


@pytest.mark.parametrize("tied", (False, True))
@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_a_merged_adapter_computes_what_the_adapter_did(family, tied):
    model = add_adapter(wrap(decoder_config(family, tie_word_embeddings=tied)), 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    ids = torch.tensor([[2, 7, 4, 4, 9, 3]])
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        merged = merge_adapter(model)
        assert type(merged) is UDMForMaskedGeneration
        drawn = (
            merged.config.allowed_token_ids()
        )  # a tied head has the new [MASK] when it is merged, which nobody reads
        torch.testing.assert_close(merged(input_ids=ids).logits[..., drawn], logits[..., drawn], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ("qwen3", "gemma2", "gpt2"))
def test_gradient_checkpointing_changes_no_gradient(family):
    gradients = []
    for checkpointing in (False, True):
        model = wrap(decoder_config(family), "substitute").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = torch.tensor(
            [row["input_ids"] for row in make_rows(4, longest=6, shortest=6) if len(row["input_ids"]) == 8]
        )
        model(input_ids=ids, labels=ids, t=torch.full((len(ids),), 2)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and any(bool(x.any()) for x in plain.values())
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
