"""The predictor: what its checkpoint carries, and x0_hat at both ends of every process."""

import json

import pytest
import torch

from continuous.degradations import Blur, PixelMask
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.processes import ColdProcess, GaussianProcess

SMALL = {"kind": "mlp", "width": 16, "blocks": 1}
UNET = {"kind": "unet", "widths": [8, 16], "attention": 8}


def make(process=None, seed=0, network=None, shape=(1, 4, 4), **more):
    process = GaussianProcess.vp("cosine", 20) if process is None else process
    config = ImageConfig(process=process.to_dict(), image_shape=list(shape), network=network or SMALL, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageDenoiser(config).eval()
        for p in model.parameters():  # some weights start at zero, which would hide mistakes
            torch.nn.init.normal_(p, std=0.2)
    return model


CASES = [
    (GaussianProcess.vp("cosine", 20), {"prediction": "epsilon", "classes": ["a", "b"]}, SMALL),
    (GaussianProcess.ve(20, 0.05, 50.0), {"prediction": "x0", "learned_variance": True}, SMALL),
    (GaussianProcess.rf(20), {"prediction": "v", "classes": ["a", "b"]}, UNET),
    (GaussianProcess.vp("cosine", 20), {"regions": True}, UNET),
    (GaussianProcess.ve(20, 0.05, 50.0), {"prediction": "score", "learned_variance": True}, SMALL),
    (ColdProcess(PixelMask(T=8, order="random", seed=3), sigma=0.1), {"prediction": "x0", "levels": 17}, SMALL),
]


@pytest.mark.parametrize(("process", "more", "network"), CASES)
def test_a_checkpoint_brings_back_the_process_and_every_prediction_bit_by_bit(tmp_path, process, more, network):
    model = make(process, network=network, shape=(1, 8, 8), **more)
    model.save_pretrained(tmp_path)
    again = ImageDenoiser.from_pretrained(tmp_path).eval()
    assert again.config.process == process.to_dict() and repr(again.process) == repr(process)
    xt = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    t = torch.tensor([1, 4, 8])
    labels = torch.tensor([0, 1, -1]) if more.get("classes") else None
    with torch.no_grad():
        for a, b in zip(model.predict(xt, t, labels), again.predict(xt, t, labels), strict=True):
            assert a is None and b is None or torch.equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("process", [GaussianProcess.vp("cosine", 1000), GaussianProcess.vp("linear", 1000)])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "score"])
def test_the_right_answer_gives_x0_back_at_both_ends(process, prediction):
    # In float32 alone, epsilon at T would be off by b/a times 1e-7.
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1, 2, 999, 1000])
    xt = process.corrupt(x0, t, noise)
    model = make(process, prediction=prediction)
    found = model.to_x0(process.target(prediction, x0, noise, t), xt, t)
    assert torch.allclose(found, x0, atol=1e-9) and found.dtype == torch.float64


def test_at_t_0_a_image_is_its_own_prediction():
    xt = torch.linspace(-1, 1, 32).view(2, 1, 4, 4)
    for kind in ("epsilon", "x0", "v", "score"):
        found = make(prediction=kind).predict_x0(xt, torch.tensor([0, 3]))
        assert torch.equal(found[0], xt[0]) and not torch.equal(found[1], xt[1])


def test_predictions_are_float32_at_least_whatever_the_weights_are():
    xt = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = make()
    exact = model.predict_x0(xt, torch.tensor([3, 15]))
    half = model.to(torch.bfloat16).predict_x0(xt, torch.tensor([3, 15]))
    assert exact.dtype == half.dtype == torch.float32 and torch.allclose(exact, half, atol=0.15)
    assert model.float().double().predict_x0(xt.double(), torch.tensor([3, 15])).dtype == torch.float64


def test_the_network_sees_images_of_unit_variance_whatever_the_noise():
    seen = {}
    model = make(GaussianProcess.ve(20, 0.05, 50.0), prediction="x0")
    model.network.forward = lambda xt, share, labels: seen.update(xt=xt, share=share) or xt
    process, noise = model.process, torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 10, 20])
    model(process.corrupt(torch.zeros_like(noise), t, noise), t)
    a, b = process.coefficients(t, noise)
    assert torch.allclose(seen["xt"], noise * b / (1 + b.square()).sqrt(), rtol=1e-5)
    assert torch.allclose(seen["share"], t.double() / 20)


def test_a_network_that_predicts_the_score_is_asked_for_numbers_of_unit_size():
    model = make(GaussianProcess.ve(20, 0.05, 50.0), prediction="score", learned_variance=True)
    numbers = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    model.network.forward = lambda xt, share, labels: numbers
    output = model(torch.zeros(2, 1, 4, 4), torch.tensor([1, 20]))
    assert torch.allclose(output[:, :1], numbers[:, :1] / torch.tensor([0.05, 50.0]).view(2, 1, 1, 1))
    assert torch.equal(output[:, 1:], numbers[:, 1:])  # the share of the variance is no score


def test_a_model_with_regions_is_told_where_pixels_are_clean_and_keeps_them():
    model, seen = make(regions=True, shape=(3, 4, 4)), {}
    xt = torch.linspace(-1, 1, 2 * 48).view(2, 3, 4, 4)
    t = torch.zeros(2, 1, 4, 4, dtype=torch.int64)
    t[0, :, :2], t[1] = 7, 12
    with torch.no_grad():
        x0 = model.predict_x0(xt, t)
        assert torch.equal(model.predict_x0(xt, t.expand(2, 3, 4, 4)), x0)
        assert torch.equal(model.predict_x0(xt[1:], torch.tensor([12])), model.predict_x0(xt[1:], t[1:]))
    assert torch.equal(x0[0, :, 2:], xt[0, :, 2:]) and not torch.isclose(x0[0, :, :2], xt[0, :, :2]).all()
    model.network.forward = lambda xt, ratio, labels: seen.update(xt=xt, ratio=ratio) or xt[:, :3]
    model(xt, t)
    assert torch.equal(seen["xt"][:, 3:], (t > 0).float()) and seen["ratio"].tolist() == [7 / 20, 12 / 20]
    with pytest.raises(ValueError, match="a t for each pixel needs a model that was trained with regions"):
        make()(xt[:, :1], t)


@pytest.mark.parametrize("network", [SMALL, UNET], ids=["mlp", "unet"])
def test_a_one_hot_vector_is_a_class_bit_for_bit(network):
    of_classes = make(network=network, shape=(1, 8, 8), classes=["a", "b", "c"])
    of_vectors = make(network=network, shape=(1, 8, 8), condition_dim=3)
    weights = of_classes.state_dict()
    (name,) = (name for name in weights if name not in of_vectors.state_dict())
    table = weights.pop(name)
    own = {"network.label.linear.weight": table[:3].T.contiguous(), "network.label.null": table[3]}
    of_vectors.load_state_dict({**weights, **own})
    xt = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
    t, labels = torch.tensor([1, 4, 8, 20]), torch.tensor([0, 2, -1, 1])
    vectors = torch.nn.functional.one_hot(labels.clamp(min=0), 3).float()
    vectors[2] = torch.nan
    with torch.no_grad():
        assert torch.equal(of_vectors.predict_x0(xt, t, vectors), of_classes.predict_x0(xt, t, labels))
        assert torch.equal(of_vectors.predict_x0(xt, t), of_classes.predict_x0(xt, t))
        mixed = of_vectors.predict_x0(xt, t, vectors * 0.5)
    assert not torch.isclose(mixed[0], of_vectors.predict_x0(xt, t, vectors)[0]).all() and torch.isfinite(mixed).all()


def test_pixels_attend_to_the_vectors_of_a_condition_in_whatever_order(tmp_path):
    network = {"kind": "cross_unet", "widths": [8, 16], "attention": 8}
    model = make(network=network, shape=(1, 8, 8), condition_dim=5, condition_length=3)
    xt, t = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8), torch.tensor([4, 9])
    vectors = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    again = ImageDenoiser.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = model.predict_x0(xt, t, vectors)
        assert torch.equal(again.predict_x0(xt, t, vectors), found)
        assert torch.allclose(model.predict_x0(xt, t, vectors.flip(1)), found, atol=1e-5)
        other = model.predict_x0(xt, t, torch.cat((vectors[:1], vectors[1:] + 1.0)))
        assert torch.allclose(other[0], found[0], atol=1e-5) and not torch.allclose(other[1], found[1], atol=1e-3)
        none = torch.cat((vectors[:1], torch.full((1, 3, 5), torch.nan)))
        assert torch.allclose(model.predict_x0(xt, t, none)[1], model.predict_x0(xt, t)[1], atol=1e-5)
        model.network.null += 1.0
        assert not torch.allclose(model.predict_x0(xt, t), again.predict_x0(xt, t), atol=1e-3)
        single = make(network=network, shape=(1, 8, 8), condition_dim=5)
        assert torch.isfinite(single.predict_x0(xt, t, vectors[:, 0])).all()


def test_conditions_that_are_none_are_refused():
    model, xt, t = make(condition_dim=3), torch.zeros(2, 1, 4, 4), torch.tensor([1, 2])
    for wrong, words in (
        (torch.zeros(2, 4), r"conditions must be \(2, 3\) float, got \(2, 4\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "got .*int64"),
        (torch.tensor([[0.0, 1.0, torch.nan], [0.0, 0.0, 0.0]]), "must be finite numbers, or NaN all through a row"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict_x0(xt, t, wrong)


def test_a_unet_attends_at_the_sizes_that_are_chosen_and_its_checkpoint_knows_them(tmp_path):
    def sizes(**more):
        network = {"kind": "unet", "widths": [8, 8, 16], "attention": 8, **more}
        model = make(network=network, shape=(1, 16, 8))
        body = model.network.body
        found = [16 >> i for i, block in enumerate(body.down_blocks) if hasattr(block, "attentions")]
        assert found == [4 << i for i, block in enumerate(body.up_blocks) if hasattr(block, "attentions")][::-1]
        return model, found

    assert sizes()[1] == [4] and sizes(attention=0)[1] == [] and sizes(attention_sizes=[])[1] == []
    model, found = sizes(attention_sizes=[16, 4])
    assert found == [16, 4]
    model.save_pretrained(tmp_path)
    again, xt, t = ImageDenoiser.from_pretrained(tmp_path).eval(), torch.zeros(2, 1, 16, 8), torch.tensor([3, 9])
    with torch.no_grad():
        assert torch.equal(again.predict_x0(xt, t), model.predict_x0(xt, t))
    for wrong in ({"attention_sizes": [12]}, {"attention_sizes": [8], "attention": 0}):
        with pytest.raises(ValueError, match="attention_sizes must be heights of this U-Net, 16, 8, 4, with an att"):
            sizes(**wrong)


def test_no_class_and_classes_are_told_apart_and_minus_one_is_no_class():
    model = make(classes=["a", "b", "c"])
    xt = torch.full((1, 1, 4, 4), 0.3)
    t = torch.tensor([9])
    found = [model.predict_x0(xt, t, None if i is None else torch.tensor([i])) for i in (None, -1, 0, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert len({tuple(x.flatten().tolist()) for x in found}) == 4


def test_the_share_of_the_variance_is_0_at_minus_1_and_1_at_1():
    model = make(learned_variance=True)
    output = torch.cat((torch.zeros(1, 1, 4, 4), torch.linspace(-1, 1, 16).view(1, 1, 4, 4)), dim=1)
    told, share = model.split_output(output)
    assert torch.equal(told, torch.zeros(1, 1, 4, 4))
    assert torch.allclose(share.flatten(), torch.linspace(0, 1, 16))


def test_a_checkpoint_with_other_weights_than_its_config_says_is_refused(tmp_path):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "network": {**SMALL, "blocks": 2}}))
    with pytest.raises(ValueError, match="missing keys"):
        ImageDenoiser.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "udm_version": 9}))
    with pytest.raises(ValueError, match="newer version"):
        ImageDenoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prediction": "noise"}, "prediction must be 'epsilon', 'x0', 'v' or 'score', got 'noise'"),
        ({"process": GaussianProcess.rf(9), "prediction": "epsilon"}, "'epsilon' cannot tell x0 where a_t = 0"),
        ({"process": ColdProcess(Blur(T=4)), "prediction": "v"}, "a cold process is learned with prediction 'x0'"),
        ({"shape": (8, 8)}, "image_shape must be channels, height and width"),
        ({"network": {"kind": "transformer"}}, "network must have a kind, 'mlp', 'unet' or 'cross_unet'"),
        ({"network": {"kind": "mlp", "depth": 3}}, "network 'mlp' does not take these options"),
        ({"network": {"kind": "unet", "widths": [8, 8, 8]}, "shape": (1, 6, 6)}, "divisible by 4, got 6 x 6"),
        ({"levels": 1}, "levels must be at least 2"),
        ({"condition_dim": -1}, "condition_dim and condition_length must be 0 or more"),
        ({"condition_dim": 3, "classes": ["a"]}, "a model with the first has no classes, got 3, 0 and 1 classes"),
        ({"condition_dim": 3, "condition_length": 2}, "needs a condition_dim and network 'cross_unet'"),
        ({"network": {"kind": "cross_unet"}, "shape": (1, 8, 8)}, "'cross_unet' attends to vectors: it needs a cond"),
        ({"colour": True}, "unknown argument 'colour'"),
    ],
)
def test_models_that_cannot_be_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        make(**more)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 3]), r"labels must lie in 0..2"),
        (torch.tensor([0]), r"labels must be \(2,\) int64"),
        (torch.tensor([0.0, 1.0]), r"labels must be \(2,\) int64"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, words):
    with pytest.raises(ValueError, match=words):
        make(classes=["a", "b", "c"]).predict_x0(torch.zeros(2, 1, 4, 4), torch.tensor([1, 2]), labels)
    with pytest.raises(ValueError, match="knows no classes"):
        make().predict_x0(torch.zeros(2, 1, 4, 4), torch.tensor([1, 2]), torch.tensor([0, 0]))
