"""Blanks of unknown width: their exact law, what comes of them in a call, and what trains it."""

import itertools
import math

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from tests.helpers import assert_close_weights, assert_equal_weights, udm_here
from tests.models import CLS, COUNTS, FIRST, MASK, PAD, SEP, UNK, VOCAB, make_rows, make_udm, save_masked_lm
from tests.simulated_device import SimulatedDevice, values
from tests.test_devices import moved
from tests.training_helpers import UNTRAINED, history, make_trainer, weights
from udm_text import UDMConfig, UDMForMaskedGeneration, UDMGenerationConfig
from udm_text.cli.train_text import parse, train_text
from udm_text.corpus import collate
from udm_text.detokenizing import Typed, open_typed
from udm_text.evaluation import evaluate_bound
from udm_text.evaluation.bounds import length_nats
from udm_text.randomness import step_random
from udm_text.training import TextObjective
from udm_text.training.adapters import add_adapter, merge_adapter
from udm_text.training.blanks import BLANKS_SEED, MOST_BLANKS, ask_widths, asked_rows, draw_spans
from udm_text.training.objective import DROP_SEED, drop_prompts
from udm_text.training.optimizers import muon_matrices
from udm_text.widths import (
    as_one_blank,
    collapse,
    is_all_there_is,
    open_first,
    read_widths,
    text_region,
    width_law,
    width_nats,
)


def make_blank_udm(most=3, **fields):
    """A tiny model whose width head, silent at the start, has something to say."""
    model = make_udm(blank_widths=most, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        torch.nn.init.normal_(model.width_head.blank_embedding, std=0.5)
        torch.nn.init.normal_(model.width_head.head.weight, std=0.3)
        torch.nn.init.normal_(model.width_head.head.bias, std=0.5)
    return model


def always(model, width):
    """The model, its blanks always of this width."""
    with torch.no_grad():
        model.width_head.head.weight.zero_()
        model.width_head.head.bias.fill_(-1e4)[width] = 0.0
    return model


def marked(rows, blank=-1):
    """Rows of ids, `blank` where there is one, as tokens, attention mask and blanks."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    blanks = tokens == blank
    attended = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens.masked_fill(blanks, MASK), attended, blanks


def law_by_hand(model, row, most=None, blank=-1):
    """[p(0), p(1), ...] of the first blank of a row of ids, by the model's parts and no code of ours."""
    ids = torch.tensor([[MASK if token == blank else token for token in row]])
    embeddings = model.get_input_embeddings()(ids).detach().clone()
    for place, token in enumerate(row):
        if token == blank:
            embeddings[0, place] += model.width_head.blank_embedding
    with torch.no_grad():
        hidden = model.backbone.base_model(inputs_embeds=embeddings).last_hidden_state
        logits = model.width_head.head(hidden[0, row.index(blank)])
    text = [token for token in row[1:-1] if token not in (PAD, UNK, SEP, CLS)]
    if text == [blank]:
        logits[0] = -torch.inf  # there is no empty text
    if most is not None:
        logits[most + 1 :] = -torch.inf
    return logits.double().softmax(-1).tolist()


def opened(row, width, blank=-1):
    place = row.index(blank)
    return [*row[:place], *[MASK] * width, *row[place + 1 :]]


# --- the law ---------------------------------------------------------------------------------------------------------

BLANK_ROWS = (
    [CLS, 7, -1, 8, -1, SEP],
    [CLS, -1, -1, SEP],
    [CLS, -1, SEP],
    [CLS, UNK, -1, SEP],
    [CLS, -1, MASK, 9, -1, -1, SEP],
)


@pytest.mark.parametrize("row", BLANK_ROWS, ids=str)
@pytest.mark.parametrize("family", ["bert", "modernbert", "nomic_bert"])
def test_the_widths_of_all_blanks_have_one_law_which_is_the_product_from_left_to_right(row, family):
    model = make_blank_udm(most=2, family=family).double()
    every = list(itertools.product(range(3), repeat=row.count(-1)))
    given = [x.expand(len(every), -1) for x in marked([row])]
    nats = width_nats(model, *given, torch.tensor(every))
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    for widths, price in zip(every, nats.tolist(), strict=True):
        state, chance = list(row), 1.0
        for width in widths:
            chance *= law_by_hand(model, state)[width]
            state = opened(state, width)
        assert math.exp(-price) == pytest.approx(chance, rel=1e-5, abs=1e-12)
    assert (nats.isinf().sum() > 0) == (not set(row) - {CLS, SEP, UNK, -1})  # all blanks empty, and nothing else there


def test_no_width_makes_a_row_longer_than_the_model_reads():
    model = make_blank_udm(most=3).double()  # which reads 40 tokens
    row = [CLS, *[7] * 34, -1, -1, SEP]
    every = list(itertools.product(range(4), repeat=2))
    nats = width_nats(model, *(x.expand(len(every), -1) for x in marked([row])), torch.tensor(every))
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    for (a, b), price in zip(every, nats.tolist(), strict=True):
        assert math.isinf(price) == (len(row) - 2 + a + 1 > 40 or len(row) - 2 + a + b > 40)


def test_a_width_above_the_largest_is_never_drawn_and_what_is_no_width_is_refused():
    model = make_blank_udm(most=3)
    rows = marked([[CLS, 7, -1, SEP], [CLS, -1, 8, -1, SEP]])
    assert width_nats(model, *rows, torch.tensor([[4, -1], [1, 9]])).tolist() == [math.inf, math.inf]
    for widths in ([[0, 0], [1, -1]], [[-2, 0], [1, 1]], [[1], [1]]):
        with pytest.raises(ValueError, match="widths must hold a number that is at least 0 for each of up to 2 blanks"):
            width_nats(model, *rows, torch.tensor(widths))


def test_drawn_widths_and_what_fills_them_have_the_law_of_the_model_by_enumeration():
    """Every answer of up to two of three words: p(width | prompt) times the mean over both orders of p(tokens)."""
    words = range(FIRST, FIRST + 3)
    fields = {"separator_token_ids": [SEP], "length_counts": COUNTS, "special_token_ids": [UNK, *range(8, VOCAB)]}
    model = make_blank_udm(most=2, scale=0.5, **fields).double()
    start, forbidden = [CLS, 6, SEP], model.config.forbidden_tokens()

    def token_law(answer):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*start, *answer, SEP]])).logits[0, 3:-1]
        return logits.masked_fill(forbidden, -torch.inf).softmax(-1)

    widths = law_by_hand(model, [*start, -1, SEP], blank=-1)
    law = {}
    widths = [0.0, *(p / sum(widths[1:]) for p in widths[1:])]
    for a in words:
        law[(a,)] = widths[1] * float(token_law([MASK])[0, a])
        for b in words:
            first = float(token_law([MASK, MASK])[0, a] * token_law([a, MASK])[1, b])
            last = float(token_law([MASK, MASK])[1, b] * token_law([MASK, b])[0, a])
            law[a, b] = widths[2] * (first + last) / 2
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-6)

    number = 20_000
    prompt = torch.tensor([start])
    out = model.generate(prompt, seed=0, num_return_sequences=number, return_dict_in_generate=True)
    drawn = [tuple(row[changes].tolist()) for row, changes in zip(out.sequences, out.editable, strict=True)]
    assert set(drawn) <= set(law)
    for answer, chance in law.items():
        error = math.sqrt(chance * (1 - chance) / number)
        assert drawn.count(answer) / number == pytest.approx(chance, abs=4.5 * error + 1e-6), answer
    assert out.widths[:, 0].tolist() == list(map(len, drawn))
    prices = torch.tensor([-math.log(widths[len(answer)]) for answer in drawn], dtype=torch.float64)
    torch.testing.assert_close(out.width_nats, prices, rtol=1e-5, atol=1e-6)

    # the bound of each answer: exact in its width, and of one token in all of it
    rows = [{"input_ids": [*start, *answer, SEP]} for answer in law]
    exact = length_nats(model, rows, batch_size=5)
    torch.testing.assert_close(exact, torch.tensor([-math.log(widths[len(a)]) for a in law], dtype=torch.float64))
    for row, price in zip(rows, exact.tolist(), strict=True):
        report = evaluate_bound(model, [row], draws=4)
        answer = tuple(row["input_ids"][3:-1])
        assert report.length_included and report.length_nats_per_token * len(answer) == pytest.approx(price)
        if len(answer) == 1:
            assert report.nelbo_nats_per_token == pytest.approx(-math.log(law[answer]), rel=1e-5)


def test_a_held_out_answer_that_is_longer_than_any_blank_has_no_bound():
    model = make_blank_udm(most=2, separator_token_ids=[SEP])
    assert evaluate_bound(model, [{"input_ids": [CLS, 7, SEP, 8, 9, 10, SEP]}]).nelbo_nats_per_token == math.inf


def test_models_without_prompts_keep_the_histogram_of_their_lengths():
    rows = make_rows(12)
    plain = make_udm(length_counts=COUNTS)
    model = make_blank_udm(length_counts=COUNTS)
    assert torch.equal(length_nats(model, rows), length_nats(plain, rows))
    assert torch.equal(model.generate(seed=3, num_return_sequences=5), plain.generate(seed=3, num_return_sequences=5))


# --- rows and blanks -------------------------------------------------------------------------------------------------


def spans_by_hand(row, spans, opened_before):
    """The ids of a row with its spans as blanks (-1), those before a number of them opened."""
    made, at = [], 0
    for number, (start, width) in enumerate(spans):
        made += row[at:start]
        made += [MASK] * width if number < opened_before else [-1]
        at = start + width
    return [*made, *row[at:]]


def clean_rows(count, prompted, seed=0):
    """Rows of random lengths, some with [UNK] inside; of a model of prompts with a prompt of one to four tokens."""
    rows = make_rows(count, seed=seed)
    if not prompted:
        return rows
    return [{"input_ids": [CLS, *range(5, 6 + i % 4), SEP, *row["input_ids"][1:]]} for i, row in enumerate(rows)]


@pytest.mark.parametrize("prompted", [False, True])
def test_a_question_is_the_row_with_its_spans_as_blanks_those_before_it_opened(prompted):
    config = make_udm(blank_widths=30, **({"separator_token_ids": [SEP]} if prompted else {})).config
    rows = clean_rows(600, prompted)
    batch = collate(rows, PAD, config.editable)
    x0, attended, editable = batch["input_ids"], batch["attention_mask"].bool(), batch["editable"]
    random = step_random(1 ^ BLANKS_SEED, 2, torch.arange(600))
    spans = draw_spans(config, x0, attended, editable, random)
    again = step_random(1 ^ BLANKS_SEED, 2, torch.arange(600))
    (tokens, mask, blanks, lengths), widths, asked, alone = ask_widths(config, x0, attended, editable, again)
    assert torch.equal(alone, is_all_there_is(config, tokens, mask, blanks))
    counts, wholes, empty = torch.zeros(MOST_BLANKS + 1), 0, 0
    for i, row in enumerate(rows):
        ids, begin = row["input_ids"], row["input_ids"].index(SEP) + 1 if prompted else 1
        own = [(s, w) for s, w, u in zip(*(part[i].tolist() for part in spans[:3]), strict=True) if u]
        assert own == sorted(own) and all(a + w <= b for (a, w), (b, _) in itertools.pairwise(own))
        whole = own == [(begin, len(ids) - 1 - begin)]
        if not whole:
            assert all(begin <= s and s + w <= len(ids) - 1 and UNK not in ids[s : s + w] for s, w in own)
        expected = spans_by_hand(ids, own, int(spans.asked[i]))
        found = tokens[i, mask[i]].tolist()
        assert [-1 if b else t for t, b in zip(found, blanks[i, mask[i]].tolist(), strict=True)] == expected
        assert int(lengths[i]) == len(expected)
        wanted = own[int(spans.asked[i])][1]
        assert bool(asked[i]) and int(widths[i]) == (wanted - ids[begin:-1].count(UNK) if whole else wanted)
        counts[len(own)] += 1
        wholes, empty = wholes + whole, empty + (wanted == 0)
    share = 0.5 if prompted else 0.125
    assert abs(wholes / 600 - share) < 0.08 + 0.05  # and those that are whole by chance
    assert (counts[1:] > 600 * (1 - share) / 3 * 0.75).all() and empty > 60


def test_short_spans_are_frequent_and_every_octave_about_as_likely():
    config = make_udm(blank_widths=39).config
    x0 = torch.full((4000, 32), 7)
    x0[:, 0], x0[:, -1] = CLS, SEP
    everywhere = torch.ones_like(x0, dtype=torch.bool)
    random = step_random(5, 0, torch.arange(4000))
    spans = draw_spans(config, x0, everywhere, config.editable(x0), random)
    alone = (spans.used.sum(1) == 1) & (spans.widths[:, 0] < 30)
    drawn = torch.bincount(spans.widths[alone, 0], minlength=30).double()
    law = torch.tensor([math.log((w + 2) / (w + 1)) for w in range(30)], dtype=torch.float64)
    law, count = law / law.sum(), float(drawn.sum())
    assert ((drawn / count - law).abs() <= 4.5 * (law * (1 - law) / count).sqrt()).all() and count > 900
    starts = spans.starts[alone & (spans.widths[:, 0] == 1), 0]
    assert set(starts.tolist()) == set(range(1, 31))


def test_rows_without_room_are_not_asked_about_and_no_row_grows_past_what_the_model_reads():
    model = make_blank_udm(most=6)
    row = {"input_ids": [CLS, *[5 + i % 12 for i in range(38)], SEP]}  # 40 tokens, all that it reads
    batch = collate([row] * 200, PAD, model.config.editable)
    how = {"row_index": torch.arange(200), "total": 200, "step": 0, "seed": 0}
    drawing = step_random(BLANKS_SEED, 0, torch.arange(200))
    rows, widths, asked, _ = ask_widths(
        model.config, batch["input_ids"], batch["attention_mask"].bool(), batch["editable"], drawing
    )
    assert rows.tokens.shape[1] <= 40 and 20 < int(asked.sum()) < 180
    assert bool((rows.lengths[asked] - 1 + widths[asked] <= 40).all()) and bool((widths[asked] <= 6).all())
    terms = TextObjective(model.config).row_terms(model, batch, **how)
    terms.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.width_head.parameters())


def test_the_text_as_one_blank_is_what_a_prompt_without_an_answer_is_asked_as():
    config = make_udm(blank_widths=9, separator_token_ids=[SEP]).config
    rows = [[CLS, 7, 8, SEP, 9, UNK, 10, SEP], [CLS, SEP, 11, SEP], [CLS, 7, SEP, 12]]
    tokens, attended, _ = marked(rows, blank=-7)
    one = as_one_blank(config, tokens, attended)
    shown = [row[mask].tolist() for row, mask in zip(one.tokens, one.attention_mask, strict=True)]
    assert shown == [[CLS, 7, 8, SEP, MASK, SEP], [CLS, SEP, MASK, SEP], [CLS, 7, SEP, MASK]]
    assert one.blanks.sum(1).tolist() == [1, 1, 1] and bool((one.tokens[one.blanks] == MASK).all())
    assert [part.tolist() for part in text_region(config, tokens, attended)] == [[4, 2, 3], [7, 3, 4]]


def test_opening_a_collapsed_span_gives_masks_in_its_place():
    config = make_udm(blank_widths=9).config
    tokens, attended, _ = marked([[CLS, 7, 8, 9, SEP], [CLS, 10, SEP]], blank=-7)
    starts, widths = torch.tensor([[1, 3], [1, 2]]), torch.tensor([[2, 0], [1, 0]])
    state = collapse(config, tokens, attended, starts, widths, torch.tensor([[True, True], [False, True]]))
    assert state.tokens.tolist() == [[CLS, MASK, MASK, 9, SEP], [CLS, 10, MASK, SEP, PAD]]
    rows = open_first(config, *state[:3], torch.tensor([2, 0]))
    assert rows[0].tolist() == [[CLS, MASK, MASK, MASK, 9, SEP], [CLS, 10, SEP, PAD, PAD, PAD]]
    assert rows[2].tolist() == [[False] * 3 + [True] + [False] * 2, [False] * 6]
    assert rows[1].sum(1).tolist() == [6, 3]


# --- a call ----------------------------------------------------------------------------------------------------------


def test_blanks_are_opened_filled_in_and_nothing_else_changes():
    model = make_blank_udm(most=3, length_counts=COUNTS).double()
    rows = [[CLS, 7, -1, 8, -1, SEP], [CLS, -1, SEP], [CLS, 9, MASK, -1, 10, SEP], [CLS, 11, SEP], [CLS, MASK, SEP]]
    tokens, attended, blanks = marked(rows)
    how = {"seed": 0, "return_dict_in_generate": True}
    out = model.generate(tokens, attention_mask=attended.long(), blanks=blanks, **how)
    assert out.widths.shape == (5, 2) and out.widths[1:, 1].tolist() == [-1] * 4
    assert out.widths[3:].tolist() == [[-1, -1]] * 2 and out.width_nats[3:].tolist() == [0.0, 0.0]
    for i, (row, widths) in enumerate(zip(rows, out.widths.tolist(), strict=True)):
        state = row
        for width in (w for w in widths if w >= 0):
            state = opened(state, width)
        made, changes = out.sequences[i, out.attention_mask[i]].tolist(), out.editable[i, out.attention_mask[i]]
        if i != 3:  # which is continued
            assert [MASK if e else t for t, e in zip(made, changes.tolist(), strict=True)] == state
        assert not set(out.sequences[i, out.editable[i]].tolist()) & set(model.config.special_token_ids)
        alone = model.generate(
            tokens[i : i + 1, attended[i]],
            blanks=blanks[i : i + 1, attended[i]],
            sample_index=torch.tensor([i]),
            **how,
        )
        assert alone.sequences[0].tolist() == made
    assert out.num_calls == 2 + int(out.steps.max())
    again = model.generate(tokens[:1], blanks=blanks[:1], num_return_sequences=60, **how)
    assert torch.equal(again.widths[0], out.widths[0]) and len({tuple(w) for w in again.widths.tolist()}) > 2
    cold = model.generate(tokens[:1], blanks=blanks[:1], num_return_sequences=3, temperature=0.0, **how)
    state = rows[0]
    for width in cold.widths[0].tolist():
        law = law_by_hand(model, state)
        assert width == max(range(4), key=law.__getitem__)
        state = opened(state, width)
    assert bool((cold.widths == cold.widths[0]).all())


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_steps": 3},
        {"speculate": 2},
        {"threshold": 0.5},
        {"order": "confidence"},
        {"revise": 2},
        {"churn": 0.5},
        {"temperature": 0.0},
        {"compile": True},
        {"output_trajectory": True},
        {"begin_suppress_tokens": [8]},
    ],
    ids=str,
)
def test_a_row_whose_blanks_are_all_empty_comes_back_without_them(how):
    model = always(make_blank_udm(), 0)
    tokens, attended, blanks = marked([[CLS, 7, -1, 8, -1, SEP], [CLS, 9, -1, SEP]])
    out = model.generate(tokens, attention_mask=attended.long(), blanks=blanks, seed=0, **how)
    rows = out if torch.is_tensor(out) else out.sequences
    assert rows.tolist() == [[CLS, 7, 8, SEP], [CLS, 9, SEP, PAD]]


def test_an_answer_is_as_long_as_its_prompt_says_unless_the_caller_does():
    model = make_blank_udm(most=5, separator_token_ids=[SEP], length_counts=COUNTS).double()
    prompts = torch.tensor([[CLS, 7, 8, SEP, PAD], [CLS, 9, SEP, 10, SEP]])  # the second answer is begun
    how = {"seed": 1, "return_dict_in_generate": True}
    out = model.generate(prompts, num_return_sequences=400, **how)
    assert int(out.widths.min()) >= 1
    for rows, start in ((slice(0, 400), [CLS, 7, 8, SEP]), (slice(400, 800), [CLS, 9, SEP, 10])):
        law = law_by_hand(model, [*start, -1, SEP])
        law = [p / sum(law[1:]) for p in law[1:]]
        found = torch.bincount(out.widths[rows, 0], minlength=6)[1:] / 400
        for share, p in zip(found.tolist(), law, strict=True):
            assert share == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / 400) + 1e-9)
        assert out.sequences[rows, : len(start)].tolist() == [start] * 400
    for given in ({"length": 4}, {"max_new_tokens": 3}):
        mine = model.generate(prompts, **given, **how)
        assert mine.widths is None and mine.editable.sum(1).tolist() == ([4, 3] if "length" in given else [3, 3])
    stored = UDMGenerationConfig(length=4)
    assert model.generate(prompts, generation_config=stored, seed=1).shape[1] == 9
    nothing = model.generate(num_return_sequences=2, **how)
    assert nothing.sequences[:, :2].tolist() == [[CLS, SEP]] * 2 and nothing.widths.shape == (2, 1)


def test_what_no_blank_can_be_is_refused_in_one_sentence():
    model, prompted = make_blank_udm(), make_blank_udm(separator_token_ids=[SEP])
    tokens, _, blanks = marked([[CLS, 7, -1, SEP]])
    cases = [
        (model, {"blanks": blanks}, r"blanks is given without input_ids"),
        (model, {"input_ids": tokens, "blanks": blanks.long()}, r"a bool tensor of the shape \(1, 4\).*got .*int64"),
        (model, {"input_ids": tokens, "blanks": blanks[:, :3]}, r"of the shape \(1, 4\) of input_ids, got \(1, 3\)"),
        (model, {"input_ids": tokens, "blanks": [2]}, "blanks must be a bool tensor .* got list"),
        (model, {"input_ids": tokens, "blanks": ~blanks}, r"must mark \[MASK\] tokens, id 4, and row 0 .* has token 2"),
        (
            model,
            {"input_ids": tokens, "blanks": blanks, "length": 5},
            "widths the model draws: length=5 does not apply",
        ),
        (model, {"input_ids": tokens, "blanks": blanks, "max_new_tokens": 5}, "max_new_tokens=5 does not apply"),
        (make_udm(), {"input_ids": tokens, "blanks": blanks}, "blank_widths of this one is None: train it with `udm"),
        (prompted, {"input_ids": tokens, "blanks": blanks}, "the prompt of row 0 of input_ids holds a blank"),
        (prompted, {"input_ids": torch.full((1, 39), 7)}, "make a row of 42 tokens, and the model reads at most 40"),
    ]
    for wrong, how, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            wrong.generate(**how)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="blanks need a width head"):
        make_udm()(input_ids=tokens, blanks=blanks)
    model.width_head.head.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the logits of the network are not finite"):
        model.generate(tokens, blanks=blanks)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"process": "substitute", "blank_widths": 3}, "needs process 'mask', .* this model has process 'substitute'"),
        ({"blank_widths": 0}, "blank_widths must lie in 1 to 40, the longest row that the model reads, got 0"),
        ({"blank_widths": 41}, "blank_widths must lie in 1 to 40, the longest row that the model reads, got 41"),
    ],
)
def test_a_width_head_that_no_model_can_have_is_refused(fields, error):
    with pytest.raises(ValueError, match=error):
        make_udm(**fields)


def test_a_model_with_a_width_head_is_saved_and_loaded_and_another_process_drops_it(tmp_path):
    model = make_blank_udm(most=5)
    model.save_pretrained(tmp_path)
    again = UDMForMaskedGeneration.from_pretrained(tmp_path)
    assert_equal_weights(dict(model.named_parameters()), dict(again.named_parameters()))
    other = UDMForMaskedGeneration.from_pretrained(tmp_path, process="substitute")
    assert other.width_head is None and other.config.blank_widths is None
    make_udm().save_pretrained(tmp_path / "plain")
    new = UDMForMaskedGeneration.from_pretrained(tmp_path / "plain", blank_widths=4)
    assert not any(bool(p.any()) for p in new.width_head.parameters())  # as a new one is: every width as likely
    tokens, attended, blanks = marked([[CLS, 7, -1, SEP]])
    law = width_law(read_widths(new, tokens, attended, blanks), torch.tensor([False]), attended.sum(1), 40)
    torch.testing.assert_close(law.exp(), torch.full((1, 5), 0.2, dtype=torch.float64))
    assert torch.equal(new(tokens, blanks=blanks).logits, make_udm()(tokens).logits)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_the_loss_on_an_accelerator_is_that_of_the_cpu_and_waits_only_for_constants(time_conditioning):
    model = make_blank_udm(most=24, separator_token_ids=[SEP], time_conditioning=time_conditioning)
    objective = TextObjective(model.config)
    batch, index = objective.collate(clean_rows(12, True)), torch.arange(12)
    how = {"row_index": index, "total": 12, "step": 4, "seed": 1}
    expected = objective.row_terms(model, batch, **how).detach()
    with SimulatedDevice() as device:
        there = moved(device, model)
        inputs = {name: device.move(x) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        objective.row_terms(there, inputs, **how)
        device.reset()
        found = objective.row_terms(there, inputs, **how).detach()
        assert all("sent" in kind or where.startswith("udm_text/modeling_udm.py:") for kind, where in device.waits)
        assert sum(count for (kind, _), count in device.waits.items() if "sent" not in kind) == 1  # as without blanks
    torch.testing.assert_close(values(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "nomic_bert"])
@pytest.mark.parametrize("how", [{}, {"loss_weighting": "sqrt", "time_law": "bell"}, {"loss_chunk": 7}], ids=str)
def test_the_nats_of_one_width_are_added_to_those_of_a_row(family, how):
    fields = {"separator_token_ids": [SEP], "prompt_dropout": 0.3}
    model = make_blank_udm(most=30, family=family, **fields).double()
    plain = make_udm(family=family, **fields).double()
    batch = collate(clean_rows(24, True), PAD, model.config.editable)
    call = {"row_index": torch.arange(24), "total": 24, "step": 3, "seed": 4}
    with torch.no_grad():
        without = TextObjective(plain.config, **how).row_terms(plain, batch, **call)
        terms = TextObjective(model.config, **how).row_terms(model, batch, **call)
        parts = []
        for part in (slice(0, 5), slice(5, 24)):
            own = {name: value[part] for name, value in batch.items()}
            rows = {**call, "row_index": call["row_index"][part]}
            parts.append(TextObjective(model.config, **how).row_terms(model, own, **rows))
    torch.testing.assert_close(torch.cat(parts), terms, rtol=1e-6, atol=1e-6)
    assert not TextObjective(model.config, **how).loss_is_bound

    # prompts that the row's own draw hides are hidden here, too
    shown = drop_prompts(
        batch["input_ids"],
        batch["editable"],
        model.config.forbidden_tokens(),
        step_random(4 ^ DROP_SEED, 3, torch.arange(24)),
        0.3,
        MASK,
    )
    drawing = step_random(4 ^ BLANKS_SEED, 3, torch.arange(24))
    rows, widths, asked, alone = ask_widths(
        model.config, shown, batch["attention_mask"].bool(), batch["editable"], drawing
    )
    with torch.no_grad():
        law = width_law(read_widths(model, *rows[:3]), alone, rows.lengths, 40)
    nats = -law.gather(1, widths[:, None])[:, 0]
    assert bool(asked.all()) and bool((nats > 0).all())
    turn = (torch.arange(24) + 3) % 4 == 0  # every fourth row of the third step, counted fourfold
    torch.testing.assert_close((terms - without).double(), 4 * nats * turn, rtol=1e-5, atol=1e-4)
    turns = [i for step in range(4) for i in asked_rows(list(range(24)), step)]
    assert sorted(turns) == list(range(24))


def blank_trainer(output, **how):
    model = make_udm(scale=UNTRAINED, blank_widths=24, separator_token_ids=[SEP], length_counts=COUNTS)
    defaults = {"max_steps": 8, "ema_decay": 0.9}
    return make_trainer(output, model=model, rows=clean_rows(90, True), **{**defaults, **how})


def test_a_run_with_blanks_is_the_same_resumed_and_however_its_steps_are_split(tmp_path):
    whole = blank_trainer(tmp_path / "a", save_strategy="steps", save_steps=4)
    whole.train()
    resumed = blank_trainer(tmp_path / "a")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert_equal_weights(weights(whole), weights(resumed))
    assert_equal_weights(whole.average.average, resumed.average.average)
    split = blank_trainer(tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    split.train()
    assert_close_weights(weights(split), weights(whole), atol=1e-5)
    torch.testing.assert_close(history(split, "loss"), history(whole, "loss"), rtol=0, atol=1e-5)
    assert bool(whole.model.width_head.blank_embedding.any()) and bool(whole.model.width_head.head.weight.any())
    rows = clean_rows(20, True, seed=1)
    with whole.averaged_weights():
        report = evaluate_bound(whole.model, rows, draws=2)
    assert whole.evaluate(rows)["eval_length_nats_per_token"] == pytest.approx(report.length_nats_per_token)


def test_a_compiled_network_has_the_same_losses(tmp_path):
    torch._dynamo.reset()
    plain = blank_trainer(tmp_path, max_steps=6)
    plain.train()
    compiled = blank_trainer(tmp_path, max_steps=6, torch_compile=True, torch_compile_backend="eager")
    compiled.train()
    torch.testing.assert_close(history(compiled, "loss"), history(plain, "loss"), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_a_model_learns_that_its_prompt_says_how_long_the_answer_is(tmp_path, monkeypatch):
    """The prompt is one of four words, and the answer has as many tokens as the number of the word."""
    monkeypatch.setattr("udm_text.training.blanks.ASKED_EVERY", 1)  # each row, for fewer steps
    rows = [{"input_ids": [CLS, FIRST + n, SEP, *[12] * (n + 1), SEP]} for n in range(4)] * 12
    model = make_udm(scale=UNTRAINED, blank_widths=8, separator_token_ids=[SEP], length_counts=[0, 12, 12, 12, 12])
    trainer = make_trainer(
        tmp_path,
        model=model,
        rows=rows,
        max_steps=120,
        learning_rate=1e-2,
        per_device_train_batch_size=48,
        logging_steps=1000,
        lr_scheduler_type="cosine",
    )
    trainer.train()
    assert float(length_nats(model.eval(), rows[:4]).max()) < 0.5 < math.log(4)
    prompts = torch.tensor([[CLS, FIRST + n, SEP] for n in range(4)])
    out = model.generate(prompts, seed=0, num_return_sequences=25, return_dict_in_generate=True)
    right = out.editable.sum(1) == torch.arange(4).repeat_interleave(25) + 1
    assert right.double().mean() > 0.85


def test_an_adapter_trains_the_width_head_whole_and_muon_leaves_it_to_adam(tmp_path):
    model = make_blank_udm(most=24, separator_token_ids=[SEP])
    assert not [name for name in muon_matrices(model) if "width_head" in name]
    before = {name: p.detach().clone() for name, p in model.width_head.named_parameters()}
    adapted = add_adapter(model, 2)
    assert not [name for name, _ in adapted.named_parameters() if "width_head" in name and "lora_" in name]
    trainer = make_trainer(tmp_path, model=adapted, rows=clean_rows(90, True), max_steps=3)
    trainer.train()
    metrics = trainer.evaluate(clean_rows(10, True))
    merged = merge_adapter(trainer.model)
    assert type(merged) is UDMForMaskedGeneration
    assert all(not torch.equal(p, before[name]) for name, p in merged.width_head.named_parameters())
    assert evaluate_bound(merged, clean_rows(10, True), draws=2).length_nats_per_token == pytest.approx(
        metrics["eval_length_nats_per_token"], rel=1e-5
    )


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "roberta"])
def pipe(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_masked_lm(folder / "plain", request.param)
    UDMForMaskedGeneration.from_pretrained(folder / "plain", blank_widths=5, length_counts=COUNTS).save_pretrained(
        folder / "udm"
    )
    AutoTokenizer.from_pretrained(folder / "plain").save_pretrained(folder / "udm")
    return pipeline("udm-generation", model=str(folder / "udm"))


def set_width(pipe, width):
    always(pipe.model, width)
    return pipe


def test_a_blank_in_a_text_is_any_number_of_tokens_and_the_rest_stays_as_it_was_typed(pipe):
    text = "The  cat <blank> on the, mat"
    for width in range(5):
        [record] = set_width(pipe, width)(text, seed=0, return_dict_in_generate=True, return_tensors=True)
        assert record["widths"] == [width] and sum(record["generated"]) == record["num_tokens"] == width
        made = record["generated_text"]
        assert made.startswith("The  cat") and made.endswith(" on the, mat") and "blank" not in made
        assert pipe.tokenizer.mask_token not in made
    own = pipe.tokenizer("cat <mask>").tokens().count("\u0120")  # a space that is a token of its own stays
    assert set_width(pipe, 0)(text)[0]["generated_text"] == f"The  cat{' ' * own} on the, mat"
    two = set_width(pipe, 1)("<blank> cat [MASK] on <blank>", seed=0, return_dict_in_generate=True)[0]
    assert two["widths"] == [1, 1] and two["num_tokens"] == 3
    same = set_width(pipe, 2)("the cat ____ mat", blank_token="____", seed=0)[0]["generated_text"]
    assert same == pipe("the cat <blank> mat", seed=0)[0]["generated_text"]
    mixed = set_width(pipe, 2)(["the cat <blank>", "the [MASK] mat", text], seed=0, batch_size=3)
    assert [pipe(one, seed=0) for one in ("the cat <blank>", "the [MASK] mat", text)] == mixed
    assert pipe("the cat", seed=0, max_new_tokens=2)[0]["generated_text"].startswith("the cat")


def test_a_streamer_and_a_trajectory_see_a_blank_as_wide_as_it_is(pipe):
    seen = []

    class Streamer:
        def put_typed(self, typed):
            seen.append([text.text for text in typed])

        def put(self, value): ...

        def end(self): ...

    mask = pipe.tokenizer.mask_token
    how = {"seed": 0, "num_return_sequences": 2}
    set_width(pipe, 3)("the cat <blank> mat", streamer=Streamer(), **how)
    assert [len(texts) for texts in seen] == [1, 2] and all(text.count(mask) == 3 for text in seen[1])
    records = pipe("the cat <blank> mat", output_trajectory=True, **how)
    for record in records:
        assert [state.count(mask) for state in record["trajectory"]] == [3, 2, 1, 0]
        assert record["trajectory"][-1] == record["generated_text"]


def test_a_blank_that_a_text_cannot_hold_is_refused_and_without_a_blank_token_it_is_text(pipe, tmp_path):
    for wrong in ("", "  ", 3):
        with pytest.raises(ValueError, match="blank_token must be a string that stands for a blank, or None"):
            pipe("a", blank_token=wrong)
    with pytest.raises(ValueError, match="the input holds blanks, whose widths the model draws: length=5 does not"):
        pipe("the cat <blank>", length=5)
    set_width(pipe, 1)
    read = pipe("the cat <blank>", blank_token=None, max_new_tokens=1, seed=0)[0]["generated_text"]
    assert read.startswith("the cat <blank>")
    plain = save_masked_lm(tmp_path / "plain", "bert")
    UDMForMaskedGeneration.from_pretrained(plain, length_counts=COUNTS).save_pretrained(tmp_path / "udm")
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "udm")
    without = pipeline("udm-generation", model=str(tmp_path / "udm"))
    with pytest.raises(ValueError, match="the text holds <blank>, and this model has no width head .* `udm train"):
        without("the cat <blank>")
    assert without("the <blank>", blank_token=None, max_new_tokens=1)[0]["generated_text"].startswith("the <blank>")


def test_a_typed_text_with_wide_blanks_has_a_place_for_each_of_their_tokens():
    typed = Typed("a [M] b [M] c", [2, 7, 4, 8, 4, 9, 3], [(0, 0), (0, 1), (2, 5), (6, 7), (8, 11), (12, 13), (0, 0)])
    same = open_typed(typed, 4, [2, 4], [1, 1])
    assert same == typed
    wide = open_typed(typed, 4, [2, 4], [2, 3])
    assert wide.text == "a [M][M] b [M][M][M] c" and wide.source == [2, 7, 4, 4, 8, 4, 4, 4, 9, 3]
    said = [wide.text[a:b] for a, b in wide.spans]
    assert said == ["", "a", "[M]", "[M]", "b", "[M]", "[M]", "[M]", "c", ""]
    none = open_typed(typed, 4, [2, 4], [0, 0])
    assert none.text == "a b c" and none.source == [2, 7, 8, 9, 3]
    assert [none.text[a:b] for a, b in none.spans] == ["", "a", "b", "c", ""]


def test_the_command_trains_writes_with_and_scores_a_model_with_blanks(tmp_path):
    words = ["ab", "abc", "abcd", "ba", "bad", "dab", "cab", "cabd", "bc", "cd", "dc", "da", "ad", "db", "bd", "ac"]
    data = tmp_path / "reverse.csv"
    data.write_text("q,a\n" + "".join(f"{word},{word[::-1]}\n" for word in words * 4))
    few = "--model tiny --max_steps 3 --per_device_train_batch_size 8 --use_cpu --report_to none --plot false"
    base = ["--data", str(data), "--tokenizer", "char", *few.split()]
    pairs = ["--prompt_column", "q", "--text_column", "a"]

    run = ["--output", str(tmp_path / "run"), *base, *pairs]
    report = train_text(*parse([*run, "--blanks"]))
    config = UDMConfig.from_pretrained(tmp_path / "run")
    assert config.blank_widths == 8 and report["validation"]["length_included"]
    model = str(tmp_path / "run")
    said = udm_here("generate", model, "abc", "cab[SEP]b<blank>", "--seed", 0, "--score", "--json").output
    assert '"widths"' in said and '"nats"' in said
    assert udm_here("generate", model, "abc[SEP]??", "--blank-token", "??", "--seed", 0).output
    assert f"NELBO {report['validation']['nelbo_nats_per_token']:.4f} " in udm_here("evaluate", model).output

    # what is trained on keeps its head, and is told where it is given another
    more = ["--output", str(tmp_path / "more"), *base, *pairs, "--model", model]
    train_text(*parse(more))
    assert UDMConfig.from_pretrained(tmp_path / "more").blank_widths == 8
    refused = [
        ([*more, "--blanks", "6"], "--blanks is 6, and the width head of --model knows widths up to 8"),
        ([*run, "--blanks", "-1"], "--blanks must be at least 1, or 0 for twice the longest text, got -1"),
        ([*run, "--blanks", "900"], "blank_widths must lie in 1 to 6., the longest row that the model reads, got 900"),
        ([*run, "--blanks", "--process", "substitute"], "needs process 'mask', since blanks are opened into"),
        ([*run, "--blanks", "--objective", "ar"], "--objective ar has no blanks, got 0"),
        ([*run, "--blanks", "--pack_rows", "40"], "pack_rows goes with models without a width head"),
    ]
    for i, (options, message) in enumerate(refused):
        with pytest.raises(ValueError, match=message):
            train_text(*parse([*options, "--output", str(tmp_path / f"refused{i}")]))

    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(words * 4))
    train_text(*parse(["--output", str(tmp_path / "lines"), "--data", str(lines), *base[2:], "--blanks", "4"]))
    assert UDMConfig.from_pretrained(tmp_path / "lines").blank_widths == 4
    assert udm_here("generate", tmp_path / "lines", "a<blank>d", "--seed", 0).output.startswith("a")
