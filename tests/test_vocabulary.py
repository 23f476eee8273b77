"""Tokens that a pretrained model gets: it predicts as before; the new ones are rare, and they learn."""

import pytest
import torch

from tests.helpers import assert_equal_weights, weights_in
from tests.models import FAMILIES, make_tokenizer, save_masked_lm
from udm_text import UDMForMaskedGeneration
from udm_text.cli.train_text import parse, train_text
from udm_text.corpus import fit_vocabulary, load_tokenizer

WORDS = ["zebra", "quokka", "xylophone"]


@pytest.mark.parametrize("family", FAMILIES)
def test_new_tokens_are_the_mean_of_the_old_and_hardly_move_what_is_predicted(tmp_path, family):
    tokenizer = make_tokenizer(family)
    model = UDMForMaskedGeneration.from_pretrained(save_masked_lm(tmp_path, family))
    old = model.config.vocab_size
    with torch.no_grad():  # a trained head does not like all tokens alike
        model.get_output_embeddings().bias.add_(torch.randn(old, generator=torch.Generator().manual_seed(1)))
    ids = torch.tensor([tokenizer(f"the cat {tokenizer.mask_token} on the mat")["input_ids"]])
    place = int((ids[0] == tokenizer.mask_token_id).nonzero()[0])
    allowed = model.config.allowed_token_ids()

    def law():
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, place]
        return scores.masked_fill(model.config.forbidden_tokens(), -torch.inf).softmax(-1)

    before = law()
    tokenizer.add_tokens(WORDS)
    new = fit_vocabulary(model, tokenizer)
    assert new == [old, old + 1, old + 2] and model.config.vocab_size == len(tokenizer) == old + 3
    weight, head = model.get_input_embeddings().weight.detach(), model.get_output_embeddings()
    for table in (weight, head.weight.detach()):
        assert torch.allclose(table[new], table[:old].mean(dim=0).expand(3, -1), atol=1e-2 * float(table.std()))
    assert (head.bias[new] == head.bias[allowed].min()).all()
    after = law()
    assert not model.config.forbidden_tokens()[new].any()
    # each at most as likely as the geometric mean of the old, and so at most 1/V of them together
    assert (after[new] <= before[allowed].log().mean().exp() * 1.01).all()
    assert torch.allclose(after[:old] / after[:old].sum(), before, atol=1e-6)


def test_spare_rows_that_become_tokens_are_initialised_too_and_special_ones_stay_special(tmp_path):
    tokenizer = make_tokenizer("bert")
    model = UDMForMaskedGeneration.from_pretrained(save_masked_lm(tmp_path, "bert"))
    used = len(tokenizer)
    model.resize_token_embeddings(used, pad_to_multiple_of=64)
    size = model.config.vocab_size
    assert size > used + 4 and model.config.forbidden_tokens()[used:].all()
    with torch.no_grad():
        model.get_input_embeddings().weight[used:] = 77.0
        model.get_output_embeddings().bias[used:] = 77.0
    tokenizer.add_tokens(WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[X]"]})
    assert fit_vocabulary(model, tokenizer) == [used, used + 1, used + 2]
    weight, bias = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().bias.detach()
    assert weight[used : used + 3].abs().max() < 1 and (bias[used : used + 3] < 1).all()
    forbidden = model.config.forbidden_tokens()
    assert not forbidden[used : used + 3].any() and forbidden[used + 3 :].all()
    assert fit_vocabulary(model, tokenizer) == []


def test_a_tokenizer_that_fits_changes_nothing(tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(save_masked_lm(tmp_path, "bert"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert fit_vocabulary(model, make_tokenizer("bert")) == []
    assert_equal_weights(dict(model.named_parameters()), before)


def test_a_run_with_a_tokenizer_that_was_added_to_trains_and_writes_the_new_words(tmp_path):
    plain = save_masked_lm(tmp_path / "plain", "bert")
    tokenizer = load_tokenizer(str(plain))
    tokenizer.add_tokens(WORDS)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts.txt").write_text("".join(f"the {WORDS[i % 3]} sat on {i}\n" for i in range(60)))
    how = f"--model {plain} --tokenizer {tmp_path / 'tokenizer'} --learning_rate 0.01 --max_steps 40 --warmup_steps 0"
    how += " --per_device_train_batch_size 16 --use_cpu --report_to none --plot false"
    for name in ("one", "two"):
        report = train_text(
            *parse(["--data", str(tmp_path / "texts.txt"), "--output", str(tmp_path / name), *how.split()])
        )
    assert_equal_weights(weights_in(tmp_path / "one"), weights_in(tmp_path / "two"))  # what new tokens draw too
    assert report["vocabulary"]["never_seen"] > 0
    trained, fresh = (UDMForMaskedGeneration.from_pretrained(path) for path in (tmp_path / "one", plain))
    words = fit_vocabulary(fresh, tokenizer)
    blank = torch.tensor([tokenizer("the [MASK] sat on 3")["input_ids"]])

    def chance(model):
        with torch.no_grad():
            return float(model(input_ids=blank).logits[0, 2].softmax(-1)[words].sum())

    assert chance(trained) > 5 * chance(fresh) > 0
