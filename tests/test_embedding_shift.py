"""What is added to the embeddings of tokens reaches backbones that look at their tokens, too, and nothing else."""

import copy
import threading

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, PerceiverConfig

from tests.interop import FIELDS, LONG, SHORT, conditioned, rows, tiny_config, tiny_masked_lm, wrapped
from tests.models import MASK, VOCAB, wake_time
from udm_text import UDMConfig, UDMForMaskedGeneration

LOOKING = ("esm", "mobilebert", "longformer", "esmc", "neomme", "roc_bert", "distilbert", "bert")


@pytest.mark.parametrize("kind", LOOKING)
def test_a_time_embedding_that_says_nothing_changes_nothing(kind, tmp_path):
    conditioned(kind, tmp_path)


@pytest.mark.parametrize("kind", LOOKING)
def test_what_is_told_is_heard_at_the_tokens_and_not_in_the_padding(kind):
    model = wake_time(wrapped(tiny_masked_lm(kind), "substitute"))
    ids, mask = rows()
    with torch.no_grad():
        [low], [high] = (model(input_ids=SHORT, t=torch.tensor([t])).logits for t in (1, 3))
        beside = model(input_ids=ids, attention_mask=mask, t=torch.tensor([1, 3])).logits[1, : SHORT.shape[1]]
    assert not torch.allclose(low, high, atol=1e-2)
    torch.testing.assert_close(beside, high, rtol=1e-4, atol=1e-4)


def test_the_marks_of_blanks_reach_a_backbone_of_unknown_structure():
    model = wrapped(tiny_masked_lm("distilbert"), blank_widths=4)
    torch.nn.init.normal_(model.width_head.blank_embedding)
    blanks = LONG == MASK
    with torch.no_grad():
        plain, marked = (model(input_ids=LONG, blanks=x).logits for x in (torch.zeros_like(blanks), blanks))
        assert torch.equal(plain, model(input_ids=LONG).logits) and not torch.allclose(plain, marked, atol=1e-2)
    with pytest.raises(
        ValueError, match="type 'esm' embeds each .MASK. as zero .token_dropout.*leave blank_widths out"
    ):
        wrapped(tiny_masked_lm("esm"), blank_widths=4)


def test_embeddings_in_place_of_tokens_are_added_to_as_the_tokens_are():
    model = wake_time(wrapped(tiny_masked_lm("distilbert"), "substitute"))
    t, embeddings = torch.tensor([2]), model.get_input_embeddings()(LONG)
    with torch.no_grad():
        given = model(inputs_embeds=embeddings, t=t, num_editable=torch.tensor([34])).logits
        torch.testing.assert_close(given, model(input_ids=LONG, t=t, num_editable=torch.tensor([34])).logits)


def test_nothing_is_left_behind_by_a_call_nor_by_one_that_fails(monkeypatch):
    model = wake_time(wrapped(tiny_masked_lm("esm"), "substitute"))
    with torch.no_grad():
        before = model.backbone(input_ids=LONG).logits
        first = model(input_ids=LONG, t=torch.tensor([2])).logits
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(model.backbone.esm.embeddings, "forward", lambda **given: 1 / 0)
            model(input_ids=LONG, t=torch.tensor([2]))
        assert torch.equal(model.backbone(input_ids=LONG).logits, before)
        for again in (model, copy.deepcopy(model)):
            assert torch.equal(again(input_ids=LONG, t=torch.tensor([2])).logits, first)


def test_threads_do_not_hear_what_is_told_to_others():
    model = wake_time(wrapped(tiny_masked_lm("esm"), "substitute"))

    def ask(t: int) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=SHORT, t=torch.tensor([t])).logits

    expected, wrong = [ask(t) for t in range(4)], []

    def work(t: int) -> None:
        wrong.extend(t for _ in range(30) if not torch.equal(ask(t), expected[t]))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Deaf(BertForMaskedLM):
    """Embeds its tokens by other means than its input embedding."""

    def forward(self, input_ids=None, **kwargs):
        words = torch.nn.functional.embedding(input_ids, self.get_input_embeddings().weight)
        return super().forward(inputs_embeds=words, **kwargs)


def test_backbones_that_cannot_be_told_anything_are_refused_by_name():
    with pytest.raises(
        ValueError, match="model type 'ibert' embeds its tokens by a QuantEmbedding.*give process 'mask'"
    ):
        wrapped(tiny_masked_lm("ibert"), "substitute")
    wrapped(tiny_masked_lm("ibert")).generate(SHORT, seed=0)
    config = tiny_config("perceiver")
    assert isinstance(config, PerceiverConfig)
    with pytest.raises(ValueError, match="model type 'perceiver' has no module that embeds its tokens"):
        UDMForMaskedGeneration(UDMConfig(text_config=config, **FIELDS))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = wrapped(Deaf(BertConfig(vocab_size=VOCAB, **sizes)), "substitute")
    model._known_structure = False
    with pytest.raises(
        ValueError, match="does not call its input embedding, a Embedding, so that nothing can be added"
    ):
        model(input_ids=LONG, t=torch.tensor([2]))
