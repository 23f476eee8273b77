"""LoRA: only the adapter learns, it resumes, and merged it is a plain model that computes the same."""

import json

import pytest
import torch
from transformers import BertModel

from tests.helpers import assert_equal_weights, weights_in
from tests.models import CLS, PROCESSES, SEP, make_udm
from tests.test_corpus import framed_tokenizer
from tests.test_train_text import few_words, plain_bert, train  # noqa: F401
from tests.training_helpers import make_trainer, say_it_is_sharded, weights
from udm_text import UDMForMaskedGeneration
from udm_text.backbones import recognise
from udm_text.fastpath import plain_path
from udm_text.training.adapters import add_adapter, merge_adapter


def adapted(target=None, **own):
    """A model with adapters that are no longer zero."""
    model = add_adapter(make_udm(**own), 4, target=target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.5)
    return model.eval()


@pytest.mark.parametrize("process", PROCESSES)
def test_only_the_adapter_learns_and_a_resumed_run_is_bit_equal(tmp_path, process):
    base = make_udm(process).state_dict()
    how = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "ema_decay": 0.9, "learning_rate": 1e-2}
    whole = make_trainer(tmp_path / "a", model=add_adapter(make_udm(process), 4), **how)
    whole.train()
    moved = {n for n, p in weights(whole).items() if "lora_" in n or "modules_to_save" in n}
    for name, value in whole.model.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        assert name in moved or plain not in base or torch.equal(value, base[plain]), name
    assert len(moved) == (26 if process == "mask" else 30)
    resumed = make_trainer(tmp_path / "b", model=add_adapter(make_udm(process), 4), **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert_equal_weights(weights(whole), weights(resumed))
    assert_equal_weights(whole.average.average, resumed.average.average)
    stored = weights_in(tmp_path / "a" / "checkpoint-8", "adapter_model.safetensors")
    assert sum(value.numel() for value in stored.values()) < sum(value.numel() for value in base.values())


@pytest.mark.parametrize("target", [None, "dense", "value"])
def test_generating_with_an_adapter_takes_its_part_into_account_merged_or_not(target):
    model = adapted(target, scale=20.0)
    assert recognise(model.base_model.model) is None or target == "dense"
    drawn = model.generate(length=12, num_return_sequences=8, seed=3)
    with plain_path():
        assert torch.equal(model.generate(length=12, num_return_sequences=8, seed=3), drawn)
    logits = model(drawn).logits
    assert not torch.allclose(logits, make_udm()(drawn).logits, atol=1e-2)
    merged = merge_adapter(model)
    assert type(merged) is UDMForMaskedGeneration and recognise(merged) is not None
    torch.testing.assert_close(merged(drawn).logits, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.generate(length=12, num_return_sequences=8, seed=3), drawn)


def test_udm_train_writes_the_merged_model_and_the_adapter_beside_it(few_words, plain_bert, tmp_path):  # noqa: F811
    from peft import PeftModel

    output = tmp_path / "out"
    lora = ["--lora_rank", 4, "--lora_target", "query,value,dense", "--learning_rate", 1e-2, "--save_steps", 2]
    report = train(few_words, output, "--model", plain_bert, *lora)
    assert report["trained_parameters"] < report["parameters"] / 2
    merged = UDMForMaskedGeneration.from_pretrained(output)
    assert not [name for name in weights_in(output) if "lora" in name]
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["r"] == 4
    base = UDMForMaskedGeneration.from_pretrained(plain_bert)
    base.config.update({"length_counts": merged.config.length_counts})
    again = PeftModel.from_pretrained(base, output / "adapter").eval()
    ids = torch.tensor([[CLS, 7, 8, 9, SEP]])
    torch.testing.assert_close(again(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        UDMForMaskedGeneration.from_pretrained(plain_bert)(ids).logits, merged(ids).logits, atol=1e-5
    )
    assert merged.generate(seed=0).shape[0] == 1
    assert not list(output.rglob("*.bin")) and not list(output.glob(".part*"))


def test_an_adapter_of_weights_that_no_process_has_whole_is_refused(tmp_path, monkeypatch):
    model = make_udm()
    say_it_is_sharded(monkeypatch, model)
    with pytest.raises(ValueError, match="LoRA goes with one process or with DDP: .* to merge the adapter into"):
        make_trainer(tmp_path, model=add_adapter(model, 2), save_strategy="no")
    make_trainer(tmp_path, model=model, save_strategy="no")  # without one it is not


def test_what_an_adapter_cannot_do_is_refused(few_words, plain_bert, tmp_path):  # noqa: F811
    bare, wide = tmp_path / "bare", tmp_path / "wide"
    for folder in (bare, wide):
        framed_tokenizer().save_pretrained(folder)
    BertModel.from_pretrained(plain_bert).save_pretrained(bare)
    cases = [
        (["--lora_rank", 4], "--lora_rank adapts a model that is trained; 'tiny' is a preset"),
        (["--lora_alpha", 4], "--lora_alpha 4 goes with --lora_rank"),
        (["--model", plain_bert, "--lora_rank", 0], "lora_rank must be at least 1, got 0"),
        (["--model", plain_bert, "--lora_rank", 2, "--lora_target", "kwery"], "'kwery' names no module .*query"),
        (["--model", bare, "--lora_rank", 2], "bare has no language-model head: train it whole first"),
    ]
    for i, (options, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            train(few_words, tmp_path / f"out{i}", *options)
        assert not (tmp_path / f"out{i}").exists()
