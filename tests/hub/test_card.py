"""What is written into a model's repository: the card, its metadata, the files beside it. No server is needed."""

import contextlib
import inspect
import io
import json
import logging
import re
import shutil
import sys
from importlib import metadata as installed

import pytest
import torch
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.utils import yaml_dump
from jinja2 import Environment
from jinja2.meta import find_undeclared_variables
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_imports

from tests.models import COUNTS, TEXTS, make_masked_lm, make_tokenizer, make_udm, save_masked_lm, text_config, wake_time
from udm_text import UDMForMaskedGeneration
from udm_text.card import check_metadata, is_edited, make_card, price_rows
from udm_text.framing import tokenizer_fields, tokenizer_separator
from udm_text.hub import _modules, push, save_backbone, write_repository
from udm_text.run_report import describe_data, held_out, hub_name, public, read_report
from udm_text.training import UDMTrainer, UDMTrainingArguments
from udm_text.training.ema import WeightAverage

BOUND = {
    "nelbo_nats_per_token": 2.0,
    "nelbo_nats_per_token_stderr": 0.1,
    "perplexity_bound": float("inf"),
    "perplexity_bound_stderr": None,
    "bits_per_char": None,
    "chars": None,
    "rows": 12,
    "length_included": False,
}
REPORT = {
    "data": "user/shapes",
    "model_arguments": {"model": "someone/encoder"},
    "process": "mask",
    "validation": BOUND,
    "train_seconds": 61.4,
    "machine": {"processor": "A CPU", "threads": 2, "accelerator": None, "torch": "2.13"},
}


@pytest.fixture(scope="module")
def model():
    return make_udm(length_counts=COUNTS)


def metadata(card):
    return ModelCard(card).data.to_dict()


def test_a_hub_data_set_and_base_model_are_named_in_the_metadata_and_local_ones_in_words_alone(model, tmp_path):
    fields = metadata(make_card(model, "user/name", report=REPORT))
    assert fields["datasets"] == ["user/shapes"] and fields["base_model"] == "someone/encoder"
    assert fields["base_model_relation"] == "finetune"
    place = tmp_path / "encoder-mine"
    local = {**REPORT, "data": str(tmp_path / "rows.txt"), "model_arguments": {"model": str(place)}}
    card = make_card(model, "user/name", report={**local, "teacher": str(tmp_path / "large-one")})
    assert "| teacher | large-one |" in card
    assert not {"datasets", "base_model", "base_model_relation", "license"} & metadata(card).keys()
    assert "| started from | encoder-mine |" in card and "rows.txt" in card and str(tmp_path) not in card
    scratch = make_card(model, "user/name", report={**REPORT, "model_arguments": {"model": "mini"}})
    assert "base_model" not in metadata(scratch) and "| started from | scratch |" in scratch


def test_the_name_on_the_hub_of_what_a_training_started_from_is_found_where_it_can_be(model, tmp_path):
    cached = tmp_path / "hub/models--someone--an-encoder/snapshots/0123"
    run, bare = tmp_path / "run", tmp_path / "encoder"
    for folder in (cached, run, bare):
        folder.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps({"base_model": "someone/encoder"}))
    names = ("mini", "someone/encoder", "bert-base-uncased", str(cached), str(run), str(bare), "not a name")
    found = [None, "someone/encoder", "bert-base-uncased", "someone/an-encoder", "someone/encoder", None, None]
    assert [hub_name(name) for name in names] == found
    local = {**REPORT, "model_arguments": {"model": str(run)}, "base_model": "someone/encoder"}
    card = make_card(model, "user/name", report=local)
    assert metadata(card)["base_model"] == "someone/encoder"
    assert "| started from | run, of someone/encoder |" in card
    given = make_card(model, "user/name", report={**local, "base_model": None}, base="their/base")
    assert metadata(given)["base_model"] == "their/base"
    assert metadata(make_card(model, "user/name", base="their/base"))["base_model"] == "their/base"
    assert "base_model" not in metadata(make_card(model, "user/name", report={**local, "base_model": None}))
    with pytest.raises(ValueError, match="base_model must be a name on the Hub, as user/name, got 'my base'"):
        make_card(model, "user/name", base="my base")


def test_held_out_rows_are_of_the_source_that_they_came_from(model, tmp_path):
    (tmp_path / "held.txt").touch()
    own = {**REPORT, "data": str(tmp_path / "rows.txt")}
    apart = {"validation_data": str(tmp_path / "held.txt")}
    share = {"data": own["data"], "split": "train", "share": 0.05}
    test = {"data": "user/shapes", "split": "test", "share": None}
    cases = [
        ({**own, "held_out": share}, "rows of rows.txt that were held out of the training (a share of 0.05)", "train"),
        ({**own, "data_arguments": apart}, "rows of held.txt, a source apart from the training data", "validation"),
        (
            {**own, "data_arguments": {"validation_data": "user/held"}},
            "rows of user/held, a source apart from the training data",
            "train",
        ),
        ({**REPORT, "held_out": test}, "rows of user/shapes, its test split", "test"),
        (REPORT, "held-out rows of user/shapes", "validation"),
    ]
    again = [
        "--data rows.txt --split validation",
        "--data held.txt --split train",
        "--data user/held --split train",
        "",
        "",
    ]
    for (report, words, split), flags in zip(cases, again, strict=True):
        card = make_card(model, "user/name", report=report)
        assert f"On 12 {words}, ± one standard error" in card
        where = ", where that file lies" if flags else ""
        assert f"To measure them again{where}: `{' '.join(['udm evaluate user/name', flags]).strip()}`\n" in card
        [result] = metadata(card)["model-index"][0]["results"]
        assert (result["dataset"]["name"], result["dataset"]["split"]) == (held_out(report).data["name"], split)


def test_the_command_is_shown_with_the_last_part_of_its_paths_alone(model, tmp_path):
    words = ["udm", "train", "--data", str(tmp_path / "my rows.txt"), "--model", "someone/encoder", "--bf16"]
    card = make_card(model, "user/name", report={**REPORT, "command": words})
    assert "```bash\nudm train --data 'my rows.txt' --model someone/encoder --bf16\n```" in card
    assert "```bash" not in make_card(model, "user/name", report=REPORT)


def test_the_documentation_is_linked_where_the_installed_package_names_its_address(model, monkeypatch):
    from email.message import Message

    named = Message()
    monkeypatch.setattr("udm_text.card.metadata", lambda name: named)
    assert "made with udm-text." in make_card(model, "user/name")
    named["Project-URL"] = "Repository, https://example.org/code"
    named["Project-URL"] = "Documentation, https://example.org/docs"
    assert "made with [udm-text](https://example.org/docs)." in make_card(model, "user/name")

    def missing(name):
        raise installed.PackageNotFoundError(name)

    monkeypatch.setattr("udm_text.card.metadata", missing)  # as where the code came with the model
    assert "made with udm-text." in make_card(model, "user/name")


def test_adapters_are_named_with_their_share_of_the_parameters(model):
    options = {"model": "someone/udm", "lora_rank": 4, "lora_alpha": None, "lora_target": "query,value"}
    report = {**REPORT, "model_arguments": options, "trained_parameters": 20_000, "parameters": 2_000_000}
    card = make_card(model, "user/name", report=report)
    words = "LoRA of rank 4, alpha 8, on query,value, merged into the weights; 0.02 M of 2.0 M parameters trained"
    assert f"| adapters | {words} |" in card
    fields = metadata(card)
    assert "lora" in fields["tags"] and fields["base_model_relation"] == "finetune"
    assert "| adapters |" not in make_card(model, "user/name", report=REPORT)


def test_figures_that_are_infinite_or_unknown_are_left_out(model):
    fields = metadata(make_card(model, "user/name", report=REPORT))
    [result] = fields["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("nelbo_nats_per_token", 2.0)]
    assert result["metrics"][0]["args"] == {"standard_error": 0.1}


def test_a_card_without_a_report_says_that_nothing_is_known(model):
    card = make_card(model, "user/name")
    assert "model-index" not in metadata(card)
    for said in ("No held-out figures", "Nothing was published of how", "No licence was stated"):
        assert said in card


def test_a_repairer_shows_its_repairs_and_the_time_and_machine_of_training(model):
    rates = {"rows": 10, "restored": 0.625, "restored_stderr": 0.125, "left_alone": 1.0, "left_alone_stderr": 0.0}
    report = {**REPORT, "validation": None, "repair": rates, "max_corruption": 0.2}
    card = make_card(make_udm("substitute"), "user/name", report=report)
    assert "| texts with errors restored exactly | 0.6250 ± 0.1250 |" in card and "upper bound |" not in card
    assert "uniform-diffusion" in metadata(card)["tags"]
    assert "| time | 61 s |" in card and "| machine | A CPU, 2 threads |" in card
    older = {**report, "repair": {**rates, "errors": 1}}
    assert "| rows with one wrong token restored exactly |" in make_card(
        make_udm("substitute"), "user/name", report=older
    )


def test_the_metadata_is_refused_where_the_hub_would_refuse_it(model):
    for field, wrong in {"license": "My Own", "base_model": "not a name", "tags": [1]}.items():
        with pytest.raises(ValueError, match=f"{field} must be"):
            check_metadata(f"---\n{yaml_dump({field: wrong})}---\n\n# Name\n")
    index = [{"name": "n", "results": [{"task": {"type": "t"}, "dataset": {"type": "d", "name": "d"}, "metrics": []}]}]
    index[0]["results"][0]["metrics"] = [{"type": "bits_per_char", "value": float("nan")}]
    with pytest.raises(ValueError, match="bits_per_char must be a finite number"):
        check_metadata(f"---\n{yaml_dump({'model-index': index})}---\n\n# Name\n")
    with pytest.raises(ValueError, match="license must be an identifier"):
        make_card(model, "user/name", licence="Apache License")


def test_samples_stand_in_the_card_as_they_are(model):
    samples = ["plain", "with ``` marks", "---"]
    assert "````text\nplain\nwith ``` marks\n---\n````" in make_card(model, "user/name", samples=samples)
    broken = make_card(model, "user/name", samples=["two\nlines", "one"])
    assert "```text\ntwo\nlines\n```" in broken and "```text\none\n```" in broken
    marked = ["{{ name }}", "{% if %} <b>&", "  "]
    assert "```text\n{{ name }}\n{% if %} <b>&\n  \n```" in make_card(model, "user/name", samples=marked)


def test_the_template_is_given_every_name_that_it_uses_and_no_other(model, monkeypatch):
    given, made = {}, ModelCard.from_template
    monkeypatch.setattr(ModelCard, "from_template", lambda **how: given.update(how) or made(**how))
    make_card(model, "user/name", licence="mit")
    used = find_undeclared_variables(Environment().parse(given.pop("template_str")))
    assert used - {"card_data", "license"} == given.keys() - {"card_data"}
    assert given["card_data"].to_dict()["license"] == "mit"


@pytest.mark.parametrize("with_code", [False, True])
@pytest.mark.parametrize("images", [(), ("loss.png", "prices.png")])
@pytest.mark.parametrize("report", [None, REPORT])
def test_one_blank_line_stands_between_the_parts_of_a_card(report, images, with_code):
    model = make_udm(length_counts=COUNTS, step_curve=[1.0, 2.0])
    text = make_card(model, "user/name", report=report, samples=["one"], images=images, with_code=with_code)
    assert "\n\n\n" not in text and not [line for line in text.splitlines() if line != line.rstrip()]
    parts = text.split("\n\n")
    heads = [part for part in parts if part.startswith("#")]
    assert heads == [
        "# name",
        "## Use it",
        "## How good it is",
        "## Samples",
        "## Fewer steps",
        "## Training",
        "## Intended use and limits",
        "## Licence",
    ]
    tables = [part for part in parts if "| --- |" in part]
    assert len(tables) == (1 if report is None else 3)
    assert all(line.startswith("| ") and line.endswith(" |") for table in tables for line in table.splitlines())


def test_of_every_path_the_last_part_alone_is_published(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    report = {
        "data": str(tmp_path / "rows.txt"),
        "nested": {"a": ["~/secret/corpus", "./x/y", "C:\\Users\\me\\corpus.txt", "/srv/corpora/folder/"], "b": "here"},
        "kept": ["user/data", "wordpiece", "", None, 3, 2.5],
        "infinite": float("inf"),
        "notes": [f"the files of {tmp_path}/corpus are splits: 2 / 3", "in ~/a/b 1.5 nats/token, and ./x none"],
        "examples": [{"text": "/r/names of things"}, {"text": "x" * 5000}],
    }
    assert public(report) == {
        "data": "rows.txt",
        "nested": {"a": ["corpus", "y", "corpus.txt", "folder"], "b": "here"},
        "kept": ["user/data", "wordpiece", "", None, 3, 2.5],
        "infinite": None,
        "notes": ["the files of corpus are splits: 2 / 3", "in b 1.5 nats/token, and x none"],
        "examples": report["examples"],
    }


def test_the_code_that_goes_along_needs_what_transformers_and_torch_bring_and_nothing_else():
    for path in _modules():
        wanted = set(get_imports(path)) - set(sys.stdlib_module_names)
        brought = {"torch", "jinja2", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy"}
        assert wanted <= brought, path.name


def test_a_local_data_set_is_known_by_the_name_and_licence_of_its_card(tmp_path):
    card = "---\npretty_name: Names of things\nlicense: other\nlicense_name: unicode-3.0\n---\n\n# Names\n"
    (tmp_path / "README.md").write_text(card)
    assert describe_data(str(tmp_path)) == {"name": "Names of things", "license": "unicode-3.0"}
    assert describe_data("user/data") == {"name": "user/data", "hub": "user/data"}
    assert describe_data("rows.txt") == {"name": "rows.txt"}, "what a published report holds of a local path"


def test_a_card_is_edited_when_a_person_touched_it(model):
    card = make_card(model, "user/name")
    assert not is_edited(card) and not is_edited(card + "\n")
    assert is_edited(card.replace("# name", "# My model")) and is_edited("# Mine\n")
    assert not is_edited("---\n---\nThis model card has been automatically generated.\n")
    returned = make_card(model, "user/name", samples=["one\rtwo", "three\r\nfour"])
    assert "one\rtwo" in returned and not is_edited(returned)
    assert not is_edited(returned.replace("\r\n", "\n").replace("\r", "\n")), "as a reader of text files reads it"


def test_prices_of_a_curve_alone_are_those_of_the_closed_form(model):
    curve = [1.0, 2.0, 4.0, 8.0]
    model = make_udm(length_counts=COUNTS, step_curve=curve)
    length, rows = price_rows(model.config, {"curve": {"curve": [9.0]}})  # a report of other weights
    assert length == 4 and [row["num_steps"] for row in rows] == [4, 2, 1]
    # one token a step: the mean of the curve; two steps: two tokens each at all and at half masked; one: all masked
    assert [row["linear"] for row in rows] == pytest.approx([15 / 4, (2 * 8 + 2 * 2) / 4, 8.0])
    assert "| 2 | 5.0000 |" in make_card(model, "user/name")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with its tokenizer, as a directory with a report."""
    place = tmp_path_factory.mktemp("saved")
    plain = save_masked_lm(place / "plain", "bert")
    model = UDMForMaskedGeneration.from_pretrained(plain, length_counts=COUNTS)
    model.save_pretrained(place / "udm", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(plain).save_pretrained(place / "udm")
    (place / "udm/report.json").write_text(json.dumps(REPORT))
    (place / "udm/training_args.bin").write_bytes(b"pickle")
    (place / "udm/optimizer.pt").write_bytes(b"pickle")
    return place


def test_a_repository_holds_results_of_its_hub_data_set_and_nothing_else_of_the_run(saved, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(saved / "udm")
    write_repository(tmp_path, model, "user/name")
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    model_files = {"config.json", "generation_config.json", "model.safetensors"}
    beside = {"tokenizer.json", "tokenizer_config.json", "README.md", "report.json", ".eval_results/udm-text.yaml"}
    assert names == model_files | beside
    import yaml

    [entry] = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results/udm-text.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("user/shapes", "udm_nelbo_nats_per_token", 2.0)
    assert "upper bound" in entry.notes and "standard error 0.1" in entry.notes
    assert "```text\n" in (tmp_path / "README.md").read_text()


def test_figures_are_left_out_once_the_weights_have_changed(saved, tmp_path, caplog):
    model = UDMForMaskedGeneration.from_pretrained(saved / "udm")
    with torch.no_grad():
        model.backbone.bert.encoder.layer[1].output.dense.bias[3] += 1e-3
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        write_repository(tmp_path, model, "user/name")
    assert not (tmp_path / "report.json").exists() and "No held-out figures" in (tmp_path / "README.md").read_text()


def trainer_of(folder, **how):
    arguments = UDMTrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **how)
    model, tokenizer = UDMForMaskedGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return UDMTrainer(model, arguments, processing_class=tokenizer)


def test_a_trainer_pushes_what_the_command_pushes_and_its_averaged_weights_where_it_has_any(
    saved, tmp_path, monkeypatch
):
    run, asked = tmp_path / "run", []
    shutil.copytree(saved / "udm", run)
    before = {path: path.read_bytes() for path in run.rglob("*")}

    def written(model, repo_id, **how):
        inspect.signature(push).bind(model, repo_id, **how)
        asked.append({name: how.pop(name) for name in ("token", "private", "revision", "commit_message")})
        made = tmp_path / f"pushed-{len(asked)}"
        made.mkdir()
        write_repository(made, model, repo_id, **how)
        return made

    monkeypatch.setattr("udm_text.hub.push", written)
    trainer = trainer_of(run, hub_model_id="user/name", hub_token="hf_x", hub_private_repo=True)
    made = trainer.push_to_hub(license="mit")
    assert asked == [{"token": "hf_x", "private": True, "revision": None, "commit_message": "End of training"}]
    names = {path.name for path in made.rglob("*") if path.is_file()}
    assert {"model.safetensors", "tokenizer.json", "report.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    card = (made / "README.md").read_text()
    assert metadata(card)["license"] == "mit" and "nats per token, upper bound" in card
    assert {path: path.read_bytes() for path in run.rglob("*")} == before

    trainer.average = WeightAverage(trainer.model, 0.9)
    key = "backbone.bert.embeddings.word_embeddings.weight"
    trainer.average.average[key] += 1.0
    made = trainer.push_to_hub(token="hf_y", private=False)
    assert (asked[1]["token"], asked[1]["private"]) == ("hf_y", False)
    torch.testing.assert_close(load_file(made / "model.safetensors")[key], trainer.model.state_dict()[key] + 1.0)
    assert "No held-out figures" in (made / "README.md").read_text()  # they are of other weights


def test_a_trainer_that_cannot_push_says_what_would_work(saved, tmp_path):
    from udm_text.training.adapters import add_adapter

    with pytest.raises(ValueError, match=r"push_to_hub must be off.*trainer.push_to_hub\(\).*udm push DIR user/name"):
        UDMTrainingArguments(output_dir=str(tmp_path), push_to_hub=True)
    shutil.copytree(saved / "udm", tmp_path / "run")
    trainer = trainer_of(tmp_path / "run", hub_model_id="name")
    with pytest.raises(ValueError, match="hub_model_id must name the repository, as user/name, got 'name'"):
        trainer.push_to_hub()
    with pytest.raises(ValueError, match="blocking must be True"):
        trainer.push_to_hub(blocking=False)
    trainer.args.hub_model_id = "user/name"
    trainer.model = add_adapter(trainer.model, 2)
    with pytest.raises(ValueError, match="got PeftModel: merge an adapter first"):
        trainer.push_to_hub()
    trainer.args.set_push_to_hub("user/name")
    with pytest.raises(ValueError, match="push_to_hub must be off"):
        UDMTrainer(trainer.model, trainer.args)


def test_weights_that_are_pickle_are_refused_unless_asked_for(saved, tmp_path):
    source = saved / "plain"
    weights = load_file(source / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="holds its weights as pytorch_model.bin only, which is pickle"):
        UDMForMaskedGeneration.from_pretrained(tmp_path)
    asked = UDMForMaskedGeneration.from_pretrained(tmp_path, use_safetensors=False)
    key = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(asked.backbone.state_dict()[key], weights[key])


def test_the_exported_backbone_fills_masks_with_the_logits_of_the_model(saved, tmp_path):
    model = UDMForMaskedGeneration.from_pretrained(saved / "udm")
    tokenizer = AutoTokenizer.from_pretrained(saved / "udm")
    save_backbone(model, tokenizer, tmp_path / "deep/out")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "deep/out")
    batch = tokenizer(["the cat [MASK] on the mat"], return_tensors="pt")
    ids = batch["input_ids"]
    with torch.no_grad():
        logits = again(**batch).logits
        assert torch.equal(logits, model(input_ids=ids, attention_mask=batch["attention_mask"]).logits)
    best = logits[0, (ids[0] == tokenizer.mask_token_id).nonzero()[0, 0]].softmax(0).max()
    filled = pipeline("fill-mask", model=str(tmp_path / "deep/out"))("the cat [MASK] on the mat", top_k=1)
    assert filled[0]["score"] == pytest.approx(float(best))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="not an empty folder"):
        save_backbone(model, tokenizer, tmp_path / "deep/out")


def test_a_backbone_that_is_not_the_model_is_not_exported(saved, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(saved / "udm")
    timed = UDMForMaskedGeneration.from_pretrained(saved / "plain", process="substitute")
    save_backbone(timed, tokenizer, tmp_path / "silent")  # its embedding of time says nothing yet
    with pytest.raises(ValueError, match="the embedding of t/l that it adds to its input would be lost"):
        save_backbone(wake_time(timed), tokenizer, tmp_path / "timed")
    from peft import LoraConfig, inject_adapter_in_model

    adapted = UDMForMaskedGeneration.from_pretrained(saved / "udm")
    inject_adapter_in_model(LoraConfig(target_modules=["query"], r=2), adapted.backbone)
    with pytest.raises(ValueError, match="lora_A.* would be lost; merge adapters"):
        save_backbone(adapted, tokenizer, tmp_path / "adapted")
    with pytest.raises(ValueError, match="mask token"):
        save_backbone(UDMForMaskedGeneration.from_pretrained(saved / "udm"), None, tmp_path / "bare")
    assert [path.name for path in tmp_path.iterdir()] == ["silent"]


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(model):
    for wrong in ({"repo_id": "a b/c"}, {"timeout": 0.0}, {"license": "My Own"}):
        with pytest.raises(ValueError, match="a b/c|timeout must be|license must be"):
            push(model, **{"repo_id": "user/name", "token": "hf_x", "tokenizer": make_tokenizer("bert"), **wrong})


PROMPT, ANSWER = TEXTS[1], TEXTS[3]
KINDS = {
    "generator": ({}, {}, {}),
    "answerer": ({}, {"prompted": True}, {"examples": [{"prompt": PROMPT, "text": ANSWER}]}),
    "repairer": (
        {"process": "substitute"},
        {},
        {"examples": [{"text": PROMPT}, {"text": ANSWER}], "max_corruption": 0.3, "validation": None},
    ),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A model of each kind with its report, and what `write_repository` makes of it under the name user/name."""
    tokenizer, made = make_tokenizer("bert"), {}
    rates = {"rows": 10, "restored": 0.5, "restored_stderr": 0.125, "left_alone": 1.0, "left_alone_stderr": 0.0}
    for kind, (fields, how, more) in KINDS.items():
        place = tmp_path_factory.mktemp(kind)
        separator = {"separator_token_ids": tokenizer_separator(tokenizer)} if how else {}
        backbone = make_masked_lm(text_config(vocab_size=len(tokenizer)))
        backbone.save_pretrained(place / "plain")
        own = {**tokenizer_fields(tokenizer), **fields, **separator}
        model = UDMForMaskedGeneration.from_pretrained(place / "plain", length_counts=COUNTS, **own)
        model.save_pretrained(place / "udm")
        tokenizer.save_pretrained(place / "udm")
        report = {**REPORT, "repair": rates if kind == "repairer" else None, **more}
        (place / "udm/report.json").write_text(json.dumps(report))
        (place / "pushed").mkdir()
        write_repository(place / "pushed", model, "user/name", tokenizer=tokenizer, source=place / "udm")
        made[kind] = place
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_a_card_runs_and_prints_what_the_card_shows(kind, kinds):
    card = (kinds[kind] / "pushed/README.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    block = block.replace('"user/name"', repr(str(kinds[kind] / "udm")))
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), names)
    lines, shown = printed.getvalue().splitlines(), card.split("## Samples")[1].split("## Training")[0]
    pipe = names["pipe"]
    if kind == "generator":
        first = [record["generated_text"] for record in pipe("", num_return_sequences=8, seed=0)]
        assert lines[:3] == first[:3] and len(lines) == 4 and "[MASK]" in block
        assert "```text\n" + "\n".join(first) + "\n```" in shown
    elif kind == "answerer":
        assert f'pipe("{PROMPT}", seed=0)' in block
        assert f"prompt: {PROMPT}\nanswer: {lines[0]}\n" in shown and len(lines) == 1
    else:
        [given] = re.findall(r'pipe\("(.*)", max_edits=2\)', block)
        assert sum(a != b for a, b in zip(given.split(" "), PROMPT.split(" "), strict=True)) == 1
        assert f"given:    {given}\nrepaired: {lines[0]}\n" in shown and shown.count("given:") == 2


def test_a_repairer_and_an_answerer_are_described_as_what_they_are(kinds):
    cards = {kind: (place / "pushed/README.md").read_text() for kind, place in kinds.items()}
    fields = {kind: metadata(card) for kind, card in cards.items()}
    heads = {"generator": "Text generation", "answerer": "Answers to prompts", "repairer": "Repair of texts"}
    for kind, head in heads.items():
        assert f"# name\n\n{head} by discrete diffusion" in cards[kind]
    assert [fields[kind].get("pipeline_tag") for kind in KINDS] == ["text-generation", "text-generation", None]
    assert "text-correction" in fields["repairer"]["tags"] and "prompt-and-answer" in fields["answerer"]["tags"]
    tasks = [fields[kind]["model-index"][0]["results"][0]["task"]["type"] for kind in KINDS]
    assert tasks == ["text-generation", "text2text-generation", "text-correction"]
    assert "of the answers alone" in cards["answerer"] and "of the answers alone" not in cards["generator"]
    for kind in ("answerer", "repairer"):
        assert "from nothing:" not in cards[kind] and "For writing" not in cards[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_of_every_kind_is_read_again_by_the_hub_client(kind, kinds):
    card = ModelCard.load(kinds[kind] / "pushed/README.md", ignore_metadata_errors=False)
    again = ModelCard(str(card), ignore_metadata_errors=False)
    assert again.data.to_dict() == card.data.to_dict() and again.data.eval_results == card.data.eval_results
    assert {result.metric_type for result in card.data.eval_results} == (
        {"restored_rate", "left_alone_rate"} if kind == "repairer" else {"nelbo_nats_per_token"}
    )


def test_a_report_that_is_none_is_refused_by_its_field(tmp_path):
    cases = {
        "command": ("udm train", "command must be a list"),
        "examples": ([{"text": 3}], r"examples\[0\].text must be a string, got 3"),
        "held_out": ({"share": "all"}, "held_out.share must be a number, got 'all'"),
    }
    for field, (value, said) in cases.items():
        (tmp_path / "report.json").write_text(json.dumps({field: value}))
        with pytest.raises(ValueError, match=said):
            read_report(tmp_path / "report.json")


def test_a_card_says_what_figures_per_character_leave_out():
    model = make_udm(length_counts=COUNTS)
    lossy = {"round_trip": {"texts": 3, "exact": 0, "lost": ["capitals", "white space"]}}
    said = "The tokenizer does not give back capitals, white space, which figures per character leave out."
    assert said in " ".join(make_card(model, "user/name", report={**REPORT, "vocabulary": lossy}).split())
    lossy["round_trip"]["lost"] = []
    assert "does not give back" not in make_card(model, "user/name", report={**REPORT, "vocabulary": lossy})


def test_a_card_says_where_a_model_has_learnt_no_context():
    model = make_udm(length_counts=COUNTS)
    for learnt, said in ((False, True), (True, False), (None, False)):
        card = make_card(model, "user/name", report={**REPORT, "context": {"learnt_context": learnt}})
        assert ("It has learnt no context yet" in card) == said
        assert "\nTo measure them again" in card
