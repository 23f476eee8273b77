"""A student takes the laws of its teacher: exactly, in an enumerated world, and by the command."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import write_lines
from tests.models import CLS, FIRST, MASK, PAD, SEP, UNK, make_rows, make_udm
from tests.oracle.chains import mask_sampler_law
from tests.oracle.outcomes import MASK as BOARD_MASK
from tests.oracle.outcomes import Board
from tests.oracle.world import index_of, make_world, total_variation
from tests.test_autoregressive import make_writer
from tests.test_train_text import train
from tests.training_helpers import make_trainer
from udm_text import UDMForMaskedGeneration
from udm_text.modeling_udm import UDMOutput
from udm_text.processes import MaskProcess
from udm_text.training.distillation import divergence
from udm_text.training.objective import TextObjective


class Table(nn.Module):
    """A model of rows of a world that looks its logits up: (states, l, V)."""

    def __init__(self, config, logits):
        super().__init__()
        self.config, self.logits = config, nn.Parameter(logits)

    def forward(self, input_ids, positions, attention_mask=None, t=None, num_editable=None):
        size, length = self.logits.shape[2], self.logits.shape[1]
        digits = torch.where(input_ids == MASK, size, input_ids - FIRST)
        own = self.logits[torch.from_numpy(index_of(digits.numpy(), size + 1))]
        assert own.shape[1] == length
        return UDMOutput(logits=F.pad(own, (FIRST, 0))[positions])  # what is special is left out by the loss


def law_of(world, table):
    """The law of the sampler that takes one token a step by a table."""
    shares = table.logits.detach().softmax(dim=-1).numpy()
    board = Board(world.num_tokens, world.length)
    return mask_sampler_law(MaskProcess(BOARD_MASK), board, lambda t: shares, list(range(world.length, -1, -1)))


@pytest.mark.slow
def test_a_student_that_can_say_anything_reaches_the_teachers_law_whatever_the_data():
    world = make_world(3, 3)
    special = [PAD, UNK, CLS, SEP]
    config = make_udm(vocab_size=FIRST + 3, prefix_token_ids=[], suffix_token_ids=[], special_token_ids=special).config
    counts = (world.masked_sequences == 3).sum(1)
    known = sum(world.mask_predictor(t) * (counts == t)[:, None, None] for t in (1, 2, 3))
    exact = torch.from_numpy(np.maximum(known, 1e-300)).log()
    teacher, student = Table(config, exact), Table(config, torch.zeros_like(exact))
    objective = TextObjective(config, teacher=teacher, teacher_weight=1.0)
    rows = [{"input_ids": (row + FIRST).tolist()} for row in world.sequences] * 4  # every row alike, not as the teacher
    batch = objective.collate(rows)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    how = {"row_index": torch.arange(len(rows)), "total": len(rows), "seed": 0}
    for step in range(400):
        optimizer.zero_grad()
        loss = objective.row_terms(student, batch, step=step, **how).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert 0 <= float(loss.detach()) < 1e-5
    assert total_variation(law_of(world, teacher), world.data) < 1e-9
    assert total_variation(law_of(world, student), law_of(world, teacher)) < 1e-3
    assert total_variation(law_of(world, Table(config, torch.zeros_like(exact))), world.data) > 0.4  # where it began


def test_the_distance_is_that_of_torch_and_rules_out_what_is_forbidden():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(6, 9, generator=generator) for _ in range(2))
    forbidden = torch.arange(9) < 2
    log_t, log_s = (x[:, 2:].log_softmax(-1) for x in (teacher, student))
    expected = F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(teacher, student, forbidden), expected)
    assert float(divergence(teacher, teacher, forbidden).abs().max()) < 1e-6


@pytest.mark.parametrize("process", ["mask", "substitute", "uniform"])
def test_the_terms_are_the_shares_of_both_losses_with_the_weight_of_the_data(process):
    """Against the formula on whole tables of logits, rows of different lengths."""
    student, teacher = make_udm(process, seed=0), make_udm(process, seed=1, hidden_size=16)
    rows = make_rows(70, longest=11)
    how = {"row_index": torch.arange(70), "total": 70, "step": 3, "seed": 5}
    plain = TextObjective(student.config)
    batch = plain.collate(rows)
    data = plain.row_terms(student, batch, **how)
    seen = []

    def watched(*args, **kwargs):
        seen.append(kwargs)
        return UDMForMaskedGeneration.forward(student, *args, **kwargs)

    student.forward = watched
    mixed = TextObjective(student.config, teacher=teacher, teacher_weight=0.3).row_terms(student, batch, **how)
    del student.forward
    asked = {name: seen[0][name] for name in ("input_ids", "attention_mask", "t", "num_editable")}
    with torch.no_grad():
        logits = [model(**asked).logits.double() for model in (teacher, student)]
    log_t, log_s = (x.masked_fill(student.config.forbidden_tokens(), -1e30).log_softmax(-1) for x in logits)
    each = (log_t.exp() * (log_t - log_s)).sum(-1)
    xt, editable = asked["input_ids"], batch["editable"]
    where = (xt == MASK) if process == "mask" else editable
    expected = (each * where).sum(1) * editable.sum(1) / where.sum(1).clamp(min=1)
    torch.testing.assert_close(mixed.double(), 0.7 * data.double() + 0.3 * expected, rtol=2e-4, atol=2e-4)


def test_a_model_that_is_its_own_teacher_learns_nothing_from_it():
    student = make_udm()
    objective = TextObjective(student.config, teacher=make_udm(), teacher_weight=1.0)
    batch = objective.collate(make_rows(20))
    terms = objective.row_terms(student, batch, row_index=torch.arange(20), total=20, step=0, seed=0)
    terms.sum().backward()
    assert float(terms.detach().abs().max()) < 1e-4
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-3
    assert not objective.loss_is_bound


@pytest.mark.slow
def test_whole_rows_are_taught_token_for_token(tmp_path):
    teacher, student = make_writer(), make_writer()
    with torch.no_grad():
        student.backbone.final_logits_bias.add_(torch.linspace(-2, 2, 24))
    objective = TextObjective(student.config, teacher=teacher, teacher_weight=1.0)
    batch = objective.collate(make_rows(30, seed=1))
    how = {"row_index": torch.arange(30), "total": 30, "step": 0, "seed": 0}
    before = float(objective.row_terms(student, batch, **how).sum().detach())
    trainer = make_trainer(tmp_path, model=student, objective=objective, max_steps=30, learning_rate=3e-3)
    trainer.train()
    assert float(objective.row_terms(student, batch, **how).sum().detach()) < 0.5 * before
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.slow
def test_the_command_takes_a_smaller_student_with_the_teachers_tokenizer(tmp_path):
    toy = write_lines(tmp_path / "toy.txt", ["red", "green", "blue", "small", "large"], lines=60, longest=5)
    train(toy, tmp_path / "teacher", "--model", "mini")
    report = train(toy, tmp_path / "student", "--teacher", tmp_path / "teacher", "--teacher_weight", "0.8")
    assert report["teacher"] == str(tmp_path / "teacher") and report["teacher_weight"] == 0.8
    files = [(tmp_path / name / "tokenizer.json").read_text("utf-8") for name in ("teacher", "student")]
    assert files[0] == files[1]
    for options, said in (
        (["--tokenizer", "char"], "has another vocabulary than what is trained"),
        (["--process", "uniform"], "the teacher's process is 'mask' and that of the student 'uniform'"),
        (["--blanks"], "does not teach widths of blanks"),
        (["--loss_chunk", "8"], "loss_chunk keeps no logits"),
        (["--objective", "ar"], "teaches diffusion"),
    ):
        with pytest.raises(ValueError, match=said):
            train(toy, tmp_path / "no", "--teacher", tmp_path / "teacher", *options)
    with pytest.raises(ValueError, match="there is no teacher: give --teacher"):
        train(toy, tmp_path / "no", "--teacher_weight", "0.8")
    with pytest.raises(OSError, match="nowhere"):
        train(toy, tmp_path / "no", "--teacher", tmp_path / "nowhere")


def test_a_teacher_of_another_kind_is_refused():
    student = make_udm()
    for fields, said in (
        ({"mask_token_id": UNK}, "the teacher's mask_token_id is 1"),
        ({"vocab_size": 30}, "the teacher's vocab_size is 30"),
        ({"special_token_ids": [UNK, 7]}, "the teacher's special_token_ids"),
    ):
        with pytest.raises(ValueError, match=said):
            TextObjective(student.config, teacher=make_udm(**fields))
    with pytest.raises(ValueError, match="texts of process 'delete' change their length"):
        TextObjective(make_udm("delete").config, teacher=make_udm("delete"))
    for weight in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"teacher_weight must lie in \(0, 1\]"):
            TextObjective(student.config, teacher=student, teacher_weight=weight)
