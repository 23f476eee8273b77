"""A stream gives the rows of the corpus in an order of its own, and goes on after any row as if it never stopped."""

import os
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset, DatasetDict

from tests.helpers import assert_close_weights, assert_equal_weights, python, weights_in, write_lines
from udm_text import UDMForMaskedGeneration
from udm_text.cli.train_text import parse, read_texts, rows_of_split, train_text
from udm_text.corpus import (
    CorpusError,
    RowCutter,
    collate,
    hold_out,
    load_corpus,
    load_tokenizer,
    make_rows,
    open_corpus,
    train_tokenizer,
)
from udm_text.corpus.streaming import RowStream, StreamCollator, TrainingTexts, sample_corpus, shuffled
from udm_text.evaluation import evaluate_bound
from udm_text.randomness import RowRandom
from udm_text.training.arguments import DataArguments

WORDS = "latin greek small capital letter with above below dot ring tilde sign".split()
TEXTS = [f"{WORDS[i % 12]} {i}" for i in range(97)]
RECORDS = [{"text": text} for text in TEXTS]
KINDS = {"line": None, "fixed": 8, "packed": 11}


def stream(rows="line", **how):
    tokenizer = train_tokenizer("char", TEXTS)
    cutter = RowCutter(tokenizer, rows, KINDS[rows])
    return RowStream(RECORDS, cutter, **{"seed": 3, "buffer": 20, **how})


# --- the order -------------------------------------------------------------------------------------------------------


def test_a_shuffle_loses_nothing_holds_a_buffer_and_depends_on_its_source_alone():
    for size in (1, 7, 100, 1000):
        taken = []
        order = list(shuffled((taken.append(i) or i for i in range(300)), size, RowRandom(0, torch.tensor([1]))))
        assert sorted(order) == list(range(300))
        assert order == list(shuffled(range(300), size, RowRandom(0, torch.tensor([1]))))
        assert all(item <= place + size for place, item in enumerate(order))
        assert (order == list(range(300))) == (size == 1)
    other = list(shuffled(range(300), 100, RowRandom(0, torch.tensor([2]))))
    assert other != list(shuffled(range(300), 100, RowRandom(0, torch.tensor([1]))))


def test_a_full_buffer_gives_every_text_every_place_alike():
    """Of 3 texts all 6 orders, each as often; the first 2 of 4 through a buffer of 2 never start with the fourth."""
    orders = [tuple(shuffled(range(3), 5, RowRandom(0, torch.tensor([i])))) for i in range(1200)]
    assert (
        all(abs(orders.count(order) - 200) < 4 * (200 * 5 / 6) ** 0.5 for order in set(orders))
        and len(set(orders)) == 6
    )


@pytest.mark.parametrize("rows", KINDS)
@pytest.mark.parametrize("start", [0, 1, 40, 230])
def test_a_stream_that_begins_later_gives_the_same_rows_from_there_on(rows, start):
    whole = list(islice(stream(rows), start + 60))
    assert list(islice(stream(rows, start=start), 60)) == whole[start:]


@pytest.mark.parametrize("rows", KINDS)
def test_an_epoch_of_the_stream_is_the_rows_of_the_corpus(rows):
    texts = Dataset.from_list(RECORDS)
    some = stream(rows)
    expected, counts = make_rows(texts, some.cutter.tokenizer, rows=rows, row_length=KINDS[rows])
    count = len(expected)
    epochs = list(islice(some, 2 * count))
    if rows == "line":
        epochs = some.cutter.lines(epochs)

    def as_set(rows):
        return sorted((tuple(row["input_ids"]), row["length"], row["num_chars"]) for row in rows)

    assert as_set(epochs[:count]) == as_set(epochs[count:]) == as_set(expected)
    assert epochs[:count] != epochs[count:]
    if rows == "fixed":
        assert some.cutter.counts["left_out"] >= counts["left_out"] > 0


@pytest.mark.parametrize("rows", KINDS)
def test_processes_together_see_the_rows_that_one_would_see(rows):
    whole = list(islice(stream(rows), 48))
    shards = [
        iter(IterableDatasetShard(stream(rows), batch_size=4, num_processes=2, process_index=rank)) for rank in range(2)
    ]
    parts = [row for _ in range(6) for shard in shards for row in islice(shard, 4)]
    assert parts == whole


def test_a_batch_of_texts_becomes_the_batch_of_their_rows():
    some = stream()
    how = partial(collate, pad_token_id=0, editable=lambda ids, mask: (ids > 2) & mask.bool())
    texts = [{"text": "latin 5"}, {"text": "☃☃"}, {"text": "dot"}]
    batch = StreamCollator(some.cutter, how)(texts)
    rows, _ = make_rows(Dataset.from_list(texts), some.cutter.tokenizer)
    kept = how(list(rows))
    for name in batch:  # the row of unknown tokens stays, to keep the places of the others, and is scored nowhere
        assert torch.equal(batch[name][[0, 2]], kept[name])
    assert not batch["editable"][1].any()
    words = RowCutter(train_tokenizer("wordpiece", TEXTS), "line")
    assert words.lines([{"text": "\u200b"}, {"text": " "}])[1]["input_ids"] == [words.tokenizer.mask_token_id]


def test_several_workers_are_refused(monkeypatch):
    monkeypatch.setattr("udm_text.corpus.streaming.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ValueError, match="dataloader_num_workers must be 0 or 1 for a stream, got 2"):
        next(iter(stream()))


def test_a_stream_without_rows_says_so():
    empty = RowStream(RECORDS, RowCutter(train_tokenizer("char", TEXTS), "fixed", 99), seed=0)
    with pytest.raises(CorpusError, match="no row is left of the stream: rows='fixed', row_length=99"):
        next(iter(empty))
    with pytest.raises(ValueError, match="stream_buffer must be at least 1, got 0"):
        stream(buffer=0)


# --- what is held out ------------------------------------------------------------------------------------------------


class Records(list):
    where, blank, notes = "records", 0, ()


def test_held_out_texts_are_those_of_the_whole_corpus_and_never_streamed():
    records = Records({"text": f"name {i % 700}"} for i in range(1000))
    sides = hold_out(DatasetDict(train=Dataset.from_list(records)), 0.1)
    for sample in (1000, 300):
        parts, texts = sample_corpus({"train": records}, sample, 0.1)
        held, streamed = set(parts["validation"]["text"]), [record["text"] for record in texts]
        assert held == set(sides["validation"]["text"]) & {record["text"] for record in records[:sample]}
        assert streamed == list(sides["train"]["text"])  # also of what was not read beforehand
    assert list(texts) == list(texts)


def test_packed_texts_are_held_out_at_the_end_of_the_sample():
    parts, texts = sample_corpus({"train": Records(RECORDS)}, 50, 0.1, contiguous=True)
    assert parts["validation"]["text"] == TEXTS[45:50]
    assert [record["text"] for record in texts] == TEXTS[:45] + TEXTS[50:]


def test_given_splits_are_left_alone():
    splits = {"train": Records(RECORDS), "test": Records(RECORDS[:3]), "extra": Records(RECORDS)}
    parts, texts = sample_corpus(splits, 20)
    assert parts["validation"]["text"] == TEXTS[:3] and len(parts["train"]) == 20 and list(texts) == RECORDS
    assert list(sample_corpus({"train": Records(RECORDS)}, 20, 0.0)[0]) == ["train"]
    parts, _ = sample_corpus({"train": Records(RECORDS), "test": Records()}, 20)
    assert parts.held_out == "train" and parts.notes == ["records holds no text, and is left out"]
    with pytest.raises(ValueError, match="stream_sample must be at least 2, got 1"):
        sample_corpus(splits, 1)


def test_prompts_decide_the_side_as_they_do_without_a_stream():
    records = Records({"prompt": f"q{i % 40}", "text": f"a{i}"} for i in range(200))
    sides = hold_out(DatasetDict(train=Dataset.from_list(records)), 0.2)
    parts, texts = sample_corpus({"train": records}, 200, 0.2)
    assert parts["validation"]["text"] == sides["validation"]["text"]
    assert [record["text"] for record in TrainingTexts(texts)] == list(sides["train"]["text"])


def test_few_prompts_that_repeat_hold_out_rows_and_no_class():
    records = Records({"prompt": ("positive", "negative")[i % 2], "text": f"review {i % 700}"} for i in range(1000))
    sides = hold_out(DatasetDict(train=Dataset.from_list(records)), 0.05)
    held = sides["validation"].to_list()
    assert 25 <= len(held) <= 100 and {row["prompt"] for row in held} == {"positive", "negative"}
    kept = sides["train"].to_list()
    assert len(held) + len(kept) == 1000 and not [row for row in held if row in kept]
    assert "by prompt and text together" in sides.notes[0] and "by the 2 different prompts alone" in sides.notes[0]
    parts, texts = sample_corpus({"train": records}, 1000, 0.05)
    assert parts["validation"].to_list() == held and list(texts) == kept and parts.notes == sides.notes
    pair = Dataset.from_list([{"prompt": "q", "text": "a"}, {"prompt": "q", "text": "b"}])
    assert [len(rows) for rows in hold_out(DatasetDict(train=pair)).values()] == [1, 1]
    many = [{"prompt": f"q{i % 400}", "text": f"a{i}"} for i in range(1000)]
    assert hold_out(DatasetDict(train=Dataset.from_list(many)), 0.05).notes == []


# --- sources ---------------------------------------------------------------------------------------------------------


def test_every_source_streams_what_it_loads(tmp_path):
    rows = Dataset.from_dict({"text": [*TEXTS, " "], "other": [None, *TEXTS]})
    rows.to_json(tmp_path / "a.jsonl")
    rows.to_csv(tmp_path / "a.csv")
    rows.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(["", *TEXTS, "  ", ""]))
    for name in ("a.jsonl", "a.csv", "a.txt"):
        subprocess.run(["gzip", "-k", tmp_path / name], check=True)
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "1.txt").write_text("\n".join(TEXTS[:50]))
    os.link(tmp_path / "a.txt.gz", folder / "sub" / "2.txt.gz")
    repository = tmp_path / "repository"
    repository.mkdir()
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: x.jsonl\n---\n"
    (repository / "README.md").write_text(card)
    os.link(tmp_path / "a.jsonl", repository / "x.jsonl")
    rows.save_to_disk(tmp_path / "saved")
    for path in (*sorted(tmp_path.glob("a.*")), folder, repository, tmp_path / "saved"):
        loaded = load_corpus(str(path))
        streams = open_corpus(str(path))
        assert list(streams) == list(loaded) == ["train"], path
        for _ in range(2):  # anew each time
            assert list(streams["train"]) == loaded["train"].to_list(), path
        assert len(loaded["train"]) == 97 + 50 * (path == folder), path
    given = next(iter(open_corpus(str(tmp_path / "a.jsonl.gz"), prompt_column="other")["train"]))
    assert given == {"text": TEXTS[0], "prompt": ""}
    with pytest.raises(CorpusError, match="no column 'body'; it has 'text', 'other'"):
        list(open_corpus(str(tmp_path / "a.jsonl"), "body")["train"])
    with pytest.raises(CorpusError, match="there is no file or folder ./missing.txt.gz"):
        open_corpus("./missing.txt.gz")


def test_a_broken_gzip_file_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    subprocess.run(["gzip", path], check=True)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    for read in (load_corpus, lambda data: list(open_corpus(data)["train"])):
        with pytest.raises(CorpusError, match=r"a\.txt\.gz is not a whole gzip file"):
            read(str(packed))
    packed.write_bytes(b"plain text\n")
    with pytest.raises(CorpusError, match=r"a\.txt\.gz is not a whole gzip file"):
        load_corpus(str(packed))


# --- runs ------------------------------------------------------------------------------------------------------------

FAST = "--model tiny --vocab_size 150 --use_cpu --report_to none --plot false --streaming true --row_length 6 "
FAST += "--stream_buffer 30 --lr_scheduler_type constant --warmup_steps 0 --dropout 0.1 --seed 3 --rows"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_lines(tmp_path_factory.mktemp("toy") / "toy.txt", WORDS, lines=60, longest=8)


def arguments(toy, output, rows, *options):
    return ["--data", str(toy), "--output", str(output), *FAST.split(), rows, *map(str, options)]


def train(*how):
    return train_text(*parse(arguments(*how)))


@pytest.mark.parametrize("rows", ["line", "packed"])
def test_a_streamed_run_that_is_resumed_equals_one_that_was_not_bit_for_bit(toy, tmp_path, rows):
    batch = ("--per_device_train_batch_size", 16)
    report = train(toy, tmp_path / "whole", rows, *batch, "--max_steps", 8)  # more than one epoch
    train(toy, tmp_path / "halves", rows, *batch, "--max_steps", 5)
    again = train(toy, tmp_path / "halves", rows, *batch, "--max_steps", 8, "--resume")
    assert_equal_weights(*(weights_in(tmp_path / name) for name in ("whole", "halves")))
    assert report["validation"] == again["validation"]
    if rows == "line":
        train(toy, tmp_path / "later", rows, *batch, "--max_steps", 8, "--seed", 4)
        whole, later = (weights_in(tmp_path / name) for name in ("whole", "later"))
        assert not all(torch.equal(value, later[name]) for name, value in whole.items())
        model, tokenizer = (
            UDMForMaskedGeneration.from_pretrained(tmp_path / "whole"),
            load_tokenizer(tmp_path / "whole"),
        )
        assert model.generate(seed=0).shape[0] == 1
        measured = rows_of_split(DataArguments(**report["data_arguments"]), tokenizer, "mask")
        assert evaluate_bound(model, measured).to_dict() == report["validation"]


def test_held_out_texts_may_have_a_source_of_their_own(toy, tmp_path):
    (tmp_path / "held.txt").write_text("latin dot\nring sign above\n")
    for streaming in (False, True):
        data = DataArguments(
            str(toy), validation_data=str(tmp_path / "held.txt"), streaming=streaming, stream_sample=10, row_length=9
        )
        splits, texts = read_texts(data)
        assert splits["validation"]["text"] == ["latin dot", "ring sign above"]
        assert len(list(texts) if streaming else splits["train"]) == 60
    with pytest.raises(ValueError, match="split must be 'train', 'validation' or 'all' of .*toy.txt, got 'test'"):
        rows_of_split(data, None, "mask", "test")


@pytest.mark.slow
def test_two_processes_with_a_stream_learn_what_one_learns(toy, tmp_path):
    # Muon multiplies in bfloat16, which would tell apart what 1e-5 is to hold together
    how = ("--max_steps", 6, "--dropout", 0, "--optim", "adamw_torch_fused")
    train(toy, tmp_path / "one", "line", *how, "--per_device_train_batch_size", 16)
    two = arguments(toy, tmp_path / "two", "line", *how, "--per_device_train_batch_size", 4)
    script = "import sys; from udm_text.cli.train_text import main; main(sys.argv[1:])"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--no-python"]
    python(*launcher, sys.executable, "-c", script, *two, "--gradient_accumulation_steps", "2", timeout=300)
    assert_close_weights(*(weights_in(tmp_path / name) for name in ("one", "two")), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("line", "--streaming needs --max_steps: a stream does not tell how long an epoch is"),
        ("fixed --max_steps 2 --prompt_column q", "--streaming with --prompt_column goes with --rows line, got fixed"),
        ("line --max_steps 2 --dataloader_num_workers 3", "--streaming needs --dataloader_num_workers 0 or 1, got 3"),
    ],
)
def test_options_that_do_not_go_with_a_stream_are_refused(toy, tmp_path, options, error):
    with pytest.raises(ValueError, match=error):
        train(toy, tmp_path / "out", *options.split())
