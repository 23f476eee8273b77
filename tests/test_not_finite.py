"""Logits that are no law, and figures that are no numbers: said in a sentence, never drawn from or published."""

import math

import pytest
import torch

from tests.models import CLS, MASK, SEP, VOCAB, fixed_logits, make_rows, make_tokenizer, make_udm
from udm_text.constraints import Constraints
from udm_text.decoding import COLDEST, ORDERS, guide, log_probabilities
from udm_text.evaluation import evaluate_bound, evaluate_repair, measure_curve
from udm_text.hub import save_backbone
from udm_text.kernels import KERNELS

NAN, INF = math.nan, math.inf
BROKEN = {"nan": NAN, "plus infinity": INF, "nothing finite": -INF}
WALKS = [
    *(("mask", {"order": order}) for order in ORDERS),
    *(("mask", how) for how in ({"speculate": 2}, {"threshold": 0.5}, {"temperature": 0.0}, {"top_k": 2})),
    ("mask", {"revise": 1}),
    *(("substitute", {"kernel": kernel}) for kernel in KERNELS),
    ("substitute", {"max_edits": 2}),
]


def broken_table(fault: str) -> torch.Tensor:
    """(L, V) logits, those of position 2 without law."""
    table = torch.zeros(16, VOCAB)
    table[2] = BROKEN[fault] if fault == "nothing finite" else table[2]
    table[2, 9] = BROKEN[fault]
    return table


@pytest.mark.parametrize("later", [False, True], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(("process", "how"), WALKS, ids=str)
def test_no_token_is_drawn_from_logits_that_are_no_law(monkeypatch, process, how, fault, later):
    model = make_udm(process)
    fixed_logits(monkeypatch, model, broken_table(fault))
    if later:  # as on an accelerator, where the flag is read with the next read or at the end
        made = Constraints.__init__

        def init(self, *args, **kwargs):
            made(self, *args, **kwargs)
            self.reads_are_free = False

        monkeypatch.setattr(Constraints, "__init__", init)
    use = {"input_ids": torch.tensor([[CLS, 7, 8, 9, SEP]])} if "max_edits" in how else {"length": 4}
    with pytest.raises(ValueError, match="the logits of the network are not finite"):
        model.generate(**use, **how, seed=0)


@pytest.mark.filterwarnings("ignore:guidance_scale")
@pytest.mark.parametrize("fault", BROKEN)
def test_guidance_is_not_taken_from_logits_that_are_no_law(monkeypatch, fault):
    model = make_udm()
    fixed_logits(monkeypatch, model, broken_table(fault))
    with pytest.raises(ValueError, match="the logits of the network are not finite"):
        model.generate(torch.tensor([[CLS, 7, MASK, SEP]]), guidance_scale=2.0)


def test_an_infinite_logit_of_a_token_that_cannot_be_drawn_does_no_harm(monkeypatch):
    model, table = make_udm(), torch.zeros(12, VOCAB)
    table[:, MASK], table[:, CLS], table[:, 9] = INF, NAN, -INF
    fixed_logits(monkeypatch, model, table)
    assert 9 not in model.generate(length=6, num_return_sequences=20, seed=0)


def test_a_token_that_neither_reading_knows_stays_impossible_under_guidance():
    conditional, unconditional = torch.tensor([[-INF, 1.0, 0.0]]), torch.tensor([[-INF, 0.0, 0.0]])
    assert torch.allclose(
        guide(conditional, unconditional, 2.0), torch.tensor([[-INF, 2.0, 0.0]]).double().log_softmax(-1)
    )


@pytest.mark.parametrize("fault", ["nan", "plus infinity"])
@pytest.mark.parametrize(("process", "kernel"), [("mask", None), *(("substitute", kernel) for kernel in KERNELS)])
def test_no_bound_is_made_of_logits_that_are_no_law(monkeypatch, process, kernel, fault):
    model = make_udm(process)
    fixed_logits(monkeypatch, model, broken_table(fault))
    with pytest.raises(ValueError, match="the logits of the network are not finite"):
        evaluate_bound(model, make_rows(8, shortest=4), kernel=kernel)


def test_neither_a_curve_nor_repairs_are_measured_with_weights_that_are_not_numbers():
    for process, measure in (("mask", measure_curve), ("substitute", evaluate_repair)):
        model = make_udm(process)
        with torch.no_grad():
            model.get_output_embeddings().bias[9] = NAN
        with pytest.raises(ValueError, match="the logits of the network are not finite"):
            measure(model, make_rows(8))


def test_a_backbone_whose_weights_are_not_numbers_is_not_exported(tmp_path):
    model = make_udm(vocab_size=60)
    with torch.no_grad():
        model.get_output_embeddings().bias[9] = NAN
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        save_backbone(model, make_tokenizer("bert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("temperature", [5e-324, COLDEST / 2, COLDEST, 1e-300])
@pytest.mark.parametrize(("process", "how"), [("mask", {}), ("mask", {"speculate": 2}), ("substitute", {})], ids=str)
def test_the_smallest_temperatures_take_the_best_token(process, how, temperature):
    model = make_udm(process)
    cold = model.generate(length=5, seed=3, temperature=temperature, **how)
    if process == "mask" or temperature < COLDEST:  # at 0 a substitute model also changes the surest positions first
        assert torch.equal(cold, model.generate(length=5, seed=3, temperature=0.0, **how))
    sharp = log_probabilities(torch.tensor([[-9e30, 3e38, 2e38]]), temperature=temperature)
    assert sharp.tolist() == [[-INF, 0.0, -INF]]
