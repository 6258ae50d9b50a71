"""Refuse installed versions for which a flaw is known: see advisories.txt beside this."""

import sys
from importlib import metadata
from pathlib import Path

from packaging.version import Version

LIST = Path(__file__).with_name("advisories.txt")


def advisories(text):
    """Of each line the package, the first safe version and what is said about it."""
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, about = line.split(" ", 1)
            yield *pin.split("=="), about


def audit(text, installed):
    """Lines about versions that are not safe; `installed` maps names to versions."""
    return [
        f"{name} {installed[name]} is installed; {safe} is needed: {about}"
        for name, safe, about in advisories(text)
        if name in installed and Version(installed[name]) < Version(safe)
    ]


def main():
    text = LIST.read_text()
    installed = {d.name.lower(): d.version for d in metadata.distributions()}
    names = {name for name, *_ in advisories(text)}
    absent = sorted(names - installed.keys())
    print(f"{len(names) - len(absent)} packages looked at, not installed: {absent}")
    wrong = audit(text, installed)
    print(*wrong, sep="\n")
    return 1 if wrong or absent == sorted(names) else 0


if __name__ == "__main__":
    sys.exit(main())
