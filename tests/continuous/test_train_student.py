"""Training runs of students: what they learn, what their checkpoints say, and what is refused."""

import json
import shutil

import pytest
import torch

from continuous import sampling
from continuous.data import digits
from continuous.distillation import FewSteps
from continuous.modeling import ImageConfig, ImageDenoiser
from continuous.pipeline import ImagePipeline
from continuous.train_image import main
from continuous.train_student import Lesson, student_config
from tests.helpers import assert_close_weights, assert_equal_weights, weights_in
from udm_text.core import denoise
from udm_text.randomness import RowRandom

QUIET = "--report_to none --disable_tqdm true --use_cpu --plot false --per_device_train_batch_size 64".split()
SHORT = ["--eval_strategy", "no", "--learning_rate", "5e-3", "--warmup_steps", "10"]
SMALL = ["--network_options", '{"width": 24, "blocks": 1}']


def run(output, *more, steps=4):
    main(["--output", str(output), "--max_steps", str(steps), *QUIET, *SHORT, *map(str, more)])
    return output


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return run(tmp_path_factory.mktemp("teacher") / "hot", *SMALL, "--times", 64, "--process", "rf", steps=60)


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    output = tmp_path_factory.mktemp("student") / "four"
    return run(output, "--teacher", teacher, "--objective", "distil", "--student_steps", 4, "--save_steps", 2)


def test_a_students_checkpoint_says_how_it_is_sampled_and_it_cannot_be_sampled_otherwise(teacher, student):
    pipe = ImagePipeline.from_pretrained(student)
    config = pipe.denoiser.config
    assert config.student == FewSteps(["ddim"], 4, [64, 48, 32, 16, 0], True)
    assert config.network == {"kind": "mlp", "width": 24, "blocks": 1, "dropout": 0.0}
    assert config.process == ImagePipeline.from_pretrained(teacher).denoiser.config.process
    assert (pipe.usual_sampler, pipe.usual_steps) == ("ddim", 4)
    made = pipe.generate(3, 1, seed=0, output_trajectory=True)
    assert len(made.trajectory) == 5 and made.images.shape == (3, 1, 8, 8)
    random = RowRandom(0, torch.arange(3))
    walk = sampling.spread([64, 48, 32, 16, 0], 3)
    xt = pipe.process.prior(torch.empty(3, 1, 8, 8), random=random)
    by_hand = denoise(pipe.process, pipe.predictor(torch.tensor([1, 1, 1])), xt, walk).clamp(-1, 1)
    assert torch.allclose(made.images, by_hand, atol=1e-6)
    said = "It is a student of `hot`. It takes few steps: it is sampled by ddim, in 4 by default."
    assert said in (student / "README.md").read_text() and config.teacher == "hot"
    images = digits().validation.images[:2]
    for wrong, words in (
        (lambda: pipe.generate(1, num_steps=20), "num_steps must be 4 for this model of few steps, got 20"),
        (lambda: pipe.generate(1, sampler="ddpm"), "sampler must be 'ddim' for this model of few steps, got 'ddpm'"),
        (lambda: pipe.generate(1, 1, guidance_scale=2.0), "guidance belongs to the teacher of this model"),
        (lambda: pipe.generate(1, spacing="snr"), "spacing does not go with this model of few steps"),
        (lambda: pipe.restore(images), "this model of few steps generates and does not restore"),
        (lambda: pipe.edit(images, images > 0), "this model of few steps generates and does not edit"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


@pytest.mark.slow
def test_a_student_begins_with_the_weights_of_its_teacher_and_one_that_imitates_does_not(teacher, tmp_path):
    quick = ["--teacher", teacher, "--learning_rate", "1e-12", "--weight_decay", 0]
    alike = run(tmp_path / "alike", *quick, "--objective", "distil", "--student_steps", 8, steps=1)
    assert_close_weights(weights_in(teacher), weights_in(alike), atol=1e-6)
    other = run(tmp_path / "other", *quick, "--objective", "imitate", "--network_options", '{"width": 8}', steps=1)
    config = ImageDenoiser.from_pretrained(other).config
    assert config.network == {"kind": "mlp", "width": 8} and config.few_steps is None


def test_the_student_of_a_student_takes_half_its_steps(student, tmp_path):
    second = run(tmp_path / "two", "--teacher", student, "--objective", "distil")
    assert ImageDenoiser.from_pretrained(second).config.student == FewSteps(["ddim"], 2, [64, 32, 0], True)
    report = json.loads((second / "report.json").read_text())
    assert report["teacher"] == str(student) and report["validation"]["loss"] > 0


def test_a_resumed_student_ends_on_the_bits_of_the_uninterrupted_one(teacher, student, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(student / "checkpoint-2", half / "checkpoint-2")
    run(half, "--teacher", teacher, "--objective", "distil", "--student_steps", 4, "--save_steps", 2, "--resume")
    assert_equal_weights(weights_in(student), weights_in(half))


@pytest.mark.parametrize("taught", [True, False])
def test_a_consistent_model_takes_as_many_steps_as_one_likes(teacher, tmp_path, taught, capsys):
    own = ["--teacher", teacher] if taught else [*SMALL, "--process", "rf", "--times", 64]
    pipe = ImagePipeline.from_pretrained(
        run(tmp_path / "any", *own, "--objective", "consistency", "--teacher_steps", 8)
    )
    assert pipe.denoiser.config.student == FewSteps(["baseline"], 1, [64, 56, 48, 40, 32, 24, 16, 8, 0])
    assert "so the last weights are written, not the best" in capsys.readouterr().out
    for num_steps in (None, 1, 3, 8):
        pipe.generate(1, 1, num_steps=num_steps)
    with pytest.raises(ValueError, match=r"num_steps must be an integer in 1..8"):
        pipe.generate(1, 1, num_steps=9)


def test_reflow_trains_on_samples_and_the_noise_they_came_of(teacher, tmp_path):
    how = ["--objective", "reflow", "--teacher", teacher, "--pairs", 80, "--teacher_steps", 4]
    pipe = ImagePipeline.from_pretrained(run(tmp_path / "straight", *how))
    student = pipe.denoiser.config.student
    assert student.times is None and student.samplers == ["ddim", "dpm_solver", "dpm_solver_3", "heun"]
    report = json.loads((tmp_path / "straight" / "report.json").read_text())
    assert report["train_rows"] == 80
    assert torch.equal(pipe.generate(2, 1, seed=3), pipe.generate(2, 1, seed=3, sampler="ddim", num_steps=4))
    with pytest.raises(ValueError, match="sampler must be 'ddim', 'dpm_solver', 'dpm_solver_3' or 'heun'"):
        pipe.generate(2, 1, sampler="ddpm")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--objective", "distil"], "objective 'distil' needs a teacher: give --teacher DIR"),
        (["--objective", "shrink"], "objective must be 'imitate', 'distil', 'consistency' or 'reflow', got 'shrink'"),
        (["--teacher", "T"], "teacher belongs to an objective: give --objective 'imitate'"),
        (["--student_steps", 4], "student_steps belongs to an objective"),
        (["--objective", "distil", "--teacher", "T"], "objective 'distil' needs student_steps"),
        (["--objective", "distil", "--teacher", "T", "--pairs", 9], "pairs does not go with objective 'distil'"),
        (["--objective", "distil", "--teacher", "T", "--student_steps", 0], "student_steps must be at least 1, got 0"),
        (
            ["--objective", "distil", "--teacher", "T", "--student_steps", 3, "--teacher_steps", 8],
            "num_steps of a student must divide those of its teacher, 8, got 3",
        ),
        (["--objective", "distil", "--teacher", "./no/such"], "there is no model directory ./no/such"),
        (
            ["--objective", "distil", "--teacher", "T", "--student_steps", 4, "--process", "vp"],
            "a student has the process of its teacher",
        ),
        (
            ["--objective", "distil", "--teacher", "T", "--student_steps", 4, "--prediction", "x0"],
            "a student has the prediction of its teacher, 'v', got 'x0'",
        ),
        (
            ["--objective", "distil", "--teacher", "T", "--student_steps", 4, "--conditional", "false"],
            r"a student has the classes of its teacher, \['0', .*\], got \[\]",
        ),
        (
            ["--objective", "distil", "--teacher", "T", "--student_steps", 4, "--network_options", '{"width": 8}'],
            "begins with the weights of its teacher: network_options may change nothing but dropout",
        ),
        (["--objective", "reflow", "--teacher", "T", "--flip", "true"], "flip does not go with objective 'reflow'"),
        (["--objective", "consistency", "--process", "cold"], "'consistency' needs a Gaussian process"),
        (["--objective", "consistency", "--patience", 2], "patience waits for a better loss"),
        (["--objective", "imitate", "--teacher", "T", "--importance", "true"], "with a target leave out"),
    ],
)
def test_lessons_that_cannot_be_taught_are_refused(teacher, tmp_path, more, words):
    given = [teacher if word == "T" else word for word in more]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(tmp_path / "out", *given)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.slow
def test_a_student_of_another_shape_is_refused():
    model = ImageDenoiser(ImageConfig(network={"kind": "mlp", "width": 8, "blocks": 1}))
    wanted = ImageConfig(image_shape=[1, 16, 16], network=model.config.network)
    with pytest.raises(
        ValueError, match=r"a student has the image_shape of its teacher, \[1, 8, 8\], got \[1, 16, 16\]"
    ):
        student_config(Lesson("imitate", model.process, model), wanted, {})


def test_a_consistent_model_teaches_no_steps(teacher, tmp_path):
    loose = run(tmp_path / "loose", "--teacher", teacher, "--objective", "consistency", "--teacher_steps", 4, steps=1)
    with pytest.raises(ValueError, match="its teacher is no student, or a student by 'distil'"):
        run(tmp_path / "out", "--teacher", loose, "--objective", "distil")
    with pytest.raises(ValueError, match="needs a teacher that is no student itself"):
        run(tmp_path / "out", "--teacher", loose, "--objective", "consistency")
