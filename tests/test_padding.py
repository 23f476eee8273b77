"""Backbones that see their padding are found and run by rows of one length; others are run as they come."""

import pytest
import torch

from tests.interop import LONG, SHORT, independent, rows, tiny_masked_lm, wrapped
from tests.models import MASK, make_udm, wake_time
from udm_text.padding import padded_wrongly, reads_padding
from udm_text.training import UDMTrainer, UDMTrainingArguments

SEEING = ("fnet", "nystromformer", "yoso", "convbert", "funnel", "reformer")


@pytest.mark.parametrize("kind", SEEING)
def test_a_row_does_not_depend_on_its_neighbours_where_the_backbone_sees_its_padding(kind, tmp_path):
    plain = tiny_masked_lm(kind)
    ids, mask = rows()
    with torch.no_grad():
        alone = plain(input_ids=SHORT).logits[0]
        beside = plain(input_ids=ids, attention_mask=mask).logits[1, : SHORT.shape[1]]
    assert not torch.allclose(alone, beside, atol=1e-2)  # else there would be nothing to find
    independent(kind, tmp_path)
    assert reads_padding(wrapped(plain), LONG.shape[1])


def test_sparse_attention_that_changes_with_what_was_read_is_refused_and_taken_in_full():
    with pytest.raises(ValueError, match="type 'big_bird' has attention_type='block_sparse'.*give .*original_full"):
        wrapped(tiny_masked_lm("big_bird", attention_type="block_sparse"))
    wrapped(tiny_masked_lm("big_bird")).generate(SHORT, seed=0)


@pytest.mark.parametrize("kind", ["distilbert", "esm", "longformer", "deberta-v2", "bert"])
def test_other_backbones_are_run_as_they_come_and_asked_at_most_once(kind, monkeypatch):
    model = wrapped(tiny_masked_lm(kind))
    calls = []
    model.backbone.register_forward_hook(lambda module, given, output: calls.append(len(output.logits)))
    ids, mask = rows()
    with torch.no_grad():
        for _ in range(3):
            model(input_ids=ids, attention_mask=mask)
            model(input_ids=ids[:, :9], attention_mask=mask[:, :9])
    asked = [] if kind == "bert" else [1, 1, 1, 1, 2]  # BERT's structure is known, and that it reads no padding
    assert calls == [*asked, 2, 2, 2, 2, 2, 2] and not model._padding.depends


@pytest.mark.parametrize("process", ["mask", "delete"])
def test_all_that_a_forward_gives_is_that_of_the_rows_alone(process):
    model = wake_time(wrapped(tiny_masked_lm("fnet"), process))
    ids, mask = rows()
    t = torch.tensor([3, 2])
    gaps = (torch.tensor([0, 1, 1]), torch.tensor([4, 0, 2])) if process == "delete" else None
    places = (ids == MASK).nonzero().T.unbind()
    how = {"output_hidden_states": True}
    with torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask, t=t, positions=places, gaps=gaps, **how)
        own = []
        for i, row in enumerate((LONG, SHORT)):
            asked = None if gaps is None else tuple(x[gaps[0] == i] for x in (gaps[0] * 0, gaps[1]))
            own.append(model(input_ids=row, t=t[i : i + 1], positions=row == MASK, gaps=asked, **how))
    torch.testing.assert_close(both.logits, torch.cat([x.logits for x in own]), rtol=1e-4, atol=1e-4)
    if gaps is not None:
        torch.testing.assert_close(both.gap_logits, torch.cat([x.gap_logits for x in own]), rtol=1e-4, atol=1e-4)
    for i, output in enumerate(own):
        for whole, alone in zip(both.hidden_states, output.hidden_states, strict=True):
            torch.testing.assert_close(whole[i, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-4)
            assert not whole[i, alone.shape[1] :].any()


def test_the_gradient_of_a_padded_batch_is_that_of_its_rows():
    model = wrapped(tiny_masked_lm("convbert"))
    ids, mask = rows()

    def gradient(*batches):
        model.zero_grad()
        for tokens, attended in batches:
            labels = torch.where(tokens == MASK, 7, -100)
            model(input_ids=tokens, attention_mask=attended, labels=labels, num_items_in_batch=4).loss.backward()
        return model.get_input_embeddings().weight.grad.clone()

    together, apart = gradient((ids, mask)), gradient((LONG, None), (SHORT, None))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_backbone_that_draws_at_random_is_refused_by_its_type():
    ids, mask = rows()
    model = wrapped(tiny_masked_lm("reformer", hash_seed=None))
    with torch.no_grad(), pytest.raises(ValueError, match="model type 'reformer' says another thing of the same row"):
        model(input_ids=ids, attention_mask=mask)


def test_any_token_may_be_left_out_where_padding_is_not_seen():
    model = wrapped(tiny_masked_lm("distilbert"))
    ids, mask = rows()
    for shown in (mask.flip(1), mask.flip(1) * (torch.arange(ids.shape[1]) != 30)):
        with torch.no_grad():
            expected = model.backbone(input_ids=ids, attention_mask=shown).logits
            assert torch.equal(model(input_ids=ids, attention_mask=shown).logits, expected)


def test_rows_that_are_padded_in_front_are_refused_where_padding_is_seen():
    model = wrapped(tiny_masked_lm("fnet"))
    ids, mask = rows()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    with torch.no_grad(), pytest.raises(ValueError, match="attention_mask must hold ones and then zeros in each row"):
        model(input_ids=ids.flip(1), attention_mask=mask.flip(1))


def test_nothing_that_sees_padding_is_compiled(tmp_path):
    model, how = wrapped(tiny_masked_lm("fnet")), {"seed": 0}
    expected = model.generate(SHORT, **how)
    with pytest.warns(UserWarning, match="nothing beside a backbone whose rows depend on their padding"):
        assert torch.equal(model.generate(SHORT, compile=True, **how), expected)
    esm = wrapped(tiny_masked_lm("esm"), "substitute")
    assert padded_wrongly(esm, 16) == "the token dropout of its backbone"
    assert padded_wrongly(wrapped(tiny_masked_lm("esm")), 16) is padded_wrongly(make_udm(), 16) is None
    arguments = UDMTrainingArguments(output_dir=str(tmp_path), torch_compile=True, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="torch_compile pads rows and does not go with a backbone whose rows depend"):
        UDMTrainer(model, arguments)
