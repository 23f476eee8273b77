"""Pushing, over HTTP to a Hub on this machine: what arrives, and what is said when it does not."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

from tests.helpers import python, udm_here
from tests.hub.conftest import COMMANDS
from tests.hub.server import WRITER


def test_every_command_of_the_readme_runs(commands):
    assert [command.split()[1] for command in COMMANDS] == ["push", "push", "generate", "export"]
    for result in commands:
        assert result["code"] == 0, result


def test_a_model_pushed_and_generated_from_by_its_name_writes_the_local_texts(commands, local_texts):
    generated = commands[[command.split()[1] for command in COMMANDS].index("generate")]["out"]
    assert generated.splitlines() == [record["generated_text"] for record in local_texts]


def test_a_push_is_one_commit_of_safetensors_settings_tokenizer_and_card(hub, commands):
    repository = hub.repositories["user/name"]
    assert [repository.messages[sha] for sha in repository.branches["main"]] == ["initial commit", "Upload model"]
    assert not repository.private
    model = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    shown = {"README.md", "report.json", "loss.png", "prices.png", ".gitattributes"}
    assert repository.files().keys() == model | shown
    config = json.loads(repository.files()["config.json"])
    assert not {"auto_map", "custom_pipelines"} & config.keys() and len(config["step_curve"]) == 3


def test_what_would_be_pushed_can_be_seen_before(hub, commands, workplace, environment, tmp_path, monkeypatch):
    """The folder holds what the push of the README put on the Hub; without a token, nor a Hub."""
    monkeypatch.chdir(workplace)
    given = ("runs/unicode-names", "user/name", "--license", "apache-2.0", "--output", tmp_path / "seen")
    call, nowhere = ("-m", "udm_text", "push", *given), {"HF_ENDPOINT": "http://127.0.0.1:9"}
    result = python(*call, environment=environment(), cwd=workplace, **nowhere)
    sent = {name: data for name, data in hub.repositories["user/name"].files().items() if name != ".gitattributes"}
    written = {path.relative_to(tmp_path / "seen").as_posix(): path for path in (tmp_path / "seen").rglob("*")}
    assert {name: path.read_bytes() for name, path in written.items() if path.is_file()} == sent
    assert result.stdout.splitlines() == sorted(str(tmp_path / "seen" / name) for name in sent)
    again = udm_here("push", *given, code=1).exception
    assert isinstance(again, FileExistsError) and "is not an empty folder" in str(again)
    for option in (["--private"], ["--revision", "new"], ["--message", "m"]):
        error = udm_here("push", "m", "user/name", "--output", tmp_path / "other", *option, code=1).exception
        assert f"sends nothing: leave {option[0]} away" in str(error)
    assert "Repo id must" in str(
        udm_here("push", *given[:1], "a b", *given[2:4], "--output", tmp_path / "x", code=1).exception
    )
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


def test_nothing_of_this_machine_and_no_token_is_pushed(hub, commands, workplace):
    for name in ("user/name", "user/with-code"):
        for path, data in hub.repositories[name].files().items():
            assert str(workplace.parent).encode() not in data and b"secret-home" not in data, path
            assert WRITER.encode() not in data, path
    report = json.loads(hub.repositories["user/name"].files()["report.json"])
    assert report["data"] == report["data_arguments"]["data"] == "shapes.txt"


def test_the_card_holds_the_figures_of_the_report_and_the_first_texts_of_seed_0(hub, commands, model_directory):
    files = hub.repositories["user/name"].files()
    card, report = ModelCard(files["README.md"].decode()), json.loads((model_directory / "report.json").read_text())
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {name: report["validation"][name] for name in values} and len(values) == 3
    assert card.data.license == "apache-2.0" and card.data.library_name == "udm-text"
    for figure, digits in {"bits_per_char": 4, "perplexity_bound": 2}.items():
        value, error = (report["validation"][f"{figure}{end}"] for end in ("", "_stderr"))
        assert f"upper bound | {value:.{digits}f} ± {error:.{digits}f} |" in card.text
    for row in report["curve"]["prices"]:
        assert f"| {row['num_steps']} | {row['linear']:.4f} ± {row['linear_stderr']:.4f}" in card.text
    samples = pipeline("udm-generation", model=str(model_directory))("", num_return_sequences=8, seed=0)
    assert "\n".join(["```text", *(record["generated_text"] for record in samples), "```"]) in card.text
    assert "```bash\nudm train --data shapes.txt --output unicode-names --max_steps 6" in card.text
    assert "(loss.png)" in card.text and "(prices.png)" in card.text and "shapes.txt" in card.text
    assert files["loss.png"] == (model_directory / "loss.png").read_bytes()


def test_a_model_on_the_hub_is_evaluated_as_its_card_says(hub, commands, author, model_directory):
    card, report = hub.repositories["user/name"].files()["README.md"].decode(), model_directory / "report.json"
    again, whole, unknown = author["evaluated"]
    assert "`udm evaluate user/name --data shapes.txt --split validation`" in card
    wanted, found = json.loads(report.read_text())["validation"], json.loads(again["out"])
    assert {name: found[name] for name in wanted} == wanted
    assert json.loads(whole["out"])["rows"] == 210
    assert unknown["code"] == 1 and "shapes.txt, is not here: give --data" in unknown["err"]


def test_two_pushes_at_once_are_two_commits_each_whole(hub, author):
    both, repository = author["both"], hub.repositories["user/both"]
    assert len(set(both["folders"])) == 2
    commits = [one["oid"] for one in both["pushed"]]
    assert sorted(commits) == sorted(repository.branches["main"][1:])  # behind the initial one
    weights = {repository.files(sha)["model.safetensors"] for sha in commits}
    assert len(weights) == 2 and len({frozenset(repository.files(sha)) for sha in commits}) == 1


def test_code_goes_along_where_asked_whole_and_named_in_the_config(hub, commands):
    files = hub.repositories["user/with-code"].files()
    config = json.loads(files["config.json"])
    named = [*config["auto_map"].values(), config["custom_pipelines"]["udm-generation"]["impl"]]
    sources = {name.removesuffix(".py"): data.decode() for name, data in files.items() if name.endswith(".py")}
    # the one form of import that transformers follows when it fetches the files
    followed = set(re.findall(r"^\s*from \.(\w+) import", "\n".join(sources.values()), re.MULTILINE))
    assert followed <= sources.keys() and {reference.split(".")[0] for reference in named} <= sources.keys()
    for module, source in sources.items():
        for names in re.findall(r"^\s*from \. import (.+)$", source, re.MULTILINE):
            assert set(re.split(r",\s*", names)) <= followed, module
        assert not re.search(r"^\s*(from|import) udm_text", source, re.MULTILINE), module
    assert "trust_remote_code=True" in files["README.md"].decode()


def test_a_push_of_the_same_again_changes_nothing_and_of_other_weights_is_a_commit(author):
    pinned = author["pinned"]
    assert pinned["first"] == pinned["again"] and len(set(pinned.values())) == 3
    assert author["history"]["main"] == ["initial commit", "Upload model", "other weights"]
    assert author["history"]["draft"] == ["other weights", "a draft"]


def test_a_push_to_the_repository_of_another_can_be_proposed(hub, author):
    sha, number = author["proposed"]
    repository = hub.repositories["user/pinned"]
    assert repository.resolve(f"refs/pr/{number}") == sha and sha not in repository.branches["main"]
    assert "license: mit" in repository.files(sha)["README.md"].decode()


def test_figures_of_other_weights_are_not_in_the_card(hub, author):
    repository = hub.repositories["user/pinned"]
    before, after = (repository.files(author["pinned"][name]) for name in ("first", "second"))
    assert "bits_per_char" in before["README.md"].decode() and "report.json" in before
    assert "bits_per_char" not in after["README.md"].decode() and "report.json" not in after
    assert "- shapes" in after["README.md"].decode()


def test_private_means_private(hub, author):
    assert hub.repositories["user/private"].private and hub.repositories["user/command"].private
    said = author["refused"]["public"]["error"]
    assert "is public" in said and "nothing was sent" in said


def test_an_edited_card_and_foreign_files_stay_and_code_that_is_not_wanted_goes(hub, author):
    repository = hub.repositories["user/edited"]
    with_code, without = (repository.files(repository.branches["main"][at]) for at in (1, -1))
    assert "core.py" in with_code and not [name for name in without if name.endswith(".py")]
    assert without["README.md"].decode().endswith("# Mine\n") and without["notes.txt"] == b"mine"
    assert "auto_map" not in json.loads(without["config.json"])


def test_who_may_not_push_is_told_in_one_sentence(hub, author):
    refused = {name: report["error"] for name, report in author["refused"].items()}
    assert "no token was found" in refused["nobody"] and "hf auth login" in refused["nobody"]
    assert "does not know the token" in refused["unknown"] and "(401)" in refused["unknown"]
    assert "may not write to user/pinned (403)" in refused["reader"]
    assert "may not write to user/new (403)" in refused["stranger"]
    assert not any("\n" in said for said in refused.values()) and "user/new" not in hub.repositories


LANDED = ("commit-lost", "commit-slow", "commit-forgets", "confirmation")


@pytest.mark.parametrize(
    "fault, said",
    {
        "create": "answered 500 (a fault of the test)",
        "token": "does not know the token",
        "preupload": "answered 503",
        "upload": "the connection to http://127.0.0.1",
        "upload-answer": "answered 500",
        "commit": "answered 500",
        "commit-dropped": "the connection to",
        "commit-lost": "the connection to",
        "commit-slow": "(ReadTimeout)",
        "commit-forgets": "does not hold model.safetensors",
        "confirmation": "answered 500",
    }.items(),
)
def test_a_fault_of_the_hub_is_one_sentence_and_a_repeated_push_succeeds(hub, author, fault, said):
    report = author["faults"][fault]
    assert "oid" not in report and report["hits"][0] >= 1
    assert said in report["error"] and "\n" not in report["error"], report["error"]
    if fault != "token":
        assert "push again is safe" in report["error"] or "to push again" in report["error"]
    if fault not in LANDED:  # no commit was made, so nothing half-done can be seen
        assert report["history"] in ([], ["initial commit"])
    assert report["repeated"]["oid"] == report["sha"]
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert wanted <= set(report["files"])
    if fault in ("commit-lost", "commit-slow", "confirmation"):  # it had landed: the repeated push only sees so
        assert len(hub.repositories[f"user/fault-{fault}"].branches["main"]) == 2


def test_a_single_dropped_connection_is_got_over(author):
    assert author["once"]["oid"] and author["once"]["hits"] == [1]


def test_a_slow_answer_is_waited_for(author, local_texts):
    assert author["command-slow"]["code"] == 0, author["command-slow"]
    assert author["command-slow"]["out"].splitlines() == [record["generated_text"] for record in local_texts]


def test_the_command_ends_in_one_line_without_a_traceback(author):
    for name, said in {
        "command-nobody": "no token was found",
        "command-fault": "answered 500",
        "command-name": "not a name",
        "command-licence": "license must be an identifier",
        "command-other": "user/gpt2 is of model type 'gpt2'",
        "command-weightless": "user/broken-line does not appear to have a file named pytorch_model.bin or model",
        "command-broken": "user/dropped-line",
    }.items():
        result = author[name]
        assert result["code"] == 1 and result["err"].startswith("udm: ") and said in result["err"], (name, result)
        assert "Traceback" not in result["err"] and not result["out"], (name, result)
    missing, again = author["command-missing"], author["command-again"]
    assert missing["code"] == 1 and "user/missing is not a local folder" in missing["err"]
    assert again["code"] == 0 and "/user/command/commit/" in again["out"]
    assert author["command-history"]["main"] == ["initial commit", "by command"]
