"""Chats: messages as rows whose answers are learnt, as inputs of the pipeline, and in the terminal."""

import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

from tests.models import make_tokenizer, save_decoder
from udm_text import UDMConfig
from udm_text.chats import TEMPLATE, answers_of, check_chat, check_template, prompt_of
from udm_text.cli.chat import converse, fitting
from udm_text.cli.scoring import reading, rows_to_score
from udm_text.cli.train_text import train_text
from udm_text.corpus import hold_out, load_corpus, load_tokenizer, make_rows, open_corpus, train_tokenizer
from udm_text.corpus.rows import collate
from udm_text.decoders import decoder_tokenizer
from udm_text.framing import tokenizer_fields, tokenizer_separator
from udm_text.training.arguments import parse


def said(*contents, system=None):
    """A chat of these messages, the user's first."""
    roles = ("user", "assistant")
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CHATS = [
    said("sun red", "red sun"),
    said("old cat", "cat old", "sea", "sea", system="be brief"),
    *(
        said(f"sky {word}", f"{word} sky", word, word)
        for word in "tea key dog cow egg ant bee elk fox hen owl pig".split()
    ),
    said("nobody answers"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"id": i, "messages": chat}) + "\n" for i, chat in enumerate(CHATS)))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    words = [message["content"] for chat in CHATS for message in chat]
    return train_tokenizer("wordpiece", words, 200, cls_sep=True, separator=True, chat=True)


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A model of chats after two steps, by the command's own story."""
    out = tmp_path_factory.mktemp("run") / "model"
    options = "--model tiny --max_steps 2 --per_device_train_batch_size 4 --use_cpu --report_to none --plot false"
    train_text(*parse([*options.split(), "--data", str(file), "--messages_column", "messages", "--output", str(out)]))
    return out


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline("udm-generation", model=str(run))


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], r"a chat must be a list of messages.*got \[\]"),
        ("hello", "a chat must be a list of messages.*got 'hello'"),
        ([{"role": "user"}], "message 1 must have a 'role' and a 'content', got"),
        (said("a", "b", "c")[1:], "message 1 must be of the role 'user' or system, got 'assistant'"),
        ([*said("a"), *said("b")], "message 2 must be of the role 'assistant', got 'user'"),
        ([*said("a"), {"role": "tool", "content": "b"}], "message 2 must be of the role 'assistant', got 'tool'"),
        ([*said("a"), *said("b", system="late")], "message 2 must be of the role 'assistant', got 'system'"),
        (said("a", " "), "message 2, of the assistant, must be a text with something in it, got ' '"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1, of the user, must be a text"),
        (said("a", "b"), "the last message of a chat must be of the role 'user', got 'assistant'"),
    ],
)
def test_what_is_no_chat_is_said_by_its_message(messages, why):
    with pytest.raises(ValueError, match=why):
        check_chat(messages)


def test_a_row_is_an_answer_behind_all_that_was_said_and_the_answer_alone_is_learnt(file, tokenizer):
    texts = load_corpus(str(file), messages_column="messages", tokenizer=tokenizer)
    assert texts.blank == {"train": 1}  # the chat that nobody answered
    expected = [
        (chat[:i], chat[i]["content"]) for chat in CHATS for i in range(len(chat)) if chat[i]["role"] == "assistant"
    ]
    assert [(before, answer) for chat in CHATS for before, answer in answers_of(chat)] == expected
    rows, _ = make_rows(texts["train"], tokenizer)
    config = UDMConfig(separator_token_ids=tokenizer_separator(tokenizer), **tokenizer_fields(tokenizer))
    marks = {"system": "[SYSTEM]", "user": "[USER]", "assistant": "[ASSISTANT]"}
    for row, (before, answer) in zip(rows, expected, strict=True):
        tokens = ["[CLS]"]
        for message in before:
            tokens += [marks[message["role"]], *tokenizer.tokenize(message["content"])]
        learnt = tokenizer.tokenize(answer)
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [*tokens, "[SEP]", *learnt, "[SEP]"]
        batch = collate([row], config.pad_token_id, config.editable)
        changing = batch["input_ids"][batch["editable"]].tolist()
        assert tokenizer.convert_ids_to_tokens(changing) == learnt and row["length"] == len(learnt)


@pytest.mark.parametrize("kind", ["wordpiece", "char", "bpe"])
def test_a_message_is_the_same_tokens_wherever_in_a_chat_it_stands(kind):
    tokenizer = train_tokenizer(kind, ["red sun", "old sea"], 300, separator=True, chat=True)
    ids = tokenizer(prompt_of(tokenizer, said("red sun", "old sea", "red sun")), add_special_tokens=False)["input_ids"]
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("red sun", "old sea"))
    user, assistant = tokenizer.convert_tokens_to_ids(["[USER]", "[ASSISTANT]"])
    assert ids == [user, *one, assistant, *two, user, *one]
    assert {user, assistant} <= set(tokenizer_fields(tokenizer)["special_token_ids"])  # and so never generated


def test_every_kind_of_source_gives_the_same_rows(file, tokenizer, tmp_path):
    wanted = load_corpus(str(file), messages_column="messages", tokenizer=tokenizer)["train"].to_list()
    pq.write_table(pa.table({"messages": CHATS}), tmp_path / "a.parquet")
    lines = "".join('"' + json.dumps(chat).replace('"', '""') + '"\n' for chat in CHATS)
    (tmp_path / "b.csv").write_text(f"messages\n{lines}")
    (tmp_path / "c.json").write_text(json.dumps([{"messages": chat} for chat in CHATS]))
    Dataset.from_dict({"messages": CHATS}).save_to_disk(tmp_path / "d")
    for name in ("a.parquet", "b.csv", "c.json", "d"):
        found = load_corpus(str(tmp_path / name), messages_column="messages", tokenizer=tokenizer)
        assert found["train"].to_list() == wanted and found.blank == {"train": 1}, name
    stream = open_corpus(str(file), messages_column="messages", tokenizer=tokenizer)["train"]
    assert list(stream) == wanted and stream.blank == 1


def test_a_chat_that_is_none_is_named_by_file_and_line(tmp_path, tokenizer):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"m": said("a", "b")}) + "\n" + json.dumps({"m": said("a", "")}) + "\n")
    with pytest.raises(
        ValueError, match=r"bad.jsonl, line 2: column 'm' holds no chat: message 2, of the assistant, m"
    ):
        load_corpus(str(path), messages_column="m", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no column 'messages'; it has 'm'"):
        load_corpus(str(path), messages_column="messages", tokenizer=tokenizer)


def test_a_chat_is_held_out_as_a_whole(tokenizer, tmp_path):
    chats = [said(f"q{i}", "a", "more", f"b{i}") for i in range(60)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    splits = hold_out(load_corpus(str(path), messages_column="messages", tokenizer=tokenizer), 0.2)
    sides = [set(splits[side]["opening"]) for side in ("train", "validation")]
    assert (
        all(sides)
        and not sides[0] & sides[1]
        and all(len(splits[s]) == 2 * len(side) for s, side in zip(splits, sides, strict=True))
    )
    same = [said("hello", f"a{i}") for i in range(60)]  # one opening: then all that is said decides
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in same))
    splits = hold_out(load_corpus(str(path), messages_column="messages", tokenizer=tokenizer), 0.2)
    assert len(splits["validation"]) > 1 and "chats are held out by all that is said" in splits.notes[0]


def test_options_of_chats_that_do_not_go_together_are_refused(file, tmp_path):
    base = ["--data", str(file), "--output", str(tmp_path / "run"), "--model", "tiny"]
    for more, why in (
        (["--chat_template", "x"], "--chat_template x writes messages: give --messages_column"),
        (["--messages_column", "m", "--prompt_column", "q"], "leave --prompt_column q away"),
        (["--messages_column", "messages", "--rows", "packed", "--row_length", "9"], "prompts and answers stay apart"),
        (["--messages_column", "messages", "--chat_template", "none.jinja"], "none.jinja: there is no such file"),
    ):
        with pytest.raises((ValueError, OSError), match=why):
            train_text(*parse([*base, *more]))


def test_a_template_that_cannot_be_used_is_refused(tmp_path):
    bert = make_tokenizer("bert")
    with pytest.raises(ValueError, match="has no chat template.*--chat_template FILE"):
        check_template(bert)
    for template, why in (
        (
            "{{ messages[0]['content'] }}[SEP]{{ messages[1:] }}",
            r"writes \[SEP\], which stands between prompt and answ",
        ),
        ("{{ messages[-1]['content'] }}", "leaves messages out: of 0, 1, 2 it writes '2'"),
        ("{{ raise_exception('no such role') }}", "cannot write a chat of user, assistant, user: no such role"),
        ("{% for x in %}", "cannot write a chat"),
    ):
        bert.chat_template = template
        with pytest.raises(ValueError, match=why):
            check_template(bert)
    bert.chat_template = TEMPLATE
    check_template(bert)
    bert.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == TEMPLATE


def test_what_the_tokenizer_puts_in_front_is_there_once(tmp_path):
    plain = AutoTokenizer.from_pretrained(save_decoder(tmp_path, "llama"))
    plain.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    tokenizer = decoder_tokenizer(plain)
    check_template(tokenizer)
    ids = tokenizer(prompt_of(tokenizer, said("the cat")))["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 == len(tokenizer_fields(tokenizer)["prefix_token_ids"])


def test_the_pipeline_gives_a_chat_back_with_an_answer_behind(pipe):
    chats = [said("sun red"), said("old cat", "cat old", "sea", system="be brief")]
    [one], [two] = (pipe(chat, seed=0)[0]["generated_text"][-1:] for chat in chats)
    assert set(one) == {"role", "content"} and one["role"] == two["role"] == "assistant"
    both = pipe(chats, seed=0, batch_size=2)
    assert [record["generated_text"] for [record] in both] == [[*chats[0], one], [*chats[1], two]]
    assert pipe(chats[0], seed=0, return_full_text=False)[0]["generated_text"].strip() == one["content"].strip()
    # the same as the prompt that the template writes
    assert pipe("[USER] sun red", seed=0)[0]["generated_text"] == one["content"]
    several = pipe(chats[0], seed=0, num_return_sequences=3, output_trajectory=True)
    assert (
        len(several) == 3 and several[0]["generated_text"][-1] == one and several[0]["trajectory"][-1] == one["content"]
    )


def test_the_pipeline_refuses_what_is_no_chat(pipe):
    for wrong, why in (
        (said("a", "b"), "the last message of a chat must be of the role 'user', got 'assistant'"),
        ([{"role": "user"}], "message 1 must have a 'role' and a 'content'"),
        ([[]], "reads strings and chats, lists of messages with a 'role' and a 'content', got list"),
        ([["a"]], "reads strings and chats, lists of messages"),
        (said("sun [USER] red"), r"message 1 of the chat holds \[USER\], a special token of this model"),
        (said("sun [MASK]"), r"message 1 of the chat holds \[MASK\]"),
    ):
        with pytest.raises(ValueError, match=why):
            pipe(wrong)


def test_a_run_on_chats_is_scored_as_it_was_trained(run, file):
    report = json.loads((run / "report.json").read_text())
    tokenizer, config = load_tokenizer(str(run)), UDMConfig.from_pretrained(run)
    assert tokenizer.chat_template == TEMPLATE and config.separator_token_ids == [tokenizer.sep_token_id]
    rows, _, split = rows_to_score(config, reading(report, str(run), None, {}), tokenizer, None)
    assert split == "validation" and len(rows) == report["validation"]["rows"]
    rows, texts, _ = rows_to_score(config, reading(report, str(run), str(file), {}), tokenizer, None, whole=True)
    assert 20 < len(rows) <= len(texts) == 27  # one is of tokens that training never saw
    other = reading(report, str(run), str(file), {"prompt_column": "q"})
    assert (other.prompt_column, other.messages_column) == ("q", None)


# --- the terminal ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_of_a_pipe_are_answered_one_by_one(pipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("sun red\n\nold cat\n/reset\nold cat\n"))
    converse(pipe, None, 0.0, seed=0)
    first = pipe(said("sun red"), seed=0)[0]["generated_text"]
    second = pipe([*first, *said("old cat")], seed=0)[0]["generated_text"][-1]
    anew = pipe(said("old cat"), seed=0)[0]["generated_text"][-1]
    assert capsys.readouterr().out.splitlines() == [m["content"] for m in (first[-1], second, anew)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("sun red\nold [SEP]\n"))
    with pytest.raises(ValueError, match=r"standard input, message 2: message 3 of the chat holds \[SEP\]"):
        converse(pipe, None, 0.0, seed=0)


def test_a_terminal_shows_answers_as_they_appear_and_outlives_a_wrong_line(pipe, monkeypatch, capsys):
    out = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal("old [SEP]\nsun red\n/exit\nnever read\n"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    converse(pipe, "be brief", 0.0, seed=0)
    answer = pipe(said("sun red", system="be brief"), seed=0)[0]["generated_text"][-1]["content"]
    shown = out.getvalue()
    assert "░" in shown and answer in shown and "[USER]" not in shown and "/reset forgets" in shown
    assert "message 2 of the chat holds [SEP]" in capsys.readouterr().err


def test_the_oldest_messages_go_where_a_chat_is_too_long(pipe):
    chat = said(*["sun red"] * 41, system="be brief")
    kept = fitting(pipe, chat)
    assert kept[0] == chat[0] and kept[-1] == chat[-1] and 2 < len(kept) < len(chat)
    check_chat(kept)
    longest = len(pipe.model.config.length_counts) - 1
    ids = [
        len(pipe.tokenizer(prompt_of(pipe.tokenizer, some))["input_ids"])
        for some in (kept, [*kept[:1], *chat[-len(kept) - 1 :]])
    ]
    assert ids[0] + longest <= pipe.model.config.max_row_length < ids[1] + longest
    assert pipe(kept, seed=0)[0]["generated_text"][-1]["content"]
