"""Every pair of generation options works, keeping what both promise, or is refused by a message that names one."""

import itertools

import pytest
import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor
from typer.testing import CliRunner

from tests.models import CLS, MASK, PROCESSES, SEP, make_udm
from udm_text import Skeleton, UDMGenerationConfig
from udm_text.cli import commands
from udm_text.generation_options import OPTIONS as DECLARED
from udm_text.generation_options import markdown_table

OPTIONS = {
    "order": ["confidence", lambda log_probs, tokens: log_probs.max(-1).values, "left_to_right", Skeleton(2)],
    "order_noise": [0.5],
    "revise": [2],
    "churn": [0.5],
    "forbidden_tokens": [[5, 6]],
    "begin_suppress_tokens": [[8, 9, 11]],
    "allowed_tokens": [{2: [9]}, {2: [9, 10]}],
    "logits_processor": [LogitsProcessorList([SuppressTokensLogitsProcessor([7])])],
    "threshold": [0.3],
    "speculate": [3],
    "guidance_scale": [2.0],
    "cache_refresh": [3],
    "num_steps": [2],
    "schedule": ["cosine"],
    "counts": ["binomial"],
    "temperature": [0.0, 0.5],
    "top_k": [2],
    "top_p": [0.5],
    "kernel": ["hamming", "free", "site"],
    "min_confidence": [0.1],
    "output_trajectory": [True],
    "num_return_sequences": [3],
}
ELSEWHERE = {  # what a call is for, its randomness and the form of its answer: tests/test_generation_udm.py
    *("length", "max_new_tokens", "max_edits", "seed", "return_dict_in_generate"),
    "compile",  # tests/test_compiling.py
    *("classifier_scale", "classifier_candidates"),  # tests/test_classifier.py
}
FILL_IN = {"input_ids": torch.tensor([[CLS, 7, MASK, 8, MASK, SEP]])}
CONTINUE = {"input_ids": torch.tensor([[CLS, 7, SEP]]), "max_new_tokens": 3}
REPAIR = {"input_ids": torch.tensor([[CLS, 7, 8, 11, 10, SEP]]), "max_edits": 2}


def test_every_option_has_its_pairs_here_or_its_tests_elsewhere():
    assert set(UDMGenerationConfig._defaults) == (set(OPTIONS) | ELSEWHERE) - {"logits_processor"}


@pytest.mark.filterwarnings("ignore:guidance_scale")
@pytest.mark.parametrize("process", PROCESSES)
def test_every_pair_of_options_works_or_is_refused_by_name(process):
    model, worked = make_udm(process), set()
    uses = itertools.cycle([{"length": 4}, REPAIR if process == "substitute" else FILL_IN])
    prompted = CONTINUE if process == "substitute" else FILL_IN  # guidance needs something given
    for a, b in itertools.combinations(OPTIONS, 2):
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b]):
            how, use = {a: x, b: y}, prompted if "guidance_scale" in (a, b) else next(uses)
            try:
                output = model.generate(**use, **how, seed=0)
            except ValueError as error:
                assert a in str(error) or b in str(error), f"{how} raises {error}"
                continue
            worked.add((a, b))
            rows = output if torch.is_tensor(output) else output.sequences
            drawn = rows[:, [2, 4]]  # editable in all uses
            assert not bool((drawn <= MASK).any()), how
            if "max_edits" not in use:  # a repair may leave a token that is there
                assert "forbidden_tokens" not in how or not set(drawn.flatten().tolist()) & {5, 6}, how
                assert "allowed_tokens" not in how or set(rows[:, 2].tolist()) <= set(how["allowed_tokens"][2]), how
    assert len(worked) > 40


def test_the_documentation_holds_the_table_of_options_as_it_is(repository):
    assert markdown_table() in (repository / "docs" / "generation.md").read_text(encoding="utf-8")
    assert all(option.help in UDMGenerationConfig.__doc__ for option in DECLARED.values())


def test_every_default_passes_its_own_check_and_every_exclusion_names_an_option():
    for name, option in DECLARED.items():
        option.check(name, option.default)
        assert set(option.excludes) <= set(DECLARED)


def test_the_command_has_a_flag_for_every_option_that_has_one_and_hands_it_on(monkeypatch):
    seen = []

    def pipe(inputs, batch_size, **options):
        seen.append(options)
        return [[{"generated_text": "a"}]]

    monkeypatch.setattr(commands, "_pipeline", lambda *args: pipe)
    values = {int: "3", float: "0.25", str: "word", list[str]: "token"}
    for name, option in DECLARED.items():
        if option.kind is None:
            continue
        if option.kind is bool:
            run = CliRunner().invoke(commands.app, ["generate", "m", *option.flags])
            assert run.exit_code == 0 and seen.pop() == {**UNSET, name: True}, run.output
            continue
        kind = next(k for k in values if k in (option.kind, *getattr(option.kind, "__args__", ())))
        for flag in option.flags or (f"--{name}", f"--{name.replace('_', '-')}"):
            run = CliRunner().invoke(commands.app, ["generate", "m", flag, values[kind]])
            assert run.exit_code == 0, run.output
            expected = [values[kind]] if kind == list[str] else kind(values[kind])
            assert seen.pop() == {**UNSET, name: expected}, flag
    run = CliRunner().invoke(commands.app, ["generate", "m", "--num_return_sequences", "2", "--batch_size=3"])
    assert run.exit_code == 0 and seen.pop()["num_return_sequences"] == 2


UNSET = {name: option.default for name, option in DECLARED.items() if option.kind is not None} | {
    "return_dict_in_generate": False,
    "output_trajectory": False,
}
