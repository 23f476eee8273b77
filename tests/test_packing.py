"""Rows packed into one sequence are as if each were alone: same logits, same loss, same gradients."""

import itertools

import pytest
import torch

from tests.models import CLS, FAMILIES, MASK, PAD, decoder_config, make_rows, make_udm, wrap
from tests.training_helpers import make_trainer, weights
from udm_text.randomness import RowRandom
from udm_text.training import TextObjective
from udm_text.training.packing import check_packing, first_fit, layout, packed_predict

LENGTHS = [3, 11, 1, 6, 2, 9, 5, 4]


def rows_of(lengths):
    u = RowRandom(0, torch.arange(len(lengths))).uniform(max(lengths))
    ids = (5 + u * 19).long()
    ids[u < 0.3] = MASK
    ids[:, 0] = CLS
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, PAD), mask.long()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*FAMILIES, "llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("width", [1, 12, 100])
def test_the_logits_of_a_packed_row_are_those_it_has_alone(family, attention, width):
    model = make_udm(family=family) if family in FAMILIES else wrap(decoder_config(family))
    model.set_attn_implementation(attention)
    check_packing(model, width)
    ids, mask = rows_of(LENGTHS)
    positions = mask.bool() & (ids == MASK)
    with torch.no_grad():
        packed = packed_predict(model, model.config, mask, width, attention)(
            input_ids=ids, positions=positions.nonzero(as_tuple=True)
        )
        alone = [
            model(input_ids=ids[i : i + 1, :n]).logits[0][positions[i, :n]] for i, n in enumerate(LENGTHS)
        ]  # without any padding or mask
        padded = model(input_ids=ids, attention_mask=mask, positions=positions).logits
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)
    assert torch.allclose(packed, padded, atol=1e-5)


def test_a_layout_holds_every_token_once_and_first_fit_wastes_little():
    _, mask = rows_of(LENGTHS)
    where = layout(mask, 12)
    real = where.row >= 0
    assert sorted(where.source[real].tolist()) == mask.flatten().nonzero()[:, 0].tolist()
    assert torch.equal(where.row[real] * mask.shape[1] + where.position[real], where.source[real])
    assert where.row.shape == (4, 12)  # 41 tokens in 48 places
    for lengths in itertools.product(range(1, 6), repeat=4):
        sequences = first_fit(list(lengths), 5)
        assert sorted(itertools.chain(*sequences)) == [0, 1, 2, 3]
        assert all(sum(lengths[i] for i in rows) <= 5 for rows in sequences)
        fewest = min(len(set(way)) for way in itertools.product(range(4), repeat=4) if _fits(lengths, way))
        assert len(sequences) <= fewest * 11 / 9 + 6 / 9
    assert first_fit([7, 2], 5) == [[0], [1]]


def _fits(lengths, way):
    return all(sum(n for n, place in zip(lengths, way, strict=True) if place == k) <= 5 for k in range(4))


def test_a_packed_run_learns_what_a_padded_one_learns(tmp_path):
    runs = []
    for width, chunk in ((None, None), (40, None), (40, 7)):
        trainer = make_trainer(tmp_path / "run", rows=make_rows(90), max_steps=5, loss_chunk=chunk)
        trainer.objective.pack_length = width
        trainer.train()
        runs.append((weights(trainer), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    for learned, losses in runs[1:]:
        assert runs[0][1] == pytest.approx(losses, rel=1e-5)
        for name, value in runs[0][0].items():
            assert torch.allclose(value, learned[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("process", "how"),
    [
        ("substitute", {}),
        ("substitute", {"loss": "nelbo"}),
        ("delete", {}),
        ("delete", {"gap_tokens": True}),
        ("delete", {"loss_chunk": 5}),
        ("edit", {"max_corruption": 0.4}),
    ],
)
def test_packed_rows_of_every_process_have_the_losses_and_gradients_of_padded_ones(process, how):
    """Each row is told its own t, and rows whose tokens come and go are laid out as they are read."""
    own = {name: how.pop(name) for name in ("gap_tokens",) if name in how}
    model = make_udm(process, **own)
    with torch.no_grad():  # heads and embeddings of time that say something
        for i, weight in enumerate(model.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    objective = TextObjective(model.config, **how)
    rows = make_rows(12)
    batch = objective.collate(rows)
    asked = {"row_index": torch.arange(12), "total": 12, "step": 3, "seed": 0}
    found = []
    for width in (None, 1, 40):
        objective.pack_length = width
        model.zero_grad()
        terms = objective.row_terms(model, batch, **asked)
        terms.sum().backward()
        gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        found.append((terms.detach(), gradients))
    for terms, gradients in found[1:]:
        torch.testing.assert_close(terms, found[0][0], rtol=1e-4, atol=1e-4)
        for own_gradient, padded in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(own_gradient, padded, rtol=1e-3, atol=2e-3)


def test_models_that_cannot_be_packed_say_why():
    with pytest.raises(ValueError, match="pack_rows must be at least 1, got 0"):
        check_packing(make_udm(), 0)
    model = make_udm()
    model.backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation eager or sdpa, got 'flash_attention_2'"):
        check_packing(model, 64)
    model.config.text_config.model_type = "electra"
    with pytest.raises(
        ValueError,
        match="known of bert, roberta, modernbert, nomic_bert, llama, qwen2, qwen3, gpt2; this one is 'electra'",
    ):
        check_packing(model, 64)
