"""What the prepare scripts share: texts become a local `datasets` repository (a card and JSONL splits).

Standard library only; nothing here is installed with the package.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

SPLITS = ("train", "validation", "test")


def split_of(key: str) -> str:
    """The split of a text by its own hash, 80/10/10: it does not move when other texts come or go."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def card(body: str, counts: Mapping[str, int], *, pretty_name: str, license_name: str, license_link: str) -> str:
    """The README of a dataset repository: YAML front matter that the Hub reads, prose, row counts."""
    rows = sum(counts.values())
    size = "n<1K" if rows < 1_000 else "1K<n<10K" if rows < 10_000 else "10K<n<100K"
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.jsonl" for split in counts)
    table = "\n".join(f"| {split} | {count} |" for split, count in counts.items())
    return f"""---
pretty_name: {pretty_name}
language:
- en
license: other
license_name: {license_name}
license_link: {license_link}
task_categories:
- text-generation
size_categories:
- {size}
configs:
- config_name: default
  data_files:
{files}
---

{body.strip()}

## Splits

| split | rows |
| --- | ---: |
{table}
"""


def write(output: Path, readme: str, splits: Mapping[str, list[str]], *, force: bool = False) -> None:
    """Write README.md and data/<split>.jsonl (one column, `text`) to `output`, whole or not at all.

    Raises FileExistsError if `output` holds anything, unless `force` is set and it holds such a repository.
    """
    output = Path(output).resolve()
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"output {output} is a file: name a directory")
    held = {path.name for path in output.iterdir()} if output.exists() else set()
    if held and not force:
        raise FileExistsError(f"output {output} is not empty: pass --force to replace it, or name another")
    if held - {"README.md", "data"}:
        extra = ", ".join(sorted(held - {"README.md", "data"}))
        raise FileExistsError(f"output {output} also holds {extra}: --force replaces a prepared dataset only")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        fresh = Path(scratch, "fresh")
        (fresh / "data").mkdir(parents=True)
        (fresh / "README.md").write_text(readme, encoding="utf-8", newline="\n")
        for split, texts in splits.items():
            lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
            (fresh / "data" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        if output.exists():
            output.rename(Path(scratch, "old"))
        fresh.rename(output)


def main(prepare: Callable[[Path, bool], dict[str, int]], default: Path, description: str | None) -> None:
    """The command line of a prepare script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=default, help="what to write (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a dataset that is already there")
    arguments = parser.parse_args()
    try:
        counts = prepare(arguments.output, arguments.force)
    except OSError as problem:
        parser.exit(1, f"error: {problem}\n")
    print(f"{arguments.output}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
