"""Logits that are no law, and figures that are no numbers: said in a sentence, never drawn from or published."""

import json
import math

import pytest
import torch

from tests.models import CLS, MASK, SEP, VOCAB, fixed_logits, make_rows, make_tokenizer, make_udm
from udm_text.card import make_card
from udm_text.cli.reports import describe, describe_evaluation, draw_loss
from udm_text.common import to_json, write_json
from udm_text.constraints import Constraints
from udm_text.decoding import COLDEST, ORDERS, guide, log_probabilities
from udm_text.evaluation import evaluate_bound, evaluate_token_repair, measure_curve
from udm_text.evaluation.bounds import row_figures
from udm_text.hub import save_backbone
from udm_text.kernels import KERNELS
from udm_text.training.causal import CausalObjective, causal_twin, evaluate_causal

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


@pytest.mark.parametrize("process", ["mask", "substitute", "uniform", "delete", "edit"])
def test_no_process_draws_from_weights_that_are_not_numbers(process):
    model = make_udm(process)
    with torch.no_grad():
        model.backbone.bert.embeddings.LayerNorm.weight.fill_(NAN)
    with pytest.raises(ValueError, match="the logits of the network are not finite"):
        model.generate(torch.tensor([[CLS, 7, 8, 9, SEP]]), max_edits=2) if process == "edit" else model.generate(
            length=4
        )


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
    for process, measure in (("mask", measure_curve), ("substitute", evaluate_token_repair)):
        model = make_udm(process)
        with torch.no_grad():
            model.get_output_embeddings().bias[9] = NAN
        with pytest.raises(ValueError, match="the logits of the network are not finite"):
            measure(model, make_rows(8))


def test_no_loss_of_a_causal_twin_is_made_of_weights_that_are_not_numbers():
    config = make_udm().config
    twin = causal_twin(config)
    assert evaluate_causal(twin, make_rows(8), CausalObjective(config))["nelbo_nats_per_token"] > 0
    with torch.no_grad():
        twin.get_output_embeddings().bias[9] = NAN
    with pytest.raises(ValueError, match="the logits of the network are not finite"):
        evaluate_causal(twin, make_rows(8), CausalObjective(config))


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


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def infinite():
    """What a report says of rows that the model rules out: one is longer than any length it can draw."""
    return evaluate_bound(make_udm(length_counts=[0, 3]), make_rows(4, shortest=9)).to_dict()


def test_an_infinite_bound_is_infinite_in_every_unit_and_printed_so(infinite):
    for name in ("nelbo_nats_per_token", "perplexity_bound", "bits_per_char"):
        assert infinite[name] is None and infinite[f"{name}_stderr"] is None
    words = "NELBO infinite nats/token, perplexity bound infinite, infinite bits/char"
    assert describe(infinite).startswith(words)
    logs = {"eval_nelbo_nats_per_token": INF, "eval_nelbo_nats_per_token_stderr": NAN}
    assert describe_evaluation(logs) == "held-out NELBO infinite nats/token"


def test_a_perplexity_beyond_all_floats_is_infinite_beside_a_finite_bound():
    rows, tokens = make_rows(2), torch.tensor([2.0, 2.0], dtype=torch.float64)
    found = row_figures(rows, tokens, 800 * tokens, 0 * tokens)
    assert found["nelbo_nats_per_token"] == 800 and found["perplexity_bound"] == INF
    assert math.isnan(found["perplexity_bound_stderr"])


def test_an_infinite_bound_is_drawn_beside_no_loss_and_stands_on_no_card(infinite, tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_nelbo_nats_per_token": INF}]
    history[1]["eval_nelbo_nats_per_token_stderr"] = NAN
    draw_loss(history, tmp_path / "loss.png", infinite)
    assert (tmp_path / "loss.png").is_file()
    for nelbo, perplexity in ((None, 1.01e304), (INF, INF), (NAN, 1.01e304)):
        bound = {**infinite, "nelbo_nats_per_token": nelbo, "perplexity_bound": perplexity}
        card = make_card(make_udm(), "user/name", report={"validation": bound, "repair": {"restored": NAN}})
        assert "No held-out figures" in card and "304" not in card and "model-index" not in card


def test_what_is_written_as_json_is_strict_json(tmp_path):
    value = {"a": NAN, "b": [INF, {"c": (-INF, 1.5)}], "path": tmp_path, "n": 10**30}
    strict = {"a": None, "b": [None, {"c": [None, 1.5]}], "path": str(tmp_path), "n": 10**30}

    def never(constant):
        raise AssertionError(constant)

    write_json(tmp_path / "report.json", value)
    for text in ((tmp_path / "report.json").read_text(), to_json(value, ensure_ascii=False)):
        assert json.loads(text, parse_constant=never) == strict


def test_no_curve_is_made_of_an_infinite_price(monkeypatch):
    model, table = make_udm(), torch.zeros(16, VOCAB)
    table[:, 7] = -INF
    fixed_logits(monkeypatch, model, table)
    with pytest.raises(ValueError, match="row 0 holds a token whose probability is 0"):
        measure_curve(model, [{"input_ids": [CLS, 7, 7, SEP]}, {"input_ids": [CLS, 8, 8, SEP]}])
