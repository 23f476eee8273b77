"""pipeline("udm-generation"): the same texts however they are handed in, and a pipeline like any other."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline
from transformers.models.bert_japanese.tokenization_bert_japanese import BertJapaneseTokenizer
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

from tests.models import FAMILIES, PROCESSES, fixed_logits, make_udm, save_masked_lm, wake_time
from udm_text import UDMForMaskedGeneration, UDMGenerationConfig, UDMGenerationPipeline
from udm_text.cli.terminal import show_masks
from udm_text.framing import tokenizer_fields

COUNTS = [0, 1, 2, 3, 3, 2, 1]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """(family, process) -> a trained-model directory as `udm train` leaves one."""
    root = tmp_path_factory.mktemp("models")
    result = {}
    for family in FAMILIES:
        plain = save_masked_lm(root / family, family)
        for process in PROCESSES:
            path = root / f"{family}-{process}"
            model = UDMForMaskedGeneration.from_pretrained(plain, process=process, length_counts=COUNTS)
            wake_time(model).save_pretrained(path)
            AutoTokenizer.from_pretrained(plain).save_pretrained(path)
            result[family, process] = str(path)
        result[family] = str(plain)
    return result


@pytest.fixture(scope="module")
def pipes(directories):
    """Pipelines in double precision: batches of another shape round otherwise."""
    return {
        process: pipeline("udm-generation", model=directories["bert", process], dtype=torch.float64)
        for process in PROCESSES
    }


TEXTS = ["the cat [MASK] on [MASK] mat", "a red", "", "[MASK] [MASK] [MASK] [MASK] dog", "the dog is on a"]


def texts_of(results):
    return [[record["generated_text"] for record in records] for records in results]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_string_gives_a_list_of_records_as_text_generation_does(directories, family, process):
    pipe = pipeline("udm-generation", model=directories[family, process])
    assert isinstance(pipe, UDMGenerationPipeline) and isinstance(pipe.model, UDMForMaskedGeneration)
    records = pipe("the cat", max_new_tokens=3, seed=0)
    assert isinstance(records, list) and len(records) == 1 and set(records[0]) == {"generated_text"}
    assert records[0]["generated_text"].startswith("the cat")
    filled = pipe(f"the {pipe.tokenizer.mask_token} sat", seed=0)[0]["generated_text"]
    assert filled.startswith("the") and pipe.tokenizer.mask_token not in filled
    assert pipe("", seed=0) == pipe("", seed=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_texts_do_not_depend_on_how_they_are_handed_in_nor_on_the_batch_size(pipes, process):
    pipe = pipes[process]
    how = {"seed": 5, "num_return_sequences": 2}
    expected = [[record["generated_text"] for record in pipe(text, **how)] for text in TEXTS]
    data = Dataset.from_dict({"text": TEXTS})
    sources = {
        "list": lambda: TEXTS,
        "tuple": lambda: tuple(TEXTS),
        "column": lambda: data["text"],
        "KeyDataset": lambda: KeyDataset(data, "text"),
        "generator": lambda: (text for text in TEXTS),
        "iterator": lambda: iter(TEXTS),
    }
    for batch_size in (1, 2, 4):
        for name, source in sources.items():
            assert texts_of(pipe(source(), batch_size=batch_size, **how)) == expected, (name, batch_size)
    assert texts_of(pipe(TEXTS[::-1], batch_size=2, **how)) == expected[::-1]


def test_an_empty_list_gives_an_empty_list(pipes):
    assert pipes["mask"]([]) == []


def test_samples_of_one_input_differ_and_the_first_ones_stay_when_more_are_asked_for(pipes):
    for pipe in pipes.values():
        four = texts_of([pipe("", num_return_sequences=4, seed=0, length=8)])[0]
        assert len(set(four)) == 4
        assert texts_of([pipe("", num_return_sequences=2, seed=0, length=8)])[0] == four[:2]


PROMPTS = ["the cat", "a red dog", "the mat", "a dog", "the dog is", "a cat", "red", "the", "mat", "dog ran to"]


@pytest.mark.parametrize("process", PROCESSES)
def test_under_one_seed_every_prompt_has_a_length_of_its_own(pipes, process):
    how = {"seed": 0, "return_dict_in_generate": True, "num_return_sequences": 2}
    together = pipes[process](PROMPTS * 2, batch_size=7, **how)
    added = [[record["num_tokens"] for record in records] for records in together]
    counts = lambda which: len({numbers[which] for numbers in added})  # noqa: E731
    assert counts(0) > 2 and counts(1) > 2
    assert texts_of(together[:10]) == texts_of(together[10:]), "equal texts stay equal"
    assert [texts_of([pipes[process](prompt, **how)])[0] for prompt in PROMPTS] == texts_of(together[:10])


def test_the_draws_of_a_prompt_are_its_own_and_those_of_nothing_are_the_models(pipes):
    pipe = pipes["mask"]
    how = {"seed": 4, "num_return_sequences": 3, "length": 5}
    rows = pipe.model.generate(**how, begin_suppress_tokens=pipe._continuation_tokens())
    assert texts_of([pipe("", **how)])[0] == [pipe.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    keys = pipe._keys(pipe.tokenizer([*PROMPTS, ""], padding=True, return_tensors="pt"))
    assert len(set(keys)) == 11 and keys[-1] == 0 and all(0 <= key < 2**62 for key in keys)
    assert pipe._keys(pipe.tokenizer(["the cat"], return_tensors="pt")) == keys[:1] == [2027280628384373112]


def test_without_a_seed_equal_inputs_give_different_texts_and_manual_seed_reproduces_them(pipes):
    def run():
        torch.manual_seed(3)
        return texts_of(pipes["mask"](["", "", "", ""], batch_size=2, length=8))

    first = run()
    assert len({texts[0] for texts in first}) == 4
    assert run() == first
    generator = torch.Generator().manual_seed(1)
    assert pipes["mask"]("", length=8, generator=generator) != pipes["mask"]("", length=8, generator=generator)


def test_return_full_text_false_gives_what_was_generated_alone(pipes):
    for text in ("the cat", "The  Жcat", "the cat  "):
        how = {"max_new_tokens": 3, "seed": 1}
        whole = pipes["mask"](text, **how)[0]["generated_text"]
        tail = pipes["mask"](text, **how, return_full_text=False)[0]["generated_text"]
        assert tail and whole == text + tail


def test_what_a_repair_generated_keeps_the_white_space_that_parts_it_whatever_is_drawn(pipes, monkeypatch):
    """The one edit is decided by the test: an untrained model may draw any piece, that continues a word or not."""
    pipe, how = pipes["substitute"], {"seed": 0, "return_full_text": False, "max_edits": 1}
    vocabulary = pipe.tokenizer.get_vocab()

    def repaired(text, place, token):
        ids = pipe.tokenizer(text)["input_ids"]
        table = torch.zeros(len(ids), len(vocabulary), dtype=torch.float64)
        table[range(len(ids)), ids] = 9.0
        table[place, token] = 18.0
        fixed_logits(monkeypatch, pipe.model, table)
        [record] = pipe(text, **how)
        return record["generated_text"], pipe(text, max_edits=1)[0]["generated_text"]

    for piece in sorted(vocabulary.keys() - {*pipe.tokenizer.all_special_tokens, "the", "red", "dog"}):
        said, joins = piece.removeprefix("##"), piece.startswith("##")
        whole = f"the  red{said}" if joins else f"the  red  {said}"
        assert repaired("the  red  dog", 3, vocabulary[piece]) == (whole, whole)
        whole = f"the  Жcat{said}" if joins else f"the  Жcat  {said}"
        assert repaired("the  Жcat  dog", 3, vocabulary[piece]) == (f"the  {said}", whole), "Жcat cannot change"


def test_a_trajectory_is_what_was_typed_with_masks_where_nothing_stands_yet(pipes):
    text = "The  Жcat [MASK]\ton [MASK]"
    [record] = pipes["mask"](text, seed=0, output_trajectory=True)
    states = record["trajectory"]
    assert states[0] == text and states[-1] == record["generated_text"] and len(states) == 3
    assert all(state.startswith("The  Жcat") and "\ton" in state for state in states)
    [record] = pipes["mask"]("", length=3, seed=0, output_trajectory=True)
    assert record["trajectory"][0] == "[MASK] [MASK] [MASK]"
    [record] = pipes["substitute"]("The  Жcat  sat", max_edits=1, output_trajectory=True)
    assert record["trajectory"][0] == "The  Жcat  sat" and record["trajectory"][-1] == record["generated_text"]


def test_a_streamer_is_told_what_was_typed(pipes):
    class Streamer:
        def __init__(self):
            self.typed, self.rows = [], []

        def put_typed(self, typed):
            self.typed = typed

        def put(self, value):
            self.rows.append(value.flatten().tolist())

        def end(self):
            pass

    tokenizer, streamer = pipes["mask"].tokenizer, Streamer()
    text = "[MASK]  The Жcat"
    [made] = pipes["mask"](text, seed=0, streamer=streamer)
    assert [typed.text for typed in streamer.typed] == [text]
    line = show_masks(tokenizer, streamer.rows[0] + streamer.rows[-1], streamer.typed[0])
    assert line == made["generated_text"] and made["generated_text"].endswith("  The Жcat")
    blanked = tokenizer(text)["input_ids"]
    assert show_masks(tokenizer, [*blanked, tokenizer.pad_token_id], streamer.typed[0]) == "░░  The Жcat"


def test_a_slow_tokenizer_gives_the_typed_text_where_its_tokens_are_found_and_says_where_not(tmp_path, caplog):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "on", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), word_tokenizer_type="basic", do_lower_case=False)
    model = make_udm("mask", vocab_size=len(words), **tokenizer_fields(tokenizer))
    pipe = UDMGenerationPipeline(model=model, tokenizer=tokenizer)
    logging.get_logger().addHandler(caplog.handler)
    try:
        for text in ("the  Cats [MASK]\tsat", "Жaba  the cats,  [MASK] on"):
            made = pipe(text, seed=0, num_return_sequences=3)
            left, right = text.split("[MASK]")
            assert all(record["generated_text"].startswith(left.rstrip()) for record in made)
            assert all(record["generated_text"].endswith(right) for record in made)
        assert not caplog.records
        for _ in range(2):
            assert pipe("Жaba,  the [MASK]", seed=0)[0]["generated_text"].startswith(", the")
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    assert [record.message.split(", which")[0] for record in caplog.records] == [
        "BertJapaneseTokenizer is a slow tokenizer"
    ]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_trajectory_is_the_texts_own_whatever_the_batch_size(pipes, process):
    pipe = pipes[process]
    alone = [pipe(text, seed=0, output_trajectory=True)[0] for text in TEXTS]
    together = [records[0] for records in pipe(TEXTS, seed=0, output_trajectory=True, batch_size=5)]
    assert together == alone
    steps = alone[0]["trajectory"]
    assert len(steps) == 3 and all(isinstance(step, str) for step in steps)
    if process == "mask":
        assert [step.count("[MASK]") for step in steps] == [2, 1, 0]


def test_a_substitute_model_repairs_texts(pipes):
    pipe = pipes["substitute"]
    texts = ["the cat sat on the mat", "a red dog"]
    for records, text in zip(pipe(texts, max_edits=2, batch_size=2), texts, strict=True):
        before, after = (pipe.tokenizer(x)["input_ids"] for x in (text, records[0]["generated_text"]))
        assert len(records) == 1
        if len(before) == len(after):  # pieces of words may join otherwise when they are read again
            assert sum(a != b for a, b in zip(before, after, strict=True)) <= 2
    [record] = pipe(texts[0], max_edits=2, output_trajectory=True)
    assert len(record["trajectory"]) == 3 and texts[0] in record["trajectory"][0]
    assert pipe(texts[0], max_edits=2) == pipe(texts[0], max_edits=2), "the best edits need no seed"
    with pytest.raises(ValueError, match="max_edits"):
        pipes["mask"](texts[0], max_edits=1)


@pytest.mark.parametrize("share", [0.15, 1.0, None])
def test_a_repairer_that_is_asked_to_write_says_once_that_it_repairs(directories, tmp_path, caplog, share):
    shutil.copytree(directories["bert", "substitute"], tmp_path / "m")
    if share is not None:
        (tmp_path / "m/report.json").write_text(json.dumps({"max_corruption": share}))
    pipe = pipeline("udm-generation", model=str(tmp_path / "m"))

    def said():
        return [r.message for r in caplog.records if "repairs texts" in r.message]

    logging.get_logger().addHandler(caplog.handler)
    try:
        pipe("the cat sat", max_edits=1)
        pipe("the [MASK] sat", seed=0)
        assert not said()
        for text in ("", "the cat", ["a dog", "the [MASK] sat"]):
            pipe(text, seed=0, length=4) if isinstance(text, str) else pipe(text, seed=0)
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    assert len(said()) == (share == 0.15)
    if share == 0.15:
        assert "at most 0.15 was wrong. Give max_edits=..., or on the command line `udm repair`" in said()[0]


def test_settings_may_be_given_to_the_pipeline_to_a_call_or_as_a_config(directories):
    path = directories["bert", "mask"]
    pipe = pipeline("udm-generation", model=path, num_return_sequences=3, seed=0, length=4, batch_size=2)
    assert len(pipe("")) == 3
    assert len(pipe("", num_return_sequences=1)) == 1
    config = UDMGenerationConfig(num_return_sequences=2, seed=0, length=4)
    given = pipeline("udm-generation", model=path)("", generation_config=config)
    assert given == pipe("")[:2]


def test_the_stored_generation_config_is_that_of_the_pipeline(directories, tmp_path):
    path = directories["bert", "mask"]
    model = AutoModelForMaskedLM.from_pretrained(path)
    model.generation_config = UDMGenerationConfig(num_return_sequences=2, seed=3, order="confidence", length=4)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path)
    pipe = pipeline("udm-generation", model=str(tmp_path))
    assert type(pipe.model.generation_config) is UDMGenerationConfig
    assert pipe.model.generation_config == model.generation_config
    assert len(pipe("")) == 2 and pipe("") == pipe("")


def test_device_and_dtype_are_those_asked_for(directories):
    for process in PROCESSES:
        pipe = pipeline("udm-generation", model=directories["modernbert", process], device="cpu", dtype=torch.bfloat16)
        assert pipe.model.dtype == torch.bfloat16 and pipe.device == torch.device("cpu")
        assert pipe("the", max_new_tokens=2, seed=0)[0]["generated_text"].startswith("the")


def test_a_saved_pipeline_loads_again_without_remote_code(directories, tmp_path):
    pipe = pipeline("udm-generation", model=directories["bert", "substitute"])
    expected = pipe(TEXTS, seed=0)
    for turn in ("first", "second"):
        pipe.save_pretrained(tmp_path / turn)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / turn).iterdir()}
        assert not list((tmp_path / turn).glob("*.py"))
        pipe = pipeline("udm-generation", model=str(tmp_path / turn))
        assert pipe(TEXTS, seed=0) == expected
    assert json.loads((tmp_path / "second/config.json").read_text())["model_type"] == "udm"


def test_a_model_object_and_its_tokenizer_may_be_given(directories):
    path = directories["roberta", "mask"]
    model = UDMForMaskedGeneration.from_pretrained(path)
    pipe = pipeline("udm-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(path))
    assert pipe("", seed=0) == pipeline("udm-generation", model=path)("", seed=0)
    with pytest.raises(Exception, match="tokenizer"):
        pipeline("udm-generation", model=model)


def test_a_tokenizer_that_pads_in_front_is_turned_round(directories):
    path = directories["bert", "mask"]
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    pipe = pipeline("udm-generation", model=path, tokenizer=tokenizer, dtype=torch.float64)
    assert texts_of(pipe(TEXTS, seed=0, batch_size=3)) == [texts_of([pipe(text, seed=0)])[0] for text in TEXTS]


def test_unknown_arguments_are_refused_at_once(pipes, directories):
    for wrong in ({"num_stepz": 3}, {"do_sample": True}):
        name = next(iter(wrong))
        with pytest.raises(ValueError, match=f"unknown argument '{name}' of udm-generation"):
            pipes["mask"]("", **wrong)
        with pytest.raises(ValueError, match=f"unknown argument '{name}' of udm-generation"):
            pipeline("udm-generation", model=directories["bert", "mask"], **wrong)


def test_what_is_no_text_is_refused(pipes):
    with pytest.raises(ValueError, match="reads strings and chats, .* got int"):
        pipes["mask"]([3])
    with pytest.raises(ValueError, match="reads strings and chats, .* got dict; of a data set give the column"):
        pipes["mask"](Dataset.from_dict({"text": ["a"]}))


def test_errors_of_generate_reach_the_caller(pipes):
    with pytest.raises(ValueError, match="at most 40"):
        pipes["mask"]("the cat " * 40, max_new_tokens=1)
    with pytest.raises(ValueError, match="temperature"):
        pipes["mask"]("", temperature=-1)
    with pytest.raises(ValueError, match="filled in: length does not apply"):
        pipes["mask"]("the [MASK]", length=3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": "3"}, "batch_size must be an integer of 64 bits, got '3'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": True}, "num_workers must be an integer of 64 bits, got True"),
        ({"return_full_text": "no"}, "return_full_text must be True, False or None, got 'no'"),
        ({"num_return_sequences": 10**12}, "asks for 1000000000000 rows"),
        ({"sample_index": 3}, "unknown argument 'sample_index'"),
    ],
)
def test_what_the_pipeline_itself_takes_is_checked_by_type(pipes, how, message):
    with pytest.raises(ValueError, match=message):
        pipes["mask"](["the [MASK]", "a [MASK]"], **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_in_brackets_is_understood_whatever_the_models_own_mask_token_is(directories, family):
    pipe = pipeline("udm-generation", model=directories[family, "mask"])
    own = pipe.tokenizer.mask_token
    assert (own == "<mask>") == (family == "roberta")
    text = "the [MASK] sat [MASK]"
    assert pipe(text, seed=0) == pipe(text.replace("[MASK]", own), seed=0)
    assert pipe.preprocess(text)["input_ids"].tolist()[0].count(pipe.tokenizer.mask_token_id) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_masked_lm_is_wrapped_with_one_warning_and_fills_in_as_the_model_around_it(directories, family, caplog):
    logging.get_logger().addHandler(caplog.handler)
    try:
        pipe = pipeline("udm-generation", model=directories[family])
        [a, b] = pipe(["the [MASK] sat [MASK]", "a [MASK] [MASK] dog"], seed=0, num_return_sequences=3)
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    said = [record.message for record in caplog.records if "not trained for generation" in record.message]
    assert len(said) == 1 and said[0].startswith(directories[family])
    model = UDMForMaskedGeneration.from_pretrained(directories[family])
    assert pipe.model.config.to_dict() == model.config.to_dict()
    again = UDMGenerationPipeline(model, AutoTokenizer.from_pretrained(directories[family]), device=-1)
    assert [a, b] == again(["the [MASK] sat [MASK]", "a [MASK] [MASK] dog"], seed=0, num_return_sequences=3)


def test_without_an_input_a_text_is_written_from_nothing(directories):
    for pipe in (pipeline("udm-generation", model=directories[name]) for name in (("bert", "mask"), "bert")):
        assert pipe(length=3, seed=0) == pipe("", length=3, seed=0)
    with pytest.raises(ValueError, match="length is not given and the model has no training lengths"):
        pipe()


def test_what_is_no_masked_lm_with_a_mask_token_is_not_wrapped(directories):
    tokenizer = AutoTokenizer.from_pretrained(directories["bert"])
    with pytest.raises(ValueError, match="a UDM model or a masked LM, got BertModel .model type 'bert'.: give what"):
        UDMGenerationPipeline(AutoModel.from_pretrained(directories["bert"]), tokenizer)
    plain = AutoModelForMaskedLM.from_pretrained(directories["bert"])
    with pytest.raises(ValueError, match="needs a tokenizer"):
        UDMGenerationPipeline(plain)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="the tokenizer .* of .* has no mask_token: give a tokenizer that has one"):
        UDMGenerationPipeline(plain, tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_looks_like_a_blank_and_is_none_is_said_once(directories, family, caplog):
    pipe = pipeline("udm-generation", model=directories[family, "mask"])
    own = pipe.tokenizer.mask_token
    logging.get_logger().addHandler(caplog.handler)
    try:
        pipe([f"the {own} sat", "the [MASK] sat", "the mask", "the [mask"], seed=0)
        assert not [record for record in caplog.records if "is read as text" in record.message]
        for text in ("the [Mask] sat", "the [mask] sat"):
            assert pipe(text, seed=0, max_new_tokens=1)[0]["generated_text"].startswith(text)
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    said = [record.message for record in caplog.records if "is read as text" in record.message]
    assert said == ["'[Mask]' is read as text: a blank to be filled in is written [MASK]"]


def test_mask_in_brackets_is_left_alone_where_it_is_a_token_of_its_own(directories):
    pipe = pipeline("udm-generation", model=directories["roberta", "mask"])
    pipe.tokenizer.add_tokens(["[MASK]"])
    ids = pipe.preprocess("the [MASK] sat")["input_ids"].tolist()[0]
    assert pipe.tokenizer.mask_token_id not in ids and pipe.tokenizer.convert_tokens_to_ids("[MASK]") in ids
