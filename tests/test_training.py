"""One trajectory however a run is split, stopped or resumed; the loss is the bound; broken runs leave good models."""

import json
import math
import pickle
import socket

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback, TrainingArguments, masking_utils
from transformers.trainer_utils import get_last_checkpoint

from tests.helpers import ROOT, assert_close_weights, assert_equal_weights, python, weights_in
from tests.models import CLS, FIRST, MASK, SEP, UNK, VOCAB, make_rows, make_udm
from tests.training_helpers import SPLITS, TRAINED, VARIANTS, history, make_trainer, weights
from udm_text import UDMForMaskedGeneration
from udm_text.evaluation import evaluate_bound
from udm_text.objectives import TIME_LAWS
from udm_text.processes import MaskProcess
from udm_text.randomness import step_random
from udm_text.training import NonFiniteLossError, TextObjective, UDMTrainer, UDMTrainingArguments
from udm_text.training.row_order import RowOrder


def assert_close_runs(one, other, variant="mask"):
    """(weights, history) of two runs: losses, gradient norms and weights to 1e-5.

    Muon multiplies matrices in bfloat16: there losses and norms to 1e-4, and weights to an eighth of the way they went.
    """
    muon = variant == "muon"
    torch.testing.assert_close(other[1], one[1], rtol=0, atol=1e-4 if muon else 1e-5)
    assert_close_weights(one[0], other[0], atol=5e-4 if muon else 1e-5)


# --- one trajectory --------------------------------------------------------------------------------------------------

RESUMED = {
    "mid-epoch": {},
    "at the end of an epoch": {"rows": make_rows(80)},
    "fewer rows than a step": {"rows": make_rows(10)},
    "accumulation and dropout": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "dropout": 0.2},
    "grouped by length, dropout": {"train_sampling_strategy": "group_by_length", "dropout": 0.2},
    "a dataloader worker": {"dataloader_num_workers": 1, "dropout": 0.2},
    "substitute": {"variant": "substitute nelbo", "dropout": 0.2},
    "muon": {"variant": "muon", "dropout": 0.2, "weight_decay": 0.1},
    "a backbone that writes other names than its modules have": {"family": "nomic_bert", "dropout": 0.2},
}


@pytest.mark.parametrize("case", RESUMED)
def test_twenty_steps_equal_ten_and_ten_resumed_bit_for_bit(tmp_path, case):
    how = RESUMED[case]
    whole = make_trainer(tmp_path, save_strategy="steps", save_steps=10, **how)
    whole.train()
    resumed = make_trainer(tmp_path, **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert resumed.state.global_step == 20
    assert_equal_weights(weights(whole), weights(resumed))
    assert torch.equal(history(whole, "loss", "grad_norm"), history(resumed, "loss", "grad_norm"))


def test_a_run_that_is_cut_off_and_resumed_equals_one_that_was_not(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 10

    whole = make_trainer(tmp_path / "whole", dropout=0.2)
    whole.train()
    cut = make_trainer(tmp_path / "cut", dropout=0.2, save_strategy="steps", save_steps=10)
    cut.add_callback(Stop())
    cut.train()
    assert cut.state.global_step == 10
    resumed = make_trainer(tmp_path / "cut", dropout=0.2)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(weights(whole), weights(resumed))


def test_evaluating_on_the_way_changes_nothing(tmp_path):
    plain = make_trainer(tmp_path / "a", dropout=0.2, max_steps=8)
    plain.train()
    watched = make_trainer(
        tmp_path / "b",
        dropout=0.2,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=3,
        eval_dataset=make_rows(9, seed=1),
        load_best_model_at_end=False,
    )

    class Look(TrainerCallback):  # a loss computed on the side must not use up noise either
        def on_substep_end(self, args, state, control, model=None, **kwargs):
            watched.compute_loss(model.eval(), watched.data_collator(make_rows(4)))

        on_step_end = on_substep_end

    watched.add_callback(Look())
    watched.train()
    assert_equal_weights(weights(plain), weights(watched))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """(weights, history) of 20 steps of 1 x 16 rows, for every variant."""
    runs = {}
    for variant in TRAINED:
        trainer = make_trainer(tmp_path_factory.mktemp("run"), variant)
        trainer.train()
        metrics = trainer.evaluate(make_rows(31, seed=1))
        runs[variant] = weights(trainer), history(trainer, "loss", "grad_norm"), metrics
    return runs


@pytest.mark.parametrize(
    ("variant", "split"), [(v, "4 x 4") for v in TRAINED] + [pytest.param("mask", "16 x 1", marks=pytest.mark.slow)]
)
def test_accumulation_changes_nothing(tmp_path, one_process, variant, split):
    rows, accumulated = SPLITS[split]
    trainer = make_trainer(tmp_path, variant, per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated)
    trainer.train()
    assert_close_runs(one_process[variant], (weights(trainer), history(trainer, "loss", "grad_norm")), variant)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_accumulation_changes_nothing_in_either_order_of_rows(tmp_path, strategy):
    runs = []
    for rows, accumulated in ((16, 1), (4, 4)):
        trainer = make_trainer(
            tmp_path,
            train_sampling_strategy=strategy,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulated,
            max_steps=8,
        )
        trainer.train()
        runs.append((weights(trainer), history(trainer, "loss", "grad_norm")))
    assert_close_runs(*runs)


def launch_two(output, *arguments):
    """Two gloo processes of training_helpers.py, in that folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(port), str(ROOT / "tests" / "training_helpers.py")]
    python(*command, output, *arguments, cwd=output, timeout=600, ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder two gloo processes wrote; they run `training_helpers.work`."""
    output = tmp_path_factory.mktemp("two")
    toy = output / "toy.txt"
    toy.write_text("".join(f"{'abcdefgh'[i % 8] * (i % 5 + 1)} row {i}\n" for i in range(60)))
    launch_two(output, toy)
    return output


@pytest.mark.parametrize("variant", TRAINED)
def test_two_processes_learn_what_one_learns(two_processes, one_process, variant):
    record = json.loads((two_processes / f"{variant}.json").read_text())
    assert record["world_size"] == record["num_processes"] == 2
    log = torch.tensor(record["history"], dtype=torch.float64)
    assert log.shape == (20, 2)
    assert_close_runs(one_process[variant], (weights_in(two_processes, f"{variant}.safetensors"), log), variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_measure_what_one_measures(two_processes, one_process, variant):
    metrics = json.loads((two_processes / f"{variant}.json").read_text())["metrics"]
    expected = one_process[variant][2]
    bounds = [name for name in expected if not name.endswith(("_runtime", "_per_second"))]
    assert "eval_nelbo_nats_per_token" in bounds and metrics.keys() == expected.keys()
    for name in bounds:  # the weights agree to 1e-5 only
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name


def test_two_processes_stop_together_where_one_is_told_to_and_resume_bit_for_bit(two_processes):
    found = json.loads((two_processes / "more.json").read_text())["interrupted"]
    expected = {"stopped_by": "SIGUSR1", "stopped_at": 5, "ended_at": 9, "same": True, "same_average": True}
    assert found == expected
    assert sorted(p.name for p in (two_processes / "stopped").iterdir()) == ["checkpoint-5"]


def test_weights_spread_over_two_processes_learn_what_one_learns(two_processes, one_process):
    record = json.loads((two_processes / "more.json").read_text())["sharded"]
    assert record["kinds"] == ["DTensor"]
    log = torch.tensor(record["history"], dtype=torch.float64)
    stored = weights_in(two_processes / "sharded" / "model")
    assert_close_runs(one_process["mask"][:2], (stored, log))
    bound = "eval_nelbo_nats_per_token"
    assert record["metrics"][bound] == pytest.approx(one_process["mask"][2][bound], rel=1e-5)


@pytest.mark.slow
def test_a_decoder_spread_over_two_processes_learns_what_one_learns(tmp_path):
    launch_two(tmp_path)
    record = json.loads((tmp_path / "decoder.json").read_text())
    assert record["kinds"] == ["DTensor"]
    alone = make_trainer(tmp_path / "alone", family="llama")
    alone.train()
    log = torch.tensor(record["history"], dtype=torch.float64)
    stored = weights_in(tmp_path / "sharded" / "model")
    assert_close_runs((weights(alone), history(alone, "loss", "grad_norm")), (stored, log))


def test_two_processes_share_one_tokenizer_and_write_one_report(two_processes):
    report = json.loads((two_processes / "text" / "report.json").read_text())
    assert report["steps"] == 4
    assert report["rows_per_step"] == 8
    model = UDMForMaskedGeneration.from_pretrained(two_processes / "text")
    assert model.config.vocab_size == report["vocab_size"]


# --- the order of rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("rows", "group"), [(90, 16), (16, 16), (5, 16), (1000, 8), (1, 3)])
def test_an_epoch_holds_every_row_and_whole_global_batches(rows, group, grouped):
    lengths = [1 + (7 * i) % 13 for i in range(rows)] if grouped else None
    order = RowOrder(rows, seed=3, group=group, lengths=lengths)
    epoch = list(order)
    assert len(epoch) == len(order) == math.ceil(rows / group) * group
    assert set(epoch) == set(range(rows))
    counts = [epoch.count(i) for i in range(rows)]
    assert max(counts) - min(counts) <= 1
    assert epoch == list(RowOrder(rows, seed=3, group=group, lengths=lengths))
    order.set_epoch(1)
    assert list(order) != epoch or rows == 1 or (grouped and rows <= group)  # one batch, sorted


def test_drop_last_leaves_out_what_fills_no_batch():
    order = RowOrder(90, seed=0, group=16, drop_last=True)
    assert len(list(order)) == len(order) == 80
    assert len(set(order)) == 80
    with pytest.raises(ValueError, match="5 training rows do not make one global batch of 16"):
        RowOrder(5, seed=0, group=16, drop_last=True)


def test_rows_of_a_batch_are_of_like_length_where_grouped():
    lengths = [row % 40 for row in range(800)]
    epoch = list(RowOrder(800, seed=0, group=8, lengths=lengths))
    batches = [[lengths[i] for i in epoch[start : start + 8]] for start in range(0, 800, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5
    means = [sum(batch) / 8 for batch in batches]
    assert sorted(means) != means  # the batches come in random order


# --- the loss --------------------------------------------------------------------------------------------------------


class Watch:
    """What the process of a trainer was asked to corrupt."""

    def __init__(self, trainer):
        self.calls = []
        corrupt = trainer.objective.process.corrupt

        def watched(x0, t, noise):
            xt = corrupt(x0, t, noise)
            self.calls.append((x0, t, xt))
            return xt

        trainer.objective.process.corrupt = watched


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("rows", "accumulated"), [(16, 1), (4, 4)])
def test_every_row_is_corrupted_at_exactly_t_positions_and_every_stratum_is_used_once(
    tmp_path, variant, rows, accumulated
):
    data = [{"input_ids": [CLS, *[FIRST + (i + j) % 9 for j in range(16)], UNK, SEP]} for i in range(16)]
    trainer = make_trainer(
        tmp_path,
        variant,
        rows=data,
        max_steps=2,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulated,
    )
    watch = Watch(trainer)
    trainer.train()
    assert len(watch.calls) == 2 * accumulated
    orders = []
    for step in range(2):
        calls = watch.calls[step * accumulated : (step + 1) * accumulated]
        t = torch.cat([call[1] for call in calls])
        assert sorted(t.tolist()) == list(range(1, 17))  # l = 16 and 16 rows: each t is one stratum
        orders.append(t.tolist())
        for x0, t, xt in calls:
            assert torch.equal((x0 != xt).sum(dim=1), t)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_and_special_tokens_are_neither_corrupted_nor_scored(tmp_path, variant):
    trainer = make_trainer(tmp_path, variant)
    watch, seen = Watch(trainer), []
    head = trainer.model.backbone.cls
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = trainer.data_collator(make_rows(16, seed=5))
    assert (batch["attention_mask"] == 0).any() and (batch["input_ids"] == UNK).any()
    trainer.compute_loss(trainer.model, batch)
    handle.remove()
    [(x0, t, xt)] = watch.calls
    editable = batch["editable"]
    assert torch.equal(editable, x0 >= FIRST)
    assert not ((x0 != xt) & ~editable).any()
    visible = isinstance(trainer.objective.process, MaskProcess)
    through_head = len(seen[0].unique(dim=0))  # but for some that come again and make up a round number
    assert through_head == (t.sum() if visible else editable.sum())
    assert len(seen[0]) < through_head + 64
    if visible:
        assert int((xt == MASK).sum()) == int(t.sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rows_loss_does_not_depend_on_neighbours_or_padding(tmp_path, variant):
    trainer = make_trainer(tmp_path, variant)
    first, long = make_rows(1, longest=5, seed=2), make_rows(7, longest=37, shortest=37, seed=3)

    def terms(rows):
        return trainer.compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=True)[1]["terms"]

    torch.testing.assert_close(terms(first), terms(first + long)[:1], rtol=1e-5, atol=1e-6)
    other = terms(first + make_rows(7, seed=4))
    torch.testing.assert_close(terms(first), other[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["mask", "substitute nelbo"])
def test_the_training_loss_is_an_unbiased_estimate_of_the_bound_in_nats_per_token(tmp_path, variant):
    from tests.test_evaluation import exact_bound

    own = {name: value for name, value in VARIANTS[variant].items() if name != "loss"}
    model = make_udm(vocab_size=9, **own)
    data = [{"input_ids": [CLS, 5, 8, UNK, 6, SEP]}, {"input_ids": [CLS, 7, 7, SEP]}] * 32
    exact = sum(exact_bound(model, row["input_ids"]) for row in data[:2]) / 5
    trainer = make_trainer(tmp_path, variant, model=model, rows=data, per_device_train_batch_size=64)
    losses = []
    with torch.no_grad():
        for step in range(80):
            trainer.state.global_step = step
            losses.append(trainer.compute_loss(model, trainer.data_collator(data)))
    losses = torch.stack(losses).double()
    assert abs(losses.mean() - exact) < 4 * losses.std() / math.sqrt(len(losses))
    assert losses.std() / math.sqrt(len(losses)) < 0.02 * exact  # or the comparison would say little


def test_the_loss_of_a_substitute_model_by_cross_entropy_is_the_mean_over_all_editable_positions(tmp_path):
    trainer = make_trainer(tmp_path, "substitute")
    watch = Watch(trainer)
    batch = trainer.data_collator(make_rows(16))
    loss = trainer.compute_loss(trainer.model, batch)
    [(x0, t, xt)] = watch.calls
    logits = trainer.model(xt, batch["attention_mask"], t=t, num_editable=batch["editable"].sum(1)).logits
    logits[..., trainer.model.config.special_token_ids] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits[batch["editable"]], batch["input_ids"][batch["editable"]])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("law", ["uniform", "bell"])
@pytest.mark.parametrize(("weighting", "power"), [("sqrt", 0.5), ("mean", 1.0)])
def test_another_weighting_multiplies_the_terms_of_a_row_and_leaves_the_measure_alone(tmp_path, weighting, power, law):
    batch, rows = make_rows(16, seed=5), make_rows(9, seed=1)
    runs = {}
    for name in ("bound", weighting):
        goal = TextObjective(make_udm().config, loss_weighting=name, time_law=law)
        trainer = make_trainer(tmp_path, objective=goal)
        watch = Watch(trainer)
        found = trainer.compute_loss(trainer.model, trainer.data_collator(batch), return_outputs=True)[1]["terms"]
        [(_, t, _)] = watch.calls
        runs[name] = found.detach(), t, trainer.evaluate(rows)["eval_loss"], goal.loss_is_bound
    (plain, t, measured, _), (weighed, _, again, is_bound) = runs["bound"], runs[weighting]
    lengths = trainer.data_collator(batch)["editable"].sum(1)
    mean = (TIME_LAWS[law](torch.linspace(0.00005, 0.99995, 10000, dtype=torch.float64)) ** power).mean()
    torch.testing.assert_close(weighed.double(), plain * (t / lengths).double() ** power / mean, rtol=1e-4, atol=0)
    assert measured == again and not is_bound
    assert TextObjective(make_udm().config).loss_is_bound


def test_weightings_and_laws_that_are_none_are_refused_by_name():
    for how, message in (
        ({"loss_weighting": "cubic"}, "loss_weighting must be 'bound', 'sqrt' or 'mean', got 'cubic'"),
        ({"time_law": "late"}, "time_law must be 'uniform', 'bell', 'clipped' or 'geometric', got 'late'"),
    ):
        with pytest.raises(ValueError, match=message):
            TextObjective(make_udm().config, **how)
    with pytest.raises(ValueError, match="loss_weighting='sqrt' changes the weights of a bound, and loss"):
        TextObjective(make_udm("substitute").config, loss_weighting="sqrt")
    TextObjective(make_udm("substitute").config, loss_weighting="sqrt", loss="nelbo")


def test_the_loss_is_divided_by_the_tokens_of_the_global_batch(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = trainer.data_collator(make_rows(16))
    tokens = batch["editable"].sum()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(loss, outputs["terms"].sum() / tokens)
    half = trainer.compute_loss(trainer.model, batch, num_items_in_batch=2 * tokens)
    torch.testing.assert_close(half, loss / 2)
    batches = [trainer.data_collator(make_rows(4, seed=s)) for s in range(3)]
    counted = trainer.get_batch_samples(iter(batches), 3, torch.device("cpu"))[1]
    assert counted == sum((b["input_ids"] >= FIRST).sum() for b in batches)


@pytest.mark.parametrize("variant", ["mask", "substitute"])
def test_a_loss_in_chunks_is_the_loss_and_its_gradient(tmp_path, variant):
    batch, found = make_rows(16, longest=30), []
    for chunk in (None, 7, 64, 10_000):
        trainer = make_trainer(tmp_path, variant, dropout=0.0, loss_chunk=chunk, model=make_udm(**VARIANTS[variant]))
        largest = []
        head = trainer.model.get_output_embeddings()
        head.register_forward_hook(lambda module, inputs, output, seen=largest: seen.append(output.numel() // VOCAB))
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(batch))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters()}))
        assert max(largest) == chunk or (chunk in (None, 10_000) and max(largest) > 64)
        assert len(largest) > 4 or chunk != 7
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-6, atol=0)
        for name, value in gradient.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-4, atol=1e-7, msg=name)


def test_activation_checkpointing_changes_no_gradient(tmp_path):
    runs = []
    for how in ({}, {"gradient_checkpointing": True}):
        trainer = make_trainer(tmp_path, dropout=0.2, max_steps=3, **how)
        trainer.train()
        runs.append((weights(trainer), history(trainer, "loss", "grad_norm")))
    assert trainer.model.is_gradient_checkpointing
    assert_close_runs(*runs)


class Squares:
    """An objective that knows nothing of text: a linear map to be learned, its error noised by row."""

    def __init__(self):
        self.places = []

    @staticmethod
    def collate(rows):
        return {"x": torch.stack([row["x"] for row in rows])}

    def lengths(self, dataset):
        return None

    def num_items(self, inputs):
        return inputs["x"].numel()

    def begin(self):
        self.begun = True

    def row_terms(self, model, inputs, *, row_index, total, step, seed):
        assert self.begun
        self.places += [(step, p, total) for p in row_index.tolist()]
        x = inputs["x"]
        noise = step_random(seed, step, row_index).uniform(x.shape[1]).float()
        return (model(x + noise) - 2 * x).square().sum(dim=1)

    def evaluate(self, trainer, dataset):
        mine = trainer.own_rows(len(dataset))
        with torch.no_grad():
            errors = torch.stack([(trainer.model(dataset[i]["x"]) - 2 * dataset[i]["x"]).square().sum() for i in mine])
        return {"loss": float(trainer.gather_rows(errors, mine, len(dataset)).mean())}


def test_any_objective_trains_any_module_with_the_noise_of_its_rows(tmp_path):
    rows = [{"x": row} for row in torch.randn(40, 6, generator=torch.Generator().manual_seed(0))]
    runs = []
    for batch, accumulated in ((8, 1), (2, 4)):
        model, objective = torch.nn.Linear(6, 6), Squares()
        with torch.no_grad():
            model.weight.zero_(), model.bias.zero_()
        how = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "max_steps": 6}
        trainer = make_trainer(
            tmp_path,
            model=model,
            objective=objective,
            rows=rows,
            learning_rate=0.1,
            train_sampling_strategy="group_by_length",
            **how,
        )
        before = trainer.evaluate(rows)["eval_loss"]
        trainer.train()
        assert objective.places == [(step, row_index, 8) for step in range(6) for row_index in range(8)]
        assert trainer.evaluate(rows)["eval_loss"] < 0.8 * before
        runs.append((weights(trainer), history(trainer, "loss", "grad_norm")))
    assert_close_runs(*runs)
    with pytest.raises(ValueError, match="objective must be given: Linear is not a model of this package"):
        make_trainer(tmp_path, model=torch.nn.Linear(6, 6), rows=rows)


def test_the_logged_loss_is_the_mean_of_the_steps_between(tmp_path):
    fine, coarse = (make_trainer(tmp_path, max_steps=6, logging_steps=n) for n in (1, 3))
    fine.train()
    coarse.train()
    expected = history(fine, "loss")[:, 0].reshape(2, 3).mean(dim=1)
    torch.testing.assert_close(history(coarse, "loss")[:, 0], expected, rtol=1e-5, atol=0)


def test_a_step_of_few_rows_is_warned_of_with_its_noise_and_what_would_help(tmp_path, caplog, monkeypatch):
    rows = make_rows(200, longest=3)
    how = {"rows": rows, "max_steps": 60, "learning_rate": 1e-5}
    few = make_trainer(tmp_path, model=make_udm(scale=1.5), per_device_train_batch_size=1, **how)
    few.train()
    losses = history(few, "loss")[20:, 0]
    assert few.noise.relative == pytest.approx(float(losses.std() / losses.mean()), rel=0.3)
    assert few.noise.relative > 0.05
    [said] = [record.getMessage() for record in caplog.records if "noise" in record.getMessage()]
    assert "with 1 rows a step" in said and "gradient_accumulation_steps" in said
    caplog.clear()
    many = make_trainer(tmp_path, model=make_udm(scale=1.5), per_device_train_batch_size=64, **how)
    many.train()
    assert many.noise.relative < few.noise.relative / 2
    assert not [record for record in caplog.records if "noise" in record.getMessage()]


def test_the_seed_changes_the_run_and_repeats_it(tmp_path):
    def run(seed):
        trainer = make_trainer(tmp_path, max_steps=3, seed=seed)
        trainer.train()
        return history(trainer, "loss")

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_model_learns(tmp_path):
    rows = [{"input_ids": [CLS, *[token] * 6, SEP], "num_chars": 6} for token in (FIRST, FIRST + 1)]
    for variant in ("mask", "substitute"):
        trainer = make_trainer(tmp_path, variant, rows=rows, eval_dataset=rows, learning_rate=1e-2, max_steps=60)
        before = trainer.evaluate()["eval_nelbo_nats_per_token"]
        trainer.train()
        assert trainer.evaluate()["eval_nelbo_nats_per_token"] < 0.6 * before


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluate_gives_the_figures_of_evaluate_bound(tmp_path, variant):
    rows = make_rows(21, seed=1)
    rows.insert(3, {"input_ids": [CLS, UNK, SEP], "num_chars": 4})  # nothing to score: left out by both
    trainer = make_trainer(tmp_path, variant, eval_dataset=rows, eval_draws=3, per_device_eval_batch_size=7)
    trainer.model.train()
    metrics = trainer.evaluate()
    assert trainer.model.training
    report = evaluate_bound(trainer.model, rows, batch_size=7, draws=3)
    for name in ("nelbo_nats_per_token", "bits_per_char", "perplexity_bound"):
        assert metrics[f"eval_{name}"] == getattr(report, name)
        assert metrics[f"eval_{name}_stderr"] == getattr(report, f"{name}_stderr")
    assert metrics["eval_loss"] == report.nelbo_nats_per_token
    assert metrics["eval_runtime"] > 0
    assert trainer.state.log_history[-1]["eval_loss"] == metrics["eval_loss"]


def test_several_evaluation_sets_go_by_their_names(tmp_path):
    sets = {"near": make_rows(5, seed=1), "far": make_rows(6, seed=2)}
    trainer = make_trainer(tmp_path, eval_dataset=sets)
    metrics = trainer.evaluate()
    for name, rows in sets.items():
        by_rows, by_name = trainer.evaluate(rows), trainer.evaluate(name)
        assert metrics[f"eval_{name}_loss"] == by_rows["eval_loss"] == by_name["eval_loss"]


def test_the_best_checkpoint_by_the_bound_can_be_loaded_at_the_end(tmp_path):
    trainer = make_trainer(
        tmp_path,
        max_steps=6,
        eval_dataset=make_rows(9),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    log = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.best_metric == min(log.values())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(log.values()), rel=1e-6)


def test_nothing_to_evaluate_raises(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset"):
        make_trainer(tmp_path).evaluate()
    with pytest.raises(ValueError, match="no row with an editable token"):
        make_trainer(tmp_path).evaluate([{"input_ids": [CLS, UNK, SEP]}])


# --- what goes wrong -------------------------------------------------------------------------------------------------


class Poison(TrainerCallback):
    """Makes a weight nan before or after a step."""

    def __init__(self, step, when):
        self.step, self.when = step, when

    def poison(self, when, state, model):
        if when == self.when and state.global_step == self.step:
            with torch.no_grad():
                model.get_output_embeddings().bias[7] = torch.nan

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.poison("before", state, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.poison("after", state, model)


@pytest.mark.parametrize(("step", "when"), [(5, "before"), (6, "after")])
def test_training_stops_at_a_nan_and_the_last_good_checkpoint_can_be_loaded(tmp_path, step, when):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.add_callback(Poison(step, when))
    with pytest.raises(NonFiniteLossError, match=r"at step [56]"):
        trainer.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    last = get_last_checkpoint(str(tmp_path))
    model = UDMForMaskedGeneration.from_pretrained(last)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    resumed = make_trainer(tmp_path, max_steps=6)
    resumed.train(resume_from_checkpoint=last)
    assert resumed.state.global_step == 6


class Reads(TorchDispatchMode):
    """The steps in which a number is read off a tensor."""

    def __init__(self, trainer):
        super().__init__()
        self.trainer, self.steps = trainer, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.steps.add(self.trainer.state.global_step)
        return function(*args, **(kwargs or {}))


def test_a_step_reads_no_number_off_the_device_but_where_it_is_logged(tmp_path, monkeypatch):
    # transformers asks of a padding mask whether it is needed at all, where it makes one: not of one that is given
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *args, **kwargs: False)
    trainer = make_trainer(tmp_path, max_steps=9, logging_steps=3)
    with Reads(trainer) as reads:
        trainer.train()
    assert not {1, 2, 4, 5, 7, 8} & reads.steps and {3, 6, 9} <= reads.steps


def test_an_absurd_learning_rate_is_reported(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e38, save_strategy="steps", save_steps=1)
    with pytest.raises(NonFiniteLossError, match="learning_rate|not finite"):
        trainer.train()
        trainer.save_model()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        saved = weights_in(checkpoint)
        assert all(torch.isfinite(value).all() for value in saved.values())


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.save_model(str(tmp_path / "model"))
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteLossError, match="nothing is written"):
        trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    with pytest.raises(NonFiniteLossError):
        trainer.save_model(str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_no_pickle_of_the_arguments_is_left_behind(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    assert {"model.safetensors", "config.json", "generation_config.json"} <= {p.name for p in tmp_path.iterdir()}
    assert list(tmp_path.rglob("training_args.bin")) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"loss": "mse"}, "loss must be 'cross_entropy' or 'nelbo', got 'mse'"),
        ({"eval_draws": 0}, "eval_draws must be at least 1"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor must be 0"),
        ({"loss_chunk": 0}, "loss_chunk must be at least 1"),
        ({"variant": "substitute nelbo", "loss_chunk": 8}, "loss_chunk goes with loss 'cross_entropy'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, error):
    with pytest.raises(ValueError, match=error):
        make_trainer(tmp_path, **arguments)


def test_arguments_of_another_class_are_refused(tmp_path):
    with pytest.raises(TypeError, match="UDMTrainingArguments, got TrainingArguments"):
        UDMTrainer(make_udm(), TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
    arguments = UDMTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="compute_metrics has no effect"):
        UDMTrainer(make_udm(), arguments, compute_metrics=lambda predictions: {})


def test_the_collator_travels_to_spawned_workers(tmp_path):
    trainer = make_trainer(tmp_path)
    again = pickle.loads(pickle.dumps(trainer.data_collator))
    batch, expected = again(make_rows(3)), trainer.data_collator(make_rows(3))
    assert batch.keys() == expected.keys()
    assert batch.pop("num_editable") == expected.pop("num_editable") == [int(row.sum()) for row in batch["editable"]]
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_rows_may_be_a_data_set_a_list_or_a_stream(tmp_path):
    from datasets import Dataset

    rows = make_rows(48)
    table = Dataset.from_list(rows)
    runs = []
    for data in (rows, table):
        for strategy in ("random", "group_by_length"):
            trainer = make_trainer(tmp_path, rows=data, max_steps=4, train_sampling_strategy=strategy)
            trainer.train()
            runs.append(weights(trainer))
    assert_equal_weights(runs[0], runs[2])
    assert_equal_weights(runs[1], runs[3])
    streamed = make_trainer(tmp_path, rows=table.to_iterable_dataset(), max_steps=4)
    streamed.train()
    assert streamed.state.global_step == 4
