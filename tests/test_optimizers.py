"""Muon for matrices and AdamW for the rest: whose weights go where, and that the steps are those of the two alone."""

import copy

import pytest
import torch
from torch import nn

from tests.models import make_udm
from tests.training_helpers import make_trainer, say_it_is_sharded
from udm_text.training import UDMTrainingArguments
from udm_text.training.adapters import add_adapter
from udm_text.training.optimizers import MuonAdamW, best_optimizer, has_muon, muon_matrices, muon_rate


def test_muon_trains_the_matrices_between_hidden_states_and_nothing_else():
    model = make_udm(layers=1)
    layer = "backbone.bert.encoder.layer.0."
    inside = [f"{layer}attention.self.{name}.weight" for name in ("query", "key", "value")]
    inside += [f"{layer}{name}.dense.weight" for name in ("attention.output", "intermediate", "output")]
    assert muon_matrices(model) == [*inside, "backbone.cls.predictions.transform.dense.weight"]
    frozen = model.backbone.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)
    assert frozen is not None and f"{layer}output.dense.weight" not in muon_matrices(model)


def test_convolutions_tables_and_what_stands_alone_go_to_adamw():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Embedding(4, 2), nn.Linear(2, 3), nn.LayerNorm(3))
    assert muon_matrices(network) == ["2.weight"]
    optimizer = MuonAdamW(network, lr=0.1, weight_decay=0.5, decayed=["0.weight", "2.weight"])
    parts = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert parts == [(1, 0.5), (1, 0.5), (5, 0.0)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))


@pytest.mark.parametrize(("rows", "rate"), [(16, 2e-3), (64, 4e-3), (128, 4e-3 * 2**0.5), (256, 8e-3), (4096, 8e-3)])
def test_the_rate_goes_with_the_root_of_the_rows_up_to_what_was_measured(rows, rate):
    assert muon_rate(rows) == pytest.approx(rate, rel=1e-12)


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def steps(network, *optimizers, count=4):
    source = torch.Generator().manual_seed(1)
    for _ in range(count):
        network(torch.randn(5, 6, generator=source)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad()


def test_a_step_is_one_of_each_alone():
    how = {"lr": 0.05, "weight_decay": 0.1}
    whole, apart = make_network(), make_network()
    names = ["0.weight", "2.weight"]
    steps(whole, MuonAdamW(whole, decayed=names, betas=(0.9, 0.98), eps=1e-7, **how))
    muon = torch.optim.Muon([apart[0].weight, apart[2].weight], adjust_lr_fn="match_rms_adamw", **how)
    rest = [apart[0].bias, apart[2].bias]
    steps(apart, muon, torch.optim.AdamW(rest, lr=0.05, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.0))
    for one, other in zip(whole.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    for one, new in zip(whole.parameters(), make_network().parameters(), strict=True):
        assert (one - new).abs().max() > 0.01


def test_a_matrix_moves_as_far_as_under_adamw_whatever_its_shape():
    """An orthogonal update has norm sqrt(least side), so scaled by 0.2 sqrt(greatest side) its mean square is 0.2^2."""
    for shape in ((64, 64), (256, 64), (64, 256)):
        linear = nn.Linear(shape[1], shape[0], bias=False)
        before = linear.weight.detach().clone()
        linear.weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        MuonAdamW(linear, lr=1.0).step()
        moved = (linear.weight.detach() - before).square().mean().sqrt()
        assert 0.15 < moved < 0.25  # the iteration is near an orthogonal matrix, within some 20 %


def test_a_stored_state_goes_on_bit_for_bit_and_rates_reach_both():
    one = make_network()
    optimizer = MuonAdamW(one, lr=0.05)
    steps(one, optimizer)
    two = copy.deepcopy(one)
    second = MuonAdamW(two, lr=0.3)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in second.param_groups] == [0.05] * len(second.param_groups)
    for each, network in ((optimizer, one), (second, two)):
        for group in each.param_groups:
            group["lr"] = 0.01
        steps(network, each)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    still = [p.detach().clone() for p in one.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(one, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), still, strict=True))


def test_a_closure_is_called_once():
    network, calls = make_network(), []
    optimizer = MuonAdamW(network, lr=0.1)

    def closure():
        calls.append(1)
        loss = network(torch.ones(1, 6)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0 and len(calls) == 1


def test_the_arguments_hold_muon_beside_the_names_of_transformers(tmp_path):
    arguments = UDMTrainingArguments(str(tmp_path), optim="muon", use_cpu=True)
    assert arguments.optim == "muon" and arguments.to_dict()["optim"] == "muon"
    trainer = make_trainer(tmp_path, "muon", weight_decay=0.1, adam_beta2=0.9)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is MuonAdamW
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    assert [group["betas"] for group in optimizer.param_groups if "betas" in group] == [(0.9, 0.9)] * 2


def test_what_cannot_be_trained_so_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="optim_args has no effect with optim 'muon', got 'a=b'"):
        UDMTrainingArguments(str(tmp_path), optim="muon", optim_args="a=b", use_cpu=True)
    with pytest.raises(ValueError, match="optim 'muon' trains the matrices of a network, and adapters"):
        make_trainer(tmp_path, model=add_adapter(make_udm(), 2), optim="muon")
    model = make_udm()
    say_it_is_sharded(monkeypatch, model)
    with pytest.raises(ValueError, match="optim 'muon' goes with one process or with DDP"):
        make_trainer(tmp_path, model=model, optim="muon")


def test_muon_is_the_default_where_bfloat16_is_quick(monkeypatch):
    cpu, elsewhere = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert (best_optimizer(cpu), best_optimizer(elsewhere)) == ("adamw_torch_fused", "muon")
    monkeypatch.undo()
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert best_optimizer(cpu) == ("muon" if quick else "adamw_torch_fused")


def test_a_torch_without_muon_is_told_and_trains_with_adamw(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    assert not has_muon() and best_optimizer(torch.device("cuda")) == "adamw_torch_fused"
    with pytest.raises(ValueError, match="optim 'muon' needs torch 2.9 or newer, got"):
        UDMTrainingArguments(str(tmp_path), optim="muon", use_cpu=True)
    with pytest.raises(ValueError, match="Muon needs torch 2.9 or newer"):
        MuonAdamW(make_network(), lr=0.1)
