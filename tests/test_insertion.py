"""Models of the delete process: what they learn from, what they write, and what they refuse."""

import re
from math import log

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoTokenizer, pipeline

from tests.helpers import assert_equal_weights
from tests.models import CLS, FAMILIES, MASK, PAD, SEP, UNK, make_rows, make_udm, save_masked_lm, wake_time
from tests.oracle import strings as brute
from tests.simulated_device import SimulatedDevice, values
from tests.training_helpers import UNTRAINED, make_trainer, weights
from udm_text import UDMConfig, UDMForMaskedGeneration
from udm_text.detokenizing import restore_text
from udm_text.evaluation import evaluate_bound, measure_curve, measure_prices
from udm_text.training.adapters import add_adapter, merge_adapter

WORDS = [5, 6, 7]
FEW = [token for token in range(24) if token not in (*WORDS, MASK)]
GAPS = [False, True]


def few_words(**how):
    return make_udm("delete", special_token_ids=FEW, **how).double()


def pi_of(model, word, t):
    """(gaps, V) float64: the law of canonical actions, by the model's own forward on the text alone."""
    marked = model.config.gap_tokens
    row = [CLS, *([MASK] if marked else [])]
    for token in word:
        row += [WORDS[token], *([MASK] if marked else [])]
    columns = torch.tensor([i for i in range(len(row)) if row[i] == MASK] if marked else list(range(len(row))))
    where = (torch.zeros_like(columns), columns)
    with torch.no_grad():
        said = model(torch.tensor([[*row, SEP]]), t=torch.tensor([t]), positions=where, gaps=where)
    tokens = said.logits[:, WORDS].softmax(-1)
    return brute.canonical((said.gap_logits.softmax(-1)[:, None] * tokens).numpy(), word)


# --- the sampler and the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "gap_tokens"), [("bert", False), ("nomic_bert", True), ("modernbert", False)])
@pytest.mark.parametrize("grid", [[3, 2, 1, 0], [3, 2, 0]])
def test_generate_has_the_law_of_the_network(family, gap_tokens, grid):
    model, rows = few_words(family=family, gap_tokens=gap_tokens), 8_000
    law = brute.chain_law(lambda word, t: pi_of(model, word, t), 3, grid)
    how = {"num_return_sequences": rows, "seed": 1, "num_steps": len(grid) - 1}
    drawn = model.generate(length=3, return_dict_in_generate=True, **how)
    assert drawn.sequences.shape == (rows, 5) and (drawn.steps == len(grid) - 1).all()
    seen = {word: 0 for word in law}
    for row in drawn.sequences[:, 1:-1].tolist():
        seen[tuple(WORDS.index(token) for token in row)] += 1
    assert chisquare(list(seen.values()), [rows * law[word] for word in seen]).pvalue > 0.001


@pytest.mark.parametrize("gap_tokens", GAPS)
@pytest.mark.parametrize("num_steps", [None, 2])
def test_the_measured_bound_is_the_elbo_of_the_strings(gap_tokens, num_steps):
    model, x0, draws = few_words(gap_tokens=gap_tokens), (0, 1, 0), 400
    grid = [3, 2, 1, 0] if num_steps is None else [3, 2, 0]  # the grid of linear steps goes by floors
    expected = 0.0
    for t, s in zip(grid, grid[1:], strict=False):
        for xt, mass in brute.forward(x0, t).items():
            step, back = brute.step_law(pi_of(model, xt, t), xt, t - s), brute.backward(xt, x0, t - s)
            expected += mass * sum(chance * log(chance / step[xs]) for xs, chance in back.items())
    row = {"input_ids": [CLS, *(WORDS[token] for token in x0), SEP]}
    parts = [
        evaluate_bound(model, [row] * 4, draws=draws // 4, num_steps=num_steps, seed=seed).nelbo_nats_per_token
        for seed in range(8)
    ]
    mean, error = np.mean(parts), np.std(parts, ddof=1) / len(parts) ** 0.5
    assert abs(3 * mean - expected) < 5 * 3 * error + 1e-6


def test_a_row_s_bound_and_text_do_not_depend_on_its_neighbours():
    model = make_udm("delete", length_counts=[0, 1, 0, 4, 5, 2]).double()
    rows = make_rows(7)
    together = evaluate_bound(model, rows, draws=3, batch_size=7)
    alone = evaluate_bound(model, rows, draws=3, batch_size=1)
    assert together.nelbo_nats_per_token == pytest.approx(alone.nelbo_nats_per_token, rel=1e-12)
    drawn = model.generate(num_return_sequences=6, seed=4)
    for index in (0, 3):
        single = model.generate(seed=4, sample_index=torch.tensor([index]))
        kept = drawn[index][drawn[index] != PAD]
        assert torch.equal(single[0], kept)


def test_the_loss_in_chunks_is_the_loss(tmp_path):
    losses = []
    for chunk in (None, 3):
        trainer = make_trainer(
            tmp_path / str(chunk), model=make_udm("delete", scale=UNTRAINED), max_steps=3, loss_chunk=chunk
        )
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- what it writes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return make_udm("delete", length_counts=[0, 0, 1, 4, 5, 2], prompt_dropout=0.1).double()


def test_every_prefix_of_a_run_is_a_text(model):
    walk = model.generate(length=6, num_return_sequences=4, seed=0, output_trajectory=True).trajectory
    texts = [[row[row != PAD].tolist() for row in rows] for rows in walk]
    assert [len(rows[0]) for rows in texts] == list(range(2, 9))
    for shorter, longer in zip(texts, texts[1:], strict=False):
        for a, b in zip(shorter, longer, strict=True):
            assert any(b[:i] + b[i + 1 :] == a for i in range(1, len(b) - 1))


def test_a_prompt_is_continued_and_a_seed_reproduces(model):
    prompt = torch.tensor([[CLS, 7, 8, SEP]])
    drawn = model.generate(prompt, max_new_tokens=4, num_return_sequences=5, seed=2)
    assert drawn.shape == (5, 8) and (drawn[:, :3] == prompt[0, :3]).all() and (drawn[:, -1] == SEP).all()
    assert torch.equal(drawn, model.generate(prompt, max_new_tokens=4, num_return_sequences=5, seed=2))
    assert not torch.isin(drawn[:, 3:-1], torch.tensor([PAD, UNK, CLS, SEP, MASK])).any()


@pytest.mark.parametrize("num_steps", [None, 2])
def test_blanks_share_the_new_tokens_and_what_is_given_stands(model, num_steps):
    row = [CLS, 7, MASK, 9, MASK, MASK, 10, SEP]
    out = model.generate(
        torch.tensor([row]),
        max_new_tokens=5,
        num_return_sequences=40,
        seed=1,
        num_steps=num_steps,
        return_dict_in_generate=True,
    )
    assert out.sequences.shape == (40, 10) and out.attention_mask.all() and (out.editable.sum(dim=1) == 5).all()
    firsts = set()
    for ids, editable in zip(out.sequences.tolist(), out.editable.tolist(), strict=True):
        given = [token for token, new in zip(ids, editable, strict=True) if not new]
        assert given == [CLS, 7, 9, 10, SEP]
        where = [place for place, new in enumerate(editable) if not new]
        assert where[1] == 1 and where[3] == where[4] - 1  # nothing before 7 and behind 10
        firsts.add(where[2] - where[1] - 1)
    assert len(firsts) > 2  # the first blank takes now fewer, now more of the five


def test_the_length_of_a_blank_is_drawn_where_none_is_given(model):
    drawn = model.generate(torch.tensor([[CLS, 7, MASK, SEP]]), num_return_sequences=60, seed=0)
    lengths = (drawn != PAD).sum(dim=1) - 2
    assert set(lengths.tolist()) >= {2, 3, 4} and lengths.max() <= 10
    assert (model.generate(torch.tensor([[CLS, 7, MASK, SEP]]), length=4, seed=0) != PAD).sum() == 6


def test_rows_with_and_without_blanks_go_together(model):
    rows = torch.tensor([[CLS, 7, MASK, 9, SEP], [CLS, 8, SEP, PAD, PAD]])
    drawn = model.generate(rows, max_new_tokens=2, seed=0)
    assert drawn[0, [0, 1, 4, 5]].tolist() == [CLS, 7, 9, SEP] and drawn[1, [0, 1, 4]].tolist() == [CLS, 8, SEP]


def test_options_of_tokens_hold(model):
    free = {"length": 6, "num_return_sequences": 30, "seed": 0}
    cold = model.generate(temperature=0.0, **free)
    assert (cold == cold[0]).all()
    assert (model.generate(top_k=1, **free) != cold[0]).any()  # gaps are drawn all the same
    allowed = [token for token in range(5, 24) if token not in (9, 11)]
    one = model.generate(forbidden_tokens=allowed, **free)
    assert torch.isin(one[:, 1:-1], torch.tensor([9, 11])).all()
    only = model.generate(forbidden_tokens=[*allowed, 11], **free)
    assert (only[:, 1:-1] == 9).all()
    begun = model.generate(begin_suppress_tokens=list(range(5, 20)), **free)
    assert (begun[:, 1] >= 20).all() and (begun[:, 2:-1] < 20).any()
    several = model.generate(temperature=0.0, num_steps=2, **free)
    assert (several != PAD).all()

    def only_sixes(rows, scores):
        assert len(rows) == len(scores)
        kept = torch.full_like(scores, -torch.inf)
        kept[:, [6, 8]] = scores[:, [6, 8]]
        return kept

    assert torch.isin(model.generate(logits_processor=only_sixes, **free)[:, 1:-1], torch.tensor([6, 8])).all()


def test_guidance_one_is_the_model_and_more_is_not(model):
    how = {"input_ids": torch.tensor([[CLS, 7, 8, SEP]]), "max_new_tokens": 5, "num_return_sequences": 20, "seed": 0}
    plain = model.generate(**how)
    assert torch.equal(model.generate(guidance_scale=1.0, **how), plain)
    assert not torch.equal(model.generate(guidance_scale=3.0, **how), plain)


def test_guidance_has_the_guided_law():
    """One token behind one given: log p_u + scale (log p_c - log p_u) of gaps and of tokens."""
    model, scale, rows = few_words(prompt_dropout=0.1), 2.5, 8_000
    out = model.generate(
        torch.tensor([[CLS, 6, MASK, SEP]]),
        max_new_tokens=1,
        guidance_scale=scale,
        num_return_sequences=rows,
        seed=3,
    )
    logs = []
    for given in (6, MASK):
        where = (torch.tensor([0]), torch.tensor([1]))
        with torch.no_grad():
            said = model(torch.tensor([[CLS, given, SEP]]), t=torch.tensor([1]), positions=where, gaps=where)
        logs.append(said.logits[0, WORDS].log_softmax(-1))
    law = (logs[1] + scale * (logs[0] - logs[1])).softmax(-1)
    seen = np.bincount(out[:, 2].numpy() - 5, minlength=3)
    assert chisquare(seen, law.numpy() * rows).pvalue > 0.001


def test_a_callback_may_look_on_and_change_what_stands(model):
    seen = []

    def look(model, step, s, state):
        seen.append((step, int(s[0]), int((state["xt"] == PAD).sum())))
        if step == 1:
            rows = state["xt"].clone()
            rows[:, 1] = 7
            return {"xt": rows}
        return None

    drawn = model.generate(length=4, seed=0, callback_on_step_end=look)
    assert [holes for _, _, holes in seen] == [3, 2, 1, 0] and (drawn == 7).any()


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gap_tokens", GAPS)
def test_it_learns_and_splits_of_a_step_are_the_same_step(tmp_path, family, gap_tokens):
    def run(name, rows, micro, steps):
        model = make_udm("delete", family=family, gap_tokens=gap_tokens, scale=UNTRAINED)
        how = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": micro, "max_steps": steps}
        trainer = make_trainer(tmp_path / name, model=model, **how)
        return trainer, trainer.train().training_loss

    (whole, one), (_, four) = run("a", 16, 1, 3), run("b", 4, 4, 3)
    assert one == pytest.approx(four, rel=1e-5)
    assert bool(whole.model.gap_head.weight.any())


def test_a_resumed_run_with_an_average_is_bit_equal(tmp_path):
    how = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "ema_decay": 0.9}
    whole = make_trainer(tmp_path / "a", model=make_udm("delete", scale=UNTRAINED), **how)
    whole.train()
    again = make_trainer(tmp_path / "b", model=make_udm("delete", scale=UNTRAINED), **how)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_equal_weights(weights(whole), weights(again))
    assert_equal_weights(whole.average.average, again.average.average)


def test_adapters_train_the_gaps_whole_and_merge(tmp_path):
    adapted = add_adapter(make_udm("delete"), 4)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if "gap_head" in name}
    trainer = make_trainer(tmp_path, model=adapted, max_steps=2, learning_rate=1e-2)
    trainer.train()
    moved = [name for name, p in adapted.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert any("modules_to_save" in name for name in moved)
    merged = merge_adapter(adapted)
    assert type(merged) is UDMForMaskedGeneration and type(merged.gap_head) is torch.nn.Linear


def test_a_saved_model_is_the_same_and_an_encoder_becomes_one(tmp_path):
    model = make_udm("delete", gap_tokens=True)
    model.save_pretrained(tmp_path / "own")
    again = UDMForMaskedGeneration.from_pretrained(tmp_path / "own")
    assert again.config.gap_tokens and torch.equal(again.generate(length=5, seed=1), model.generate(length=5, seed=1))
    masks = make_udm("mask")
    masks.save_pretrained(tmp_path / "masks")
    turned = UDMForMaskedGeneration.from_pretrained(tmp_path / "masks", process="delete")
    assert turned.config.time_conditioning and not bool(turned.gap_head.weight.any())
    with pytest.raises(ValueError, match="the scores of its gaps would be lost"):
        from udm_text.hub import save_backbone

        save_backbone(model, None, tmp_path / "plain")


# --- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"churn": 0.5}, "churn=0.5 corrupts a predicted text anew"),
        ({"allowed_tokens": {1: [7]}}, "allowed_tokens names positions"),
        ({"cache_refresh": 4}, "cache_refresh=4 keeps what was computed of positions"),
        ({"order": "confidence"}, "order is of the mask process"),
        ({"speculate": 2}, "speculate is of the mask process"),
        ({"threshold": 0.5}, "threshold is of the mask process"),
        ({"max_edits": 2}, "max_edits is of the substitute or edit process"),
        ({"schedule": "optimal", "num_steps": 2}, "schedule 'optimal' follows the measured price"),
    ],
    ids=lambda x: x if isinstance(x, str) else str(x),
)
def test_options_of_others_are_refused(model, option, message):
    with pytest.raises(ValueError, match=message):
        model.generate(length=4, **option)


def test_configurations_that_cannot_work_are_refused():
    config = make_udm("delete").config
    with pytest.raises(ValueError, match="process 'delete' needs a padding token"):
        config_without = UDMConfig(text_config=config.text_config, process="delete", mask_token_id=MASK)
        config_without.pad_token_id = None
        config_without.build_process()
    with pytest.raises(ValueError, match="needs at least 2 tokens that may be put in"):
        make_udm("delete", special_token_ids=list(range(1, 23))).config.build_process()
    with pytest.raises(ValueError, match="gap_tokens=True puts"):
        make_udm("mask", gap_tokens=True)
    with pytest.raises(ValueError, match="gaps are scored by models of process 'delete'"):
        where = (torch.tensor([0]), torch.tensor([0]))
        make_udm("mask")(torch.tensor([[CLS, 7, SEP]]), positions=where, gaps=where)
    bare = make_udm("delete", prefix_token_ids=[])
    with pytest.raises(ValueError, match="rows need a token before the text"):
        bare.generate(length=3)


def test_rows_are_as_long_as_the_model_reads(model):
    marked = make_udm("delete", gap_tokens=True)
    assert marked.config.max_row_length == make_udm("delete").config.max_row_length // 2
    with pytest.raises(ValueError, match="make a row of 32 tokens, and the model reads at most 20"):
        marked.generate(length=30)
    row = torch.tensor([[CLS, MASK, 7, MASK, SEP]])
    assert model.generate(row, max_new_tokens=30, seed=0).shape == (1, 33)  # 60 places on the way


def test_few_and_many_words_are_told_by_time():
    """The empty text shows no length: what is told is t itself, and other counts are other texts."""
    model = make_udm("delete")
    where = (torch.tensor([0]), torch.tensor([0]))
    empty = torch.tensor([[CLS, SEP]])
    said = [model(empty, t=torch.tensor([t]), positions=where, gaps=where).logits for t in (1, 2, 30)]
    assert not torch.allclose(said[0], said[1], atol=1e-3) and not torch.allclose(said[1], said[2], atol=1e-3)


def test_the_price_of_fewer_steps_is_measured_step_by_step():
    model, rows = make_udm("delete").double(), make_rows(9, shortest=4)
    figures = measure_prices(model, rows, draws=3, seed=2)
    lengths = sorted(model.config.count_editable(row["input_ids"] for row in rows))
    steps = [row["num_steps"] for row in figures["prices"]]
    assert steps[0] == lengths[-1] and steps[1] == figures["length"] == lengths[(len(lengths) - 1) // 2]
    assert steps[-1] == 1
    one = evaluate_bound(model, rows, draws=3, seed=2)
    assert figures["prices"][0]["linear"] == pytest.approx(one.nelbo_nats_per_token, rel=1e-12)
    assert figures["prices"][-1]["linear"] == figures["prices"][-1]["cosine"]
    with pytest.raises(ValueError, match="no bound for several tokens a step is known of process 'substitute'"):
        measure_prices(make_udm("substitute"), rows)
    with pytest.raises(ValueError, match="no curve of prices is known of process 'delete'"):
        measure_curve(model, rows)


def test_a_step_waits_for_no_device_and_gives_what_the_cpu_gives():
    """Not one of its waits is that of a step: longer texts have as many."""
    waits = []
    for length in (2, 4, 9):  # the first sends what is sent once
        model = make_udm("delete")
        how = {"length": length, "num_return_sequences": 3, "seed": 0}
        expected = model.generate(**how)
        with SimulatedDevice() as device:
            drawn = device.move(model).generate(**how)
            waits.append(sum(device.waits.values()))
        assert torch.equal(values(drawn), expected)
    assert waits[1] == waits[2]


# --- the pipeline ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    plain = save_masked_lm(tmp_path_factory.mktemp("delete") / "plain", "bert")
    turned = UDMForMaskedGeneration.from_pretrained(plain, process="delete", length_counts=[0, 1, 0, 4, 5, 2])
    path = plain.parent / "model"
    wake_time(turned).save_pretrained(path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(path)
    return pipeline("udm-generation", model=str(path), dtype=torch.float64)


def test_blanks_in_a_text_may_be_written_either_way_and_keep_what_was_typed(pipe):
    how = {"max_new_tokens": 3, "seed": 0, "num_return_sequences": 4}
    text = "THE  cat [MASK] on ZZ [MASK] mat"
    records = pipe(text, output_trajectory=True, return_tensors=True, **how)
    for other in ("THE  cat <blank> on ZZ [MASK] [MASK] mat", "THE  cat [MASK][MASK] on ZZ <blank> mat"):
        assert [r["generated_text"] for r in pipe(other, **how)] == [r["generated_text"] for r in records]
    assert [r["generated_text"] for r in pipe(text.replace("[MASK]", "??"), blank_token="??", **how)] == [
        r["generated_text"] for r in records
    ]
    for record in records:
        assert re.fullmatch(r"THE  cat( .+)? on ZZ( .+)? mat", record["generated_text"])
        assert record["trajectory"][0] == "THE  cat on ZZ mat" and len(record["trajectory"]) == 4
        assert record["trajectory"][-1] == record["generated_text"] and sum(record["generated"]) == 3


def test_what_was_put_in_is_told_from_what_was_given(pipe):
    records = pipe("a red", max_new_tokens=3, seed=1, return_full_text=False, output_trajectory=True)
    assert records[0]["trajectory"][0] == "" and records[0]["trajectory"][-1] == records[0]["generated_text"]
    assert "a red" + records[0]["generated_text"] == pipe("a red", max_new_tokens=3, seed=1)[0]["generated_text"]


def test_a_streamer_sees_the_texts_grow(pipe):
    seen = []

    class Streamer:
        def put_typed(self, typed):
            self.typed = typed

        def put(self, value):
            self.head = getattr(self, "head", value)

        def put_draft(self, value):
            row = [*self.head[0].tolist(), *value[0].tolist()]
            seen.append(restore_text(pipe.tokenizer, *self.typed[0], row, [True] * len(row)))

        def end(self):
            pass

    text = pipe("the [MASK] sat on [MASK] mat", max_new_tokens=2, seed=0, streamer=Streamer())[0]["generated_text"]
    assert seen[0] == "the sat on mat" and seen[-1] == text and len(seen) == 3
