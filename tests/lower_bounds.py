"""Print the oldest versions that pyproject.toml allows, as a constraints file for pip: ``make test-lower-bounds``."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lower_bounds() -> list[str]:
    """Return ``name==version`` for every requirement that has a lower bound and applies to this machine."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounds = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            bounds += [f"{requirement.name}=={s.version}" for s in requirement.specifier if s.operator == ">="]
    return sorted(set(bounds))


if __name__ == "__main__":
    print("\n".join(lower_bounds()))
