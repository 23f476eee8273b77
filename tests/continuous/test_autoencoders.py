"""An autoencoder and an image model in its latents: sizes, what the checkpoint holds, what is refused."""

import pytest
import torch

from continuous.autoencoders import Autoencoder, AutoencoderConfig, AutoencoderObjective
from continuous.data import digits
from continuous.degradations import Blur
from continuous.encoded import EncodedProcess
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.objectives import ImageObjective
from continuous.pipeline import ImagePipeline
from continuous.processes import ColdProcess, GaussianProcess
from continuous.sampling import grid, sample
from tests.continuous.worlds import at
from tests.helpers import assert_equal_weights
from udm_text.randomness import RowRandom, step_random

SMALL = {"kind": "mlp", "width": 16, "blocks": 1}
VP = GaussianProcess.vp("cosine", 20)


def make_autoencoder(measured=True, **fields):
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(**{"latent_channels": 2, "widths": [8, 8], **fields}))
    if measured:
        model.measure(digits().train.images[:200])
    return model


def make(seed=0, **more):
    inner = make_autoencoder()
    config = ImageConfig(process=VP.to_dict(), network=SMALL, autoencoder=inner.config.fields(), **more)
    torch.manual_seed(seed)
    model = ImageDenoiser(config)
    for p in model.network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.hold(inner)
    return model


def test_latents_have_mean_0_and_variance_1_in_each_channel_and_decode_to_images():
    model = make_autoencoder()
    latents = model.encode(digits().train.images[:200])
    assert latents.shape == (200, 2, 4, 4) == (200, *model.config.latent_shape)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(latents.var((0, 2, 3)), torch.ones(2), atol=1e-3)
    assert model.decode(latents).shape == (200, 1, 8, 8)


def test_decoding_undoes_the_scaling_of_encoding():
    model, images = make_autoencoder(), digits().train.images[:5]
    assert torch.allclose(model.decode(model.encode(images)), model.decoder(model(images)[0]), atol=1e-5)


def test_the_term_of_a_row_is_its_squared_error_and_the_weighted_divergence_from_a_standard_normal_law():
    """Against torch.distributions; a row's noise is its own."""
    model, images = make_autoencoder(), digits().train.images[:4]
    terms = AutoencoderObjective(regularisation=0.3).terms(model, images, step_random(1, 2, torch.arange(4)))
    mean, log_variance = model(images)
    law = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    noise = step_random(1, 2, torch.arange(4)).normal(32).view(mean.shape).float()
    error = (model.decoder(mean + law.scale * noise) - images).square().flatten(1).sum(1)
    nats = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(terms, error + 0.3 * nats, rtol=1e-4)
    alone = AutoencoderObjective(regularisation=0.3).terms(model, images[2:3], step_random(1, 2, torch.tensor([2])))
    assert torch.allclose(alone, terms[2:3], rtol=1e-4)


def test_an_image_model_in_latents_is_trained_on_them_and_leaves_the_autoencoder_alone():
    model, images = make().eval(), digits().train.images[:6]  # without dropout
    objective = ImageObjective(model.config)
    found = objective.row_terms(model, {"images": images}, row_index=torch.arange(6), total=6, step=0, seed=0)
    plain = ImageDenoiser(ImageConfig(process=VP.to_dict(), network=SMALL, image_shape=[2, 4, 4])).eval()
    plain.network.load_state_dict(model.network.state_dict())
    latents = {"images": model.autoencoder.encode(images).detach()}
    known = ImageObjective(plain.config).row_terms(plain, latents, row_index=torch.arange(6), total=6, step=0, seed=0)
    assert torch.allclose(found, known, rtol=1e-5)
    found.sum().backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert any(p.grad is not None for p in model.network.parameters())


def test_noise_in_latents_is_the_encoding_model_with_the_autoencoder_as_its_encoder():
    model, images = make(), digits().train.images[:6]
    process = EncodedProcess(model.gaussian, model.to_state)
    noise = process.sample_noise(model.to_state(images))
    assert torch.equal(process.corrupt(images, at(9, 6), noise), VP.corrupt(model.to_state(images), at(9, 6), noise))


def test_a_pipeline_walks_in_latents_and_decodes_by_itself():
    pipe = ImagePipeline(make())
    images = pipe.generate(3, sampler="ddpm", num_steps=5, seed=1)
    latents = sample(
        VP, pipe.predictor(), (3, 2, 4, 4), sampler="ddpm", times=grid(VP, 5), random=RowRandom(1, torch.arange(3))
    )
    assert images.shape == (3, 1, 8, 8)
    assert torch.allclose(images, pipe.denoiser.to_images(latents).clamp(-1, 1), atol=1e-5)
    watched = pipe.generate(3, sampler="ddpm", num_steps=5, seed=1, output_trajectory=True)
    assert [state.shape for state in watched.trajectory] == [(3, 1, 8, 8)] * 6
    assert torch.equal(watched.trajectory[-1], images)


def test_a_checkpoint_holds_the_autoencoder(tmp_path):
    pipe = ImagePipeline(make())
    pipe.save_pretrained(tmp_path)
    again = ImagePipeline.from_pretrained(tmp_path)
    assert_equal_weights(dict(pipe.denoiser.state_dict()), dict(again.denoiser.state_dict()))
    assert torch.equal(again.generate(2, num_steps=3, seed=0), pipe.generate(2, num_steps=3, seed=0))
    assert "latents of 2 x 4 x 4 values" in (tmp_path / "README.md").read_text(encoding="utf-8")


IMAGES = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AutoencoderConfig(widths=[8] * 5), "height and width divisible by 16, got 8 x 8"),
        (lambda: AutoencoderConfig(latent_channels=0), "latent_channels must be at least 1, got 0"),
        (lambda: AutoencoderConfig(widths=[0]), r"widths must be numbers of channels, got \[0\]"),
        (lambda: AutoencoderObjective(regularisation=-1.0), "regularisation must be a number >= 0, got -1.0"),
        (lambda: make().hold(make_autoencoder(measured=False)), "was not measured yet"),
        (lambda: make().hold(make_autoencoder(latent_channels=3)), "must be that of the configuration"),
        (lambda: make(learned_variance=True), "latents have none"),
        (lambda: ImageObjective(make().config, weighting="vlb"), "which latents do not have"),
        (lambda: ImageObjective(make().config, importance=True), "which latents do not have"),
        (lambda: ImagePipeline(make()).edit(IMAGES, IMAGES == 0), "edit works on pixels"),
        (lambda: ImagePipeline(make()).restore(IMAGES), "restore works on pixels"),
        (lambda: ImagePipeline(make()).degrade(IMAGES), "degrade works on pixels"),
        (
            lambda: ImageConfig(
                process=ColdProcess(Blur(T=3)).to_dict(),
                prediction="x0",
                autoencoder={"widths": [8]},
            ),
            "a degradation is one of pixels",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
