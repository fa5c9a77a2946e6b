"""The code blocks of the documentation: `python docs/blocks.py FILE…` prints a script of those that run as they are.

These are the `sh` and `python` blocks whose paths are the demo's (`runs/demo`) or made from them. tests/test_docs.py
checks the commands of all blocks.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUNS = re.compile(r"\bruns/(demo|first|howto|readme)\b")
_ASSIGNED = re.compile(r"(\w+)=(.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and `file:line` of its first line."""

    language: str
    text: str
    where: str

    @property
    def runs(self) -> bool:
        """Whether the block runs as it is after `make demo`."""
        return self.language in ("sh", "python") and _RUNS.search(self.text) is not None

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command line of a shell block, with its variables replaced."""
        variables: dict[str, str] = {}
        for line in self.text.replace("\\\n", " ").splitlines():
            if assigned := _ASSIGNED.fullmatch(line.strip()):
                (variables[assigned[1]],) = shlex.split(assigned[2])
                continue
            expanded = re.sub(r"\$(\w+)", lambda name: variables[name[1]], line)
            if words := shlex.split(expanded, comments=True):
                yield words

    def script(self) -> str:
        """Return the block as shell commands."""
        body = self.text if self.language == "sh" else f"python - <<'END'\n{self.text}END\n"
        return f"echo '--- {self.where}'\n{body}"


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file that name a language."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], f"{path}:{text.count(chr(10), 0, found.start()) + 2}")
        for found in _FENCED.finditer(text)
    ]


if __name__ == "__main__":
    print("set -euo pipefail")
    for name in sys.argv[1:]:
        print("\n".join(block.script() for block in blocks(Path(name)) if block.runs))
