"""Worlds with closed forms: mixtures of normal laws, whose best predictor, densities and flows are known."""

from __future__ import annotations

import math

import torch

from continuous.processes import GaussianProcess


class Mixture:
    """sum of w_k N(m_k, v_k I) in D dimensions. means: (K, D), variances, weights: (K,). Everything float64."""

    def __init__(self, means, variances, weights):
        self.means, self.variances, self.weights = (
            torch.as_tensor(x, dtype=torch.float64) for x in (means, variances, weights)
        )

    def sample(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt()[:, None] * noise, k

    def parts(self, x, a, b):
        """log of w_k N(x; a m_k, a^2 v_k + b^2): (B, K). a, b: (B, 1)."""
        v = a**2 * self.variances + b**2
        square = (x[:, None] - a[:, :, None] * self.means).square().sum(-1)
        return self.weights.log() - 0.5 * (square / v + x.shape[1] * (2 * math.pi * v).log())

    def log_density(self, x, a, b):
        return self.parts(x, a, b).logsumexp(-1)

    def posterior_mean(self, x, a, b, only=None):
        """E[x0 | xt = x], of one component or of all."""
        v = a**2 * self.variances + b**2
        means = self.means + (a * self.variances / v)[:, :, None] * (x[:, None] - a[:, :, None] * self.means)
        if only is not None:
            return means[:, only].to(x)
        return (self.parts(x, a, b).softmax(-1)[:, :, None] * means).sum(1).to(x)

    def predictor(self, process: GaussianProcess, only=None):
        def predict_x0(xt, t, s):
            a, b = process.coefficients(t, xt)
            return self.posterior_mean(xt, a, b, only)

        return predict_x0


def normal(variance, dimensions=1, mean=0.0):
    return Mixture(torch.full((1, dimensions), mean), [variance], [1.0])


TWO = Mixture([[-1.0, 0.5], [1.2, -0.3]], [0.09, 0.16], [0.4, 0.6])


def at(t, rows):
    return torch.full((rows,), t, dtype=torch.int64)
