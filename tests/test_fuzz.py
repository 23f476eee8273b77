"""Random calls: each gives a result that is right, or a refusal in one sentence that names what was wrong.

What is drawn depends on the seed and the number of cases alone: UDM_FUZZ_SEED and UDM_FUZZ_CASES (of each kind).
"""

import json
import math
import os
import random
import re
import traceback

import pytest
import torch
from transformers import pipeline

from tests.helpers import udm_main, write_shapes
from tests.models import CLS, FIRST, MASK, SEP, SPECIAL, UNK, VOCAB, make_udm, save_masked_lm, word_tokenizer
from udm_text import register
from udm_text.cli.train_text import parse, train_text
from udm_text.generation_options import OPTIONS, Skeleton

register()
SEED = int(os.environ.get("UDM_FUZZ_SEED", 0))
CASES = int(os.environ.get("UDM_FUZZ_CASES", 150))

GOOD = {
    "num_steps": [1, 2, 5, 50],
    "schedule": ["linear", "cosine"],
    "counts": ["exact", "binomial"],
    "threshold": [0.1, 0.9],
    "order": ["random", "left_to_right", "confidence", "margin", "entropy", lambda log_probs, tokens: log_probs[:, 7]]
    + [Skeleton(2)],
    "order_noise": [0, 0.5, 3],
    "revise": [0, 1, 3],
    "kernel": ["site", "hamming", "free"],
    "speculate": [2, 3],
    "guidance_scale": [0, 1, 1.5],
    "cache_refresh": [1, 2],
    "churn": [0, 0.3, 1],
    "temperature": [0, 1e-300, 0.5, 2],
    "top_k": [1, 3, 1000],
    "top_p": [0.1, 1.0],
    "forbidden_tokens": [[], [7], [7, 8, 9]],
    "allowed_tokens": [{}, {1: [7, 8]}, {2: [9]}],
    "length": [1, 4, 7],
    "max_new_tokens": [1, 3],
    "max_edits": [1, 3],
    "num_return_sequences": [1, 2, 3],
    "seed": [0, 7, -5, 2**63 - 1],
    "return_dict_in_generate": [True],
    "output_trajectory": [True, False],
}
HOSTILE = [None, True, False, -1, 0, 1.5, 10**30, -(10**30), math.nan, math.inf, "", "x", "7", b"7", [], [None], {}, ()]
HOSTILE += [{"a": 1}, {10**9: [7]}, [10**9], [[7]], object(), 1j, range(3), lambda: 0, torch.tensor(3), torch.zeros(2)]
CALL = ("input_ids", "attention_mask", "token_type_ids", "generator", "sample_index", "logits_processor", "streamer")
NAMES = {*OPTIONS, *CALL, "callback_on_step_end", "generation_config", "batch_size", "return_full_text"}


def options(draw, hostility):
    """Some options with values of theirs, or of anybody's."""
    found = {}
    for name in draw.sample(sorted(GOOD), draw.choice([0, 1, 1, 2, 2, 3, 4])):
        found[name] = draw.choice(HOSTILE if draw.random() < hostility else GOOD[name])
    return found


def refused(error, names=NAMES):
    """Whether an error is a refusal: of the kinds that say so, in a sentence that names an argument."""
    if not isinstance(error, ValueError | TypeError) or isinstance(error, UnicodeError):
        return False
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names)


def failure(number, what, error=None):
    """What a person needs to see a failed case again."""
    shown = "" if error is None else "\n" + "".join(traceback.format_exception(error)[-4:])
    return f"UDM_FUZZ_SEED={SEED}, case {number}: {what!r}{shown}"


def told(faults):
    """The first faults, and how many there are."""
    return "\n".join([f"{len(faults)} of {CASES}", *faults[:6]])


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# --- model.generate --------------------------------------------------------------------------------------------------


def rows_of(draw):
    """(input_ids, attention_mask) of some rows, or what is none."""
    kind = draw.random()
    if kind < 0.2:
        return {}
    if kind < 0.3:
        return draw.choice(
            [
                {"input_ids": draw.choice(HOSTILE)},
                {"input_ids": torch.zeros(0, 4, dtype=torch.int64)},
                {"input_ids": torch.full((1, 3), draw.choice([-1, VOCAB, 2**40]))},
                {"input_ids": torch.zeros(2, 3)},
                {"input_ids": torch.tensor([CLS, 7, SEP])},
                {"input_ids": torch.tensor([[CLS, 7, SEP]]), "attention_mask": draw.choice(HOSTILE)},
                {"input_ids": torch.tensor([[CLS, 7, SEP]]), "attention_mask": torch.tensor([[0, 1, 1]])},
                {"attention_mask": torch.ones(1, 3)},
            ]
        )
    rows = []
    masks = draw.random() < 0.5
    for _ in range(draw.choice([1, 1, 2, 4])):
        body = [draw.choice([UNK, *range(FIRST, VOCAB)]) for _ in range(draw.randrange(0, 6))]
        body = [MASK if masks and draw.random() < 0.5 else token for token in body]
        rows.append([CLS, *body, SEP] if draw.random() < 0.9 else body or [CLS])
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    given = {"input_ids": ids}
    if draw.random() < 0.7:
        given["attention_mask"] = (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()
    return given


def wrong_with(model, given, chosen, out):
    """What a result is not that it should be; None: it is right."""
    rows = given["input_ids"] if torch.is_tensor(given.get("input_ids")) else None
    number = chosen.get("num_return_sequences") or 1
    wanted = number if rows is None else number * len(rows)
    sequences = out.sequences
    if sequences.dtype != torch.int64 or sequences.ndim != 2 or len(sequences) != wanted:
        return f"shape {tuple(sequences.shape)} {sequences.dtype}, {wanted} rows wanted"
    if out.editable.shape != sequences.shape or out.attention_mask.shape != sequences.shape:
        return "masks of another shape"
    if sequences.numel() == 0:
        return None
    if not 0 <= int(sequences.min()) <= int(sequences.max()) < model.config.vocab_size:
        return "ids outside the vocabulary"
    if bool((out.editable & ~out.attention_mask).any()):
        return "padding was edited"
    edited = sequences[out.editable]
    repairs = chosen.get("max_edits") is not None
    banned = SPECIAL | (set() if repairs else set(chosen.get("forbidden_tokens") or ()))
    if banned & set(edited.tolist()):
        return f"drawn: {banned & set(edited.tolist())}"
    if rows is not None:
        own = rows != 0 if given.get("attention_mask") is None else given["attention_mask"]
        for i, (row, real) in enumerate(zip(*(x.repeat_interleave(number, dim=0) for x in (rows, own)), strict=True)):
            there = int(real.sum())  # the tokens of this row, of which a suffix gives way to what is added
            kept = ~out.editable[i, :there] & (row[:there] != SEP)
            if bool((kept & (sequences[i, :there] != row[:there])).any()):
                return "what was given has changed"
            if repairs and int((sequences[i, :there] != row[:there]).sum()) > chosen["max_edits"]:
                return "more edits than allowed"
    return None


@pytest.fixture(scope="module")
def networks():
    counts = [0, 1, 2, 3, 2, 1]
    own = {"mask": {}, "prompts": {"separator_token_ids": [SEP]}, "lengthless": {"length_counts": None}}
    made = {name: make_udm("mask", **{"length_counts": counts, **how}) for name, how in own.items()}
    return made | {name: make_udm(name, length_counts=counts) for name in ("substitute", "uniform")}


@pytest.mark.parametrize("name", ["mask", "substitute", "uniform", "prompts", "lengthless"])
def test_every_call_of_generate_is_right_or_refused(networks, name):
    model, draw = networks[name], random.Random(f"generate {name} {SEED}")
    right, faults = 0, []
    for number in range(CASES):
        given, chosen = rows_of(draw), options(draw, hostility=0.15)
        if draw.random() < 0.1:
            hostile = [value for value in HOSTILE if not callable(value)]  # a function of yours may raise what it likes
            chosen[draw.choice([*CALL[2:], "callback_on_step_end", "generation_config"])] = draw.choice(hostile)
        if draw.random() < 0.05:
            chosen[draw.choice(["lenght", "do_sample", "temperature_"])] = 1
        call = {**given, **chosen}
        if "return_dict_in_generate" not in chosen:
            call["return_dict_in_generate"] = True
        try:
            out = model.generate(**call)
        except Exception as error:
            if not refused(error, {*NAMES, *chosen}):
                faults.append(failure(number, call, error))
            continue
        right += 1
        if not torch.is_tensor(out) and (wrong := wrong_with(model, given, chosen, out)) is not None:
            faults.append(failure(number, (call, wrong)))
    assert not faults, told(faults)
    assert right > CASES / 25, f"{right} of {CASES} calls gave rows: most of what is drawn is refused"


# --- the pipeline ----------------------------------------------------------------------------------------------------

WORDS = ["red", "green", "blue", "small", "circle"]
ODD = [
    "",
    " ",
    "\n",
    "\0",
    "[MASK]",
    "[CLS]",
    "[PAD]",
    "☃",
    "é",
    "\u202e",
    "\x1b[2J",
    "word" * 50,
    "##",
    "[MASK" * 3,
    "-",
]
SURROGATES = ["\ud800", "red \udfff"]


def text_of(draw):
    many = draw.choice([0, 1, 2, 4])
    return draw.choice(["", " "]).join(draw.choice(WORDS if draw.random() < 0.7 else ODD) for _ in range(many))


@pytest.fixture(scope="module")
def pipes():
    tokenizer = word_tokenizer(WORDS)
    tokenizer.model_max_length = 40
    made = {}
    for process in ("mask", "substitute"):
        model = make_udm(process, vocab_size=len(tokenizer), length_counts=[0, 1, 2, 3])
        made[process] = pipeline("udm-generation", model=model, tokenizer=tokenizer)
    return made


@pytest.mark.parametrize("process", ["mask", "substitute"])
def test_every_call_of_the_pipeline_is_right_or_refused(pipes, process):
    pipe, draw = pipes[process], random.Random(f"pipeline {process} {SEED}")
    names, faults = {*NAMES, "udm-generation", "num_workers"}, []
    for number in range(CASES):
        chosen = options(draw, hostility=0.1)
        texts = [text_of(draw) for _ in range(draw.choice([1, 2, 3]))]
        inputs = texts[0] if len(texts) == 1 else texts
        if hostile := draw.random() < 0.1:
            inputs = draw.choice([*HOSTILE, *SURROGATES, [None, "a"], ["a", 3], {"text": "a"}])
        for name, values in (("batch_size", [1, 2, 0, "2"]), ("return_full_text", [True, False, 1, "no"])):
            if draw.random() < 0.15:
                chosen[name] = draw.choice(values)
        try:
            out = pipe(inputs, **chosen)
            out = out if isinstance(out, list) else list(out)
        except Exception as error:
            if not refused(error, {*names, *chosen}):
                faults.append(failure(number, (inputs, chosen), error))
            continue
        if hostile:
            continue
        groups = [out] if isinstance(inputs, str) else out
        count, whole = chosen.get("num_return_sequences") or 1, chosen.get("return_full_text", True) is True
        good = len(groups) == len(texts) and all(len(group) == count for group in groups)
        for text, group in zip(texts, groups, strict=False):
            made = [record["generated_text"] for record in group]
            good = good and all(isinstance(one, str) for one in made)
            if whole and "max_edits" not in chosen:  # what stands before the first blank
                part = re.split(r"\[(?:MASK|CLS|PAD|SEP|UNK)\]", text)[0].rstrip()
                good = good and all(one.startswith(part) for one in made)
        if not good:
            faults.append(failure(number, (inputs, chosen, out)))
    assert not faults, told(faults)


@pytest.mark.parametrize("text", ["\ud800", "red \udfff circle"])
def test_half_a_surrogate_pair_is_refused_by_its_place(pipes, text):
    with pytest.raises(ValueError, match=f"character {4 * ('red' in text)} of an input is half a surrogate pair"):
        pipes["mask"](text, seed=0)


def test_tokens_are_refused_with_a_word_on_what_takes_them(pipes):
    for tensor in (torch.tensor(3), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match="got a tensor: `model.generate` takes tokens as input_ids"):
            pipes["mask"](tensor)


def test_an_error_of_several_lines_is_told_in_one(monkeypatch):
    def says(*args):
        raise OSError("we could not\n  connect:\n\ncheck your line\n")

    monkeypatch.setattr("udm_text.cli.commands._pipeline", says)
    assert udm_main(monkeypatch, ["generate", "m"], b"") == (1, "", "udm: we could not connect: check your line\n")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models, whole and broken, and files of every kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    shapes = write_shapes(folder / "shapes.txt")
    quick = "--max_steps 1 --model tiny --per_device_train_batch_size 8 --use_cpu --report_to none --plot false"
    for name, more in (("m", ""), ("r", "--process substitute --tokenizer char --max_corruption 0.2")):
        given = ["--data", str(shapes), "--output", str(folder / name), "--disable_tqdm=true"]
        train_text(*parse([*given, *quick.split(), *more.split()]))
    save_masked_lm(folder / "plain", "bert")
    (folder / "empty").mkdir()
    broken = folder / "broken"
    broken.mkdir()
    for path in (folder / "m").iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes()[:50])
    (folder / "few.txt").write_text("red small\n\n[MASK] circle\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"text": "red", "q": "blue"}\n{"text": "small", "q": null}\n')
    (folder / "bad.jsonl").write_text('{"text": "red"\n')
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "none.txt").write_text("")
    (folder / "long.txt").write_text("red " * 300)
    (folder / "recipe.yaml").write_text("max_steps: 1\n")
    return folder


MODELS = ["m", "m", "m", "r", "r", "plain", "empty", "broken", "gone", "user/gone", "", ".", "few.txt", "\0", "a b"]
TEXTS = [
    "red",
    "small [MASK]",
    "",
    " ",
    "☃",
    "few.txt",
    "./few.txt",
    "-",
    "--",
    "[MASK]" * 30,
    "red " * 200,
    "a\0b",
    "\n",
]
FILES = ["few.txt", "rows.jsonl", "bad.jsonl", "latin.txt", "none.txt", "long.txt", "gone.txt", "empty", "", "-", "m"]
OUTPUTS = ["out.txt", "out.jsonl", "empty", "gone/out.txt", "", "-", "/proc/x", "few.txt", "\0", "x" * 300]
NUMBERS = ["0", "1", "2", "-1", "1.5", "nan", "inf", "1e400", "99999999999999999999", "x", ""]
COMMON = {
    "--device": ["cpu", "cuda", "cuda:99", "tpu", ""],
    "--seed": NUMBERS,
    "--json": None,
    "--revision": ["main", "gone", ""],
    "--trust-remote-code": None,
    "--gone": None,
    "--batch-size": NUMBERS,
    "--help": None,
}
READING = {"--input": FILES, "--output": OUTPUTS, "--text-column": ["q", "text", "gone", ""]}
SAMPLING = {
    f"--{name.replace('_', '-')}": [*map(str, GOOD[name][:4]), *NUMBERS[:6]]
    for name, option in OPTIONS.items()
    if option.kind is not None and not option.flags and name not in ("length", "max_new_tokens")
}
GRAMMAR = {
    "generate": COMMON
    | READING
    | SAMPLING
    | {"-n": ["1", "2", "0", "-1"], "--length": ["1", "3", "0", "5000"], "--max-new-tokens": ["1", "0", "5000"]}
    | {"--forbid": ["red", "gone word", ""], "--score": None, "--draws": ["1", "0"], "--watch": None}
    | {"--watch-delay": ["0", "-1", "nan"], "--save": ["a.html", "a.gif", "a.txt", "gone/a.html"], "--verbose": None}
    | {"--dtype": ["float32", "bfloat16", "int8"]},
    "repair": COMMON | READING | {"--max-edits": NUMBERS},
    "evaluate": COMMON
    | {"--data": [*FILES, "shapes.txt"], "--split": ["train", "validation", "test", "all", "gone", ""]}
    | {"--text-column": ["q", "gone"], "--prompt-column": ["q", "gone"], "--rows": ["line", "fixed", "packed", "x"]}
    | {"--row-length": ["1", "4", "0"], "--validation-share": ["0", "0.5", "1", "nan"], "--draws": ["1", "0"]}
    | {"--kernel": ["site", "x"], "--num-steps": NUMBERS[:5], "--schedule": ["linear", "optimal", "x"]}
    | {"--curve": None, "--data-config": ["x"]},
    "export": {"--trust-remote-code": None, "--gone": None, "--help": None},
    "push": {"--private": None, "--license": ["mit", "My Own"], "--revision": ["x"], "--timeout": ["1", "0", "nan"]},
    "train": {"--data": FILES, "--output": ["new", "m", "few.txt", ""], "--max_steps": ["0", "x"], "--resume": None}
    | {"--config": ["recipe.yaml", "gone.yaml", "few.txt"], "--rows": ["x"], "--help": None, "--gone": ["1"]}
    | {"--model": ["gone", "plain", "empty"], "--tokenizer": ["gone"], "--per_device_train_batch_size": ["0", "-1"]},
    "image generate": {"--output": OUTPUTS, "-n": NUMBERS, "--help": None},
    "image restore": {"--output": OUTPUTS, "--t": NUMBERS, "--degrade": None},
    "image evaluate": {"--data": ["gone", "empty"], "--terms": NUMBERS[:4], "--image-size": ["0", "x"]},
    "gone": {},
}
FREQUENT = ["generate"] * 6 + ["repair"] * 3 + ["evaluate"] * 4 + ["export", "push", "train", "train"]


def line_of(draw):
    """A command line, and what comes by standard input."""
    command = draw.choice(FREQUENT if draw.random() < 0.9 else sorted(GRAMMAR))
    words = command.split()
    if command != "train" and draw.random() < 0.97:
        words.append(draw.choice(MODELS))
    if command in ("generate", "repair"):
        words += [draw.choice(TEXTS) for _ in range(draw.choice([0, 1, 1, 2]))]
    if command in ("export", "image restore"):
        words.append(draw.choice(OUTPUTS))
    if command == "push":
        words.append(draw.choice(["user/name", "not a name", "", "a/b/c"]))
    known = GRAMMAR[command]
    for option in draw.sample(sorted(known), min(len(known), draw.choice([0, 1, 1, 2, 3]))):
        values = known[option]
        words += [option] if values is None else [f"{option}={draw.choice(values)}"]
    given = draw.choice([b"", b"", b"red\nsmall [MASK]\n", b"\xff\xfe", "☃\n".encode()])
    return words, given


_BESIDE = r"note: |not in the vocabulary of|.*(examples|ex)/s"
"""What may stand on standard error beside an error: notes, and the bars of `datasets`."""


def test_every_command_line_ends_in_a_result_or_in_one_line(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    draw, ended, faults = random.Random(f"command {SEED}"), {}, []
    for number in range(CASES):
        words, given = line_of(draw)
        code, out, err = udm_main(monkeypatch, words, given)
        if not isinstance(code, int):
            faults.append(failure(number, (words, given), code))
            continue
        lines = [line for line in err.splitlines() if line.strip() and not re.match(_BESIDE, line)]
        good = code in (0, 1, 2, 130) and "Traceback" not in err
        good = good and (code != 1 or (len(lines) == 1 and lines[0].startswith("udm: ")))
        options = words[: words.index("--")] if "--" in words else words  # behind it all are texts
        if code == 0 and "--json" in options and not {"--help", "--watch"} & {*options}:
            good = good and is_json(out)
        if not good:
            faults.append(failure(number, (words, given, code, out[-300:], err[-600:])))
        ended[code] = ended.get(code, 0) + 1
    print(ended)
    assert not faults, told(faults)
    assert ended.get(0, 0) > CASES / 20, ended
    assert not [path for path in place.iterdir() if ".part" in path.name]
