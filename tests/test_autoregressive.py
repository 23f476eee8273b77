"""Whole rows as predictions: their law and bound in enumerated worlds, the decoder that writes them, and models."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config, pipeline

from tests.helpers import write_lines
from tests.models import CLS, FIRST, MASK, PAD, ROWS, SEP, UNK, make_rows, make_udm, text_config, wake_time
from tests.oracle.chains import filled, reverse_law
from tests.oracle.outcomes import Board
from tests.oracle.world import entropy, guess_law, index_of, make_world, total_variation
from tests.test_kernels import passes_chi_square
from tests.test_train_text import train
from tests.training_helpers import make_trainer
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.autoregressive import JointProcess
from udm_text.card import make_card
from udm_text.evaluation import evaluate_bound, measure_context
from udm_text.generation_options import Skeleton
from udm_text.hub import save_backbone
from udm_text.objectives import CorruptedRows
from udm_text.processes import MaskProcess, SubstituteProcess, UniformProcess
from udm_text.training.objective import TextObjective

EXACT = 1e-12
PROCESSES = ("mask", "substitute", "uniform")
MANY = 4_000
WORLD = {"vocab_size": FIRST + 3, "prefix_token_ids": [], "suffix_token_ids": [], "special_token_ids": [UNK, CLS, SEP]}
"""A model whose rows are those of a world of three tokens."""
SIZES = {
    "bart": (
        BartConfig,
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
            "init_std": 0.3,
            "dropout": 0.0,
        },
    ),
    "t5": (T5Config, {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}),
}
TOKENS = {"pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": SEP, "decoder_start_token_id": SEP}


def make_writer(process="mask", family="bart", *, vocab_size=24, **fields):
    """The tiny encoder-decoder of the alphabet, in evaluation mode, its time embedding awake."""
    kind, sizes = SIZES[family]
    own = {"mask_token_id": MASK, "pad_token_id": PAD, "special_token_ids": [UNK]}
    own |= {"prefix_token_ids": [CLS], "suffix_token_ids": [SEP], "predictor": "autoregressive"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = AutoModelForSeq2SeqLM.from_config(kind(vocab_size=vocab_size, **sizes, **TOKENS))
        config = UDMConfig(text_config=backbone.config, process=process, **{**own, **fields})
        return wake_time(UDMForMaskedGeneration(config, backbone=backbone).eval())


# --- exact, in enumerated worlds ---------------------------------------------------------------------------------


def forward_of(world, process):
    return {"mask": world.mask_forward, "substitute": world.substitute_forward, "uniform": world.uniform_forward}[
        process
    ]


class TableWriter:
    """Writes by a table: laws of whole rows (B, V^l), one for each row, as conditionals of each token."""

    def __init__(self, laws, num_tokens, length):
        self.laws, self.num_tokens = laws.view(-1, *[num_tokens] * length), num_tokens

    def __call__(self, tokens):
        for column in (tokens - FIRST).unbind(dim=1):
            self.laws = self.laws[torch.arange(len(self.laws)), column]
        weights = self.laws.flatten(2).sum(-1) if self.laws.ndim > 2 else self.laws
        logits = torch.full((len(weights), FIRST + self.num_tokens), -torch.inf, dtype=torch.float64)
        logits[:, FIRST:] = weights.log()
        return logits


def knows_by_heart(monkeypatch, model, world, process):
    """The model writes rows by the exact q(x0 | xt) of a world."""
    masks = process == "mask"
    tables = [torch.from_numpy(world.posterior(forward_of(world, process)(t))) for t in range(world.length + 1)]

    def begin_writing(input_ids, attention_mask, t, num_editable):
        digits = torch.where(input_ids == MASK, world.num_tokens, input_ids - FIRST)
        numbers = index_of(digits.numpy(), world.num_tokens + masks)
        return TableWriter(torch.stack(tables)[t, torch.from_numpy(numbers)], world.num_tokens, world.length)

    monkeypatch.setattr(model, "begin_writing", begin_writing)


@pytest.mark.parametrize("churn", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("process", PROCESSES)
def test_with_the_exact_conditionals_every_grid_samples_the_data(process, num_steps, churn, monkeypatch):
    world = make_world(3, 3)
    model = make_writer(process, **WORLD)
    knows_by_heart(monkeypatch, model, world, process)
    if process == "substitute":  # whose prior is not the law of x_l: that is what its bound pays for
        shares = world.data @ world.substitute_forward(3)
        drawn = np.random.default_rng(0).choice(27, size=MANY, p=shares)
        start = torch.from_numpy(world.sequences[drawn]) + FIRST
        monkeypatch.setattr(SubstituteProcess, "prior", lambda *args, **how: start)
    rows = model.generate(length=3, num_return_sequences=MANY, num_steps=num_steps, churn=churn, seed=1)
    counts = np.bincount(index_of(rows.numpy() - FIRST, 3), minlength=27).astype(float)
    assert passes_chi_square(counts, world.data * MANY)
    assert total_variation(counts / MANY, world.data) < 0.045  # sampling alone gives 0.031 in the mean


def test_tokens_drawn_by_themselves_miss_the_data_in_one_step():
    """What the joint draw is for: the same knowledge as marginals, in one step, is far off in every process."""
    world = make_world(3, 3)
    for process, distance in (("mask", 0.537), ("uniform", 0.537), ("substitute", 0.138)):
        forward = forward_of(world, process)(3)
        guesses = [guess_law(p[:, :3], world.sequences) for p in world.marginals(world.posterior(forward))]
        assert total_variation((world.data @ forward) @ np.stack(guesses), world.data) > distance, process


@pytest.mark.parametrize("order", ["left_to_right", Skeleton(every=2)])
def test_static_orders_settle_positions_in_their_order_and_keep_the_law(order, monkeypatch):
    world = make_world(3, 3)
    model = make_writer(**WORLD)
    knows_by_heart(monkeypatch, model, world, "mask")
    how = {"num_steps": 3, "order": order, "seed": 2, "output_trajectory": True}
    output = model.generate(length=3, num_return_sequences=MANY, **how)
    counts = np.bincount(index_of(output.sequences.numpy() - FIRST, 3), minlength=27).astype(float)
    assert passes_chi_square(counts, world.data * MANY)
    first = (output.trajectory[1] != MASK).nonzero()[:, 1]
    assert not bool(first.any())
    second = (output.trajectory[2] != MASK).long().sum(dim=0)
    assert second.tolist() == ([MANY, MANY, 0] if order == "left_to_right" else [MANY, 0, MANY])


def test_constraints_act_on_each_token_as_it_is_written(monkeypatch):
    """A forbidden token leaves the chain rule of the renormalised conditionals."""
    world = make_world(3, 3)
    model = make_writer(**WORLD)
    knows_by_heart(monkeypatch, model, world, "mask")
    seen = []

    def processor(input_ids, scores):
        seen.append(input_ids[0].tolist())
        return scores

    how = {"num_return_sequences": MANY, "seed": 3, "logits_processor": processor}
    rows = model.generate(length=3, forbidden_tokens=[FIRST + 1], **how)
    joint = world.data.reshape(3, 3, 3)
    law = np.ones((3, 3, 3))
    for depth in range(3):
        weights = joint.sum(axis=tuple(range(depth + 1, 3)))
        weights = weights * (np.arange(3) != 1)
        share = weights / weights.sum(axis=depth, keepdims=True)
        law = law * share.reshape(*share.shape, *[1] * (2 - depth))
    counts = np.bincount(index_of(rows.numpy() - FIRST, 3), minlength=27).astype(float)
    assert passes_chi_square(counts, law.ravel() * MANY)
    assert [row.count(MASK) for row in seen] == [3, 2, 1]  # the row as it stands


# --- the bound -----------------------------------------------------------------------------------------------------


def process_of(name, num_tokens, allowed):
    return (
        MaskProcess(num_tokens)
        if name == "mask"
        else {"substitute": SubstituteProcess, "uniform": UniformProcess}[name](allowed)
    )


def wrong_tables(world, process, seed):
    """Laws q(x0 | xt) that know nothing and never rule out the truth: {t: (states, V^l)}."""
    rng, tables = np.random.default_rng(seed), {}
    for t in range(1, world.length + 1):
        law = rng.gamma(0.5, size=forward_of(world, process)(t).T.shape) + 1e-2
        if process == "mask":  # what is visible is kept
            law *= forward_of(world, process)(t).T > 0
        tables[t] = law / np.maximum(law.sum(1, keepdims=True), 1e-300)
    return tables


def bounds(world, process, tables, grid):
    """E of `JointProcess.losses` over the grid for every x0, (V^l,); logits by the chain rule of the tables."""
    joint = JointProcess(process_of(process, world.num_tokens, torch.arange(world.num_tokens)))
    masks, total = process == "mask", np.zeros(len(world.data))
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        forward = forward_of(world, process)(t)
        which, states = np.nonzero(forward)
        x0 = torch.from_numpy(world.sequences[which])
        xt = torch.from_numpy((world.masked_sequences if masks else world.sequences)[states])

        def predict(input_ids, t, num_editable, x0, states=states):
            write = TableWriter(torch.from_numpy(tables[int(t[0])][states]), world.num_tokens, world.length)
            columns = [write(x0[:, :0]), *(write(column[:, None] + FIRST) for column in x0[:, :-1].unbind(1))]
            logits = torch.stack(columns, dim=1)[..., FIRST:]
            return F.pad(logits, (0, 1), value=-torch.inf)  # [MASK]

        lengths = filled(world.length, x0)
        everywhere = torch.ones_like(x0, dtype=torch.bool)
        rows = CorruptedRows(x0, xt, everywhere, joint.corrupted(xt, x0) & everywhere, lengths, filled(t, x0))
        rows = rows._replace(s=filled(s, x0))
        forbidden = torch.arange(world.num_tokens + 1) == world.num_tokens
        terms = joint.losses(predict, rows, forbidden)
        share = (t - s) / world.length  # the chance of t in `row_draws`
        total += share * np.bincount(which, weights=forward[which, states] * terms.numpy(), minlength=len(total))
    return total


def model_law(world, process, tables, grid):
    """The law of the sampler of these tables, by enumeration of its draws and of the process's randomness."""
    masks = process == "mask"
    board = Board(world.num_tokens, world.length)
    inner = MaskProcess(1) if masks else SubstituteProcess(board.allowed)
    states = world.masked_sequences if masks else world.sequences
    law = np.zeros(len(states))
    law[-1 if masks else slice(None)] = 1.0 if masks else 1 / len(states)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        matrix = np.zeros((len(states),) * 2)
        for number in range(len(states)):
            xt = torch.from_numpy(states[number])
            for x0, weight in zip(torch.from_numpy(world.sequences), tables[t][number], strict=True):
                if weight:
                    counts = inner.recounted(x0[None], xt[None], torch.tensor([t]), torch.tensor([s]))
                    step = reverse_law(inner, board, xt, x0[None], *(int(c) for c in counts), 0.0, masks)
                    matrix[number] += weight * step[0].numpy()
        law = law @ matrix
    return law[(states < world.num_tokens).all(1)]


@pytest.mark.parametrize("grid", [[3, 0], [3, 1, 0], [3, 2, 1, 0]])
@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_the_bound_holds_for_predictors_that_know_nothing(process, grid):
    world = make_world(2, 3)
    for seed in (0, 1):
        tables = wrong_tables(world, process, seed)
        bound, exact = bounds(world, process, tables, grid), -np.log(model_law(world, process, tables, grid))
        assert (bound - exact > -EXACT).all()
        if process == "mask" and grid == [3, 0]:
            assert np.abs(bound - exact).max() < EXACT


def test_in_one_step_the_bound_of_uniform_noise_is_jensens_and_that_of_the_truth_the_entropy():
    world = make_world(3, 3)
    tables = wrong_tables(world, "uniform", 0)
    exact = -np.log(tables[3].mean(0))  # x_l is uniform, and one step returns x0_hat
    assert (bounds(world, "uniform", tables, [3, 0]) - exact > -EXACT).all()
    for process in ("mask", "uniform"):
        truth = {3: world.posterior(forward_of(world, process)(3))}
        assert abs(bounds(world, process, truth, [3, 0]) @ world.data - entropy(world.data)) < EXACT


def test_the_evaluated_bound_of_one_step_of_masks_is_the_exact_likelihood_of_the_decoder():
    model = make_writer(length_counts=None)
    rows = [{"input_ids": [CLS, 7, 9, 11, SEP]}, {"input_ids": [CLS, 8, UNK, 6, 5, 13, SEP]}]
    expected = []
    for row in rows:
        x0 = torch.tensor([row["input_ids"]])
        editable = model.config.editable(x0)
        xt = x0.masked_fill(editable, MASK)
        decoder = torch.cat((torch.tensor([[SEP]]), x0[:, :-1]), dim=1)
        logits = model.backbone(input_ids=xt, decoder_input_ids=decoder).logits
        logits = logits.double().masked_fill(model.config.forbidden_tokens(), -torch.inf)
        each = logits.log_softmax(-1).gather(2, x0[..., None])[..., 0]
        expected.append(-each[editable].sum().item())
    report = evaluate_bound(model, rows, draws=3)
    assert report.nelbo_nats_per_token == pytest.approx(sum(expected) / 7, abs=1e-5)
    assert report.num_steps == 1
    more = evaluate_bound(model, rows, draws=64, num_steps=2).nelbo_nats_per_token
    assert more > report.nelbo_nats_per_token


# --- the decoder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_what_the_decoder_writes_by_its_cache_is_what_it_is_told_in_training(family, process):
    model = make_writer(process, family)
    x0 = torch.tensor([[CLS, 7, 9, 11, 6, SEP], [CLS, 8, 8, SEP, PAD, PAD]])
    mask = (x0 != PAD).long()
    xt = x0.clone()
    xt[:, 1:3] = MASK if process == "mask" else 20
    t, lengths = torch.tensor([2, 2]), torch.tensor([4, 2])
    with torch.no_grad():
        told = model(input_ids=xt, attention_mask=mask, t=t, num_editable=lengths, x0=x0).logits
        write = model.begin_writing(xt, mask, t, lengths)
        by_steps = [write(x0[:, :0]), write(x0[:, :1]), write(x0[:, 1:4]), write(x0[:, 4:5])]
    for column, logits in zip((0, 1, 4, 5), by_steps, strict=True):
        torch.testing.assert_close(logits[0], told[0, column], rtol=0, atol=2e-5)
    torch.testing.assert_close(by_steps[1][1], told[1, 1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("how", [{}, {"num_steps": 3}, {"num_steps": 2, "churn": 0.5, "top_k": 3}])
def test_a_row_is_written_as_it_is_alone_and_what_is_given_stays(process, how):
    model = make_writer(process)
    rows = ROWS[:3]
    width = max(map(len, rows))
    batch = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    output = model.generate(batch, seed=5, **how)
    for number, row in enumerate(rows):
        alone = model.generate(torch.tensor([row]), seed=5, sample_index=torch.tensor([number]), **how)[0]
        assert alone.tolist() == output[number, : len(row)].tolist()
        assert [a for a, b in zip(alone.tolist(), row, strict=True) if b != MASK] == [b for b in row if b != MASK]
        assert not bool((alone == MASK).any())


def test_a_draw_of_a_row_is_one_call_and_a_prompt_is_read_at_once():
    model, calls = make_writer(), []
    begin = model.begin_writing

    def counted(*args):
        write = begin(*args)
        return lambda tokens: calls.append(tokens.shape[1]) or write(tokens)

    model.begin_writing = counted
    rows = torch.tensor([[CLS, 7, 8, 9, MASK, 10, 11, MASK, SEP]])
    output = model.generate(rows, return_dict_in_generate=True, seed=0)
    assert calls == [4, 3] and output.num_calls == 1 and output.steps.tolist() == [1]
    calls.clear()
    assert model.generate(rows, num_steps=2, return_dict_in_generate=True, seed=0).num_calls == 2


def test_guidance_of_scale_one_is_the_model_and_of_zero_knows_no_condition():
    model = make_writer(prompt_dropout=0.1)
    rows = torch.tensor([[CLS, 7, 9, MASK, MASK, MASK, SEP]])
    plain = model.generate(rows, seed=1)
    assert torch.equal(model.generate(rows, seed=1, guidance_scale=1.0), plain)
    other = torch.tensor([[CLS, 12, 20, MASK, MASK, MASK, SEP]])
    how = {"seed": 1, "num_return_sequences": 200}
    free, held = ([model.generate(x, guidance_scale=w, **how)[:, 3:6] for x in (rows, other)] for w in (0.0, 2.0))
    assert torch.equal(*free) and not torch.equal(*held)


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("process", PROCESSES)
def test_a_saved_model_comes_back_and_writes_the_same(process, family, tmp_path):
    model = make_writer(process, family)
    model.save_pretrained(tmp_path)
    loaded = UDMForMaskedGeneration.from_pretrained(tmp_path)
    assert loaded.config.predictor == "autoregressive" and type(loaded.backbone) is type(model.backbone)
    same = [torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)]
    assert all(same)
    rows = torch.tensor([ROWS[0]])
    assert torch.equal(loaded.generate(rows, seed=3, num_steps=2), model.generate(rows, seed=3, num_steps=2))


def test_a_plain_encoder_decoder_is_wrapped(tmp_path):
    model = make_writer()
    model.backbone.save_pretrained(tmp_path)
    fields = {"mask_token_id": MASK, "prefix_token_ids": [CLS], "suffix_token_ids": [SEP], "special_token_ids": [UNK]}
    wrapped = UDMForMaskedGeneration.from_pretrained(tmp_path, predictor="autoregressive", **fields)
    rows = torch.tensor([ROWS[0]])
    assert torch.equal(wrapped.generate(rows, seed=3), model.generate(rows, seed=3))
    with pytest.raises(ValueError, match="give predictor='autoregressive', which needs an encoder-decoder"):
        UDMForMaskedGeneration.from_pretrained(tmp_path, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_training_lowers_the_loss_and_resuming_needs_nothing_new(process, tmp_path):
    model = make_writer(process)
    objective = TextObjective(model.config, loss_weighting=None, time_law=None, eval_draws=2)
    trainer = make_trainer(tmp_path, model=model, objective=objective, max_steps=40, learning_rate=3e-3)
    before = trainer.evaluate(make_rows(30, seed=1))["eval_loss"]
    trainer.train()
    assert trainer.evaluate(make_rows(30, seed=1))["eval_loss"] < before - 0.2
    assert not objective.loss_is_bound
    context = measure_context(trainer.model, make_rows(20, seed=1), make_rows(40, seed=2))
    assert context.one_call is None and context.nelbo > 0


@pytest.mark.slow
def test_a_preset_trains_by_the_command_and_writes_through_the_pipeline(tmp_path):
    toy = write_lines(tmp_path / "toy.txt", ["red", "green", "blue", "small", "large"], lines=60, longest=5)
    output = tmp_path / "model"
    report = train(toy, output, "--predictor", "autoregressive")
    assert report["validation"]["num_steps"] == 1 and report["model_arguments"]["backbone"] == "bart"
    pipe = pipeline("udm-generation", model=str(output))
    assert pipe.model.config.text_config.encoder_layers == pipe.model.config.text_config.decoder_layers == 1
    texts = [record["generated_text"] for record in pipe("red [MASK] blue", num_return_sequences=2, seed=0)]
    assert all(text.startswith("red") and text.endswith("blue") for text in texts)
    assert "written from left to right" in make_card(pipe.model, "user/name", report=report)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"order": "confidence"}, "order='confidence' compares the laws of single positions"),
        ({"order": "random", "threshold": 0.5}, "threshold looks at the laws of single positions"),
        ({"speculate": 3}, "speculate looks at the laws of single positions"),
        ({"revise": 1}, "revise looks at the laws of single positions"),
        ({"classifier_candidates": 2}, "classifier_candidates"),
        ({"cache_refresh": 3}, "cache_refresh=3 keeps what an encoder computed"),
        ({"schedule": "optimal"}, "none is known of process 'mask' with predictor 'autoregressive'"),
        ({"kernel": "hamming"}, "kernel is of the substitute process"),
    ],
)
def test_options_that_need_laws_of_single_positions_are_refused_by_name(how, said):
    model = make_writer()
    with pytest.raises(ValueError, match=said):
        model.generate(torch.tensor([ROWS[0]]), **how)


@pytest.mark.parametrize("how", [{"kernel": "hamming"}, {"max_edits": 2}])
def test_a_writer_of_substitutions_has_no_kernel_and_repairs_nothing(how):
    with pytest.raises(ValueError, match=f"{next(iter(how))} looks at the laws of single positions"):
        make_writer("substitute").generate(torch.tensor([[CLS, 7, 8, SEP]]), **how)


def test_a_classifier_is_refused():
    with pytest.raises(ValueError, match="this one has process 'mask' with predictor 'autoregressive'"):
        make_writer().generate(torch.tensor([ROWS[0]]), classifier=lambda tokens, rows: tokens[:, 0].float())


def test_compile_says_that_it_compiles_nothing():
    with pytest.warns(UserWarning, match="steps by JointPredictor"):
        make_writer().generate(torch.tensor([ROWS[0]]), compile=True, seed=0)


def test_configurations_that_cannot_write_rows_are_refused():
    bart = BartConfig(vocab_size=24, **SIZES["bart"][1], **TOKENS)
    ours = {"mask_token_id": MASK, "predictor": "autoregressive"}
    with pytest.raises(ValueError, match="predictor must be 'factorised' or 'autoregressive', got 'joint'"):
        UDMConfig(text_config=bart, predictor="joint")
    with pytest.raises(ValueError, match="needs the text_config of an encoder-decoder .*, got model type 'bert'"):
        UDMConfig(text_config=text_config("bert", 24), **ours)
    with pytest.raises(ValueError, match="or give predictor='autoregressive'"):
        UDMConfig(text_config=bart)
    for process in ("delete", "edit"):
        with pytest.raises(ValueError, match=f"process must be 'mask', 'substitute' or 'uniform', got '{process}'"):
            UDMConfig(text_config=bart, process=process, pad_token_id=PAD, prefix_token_ids=[CLS], **ours)
    with pytest.raises(ValueError, match="leave it out"):
        UDMConfig(text_config=bart, blank_widths=4, **ours)
    without = copy.deepcopy(bart)
    without.decoder_start_token_id = None
    with pytest.raises(ValueError, match="names no decoder_start_token_id"):
        UDMConfig(text_config=without, **ours)
    with pytest.raises(ValueError, match=r"process 'mask' needs a \[MASK\] token"):
        UDMConfig(text_config=bart, predictor="autoregressive").build_process()


def test_an_encoder_decoder_is_not_exported_as_a_masked_lm(tmp_path):
    with pytest.raises(ValueError, match="is an encoder-decoder and no masked LM"):
        save_backbone(make_writer(), None, tmp_path / "out")


def test_what_training_cannot_do_with_whole_rows_is_refused():
    config = make_writer("substitute").config
    with pytest.raises(ValueError, match="max_corruption=0.3 trains a repairer"):
        TextObjective(config, max_corruption=0.3)
    with pytest.raises(ValueError, match="loss_chunk makes the logits of single positions"):
        TextObjective(config, loss_chunk=8)
    with pytest.raises(ValueError, match="forward needs x0"):
        make_writer()(input_ids=torch.tensor([ROWS[0]]))
    with pytest.raises(ValueError, match="x0 is read by the decoder"):
        make_udm()(input_ids=torch.tensor([ROWS[0]]), x0=torch.tensor([ROWS[0]]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--process", "delete"], "process must be 'mask', 'substitute' or 'uniform'"),
        (["--kernel", "free", "--process", "substitute"], "--kernel free is a way to change single positions"),
        (["--backbone", "bert"], "from scratch is a bart, got --backbone bert"),
        (["--objective", "ar"], "--objective ar has no predictor"),
        (["--max_corruption", "0.3", "--process", "substitute"], "trains a repairer"),
    ],
)
def test_the_command_refuses_what_does_not_go_with_whole_rows(options, said, tmp_path):
    toy = write_lines(tmp_path / "toy.txt", ["red", "blue"], lines=20, longest=3)
    with pytest.raises(ValueError, match=said):
        train(toy, tmp_path / "model", "--predictor", "autoregressive", *options)
