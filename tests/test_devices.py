"""An accelerator that is simulated: the results of the CPU, nothing of two devices mixed, and nobody kept waiting.

What a step launches and waits for is counted between two looks of those who watch a generation, so that what is done
once before the loop is left out.
"""

import functools
import math
import warnings
from collections import Counter
from itertools import product

import pytest
import torch

from tests.models import CLS, FAMILIES, MASK, PAD, SEP, make_rows, make_udm
from tests.simulated_device import DEVICE, DeviceTensor, SimulatedDevice, values
from udm_text import generation_udm
from udm_text.decoding import NOT_FINITE
from udm_text.devices import Sent, demand
from udm_text.evaluation import evaluate_bound, evaluate_token_repair, measure_curve
from udm_text.training import TextObjective

BLANKS = torch.tensor(
    [
        [CLS, MASK, 7, MASK, MASK, MASK, MASK, SEP],
        [CLS, 9, 8, MASK, 11, MASK, MASK, SEP],
        [CLS, 6, MASK, MASK, SEP, PAD, PAD, PAD],
    ]
)
ALIKE = torch.tensor([[CLS, 9, MASK, MASK, MASK, MASK, MASK, SEP]] * 3)
TEXT = torch.tensor([[CLS, 7, 8, 9, 10, 11, 12, SEP], [CLS, 6, 5, 9, SEP, PAD, PAD, PAD]])

FREE = {
    "random": {},
    "left_to_right": {"order": "left_to_right"},
    "confidence": {"order": "confidence"},
    "margin": {"order": "margin", "temperature": 0.7},
    "entropy with noise": {"order": "entropy", "order_noise": 0.5},
    "an order of one's own": {"order": lambda log_probs, tokens: log_probs[:, 7]},
    "few steps": {"num_steps": 2, "schedule": "cosine"},
    "cut": {"top_k": 5, "top_p": 0.9},
    "greedy": {"temperature": 0.0},
    "guidance": {"guidance_scale": 2.0},
    "constraints": {"forbidden_tokens": [9], "allowed_tokens": {3: [7, 8]}},
    "revision": {"revise": 2},
    "cache": {"cache_refresh": 3},
    "cache, confidence": {"cache_refresh": 3, "order": "confidence"},
    "churn": {"churn": 0.5},
    "churn, confidence": {"churn": 0.5, "order": "confidence"},
}
"""Generations by masks whose grid is known beforehand: no step waits."""
ONE = {
    "threshold": {"threshold": 0.5},
    "speculate": {"speculate": 2},
    "speculate, guidance": {"speculate": 2, "guidance_scale": 2.0},
    "speculate, processor": {"speculate": 2, "logits_processor": lambda input_ids, scores: scores * 2},
}
"""What a step finds out itself: one wait each."""
BUDGET = 40
"""Launches of a step beyond those of the model's plain forward."""
BUDGETED = ("random", "left_to_right", "confidence", "margin", "few steps", "greedy", "constraints")
BUDGETED += ("entropy with noise", "guidance", "revision", "cache", "churn", "threshold", "speculate")
KERNEL_BUDGET = {"site": 62, "free": 56, "uniform": 70}
"""The same of a step by substitution; `hamming` goes through the positions one by one."""


@functools.cache
def model_of(process, family="bert", layers=2):
    return make_udm(process, family=family, layers=layers, prompt_dropout=0.1 if process == "mask" else 0.0)


def moved(device, model):
    """A copy of the model on the device."""
    import copy

    return device.move(copy.deepcopy(model))


class Steps:
    """What each step of a generation launched, and where it waited."""

    def __init__(self, monkeypatch, device):
        self.seen = []
        call = generation_udm.Watcher.__call__

        def looked(watcher, step, xs, s):
            self.seen.append((device.total, Counter(device.waits)))
            return call(watcher, step, xs, s)

        monkeypatch.setattr(generation_udm.Watcher, "__call__", looked)

    @property
    def launches(self):
        return [b - a for (a, _), (b, _) in zip(self.seen, self.seen[1:], strict=False)]

    @property
    def waits(self):
        return [dict(b - a) for (_, a), (_, b) in zip(self.seen, self.seen[1:], strict=False)]


def generated(model, rows, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(rows, seed=3, **how)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*FREE, *ONE])
def test_masks_give_the_same_rows_and_no_step_waits(family, name, monkeypatch):
    model, how = model_of("mask", family), {**FREE, **ONE}[name]
    for rows in (BLANKS, ALIKE):
        expected = generated(model, rows, **how)
        with SimulatedDevice() as device, monkeypatch.context() as patch:
            there = moved(device, model)
            steps = Steps(patch, device)
            found = generated(there, device.move(rows), **how)
        assert torch.equal(values(found), expected)
        assert steps.waits, "there are steps"
        for waits in steps.waits:
            assert sum(waits.values()) <= (name in ONE), waits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", BUDGETED)
def test_a_step_launches_little_more_than_the_plain_forward(family, name, monkeypatch):
    how, model = {**FREE, **ONE}[name], model_of("mask", family, layers=3)
    with SimulatedDevice() as device:
        there = moved(device, model)
        steps = Steps(monkeypatch, device)
        generated(there, device.move(ALIKE), **how)
        given = {"input_ids": device.move(ALIKE), "attention_mask": device.move(torch.ones_like(ALIKE))}
        device.reset()
        with torch.no_grad():
            there(**given)
        assert max(steps.launches) <= device.total + BUDGET


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", KERNEL_BUDGET)
def test_a_step_by_substitution_launches_so_many_more_than_the_plain_forward(family, kernel, monkeypatch):
    process, how = ("uniform", {}) if kernel == "uniform" else ("substitute", {"kernel": kernel})
    model = model_of(process, family, layers=3)
    with SimulatedDevice() as device:
        there = moved(device, model)
        steps = Steps(monkeypatch, device)
        generated(there, None, length=6, num_return_sequences=3, **how)
        counts = device.move(torch.full((3,), 6))
        given = {"input_ids": device.move(ALIKE), "attention_mask": device.move(torch.ones_like(ALIKE))}
        device.reset()
        with torch.no_grad():
            there(**given, t=counts, num_editable=counts)
        assert max(steps.launches) <= device.total + KERNEL_BUDGET[kernel]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kernel", "repairs"), [*product(("site", "hamming", "free"), (False, True)), (None, False)])
def test_substitution_gives_the_same_rows_and_no_step_waits(family, kernel, repairs, monkeypatch):
    model = model_of("uniform" if kernel is None else "substitute", family)
    how = {} if kernel is None else {"kernel": kernel}
    if not repairs:
        how |= {"length": 5, "num_return_sequences": 2}
    else:
        how |= {"max_edits": 3, "temperature": 0.8}
    expected = generated(model, TEXT if repairs else None, **how)
    with SimulatedDevice() as device:
        there = moved(device, model)
        steps = Steps(monkeypatch, device)
        found = generated(there, device.move(TEXT) if repairs else None, **how)
    assert torch.equal(values(found), expected) and steps.waits
    assert not any(steps.waits), steps.waits


def test_prompts_are_continued_by_lengths_that_are_drawn():
    model = make_udm("mask", length_counts=[0, 1, 0, 4, 5, 2])
    prompts = torch.tensor([[CLS, 7, SEP], [CLS, 9, SEP]])
    expected = generated(model, prompts)
    with SimulatedDevice() as device:
        found = generated(moved(device, model), device.move(prompts))
    assert torch.equal(values(found), expected)


def test_faults_are_named_when_the_rows_are_made():
    """A CPU names them at once; a device is not read from in between, and no row is handed out."""

    def lawless(input_ids, scores):
        return scores * math.nan

    def nothing(input_ids, scores):
        return scores - math.inf

    faults = (
        ({"logits_processor": lawless}, "not finite"),
        ({"logits_processor": nothing}, "logits_processor leaves no token"),
        ({"order": lambda log_probs, tokens: log_probs[:, 7] * math.nan}, "order must return numbers, got nan"),
    )
    with SimulatedDevice() as device:
        there = moved(device, model_of("mask"))
        for how, message in faults:
            with pytest.raises(ValueError, match=message):
                generated(there, device.move(ALIKE), **how)
    assert "not finite" in NOT_FINITE


@pytest.mark.parametrize("process", ["mask", "substitute", "uniform"])
def test_bounds_curves_and_repairs_are_those_of_the_cpu(process):
    model, rows = model_of(process), make_rows(7)
    measures = [lambda m: evaluate_bound(m, rows, draws=2, seed=0)]
    if process == "mask":
        measures.append(lambda m: measure_curve(m, rows, draws=2, seed=0))
    elif process == "substitute":
        measures.append(lambda m: evaluate_token_repair(m, rows, seed=0))
    expected = [measure(model).to_dict() for measure in measures]
    with SimulatedDevice() as device:
        there = moved(device, model)
        found = [measure(there).to_dict() for measure in measures]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name, x in a.items():
            wanted = b[name] if isinstance(b[name], str | None) else pytest.approx(b[name], rel=1e-5)
            assert x == wanted, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "process, loss", [("mask", "nelbo"), ("substitute", "cross_entropy"), ("substitute", "nelbo"), ("uniform", "nelbo")]
)
def test_losses_and_their_gradients_are_those_of_the_cpu(family, process, loss):
    model = model_of(process, family)
    objective = TextObjective(model.config, loss=loss)
    batch = objective.collate(make_rows(6))
    index = torch.arange(6)

    def terms(own, inputs, where):
        made = objective.row_terms(own, inputs, row_index=where, total=6, step=4, seed=1)
        made.sum().backward()
        return made.detach(), {name: p.grad for name, p in own.named_parameters() if p.grad is not None}

    model.zero_grad()
    expected, gradients = terms(model, batch, index)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    model.zero_grad()
    with SimulatedDevice() as device:
        there = moved(device, model)
        inputs = {name: device.move(x) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        terms(there, inputs, index)  # constants are sent
        there.zero_grad()
        device.reset()
        found, own = terms(there, inputs, index)
        # transformers looks whether the mask of a batch hides anything, ModernBERT for both of its kinds of layer
        (line,) = {where for _, where in device.waits}
        assert line.startswith("udm_text/modeling_udm.py:"), device.waits
        assert sum(device.waits.values()) == (2 if family == "modernbert" else 1)
    torch.testing.assert_close(values(found), expected, rtol=1e-5, atol=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(values(gradient), gradients[name], rtol=1e-4, atol=1e-4, msg=name)


# --- the device itself, and what does not keep it waiting ------------------------------------------------------------


def test_tensors_of_two_devices_do_not_mix():
    with SimulatedDevice() as device:
        there, here = device.move(torch.ones(2)), torch.ones(2)
        for wrong in (
            lambda: there + here,
            lambda: torch.where(there > 0, here, there),
            lambda: torch.cat((there, here)),
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()
        assert values(there + 1).tolist() == [2.0, 2.0] and values(there * torch.tensor(3.0)).tolist() == [3.0, 3.0]
        assert there.device == DEVICE and isinstance(torch.zeros(2, device=there.device), DeviceTensor)
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()


def test_it_counts_what_it_launches_and_where_the_host_waits():
    with SimulatedDevice() as device:
        x = device.move(torch.arange(6))
        device.reset()
        _ = (x.view(2, 3).T + 1).sum()
        assert device.launches == {"aten::add": 1, "aten::sum": 1} and not device.waits
        for wait in (
            lambda: int(x[0]),
            lambda: bool((x > 2).any()),
            lambda: x.tolist(),
            lambda: x.cpu(),
            lambda: (x > 2).nonzero(),
            lambda: x[x > 2],
            lambda: torch.tensor([1, 2], device=DEVICE),
            lambda: torch.tensor([1, 2]).to(DEVICE),
            lambda: x[torch.tensor([1, 2])],
        ):
            device.reset()
            wait()
            assert sum(device.waits.values()) == 1, device.waits
        device.reset()
        torch.nonzero_static(x > 2, size=3)
        x.masked_fill(x > 2, 0).to(torch.float64)
        assert not device.waits


def test_what_is_demanded_is_named_on_a_cpu_and_asserted_on_a_device():
    demand(torch.tensor([True, True]), "never")
    with pytest.raises(ValueError, match="three is odd, got 3"):
        demand(torch.tensor([True, False]), "three is odd", lambda: ", got 3")
    with SimulatedDevice() as device:
        demand(device.move(torch.tensor([True])), "never")
        assert not device.waits and device.launches["aten::_assert_async"] == 1
        with pytest.raises(RuntimeError, match="three is odd"):
            demand(device.move(torch.tensor([False])), "three is odd", lambda: str(1 / 0))
        constants = Sent(torch.ones(2), torch.zeros(1))
        device.reset()
        assert constants(DEVICE) is constants(DEVICE) and sum(device.waits.values()) == 2
    assert constants(torch.device("cpu"))[0].tolist() == [1.0, 1.0]
