"""The pipeline: seeds, batches, samplers, restoration and editing, on a small model with random weights."""

import os

import numpy
import pytest
import torch

from continuous import sampling
from continuous.data import ImageRows
from continuous.degradations import Blur
from continuous.evaluation import bits_per_dim, describe_bound
from continuous.likelihood import nelbo
from continuous.modeling import ImageConfig, ImageDenoiser, NonFiniteOutputError
from continuous.objectives import ImageObjective, kl_terms, snr, step_variances
from continuous.pipeline import SAMPLERS, ImagePipeline
from continuous.processes import ColdProcess, GaussianProcess
from tests.helpers import python
from tests.hub.server import WRITER, Hub
from udm_text.randomness import RowRandom

CLASSES = ["nought", "one", "two"]


def make(process=None, **more):
    process = GaussianProcess.vp("cosine", 20) if process is None else process
    more = {"classes": CLASSES, "image_shape": [1, 4, 4], "network": {"kind": "mlp", "width": 16, "blocks": 1}, **more}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageDenoiser(ImageConfig(process=process.to_dict(), **more))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return ImagePipeline(model)


def with_variance_kept(pipe):
    pipe.denoiser.hold_variance(torch.linspace(0, 0.5, 21).expand(2, 21) * torch.tensor([[1.0], [1.2]]))
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return with_variance_kept(make(learned_variance=True))


@pytest.fixture(scope="module")
def cold():
    return make(ColdProcess(Blur(T=6, std=2.0)), prediction="x0", classes=[])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_image_depends_on_seed_and_number_only_whatever_the_batch(pipe, sampler):
    how = {"label": [0, 1, 2, 0, 1], "sampler": sampler, "num_steps": 6, "seed": 3}
    whole = pipe.generate(5, **how)
    assert torch.allclose(whole, pipe.generate(5, **how, batch_size=2), atol=1e-5)
    assert torch.allclose(whole[:2], pipe.generate(2, **{**how, "label": [0, 1]}), atol=1e-5)
    assert not torch.allclose(whole, pipe.generate(5, **{**how, "seed": 4}), atol=1e-2)
    assert whole.shape == (5, 1, 4, 4) and whole.abs().max() <= 1.0 and whole.dtype == torch.float32


def test_generating_is_the_sampler_of_the_package_on_the_models_own_process(pipe):
    labels, random = torch.tensor([2, 0]), RowRandom(5, torch.arange(2))

    def predict(xt, t, s):
        return pipe.denoiser.predict_x0(xt, t, labels).clamp(-1, 1)

    expected = sampling.sample(pipe.process, predict, (2, 1, 4, 4), sampler="ddim", num_steps=7, eta=0.5, random=random)
    found = pipe.generate(2, [2, 0], sampler="ddim", num_steps=7, eta=0.5, seed=5)
    assert torch.allclose(found, expected.clamp(-1, 1), atol=1e-6)


def test_guidance_of_scale_1_is_the_class_and_of_scale_0_is_no_class(pipe):
    how = {"sampler": "ddim", "num_steps": 5, "seed": 0}
    free, chosen = pipe.generate(3, **how), pipe.generate(3, 1, **how)
    assert torch.allclose(pipe.generate(3, 1, guidance_scale=0.0, **how), free, atol=1e-6)
    assert not torch.allclose(free, chosen, atol=1e-3)
    assert not torch.allclose(pipe.generate(3, 1, guidance_scale=3.0, **how), chosen, atol=1e-3)


def test_labels_are_named_numbered_or_all_in_turn(pipe):
    assert pipe.labels("two", 2).tolist() == [2, 2] and pipe.labels(1, 2).tolist() == [1, 1]
    assert pipe.labels("all", 4).tolist() == [0, 1, 2, 0] and pipe.labels(None, 2) is None


def test_states_run_from_the_noise_to_the_image(pipe):
    how = {"num_steps": 4, "seed": 1, "sampler": "ddim"}
    last, watched = pipe.generate(3, 0, **how), pipe.generate(3, 0, **how, output_trajectory=True, batch_size=2)
    states = watched.trajectory
    assert len(states) == 5 and torch.equal(states[-1], watched.images)
    assert torch.allclose(watched.images, last, atol=1e-6)  # batches of another shape round otherwise
    noise = RowRandom(1, torch.arange(3)).normal(16).view(3, 1, 4, 4).float()
    assert torch.allclose(states[0], noise, atol=1e-3)  # b_T of a cosine schedule is 1 to within 1e-4


def test_what_the_network_took_the_image_for_is_kept_for_every_step(pipe):
    for sampler in ("ddim", "heun", "ddpm_large"):
        made = pipe.generate(3, 0, sampler=sampler, num_steps=4, seed=1, output_trajectory=True, batch_size=2)
        assert len(made.predictions) == 4 and torch.allclose(made.predictions[-1].clamp(-1, 1), made.images, atol=1e-6)
    made = pipe.generate(3, 0, sampler="ddim", num_steps=4, seed=1, output_trajectory=True)
    walk, labels = sampling.spread(sampling.grid(pipe.process, 4), 3), torch.zeros(3, dtype=torch.int64)
    for xt, t, x0 in zip(made.trajectory, walk, made.predictions, strict=False):
        assert torch.allclose(pipe.denoiser.predict_x0(xt, t, labels).clamp(-1, 1), x0, atol=1e-6)


def test_a_callback_sees_every_step_and_may_take_its_place(pipe, cold):
    seen = []

    def look(who, step, s, state):
        seen.append((who, step, s.tolist(), state["xt"].clone()))

    how = {"num_steps": 4, "seed": 1, "sampler": "ddim"}
    assert torch.equal(pipe.generate(2, 0, **how, callback_on_step_end=look), pipe.generate(2, 0, **how))
    assert [(who, step, s) for who, step, s, _ in seen] == [(pipe, i, [15 - 5 * i] * 2) for i in range(4)]
    states = pipe.generate(2, 0, **how, output_trajectory=True).trajectory
    assert all(torch.equal(xt, state) for (*_, xt), state in zip(seen[:-1], states[1:], strict=False))
    stay = {"xt": torch.full((2, 1, 4, 4), 0.5)}
    assert torch.equal(pipe.generate(2, **how, callback_on_step_end=lambda *_: stay), stay["xt"])
    assert torch.equal(cold.restore(stay["xt"] / 2, callback_on_step_end=lambda *_: stay), stay["xt"])


def test_a_call_is_what_a_user_of_diffusers_types(pipe, capsys):
    made = pipe(batch_size=3, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    assert [image.size for image in made.images] == [(4, 4)] * 3 and "step" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    again = pipe(batch_size=3, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert not capsys.readouterr().err and 0.0 <= again.images.min() and again.images.max() <= 1.0
    pixels = torch.stack([torch.from_numpy(numpy.array(image)) for image in made.images]) / 255
    assert torch.allclose(pixels, again.images[:, 0], atol=0.5 / 255 + 1e-6)
    ours = pipe.generate(2, [1, 0], num_steps=4, guidance_scale=2.0, seed=3)
    how = {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 3, "return_dict": False}
    (theirs,) = pipe(class_labels=[1, 0], **how, output_type="np")
    assert theirs.shape == (2, 4, 4, 1) and torch.allclose(torch.tensor(theirs)[..., 0] * 2 - 1, ours[:, 0], atol=1e-6)
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu")
    assert len(pipe(output_trajectory=True, num_inference_steps=4).trajectory) == 5
    for wrong, words in (
        ({"num_steps": 3}, "num_steps belongs to generate; a call takes num_inference_steps"),
        ({"output_type": "latent"}, "output_type must be 'pil', 'pt' or 'np'"),
        ({"seed": 1, "generator": torch.Generator()}, "give seed or generator"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe(**wrong)


def test_steps_with_the_learned_variance_have_it(pipe):
    # One image drawn many times: the law of one step from t to s must have the mean of q(xs | xt, x0_hat) and the
    # variance that the network gave.
    t, s, many = 9, 6, 40_000
    xt = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    times, earlier = torch.tensor([t]), torch.tensor([s])
    x0, share = pipe.denoiser.predict(xt, times)
    least, largest = step_variances(pipe.process, times, earlier)
    told = (least.log() + share.double() * (largest.log() - least.log())).exp()
    ratio = snr(pipe.process, times) / snr(pipe.process, earlier)
    a, b = pipe.process.a, pipe.process.b
    mean = a[s] * (1 - ratio) * x0.clamp(-1, 1) + (a[t] / a[s]) * (b[s] / b[t]) ** 2 * xt
    random = RowRandom(0, torch.arange(many))
    predict = pipe.learned_variance(None, random)
    rows = xt.expand(many, -1, -1, -1)
    drawn = sampling.denoise(pipe.process, predict, rows, [times.expand(many), earlier.expand(many)], random=random)
    error = told.sqrt() / many**0.5
    assert ((drawn.double().mean(0) - mean) / error).abs().max() < 4.5
    wanted = told.maximum(least.view(1, 1, 1, 1))  # below the least one no normal step can be told by this walk
    assert (drawn.double().var(0) / wanted - 1).abs().max() < 5 * (2 / many) ** 0.5


@pytest.mark.parametrize("sampler", ["ddpm_learned", "ddpm_optimal"])
def test_x0_hat_is_drawn_by_the_law_that_was_asked_for(pipe, sampler):
    how = {"sampler": sampler, "num_steps": 4, "seed": 0}
    normal, laplace = pipe.generate(3, law="normal", **how), pipe.generate(3, law="laplace", **how)
    assert torch.equal(normal, pipe.generate(3, **how)) and not torch.equal(normal, laplace)


def test_the_bound_of_a_learned_variance_is_the_sum_of_what_was_trained():
    # likelihood.nelbo by the variance of x0, objectives.kl_terms by that of the step: the same noise, the same nats
    pipe = make(learned_variance=True, prediction="epsilon")
    with torch.no_grad():  # shares between 0 and 1, as a normal step can have them
        write = pipe.denoiser.network.write
        write.weight[16:] *= 0.02
        write.bias[16:] = torch.linspace(-0.7, 0.7, 16)
    process, images = pipe.process, torch.linspace(-1, 1, 33)[torch.arange(48) * 7 % 33].view(3, 1, 4, 4).double()
    learned, source, expected = pipe.learned(clip=False), RowRandom(4, torch.arange(3)), torch.zeros(3).double()
    bound = nelbo(
        process, learned.predict_x0, images, variance=learned.variance, levels=33, random=RowRandom(4, torch.arange(3))
    )
    for step in range(20, 0, -1):
        t = torch.full((3,), step)
        xt = process.corrupt(images, t, process.sample_noise(images, random=source))
        with torch.no_grad():
            x0_hat, share = pipe.denoiser.predict(xt, t)
        assert 0.05 < share.min() < share.max() < 0.95
        expected += kl_terms(process, images, x0_hat, t, share.double(), levels=33)
    assert torch.allclose(bound.steps + bound.decoder, expected, rtol=1e-5)
    fixed = nelbo(process, pipe.predictor(clip=False), images, levels=33, random=RowRandom(4, torch.arange(3)))
    assert ((fixed.nats - bound.nats) / fixed.nats).abs().min() > 1e-3


def test_the_optimal_variance_is_measured_kept_and_sampled_with(tmp_path):
    pipe, images = make(), torch.rand(700, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    labels, some = torch.arange(700) % 3, torch.arange(0, 700, 2)  # 512 at most, evenly spread
    pipe.save_pretrained(tmp_path / "without")
    pipe.fit_variance(images, labels, seed=5)
    for row, own in enumerate((labels[some], None)):
        random = RowRandom(5, torch.arange(350))
        found = sampling.optimal_variance(pipe.process, pipe.predictor(own), images[some], random=random)
        assert torch.allclose(pipe.denoiser.variance[row], found.float(), rtol=1e-5)
    pipe.save_pretrained(tmp_path / "with")
    again = ImagePipeline.from_pretrained(tmp_path / "with")
    for label in ([0, 2, 1], None):
        how = {"label": label, "sampler": "ddpm_optimal", "num_steps": 6, "seed": 3}
        made = again.generate(3, **how)
        assert torch.equal(made, pipe.generate(3, **how))
        random, own = RowRandom(3, torch.arange(3)), None if label is None else torch.tensor(label)
        table = pipe.denoiser.variance[1 if label is None else 0].double()
        predict = sampling.with_variance(pipe.process, pipe.predictor(own), table, random=random, last=False)
        expected = sampling.sample(pipe.process, predict, (3, 1, 4, 4), sampler=None, num_steps=6, random=random)
        assert torch.allclose(made, expected.clamp(-1, 1), atol=1e-5)
    without = ImagePipeline.from_pretrained(tmp_path / "without")
    for call, words in (
        (lambda: without.generate(2, sampler="ddpm_optimal"), "keeps no optimal variance: train with `udm image"),
        (lambda: without.fit_variance(images), "labels must be given: this model knows classes"),
        (lambda: make(optimal_variance=True).generate(2, sampler="ddpm_optimal"), "was not measured yet: call fit_var"),
        (lambda: pipe.denoiser.hold_variance(torch.zeros(21)), r"table must be \(2, 21\), got \(21,\)"),
        (lambda: pipe.generate(2, 0, sampler="ddpm_optimal", guidance_scale=2.0), "variance of 'ddpm_optimal' belongs"),
        (
            lambda: make(ColdProcess(Blur(T=6)), prediction="x0", optimal_variance=True),
            "optimal_variance is that of the steps of a Gaussian process, and this one is cold",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_bits_a_dimension_are_of_the_variance_that_was_asked_for():
    images = (torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 16).round() / 8 - 1
    rows = ImageRows(images, levels=17)
    learned, plain = make(learned_variance=True, levels=17), make(levels=17)
    found = {how: bits_per_dim(learned, rows, 20, variance=how, train=rows) for how in ("fixed", "learned", "optimal")}
    assert bits_per_dim(learned, rows, 20) == found["learned"] and found["learned"]["variance"] == "learned"
    assert len({figures["bits_per_dim_all_steps"] for figures in found.values()}) == 3
    # a network of random weights is far off, which the measured variance knows and the least one does not
    assert found["optimal"]["bits_per_dim_all_steps"] < found["fixed"]["bits_per_dim_all_steps"] - 1
    assert found["optimal"]["bits_per_dim"] < found["fixed"]["bits_per_dim"]
    assert bits_per_dim(plain, rows, 20)["variance"] == "fixed"
    assert "learned variance" in describe_bound(found["learned"])
    for call, words in (
        (
            lambda: bits_per_dim(plain, rows, 20, variance="learned"),
            "trained without learned_variance: variance can be",
        ),
        (lambda: bits_per_dim(plain, rows, 20, variance="wide"), "variance must be 'fixed', 'learned' or 'optimal'"),
        (lambda: bits_per_dim(plain, rows, 20, variance="optimal"), "measured on images: give train"),
        (lambda: learned.learned().variance(images, torch.ones(40).long(), None), "which was not asked yet"),
        (lambda: plain.learned(), "trained without learned_variance"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_restoring_is_the_walk_of_the_package_and_brings_degrading_back(cold):
    clean = torch.linspace(-1, 1, 32).view(2, 1, 4, 4)
    degraded = cold.degrade(clean)
    assert torch.equal(degraded, cold.process.degrade(clean, torch.tensor([6, 6])))
    for how in ({}, {"num_steps": 1}, {"churn": 1.0}):
        expected = sampling.restore(cold.process, cold.predictor(), degraded, **how)
        assert torch.allclose(cold.restore(degraded, **how), expected.clamp(-1, 1), atol=1e-6)
    # a blur of a step from -1 to 1 overshoots a little, and must not be refused
    step = torch.where(torch.arange(4) < 2, -1.0, 1.0).expand(1, 1, 4, 4)
    slight = cold.degrade(step, t=1)
    assert 1.0 < slight.abs().max() < 1.1 and cold.restore(slight, t=1).abs().max() <= 1.0
    states = cold.restore(degraded, t=4, output_trajectory=True).trajectory
    assert len(states) == 5 and torch.equal(states[0], degraded)


def test_a_cold_model_generates_from_the_law_it_keeps_and_an_older_one_says_what_is_missing(tmp_path):
    pipe = make(ColdProcess(Blur(T=6, std=1.0), sigma=0.05), prediction="x0")
    images = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    pipe.save_pretrained(tmp_path / "older")
    with pytest.raises(ValueError, match="keeps no law of x_T"):
        ImagePipeline.from_pretrained(tmp_path / "older").generate(2)
    pipe.denoiser.fit_prior(images, torch.arange(90) % 3)
    pipe.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = ImagePipeline.from_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "pipe.restore(images)\nimages = pipe.generate(16, seed=0)" in card
    assert "pipe.restore" in (older := (tmp_path / "older" / "README.md").read_text()) and "generate(" not in older
    how = {"label": "all", "seed": 3, "guidance_scale": 1.5}
    for more in ({}, {"sampler": "naive"}, {"num_steps": 3, "jitter": 0.1}, {"num_steps": None}):
        made = pipe.generate(5, **how, **more)
        assert made.shape == (5, 1, 4, 4) and made.abs().max() <= 1.0
        assert torch.equal(again.generate(5, **how, **more), made)
        assert torch.allclose(again.generate(5, **how, **more, batch_size=2), made, atol=1e-5)
    assert len({float(pipe.generate(2, label, seed=1)[0].sum()) for label in (None, 0, 1, 2)}) == 4
    # the walk is that of restore, from what the law gives
    random = RowRandom(3, torch.arange(4))
    xt = pipe.denoiser.prior.draw(pipe.process, torch.full((4,), 3), random=random)
    expected = sampling.restore(pipe.process, pipe.predictor(), xt, churn=1.0, random=random)
    with torch.no_grad():
        found = pipe.generate(4, sampler="naive", seed=3)
    assert torch.allclose(found, expected.clamp(-1, 1), atol=1e-6)
    states = pipe.generate(4, sampler="naive", seed=3, output_trajectory=True).trajectory
    assert len(states) == 7 and torch.equal(states[0], xt)


def test_an_edit_of_a_model_with_regions_keeps_the_known_clean_on_the_way():
    pipe = make(regions=True)
    known = torch.linspace(-1, 1, 48).view(3, 1, 4, 4)
    editable = torch.zeros(4, 4, dtype=torch.bool)
    editable[:, 2:] = True
    how = {"label": 1, "num_steps": 8, "seed": 0}
    made = pipe.edit(known, editable, **how, output_trajectory=True)
    assert all(torch.equal(state[..., :2], known[..., :2]) for state in made.trajectory)
    assert not torch.allclose(made.images[..., 2:], known[..., 2:], atol=0.05)
    assert torch.allclose(made.images, pipe.edit(known, editable, **how, batch_size=1, mode="clean"), atol=1e-5)
    replaced = pipe.edit(known, editable, **how, mode="replace", output_trajectory=True)
    assert not torch.allclose(replaced.trajectory[3][..., :2], known[..., :2], atol=0.05)
    assert pipe.edit(known, editable, **how, corrections=1).shape == known.shape  # by replacement
    assert pipe.generate(2, 1, num_steps=3, seed=0).shape == (2, 1, 4, 4)
    assert pipe.edit(known, editable, label=1, start=9, guidance_scale=2.0, eta=0.0, seed=0).shape == known.shape
    with pytest.raises(ValueError, match="mode 'clean' needs a Gaussian process and no corrections"):
        pipe.edit(known, editable, **how, mode="clean", corrections=1)
    with pytest.raises(ValueError, match="mode must be 'replace' or 'clean', got 'keep'"):
        pipe.edit(known, editable, **how, mode="keep")
    with pytest.raises(ValueError, match="mode 'clean' needs a model trained with regions"):
        make().edit(known, editable, **how, mode="clean")
    several = torch.zeros(3, 4, 4, dtype=torch.bool)
    several[0] = True
    with pytest.raises(ValueError, match="editable must be the same in all channels of a pixel"):
        make(regions=True, image_shape=[3, 4, 4]).edit(known.expand(3, 3, 4, 4), several, **how)


@pytest.mark.slow
def test_what_is_learned_with_regions_is_drawn_from_the_conditional_law():
    """Pairs of pixels of correlation 0.8: how much of the known one the other takes over, by a network of seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ImageConfig(
            process=GaussianProcess.vp("cosine", 100).to_dict(),
            image_shape=[1, 1, 2],
            network={"kind": "mlp", "width": 64, "blocks": 1, "dropout": 0.0},
            regions=True,
        )
        model = ImageDenoiser(config)
        objective, index = ImageObjective(config, regions=0.7), torch.arange(256)
        optimiser = torch.optim.AdamW(model.parameters(), lr=6e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
        mix = 0.4 * torch.tensor([[1.0, 0.0], [0.8, 0.6]])
        for step in range(250):
            images = (RowRandom(1, step * 256 + index).normal(2).float() @ mix.T).view(256, 1, 1, 2)
            how = {"row_index": index, "total": 256, "step": step, "seed": 0}
            loss = objective.row_terms(model, {"images": images}, **how).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    pipe, found = ImagePipeline(model), {}
    known = (0.4 * RowRandom(2, torch.arange(4000)).normal(2)).float().clamp(-1, 1).view(4000, 1, 1, 2)
    for mode in ("clean", "replace"):
        made = pipe.edit(known, torch.tensor([True, False]), num_steps=50, seed=0, mode=mode, clip=False)[:, 0, 0]
        found[mode] = float((made[:, 0] * made[:, 1]).mean() / made[:, 1].square().mean())
    assert found["clean"] == pytest.approx(0.8, abs=0.04) and found["replace"] < 0.5


def test_images_are_made_of_vectors_that_are_told_in_place_of_a_class():
    pipe, how = make(classes=[], condition_dim=2), {"sampler": "ddim", "num_steps": 4, "seed": 0}
    each = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.5, -1.0]])
    made = pipe.generate(3, each, **how)
    assert torch.allclose(pipe.generate(3, [0.5, -1.0], **how)[[0, 2]], made[[0, 2]], atol=1e-6)
    assert torch.equal(pipe.generate(3, "[[0.5, -1], [2, 0], [0.5, -1]]", **how), made)
    assert torch.allclose(pipe.generate(3, each, **how, batch_size=2), made, atol=1e-5)
    free = pipe.generate(3, **how)
    assert torch.allclose(pipe.generate(3, each, guidance_scale=0.0, **how), free, atol=1e-5)
    assert not torch.allclose(made, free, atol=1e-3) and not torch.allclose(made[0], made[1], atol=1e-3)
    call = {"num_inference_steps": 2, "seed": 0, "output_type": "pt", "progress": False}
    assert len(pipe(class_labels=each, **call).images) == 3 and len(pipe(class_labels=[0.5, 1.0], **call).images) == 1
    assert pipe.interpolate(made[:2], made[1:], 3, each[:2], num_steps=3).shape == (2, 3, 1, 4, 4)
    pipe.fit_variance(made, each)
    tables = pipe.denoiser.variance
    predict = pipe.optimal_variance(each, RowRandom(0, torch.arange(3)))
    assert tables.shape == (2, 21) and torch.isfinite(predict(made, *[torch.full((3,), 5)] * 2).x0).all()
    assert "told a condition of 2 numbers" in pipe.card()
    cold = make(ColdProcess(Blur(T=3)), prediction="x0", classes=[], condition_dim=2)
    cold.denoiser.fit_prior(made)
    assert cold.generate(3, each, seed=0).shape == (3, 1, 4, 4)
    for wrong in ([1.0], "no", [[1.0, 2.0]], [True, False], {"a": 1}, [1.0, float("nan")]):
        with pytest.raises(
            ValueError, match=r"label must be a condition of shape \(2,\), or one for each|conditions mus"
        ):
            pipe.generate(3, wrong, **how)


def test_images_are_encoded_decoded_and_joined_by_the_walks_of_the_package(pipe):
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    labels, how = torch.tensor([0, 2, 1]), {"num_steps": 7}
    noise = pipe.encode(images, labels, **how, batch_size=2)
    assert torch.allclose(noise, sampling.encode(pipe.process, pipe.predictor(labels), images, 7), atol=1e-5)
    made = pipe.decode(noise, labels, **how, output_trajectory=True)
    assert torch.equal(made.trajectory[0], noise) and len(made.trajectory) == 8
    xt = RowRandom(3, torch.arange(3)).normal(16).view(3, 1, 4, 4).float() * float(pipe.process.b[-1])
    assert torch.allclose(
        pipe.decode(xt, labels, **how), pipe.generate(3, labels, sampler="ddim", seed=3, **how), atol=1e-5
    )
    assert not torch.allclose(pipe.decode(noise, labels, guidance_scale=3.0, **how), made.images, atol=1e-3)
    way = pipe.interpolate(images[:2], images[1:], 5, [0, 2], **how)
    assert way.shape == (2, 5, 1, 4, 4)
    for row, (first, second) in enumerate(((0, 1), (1, 2))):
        own = torch.tensor([[0, 2][row]])
        ends = [pipe.encode(images[i : i + 1], own, **how) for i in (first, second)]
        middle = pipe.decode(sampling.slerp(*ends, 0.5), own, **how)
        found = [way[row : row + 1, i] for i in (0, 2, 4)]
        for a, b in zip(
            found, (pipe.decode(ends[0], own, **how), middle, pipe.decode(ends[1], own, **how)), strict=True
        ):
            assert torch.allclose(a, b, atol=1e-5)
    for call, words in (
        (lambda: pipe.encode(images * 9), r"images must lie in \[-1, 1\]"),
        (lambda: pipe.decode(noise[..., :2]), r"noise must be \(N, 1, 4, 4\), got \(3, 1, 4, 2\)"),
        (lambda: pipe.decode(noise / 0), "noise holds"),
        (lambda: pipe.interpolate(images, images[:2]), "first and second must be pairs, got 3 and 2 images"),
        (lambda: pipe.interpolate(images, images, 1), "num must be at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_model_that_knows_its_law_finds_the_noise_and_brings_the_image_back():
    """A network that is the exact predictor of N(0, 1/4): the flow is linear, and x_T = x0 / 0.5 to first order."""
    pipe = make(GaussianProcess.vp("cosine", 1000), classes=[], prediction="x0")

    def exact(xt, ratio, labels):
        a, b = pipe.process.coefficients((ratio * 1000).round().long(), xt)
        return 0.25 * a / (0.25 * a**2 + b**2) * xt * (a**2 + b**2).sqrt()

    pipe.denoiser.network.forward = exact
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5
    noise = pipe.encode(images, num_steps=1000)
    assert torch.allclose(noise, 2 * images, rtol=0.05)
    assert float((pipe.decode(noise, num_steps=1000) - images).abs().max()) < 0.01


def test_an_edit_keeps_what_is_known_and_changes_the_rest(pipe):
    known = torch.linspace(-1, 1, 48).view(3, 1, 4, 4)
    editable = torch.zeros(4, 4, dtype=torch.bool)
    editable[:, 2:] = True
    made = pipe.edit(known, editable, label=1, num_steps=8, seed=0, output_trajectory=True)
    found, states = made.images, made.trajectory
    assert torch.equal(found[..., :2], known[..., :2]) and not torch.allclose(found[..., 2:], known[..., 2:], atol=0.05)
    assert torch.allclose(found, pipe.edit(known, editable, label=1, num_steps=8, seed=0, batch_size=1), atol=1e-5)
    more = pipe.edit(known, editable, label=1, num_steps=8, seed=0, corrections=2, output_trajectory=True)
    assert torch.equal(more.images[..., :2], known[..., :2]) and len(more.trajectory) == 25
    assert not torch.allclose(more.images, found, atol=0.05)
    # on the way the known pixels carry noise
    assert not torch.allclose(states[3][..., :2], known[..., :2], atol=0.05)


def test_a_pipeline_is_saved_with_a_card_and_comes_back(pipe, cold, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert "library_name: udm-text" in (tmp_path / "README.md").read_text()
    again = ImagePipeline.from_pretrained(tmp_path)
    how = {"label": "all", "num_steps": 3, "seed": 0}
    assert torch.equal(again.generate(3, **how), pipe.generate(3, **how))
    assert "image-to-image" in cold.card()


ROUND_TRIP = """
import sys, torch
from continuous.pipeline import ImagePipeline
pipe = ImagePipeline.from_pretrained(sys.argv[1])
pipe.push_to_hub("user/digits", token=sys.argv[2])
again = ImagePipeline.from_pretrained("user/digits", token=sys.argv[2])
how = dict(label="all", num_steps=3, seed=0)
assert torch.equal(again.generate(3, **how), pipe.generate(3, **how))
"""


def test_a_pipeline_goes_to_a_hub_and_comes_back(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with Hub().running() as hub:
        environment = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
        python("-c", ROUND_TRIP, tmp_path / "model", WRITER, environment=environment)
        files = hub.repositories["user/digits"].files()
    assert {"README.md", "config.json", "model.safetensors"} <= set(files)


def test_the_models_mode_is_as_it_was_also_after_an_error(pipe):
    pipe.denoiser.train()
    try:
        with pytest.raises(RuntimeError, match="stop"):
            pipe.generate(1, num_steps=3, callback_on_step_end=lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        assert pipe.denoiser.training
    finally:
        pipe.denoiser.eval()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, c: p.generate(0), "number of images must be at least 1, got 0"),
        (lambda p, c: p.generate(2, sampler="euler"), "sampler must be 'ddim', 'ddpm'"),
        (lambda p, c: p.generate(2, num_steps=21), r"num_steps must be an integer in 1..20"),
        (lambda p, c: p.generate(2, 3), r"labels must lie in 0..2"),
        (lambda p, c: p.generate(2, "seven"), "label must be 'all' or one of nought, one, two"),
        (lambda p, c: p.generate(2, [0, 1, 2]), "one for each of 2 images"),
        (
            lambda p, c: p.generate(2, guidance_scale=2.0),
            "guidance needs a label, and a model that knows classes or conditions",
        ),
        (lambda p, c: p.generate(2, 1, guidance_scale=2.0, sampler="ddpm_learned"), "guidance moves x0_hat"),
        (lambda p, c: p.generate(2, sampler="ddim", eta=1.5), r"eta must lie in \[0, 1\]"),
        (lambda p, c: p.generate(2, batch_size=0), "batch_size must be at least 1"),
        (lambda p, c: c.encode(torch.zeros(2, 1, 4, 4)), "this needs a model of a Gaussian process"),
        (lambda p, c: c.generate(2), "keeps no law of x_T to draw from: restore degraded images, or have it measured"),
        (
            lambda p, c: c.generate(2, sampler="ddim"),
            "sampler must be 'improved' or 'naive' for this model, got 'ddim'",
        ),
        (lambda p, c: c.generate(2, eta=0.5), "eta belongs to sampler 'ddim' or 'reverse_sde', got sampler 'improved'"),
        (lambda p, c: c.generate(2, jitter=-0.5), r"jitter must lie in \[0, inf\], got -0.5"),
        (lambda p, c: p.generate(2, jitter=0.5), "jitter is noise on the x_T of a cold model"),
        (lambda p, c: p.denoiser.fit_prior(torch.zeros(2, 1, 4, 4)), "only a cold one has it measured"),
        (
            lambda p, c: c.denoiser.fit_prior(torch.zeros(2, 1, 8, 8)),
            r"images must be \(N, 1, 4, 4\), got \(2, 1, 8, 8\)",
        ),
        (lambda p, c: make(prior_rank=3), "prior_rank must be 0, or of a cold process at least 1, got 3"),
        (
            lambda p, c: make(ColdProcess(Blur(T=6)), prediction="x0", prior_rank=3).generate(2),
            "the law of x_T was not measured yet",
        ),
        (
            lambda p, c: c.restore(torch.zeros(2, 1, 8, 8)),
            r"degraded must have shape \(N, 1, 4, 4\), got \(2, 1, 8, 8\)",
        ),
        (lambda p, c: c.restore(torch.full((2, 1, 4, 4), torch.nan)), "degraded must be finite"),
        (lambda p, c: c.restore(torch.full((2, 1, 4, 4), 100.0)), r"degraded must lie in \[-1, 1\]"),
        (lambda p, c: c.restore(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)), "degraded must be floating point"),
        (lambda p, c: c.restore(torch.zeros(2, 1, 4, 4), t=7), r"t must lie in 1..6, got 7"),
        (lambda p, c: c.restore(torch.zeros(2, 1, 4, 4), label=1), "knows no classes"),
        (lambda p, c: p.edit(torch.zeros(1, 1, 4, 4), torch.ones(4, 4)), "editable must be a bool tensor"),
        (lambda p, c: p.edit(torch.zeros(1, 1, 4, 4), torch.ones(3, 3).bool()), "editable must broadcast"),
        (
            lambda p, c: p.edit(torch.zeros(1, 1, 4, 4), torch.ones(4, 4).bool(), temperature=0.5),
            "temperature is that of corrections, and there are none",
        ),
        (lambda p, c: p.generate(1, sampler="ddim", law="laplace"), "law is what ddpm_learned and ddpm_optimal draw"),
        (lambda p, c: p.generate(1, sampler="ddpm_learned", law="cauchy"), "law must be 'normal' or 'laplace', got"),
        (lambda p, c: p.degrade(torch.zeros(1, 1, 4, 4), t=21), r"t must lie in 0..20"),
        (lambda p, c: ImagePipeline.from_pretrained("./no/model"), "there is no model directory ./no/model"),
        (lambda p, c: ImagePipeline(torch.nn.Linear(1, 1)), "needs an ImageDenoiser, got Linear"),
        (lambda p, c: make().generate(1, sampler="ddpm_learned"), "trained without learned_variance"),
    ],
)
def test_what_cannot_be_done_says_so(pipe, cold, call, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        call(pipe, cold)


HUGE = 10**30


@pytest.mark.parametrize(
    ("how", "words"),
    [
        *(({"num": wrong}, "number of images must be at least 1") for wrong in (True, 2.0, "2", None, -1)),
        *(({"seed": wrong}, "seed must be an integer") for wrong in (True, 1.0, "1", [1])),
        *(({"seed": wrong}, r"seed must lie in -9223372036854775808..18446744073709551615") for wrong in (HUGE, -HUGE)),
        *(
            ({"label": wrong}, "label must be 'all', one class by name or index, or an index for each image")
            for wrong in (
                True,
                1.0,
                [0, 1.5],
                [0, True],
                ["one", "two"],
                [0, None],
                {"a": 1},
                HUGE,
                [HUGE, 0],
                object(),
            )
        ),
        ({"label": torch.tensor([0.0, 1.0])}, "or an index for each image"),
        ({"label": torch.tensor([True, False])}, "or an index for each image"),
        ({"label": torch.tensor([[0, 1]])}, "one for each of 2 images"),
        *(({"num_steps": wrong}, "num_steps must be an integer") for wrong in (True, 2.0, "2", 0, HUGE)),
        *(({"batch_size": wrong}, "batch_size must be an integer") for wrong in (True, 2.0, "2", None)),
        *(({"guidance_scale": wrong}, "guidance_scale must be a finite") for wrong in (True, "2", None, float("nan"))),
        *(({"sampler": "ddim", "eta": wrong}, "eta must be a finite number") for wrong in (True, "1", float("inf"))),
        *(({"clip": wrong}, "clip must be True or False") for wrong in (1, "yes", None)),
        ({"output_trajectory": "no"}, "output_trajectory must be True or False"),
        ({"progress": 1}, "progress must be True or False"),
        ({"sampler": ["ddim"]}, "sampler must be"),
        ({"spacing": 3}, "spacing must be one of"),
        ({"callback_on_step_end": 3}, "callback_on_step_end must be a function of .*, got int"),
    ],
)
def test_types_are_checked_as_values_are(pipe, how, words):
    with pytest.raises(ValueError, match=words):
        pipe.generate(**{"num": 2, "num_steps": 3, **how})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, c, x: c.restore(x, t=True), "t must be an integer, got True"),
        (lambda p, c, x: c.restore(x, t=2.0), "t must be an integer, got 2.0"),
        (lambda p, c, x: c.restore(x, num_steps="2"), "num_steps must be an integer"),
        (lambda p, c, x: c.restore(x, num_steps=0), r"num_steps must lie in 1..6, got 0"),
        (lambda p, c, x: c.restore(x, churn="1"), "churn must be a finite number"),
        (lambda p, c, x: c.restore(x, churn=1.5), r"churn must lie in \[0, 1\]"),
        (lambda p, c, x: c.restore(x, seed=2.5), "seed must be an integer"),
        (lambda p, c, x: c.restore([[0.0]]), "degraded must be a torch tensor"),
        (lambda p, c, x: p.restore(x / 0), "degraded must be finite"),
        (lambda p, c, x: p.restore(x.long()), "degraded must be floating point"),
        (lambda p, c, x: c.degrade(x, t=True), "t must be an integer"),
        (lambda p, c, x: c.degrade(x, seed="0"), "seed must be an integer"),
        (lambda p, c, x: p.edit(x, [[True]]), "editable must be a bool tensor.*got list"),
        (lambda p, c, x: p.edit(x, x > 0, num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda p, c, x: p.edit(x, x > 0, start=2.5), "start must be an integer"),
        (lambda p, c, x: p.edit(x, x > 0, eta=None), "eta must be a finite number"),
        (lambda p, c, x: p.edit(x, x > 0, corrections=1.5), "corrections must be an integer, got 1.5"),
        (lambda p, c, x: p.edit(x, x > 0, corrections=-1), "corrections must be at least 0, got -1"),
        (lambda p, c, x: p.edit(x, x > 0, corrections=1, step_size=0.0), r"step_size must lie in \(0, 2\)"),
        (lambda p, c, x: p(generator=3), "generator must be a torch.Generator, got int"),
        (lambda p, c, x: p(return_dict="yes"), "return_dict must be True or False"),
        (lambda p, c, x: p(class_labels=torch.tensor(1.0)), "or an index for each image"),
    ],
)
def test_the_other_methods_check_types_too(pipe, cold, call, words):
    with pytest.raises(ValueError, match=words):
        call(pipe, cold, torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.zeros(2, 1, 4, 4), "must return None or"),
        ({"x": torch.zeros(2, 1, 4, 4)}, "must return None or"),
        ({"xt": None}, "must return None or"),
        (
            {"xt": torch.zeros(1, 1, 4, 4)},
            r"\(2, 1, 4, 4\)}, got xt \(1, 1, 4, 4\) torch.float32 after step 0",
        ),
        ({"xt": torch.zeros(2, 1, 4, 4, dtype=torch.int64)}, "torch.int64 after step 0"),
        ({"xt": torch.full((2, 1, 4, 4), torch.nan)}, "not finite after step 0"),
        ("stop", "got 'stop' after step 0"),
        (False, "got False after step 0"),
    ],
)
def test_what_a_callback_returns_is_checked(pipe, returned, words):
    with pytest.raises(ValueError, match=words):
        pipe.generate(2, num_steps=3, callback_on_step_end=lambda *_: returned)


def test_a_callback_may_return_nothing_and_numpy_numbers_are_numbers(pipe):
    plain = pipe.generate(2, 1, num_steps=3, seed=3)
    for nothing in (None, {}):
        found = pipe.generate(
            numpy.int64(2),
            numpy.int64(1),
            num_steps=3,
            seed=numpy.int64(3),
            callback_on_step_end=lambda *_, back=nothing: back,
        )
        assert torch.equal(found, plain)
    assert torch.equal(pipe.generate(2, numpy.array([1, 1]), num_steps=3, seed=3), plain)
    assert torch.equal(pipe.generate(2, 1, num_steps=3, seed=2**64 - 1), pipe.generate(2, 1, num_steps=3, seed=-1))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_draws_nothing_and_names_the_step(sampler, value):
    broken = with_variance_kept(make(learned_variance=True))
    with torch.no_grad():
        next(p for p in reversed(list(broken.denoiser.parameters())) if p.ndim == 1)[:] = value
    with pytest.raises(NonFiniteOutputError, match="not finite at t = 20, in 3 of 3 images") as caught:
        broken.generate(3, 1, sampler=sampler, num_steps=4, seed=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(NonFiniteOutputError, match="not finite at t = 5, in 2 of 2 images"):
        broken.restore(torch.zeros(2, 1, 4, 4), t=5)
