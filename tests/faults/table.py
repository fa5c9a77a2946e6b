"""Print what a long campaign has counted, as a table of Markdown: `make faults`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path


def main(folder: Path = Path("build", "faults")) -> None:
    """Print one line for each test, and the sums."""
    total: Counter[str] = Counter()
    print("| test | counts |\n|---|---|")
    for path in sorted(folder.glob("*.json")):
        counts = Counter(json.loads(path.read_text()))
        total += counts
        print(f"| {_name(path.stem)} | {_listed(counts)} |")
    print(f"| **all** | {_listed(total)} |")


def _name(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ").replace("[", ": ").removesuffix("]")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


if __name__ == "__main__":
    main()
