"""The cross-entropy of the losses against torch's own, written out: masked, in float32, with its gradients."""

import pytest
import torch

from udm_text import cross_entropy as module
from udm_text.cross_entropy import cross_entropy

N, V = 13, 37


def written_out(logits, target, forbidden, row=None, ruled_out=None):
    """What the function must give, by torch's functions one after another."""
    scores = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    scores = scores.masked_fill(forbidden, -torch.inf)
    if ruled_out is not None:
        barred = torch.nn.functional.one_hot(ruled_out.clamp(min=0), V).bool() & (ruled_out >= 0)[:, None]
        scores = scores.masked_fill(barred, -torch.inf)
    scores = scores if row is None else scores[row]
    return torch.nn.functional.cross_entropy(scores, target, reduction="none")


def case(dtype, mapped=False, barred=False):
    """Logits of a spread that needs the maximum taken off, and what goes with them."""
    torch.manual_seed(0)
    logits = (40 * torch.randn(N, V)).to(dtype)
    forbidden = torch.zeros(V, dtype=torch.bool)
    forbidden[[0, 3, 20]] = True
    allowed = (~forbidden).nonzero()[:, 0]
    row = torch.tensor([0, 0, 0, 5, 12, 5, 7]) if mapped else None
    count = N if row is None else len(row)
    target = allowed[torch.randint(len(allowed), (count,))]
    ruled_out = None
    if barred:
        ruled_out = torch.full((N,), -1)
        of_target = torch.arange(N) if row is None else row
        for number in range(0, N, 2):
            wanted = set(target[of_target == number].tolist())
            ruled_out[number] = next(token for token in allowed.tolist()[number:] if token not in wanted)
    return logits, target, forbidden, row, ruled_out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("barred", [False, True])
@pytest.mark.parametrize("block", [1, 5 * V, 1 << 18])
def test_values_and_gradients_are_those_of_torch(monkeypatch, dtype, mapped, barred, block):
    monkeypatch.setitem(module.BLOCK, "cpu", block)
    logits, target, forbidden, row, ruled_out = case(dtype, mapped, barred)
    weight = torch.rand(len(target))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = cross_entropy(ours, target, forbidden, row=row, ruled_out=ruled_out)
    expected = written_out(theirs, target, forbidden, row, ruled_out)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ours.grad.dtype == dtype
    tight = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(ours.grad, theirs.grad, **tight)


def test_gradients_are_those_of_finite_differences():
    logits, target, forbidden, row, ruled_out = case(torch.float64, mapped=True, barred=True)
    logits = (logits / 20).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, target, forbidden, row=row, ruled_out=ruled_out), (logits,)
    )


def test_backward_may_be_asked_twice_and_leaves_the_logits_as_they_are():
    logits, target, forbidden, _, _ = case(torch.float32)
    given = logits.clone().requires_grad_()
    loss = cross_entropy(given, target, forbidden).sum()
    first = torch.autograd.grad(loss, given, retain_graph=True)[0]
    again = torch.autograd.grad(loss, given)[0]
    assert torch.equal(first, again)
    assert torch.equal(given.detach(), logits)


def test_a_row_does_not_depend_on_its_neighbours(monkeypatch):
    monkeypatch.setitem(module.BLOCK, "cpu", 4 * V)
    logits, target, forbidden, _, _ = case(torch.float32)
    together = cross_entropy(logits, target, forbidden)
    alone = [cross_entropy(logits[i : i + 1], target[i : i + 1], forbidden) for i in range(N)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_no_rows_give_no_values():
    empty = torch.zeros(0, V, requires_grad=True)
    found = cross_entropy(empty, torch.zeros(0, dtype=torch.long), torch.zeros(V, dtype=torch.bool))
    assert found.shape == (0,)
    found.sum().backward()
    assert empty.grad.shape == (0, V)


def test_logits_that_are_no_numbers_are_not_hidden():
    logits, target, forbidden, _, _ = case(torch.float32)
    logits[2, 7] = torch.nan
    found = cross_entropy(logits, target, forbidden)
    assert found.isnan().tolist() == [i == 2 for i in range(N)]
