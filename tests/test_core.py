"""The loop itself, with a process of one line: it knows nothing of tokens."""

from typing import NamedTuple

import pytest
import torch

from udm_text.core import Prediction, denoise, recover_noise, reverse_step


class Call(NamedTuple):
    name: str
    editable: object
    random: object


class Shift:
    """F_t(x0, noise) = x0 + t * noise. It writes down what it is asked."""

    def __init__(self, fresh=100.0):
        self.fresh, self.calls = fresh, []

    def sample_noise(self, x, *, editable=None, random=None):
        self.calls.append(Call("sample_noise", editable, random))
        return torch.full_like(x, self.fresh)

    def corrupt(self, x0, t, noise):
        return x0 + t[:, None] * noise

    def invert_noise(self, x0, xt, t, *, editable=None, random=None, **how):
        self.calls.append(Call("invert_noise", editable, random))
        return (xt - x0) / t[:, None] + how.get("offset", 0.0)

    def blend(self, noise, fresh, churn):
        self.calls.append(Call("blend", None, None))
        return (1 - churn) * noise + churn * fresh

    def names(self):
        return [call.name for call in self.calls]


def counts(*grid):
    return [torch.tensor([float(t)] * 2) for t in grid]


X0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
NOISE = torch.tensor([[1.0, -1.0], [0.5, 2.0]])


def at(t):
    return X0 + t * NOISE


def test_without_churn_a_step_reuses_the_noise_and_asks_for_no_other():
    process = Shift()
    t, s = counts(4, 1)
    assert torch.allclose(reverse_step(process, at(4), X0, t, s), at(1))
    assert process.names() == ["invert_noise"]


def test_churn_one_forgets_xt():
    t, s = counts(4, 1)
    assert torch.allclose(reverse_step(Shift(fresh=7.0), at(4), X0, t, s, churn=1.0), X0 + 7.0)


def test_a_step_upwards_inverts():
    t, s = counts(2, 5)
    assert torch.allclose(reverse_step(Shift(), at(2), X0, t, s), at(5))


def test_noise_that_is_given_is_used_as_it_is():
    process = Shift()
    t, s = counts(4, 2)
    xs = reverse_step(process, at(4), X0, t, s, churn=0.5, noise=torch.full_like(X0, 3.0))
    assert torch.allclose(xs, X0 + 6.0)
    assert process.calls == []


def test_recover_noise_blends_and_hands_on_what_it_is_given():
    process, (t,) = Shift(fresh=2.0), counts(4)
    editable, random = object(), object()
    noise = recover_noise(process, at(4), X0, t, 0.25, editable=editable, random=random, offset=1.0)
    assert torch.allclose(noise, 0.75 * (NOISE + 1.0) + 0.25 * 2.0)
    assert process.names() == ["invert_noise", "sample_noise", "blend"]
    assert all(call.editable is editable and call.random is random for call in process.calls[:2])


def test_denoise_with_a_perfect_predictor_walks_the_path_of_the_noise():
    asked, seen = [], []

    def predict_x0(xt, t, s):
        asked.append((float(t[0]), float(s[0])))
        assert torch.allclose(xt, at(float(t[0])))
        return X0

    out = denoise(Shift(), predict_x0, at(5), counts(5, 3, 2, 0), on_step=lambda *a: seen.append((a[0], a[1].clone())))
    assert torch.allclose(out, X0)
    assert asked == [(5, 3), (3, 2), (2, 0)]  # one network call a step
    assert [step for step, _ in seen] == [0, 1, 2]
    for (_, xs), s in zip(seen, (3, 2, 0), strict=True):
        assert torch.allclose(xs, at(s))


def test_denoise_hands_editable_random_and_churn_to_the_process():
    process, editable, random = Shift(), object(), object()
    denoise(process, lambda xt, t, s: X0, at(2), counts(2, 1), 0.5, editable=editable, random=random)
    assert process.names() == ["invert_noise", "sample_noise", "blend"]
    assert all(call.editable is editable and call.random is random for call in process.calls[:2])


def test_a_guess_may_settle_the_noise_and_the_counts():
    process = Shift()
    t, s = counts(9, 8)
    prediction = Prediction(X0, noise=torch.full_like(X0, 2.0), s=s)
    assert torch.allclose(denoise(process, lambda *a: prediction, at(5), counts(5, 1)), X0 + 16.0)
    assert process.calls == []
    only_t = Prediction(X0, t=torch.tensor([10.0, 10.0]))
    assert torch.allclose(denoise(process, lambda *a: only_t, at(5), counts(5, 1)), X0 + 0.5 * NOISE)
    assert torch.allclose(denoise(process, lambda *a: Prediction(X0), at(5), counts(5, 1)), at(1))


def test_a_guess_may_settle_the_churn_of_its_step():
    shares = []

    def predict_x0(xt, t, s):
        shares.append(None if not shares else torch.tensor([0.0, 1.0]))
        return Prediction(X0, churn=shares[-1])

    class PerRow(Shift):
        def blend(self, noise, fresh, churn):
            churn = torch.as_tensor(churn).view(-1, 1)
            return (1 - churn) * noise + churn * fresh

    out = denoise(PerRow(fresh=7.0), predict_x0, at(5), counts(5, 3, 1))  # the first step keeps the loop's own, none
    assert torch.allclose(out, torch.stack((at(1)[0], X0[1] + 7.0)))


def test_what_on_step_returns_replaces_xs():
    guesses = []

    def on_step(step, xs, prediction):
        guesses.append(prediction)
        return at(3) if step == 0 else None

    out = denoise(Shift(), lambda xt, t, s: X0, at(99), counts(9, 3, 1), on_step=on_step)
    assert torch.allclose(out, at(1))
    assert all(isinstance(prediction, Prediction) and prediction.x0 is X0 for prediction in guesses)


@pytest.mark.parametrize("grid", [(), (4,)])
def test_a_grid_without_steps_returns_xt(grid):
    assert torch.equal(denoise(Shift(), lambda *a: 1 / 0, at(4), counts(*grid)), at(4))
