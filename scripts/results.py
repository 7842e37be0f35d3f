"""Writes the measured parts of docs/results.md, and their figures, from the logs in docs/results.

    python scripts/results.py            # write them anew
    python scripts/results.py --check    # change nothing; code 1 where page or figures say something else

A measured part stands between `<!-- study NAME SETTINGS -->` and `<!-- end -->`. SETTINGS are gspo-compare's,
and `sections=A,B` names sections of the report that follow its first page, with dashes for spaces. The logs
of a study are NAME.zip, or those of the studies in `of=A,B`; the table after `<!-- bands -->` is that of
scripts/bands.py."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from zipfile import ZipFile

import bands

from gspo_cli.commands.compare import compare_settings
from gspo_cli.compare.across import compare_subjects
from gspo_cli.compare.figures import line_chart
from gspo_cli.compare.report import FIGURE, markdown
from gspo_cli.compare.result import Comparison
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.until_settled import looked_at

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, LOGS = DOCS / "results.md", DOCS / "results"
BANDS = re.compile(r"(<!-- bands -->\n).*?(?=<!-- end -->)", re.DOTALL)
STUDY = re.compile(r"(<!-- study (\S+)(.*?) -->\n).*?(?=<!-- end -->)", re.DOTALL)
END_OF_FIRST_PAGE = "\n\nAll figures, light and dark"


def study(name: str, settings: list[str]) -> tuple[str, str]:
    """The measured part of the page and the figure of one study, computed from its logs."""
    options = dict(text.split("=", 1) for text in settings)
    several, titles = (list(filter(None, options.get(key, "").split(","))) for key in ("of", "sections"))
    given = compare_settings([text for text in settings if text.startswith("compare.")])
    with tempfile.TemporaryDirectory() as place, chdir(place):
        for logs in several or [name]:
            with ZipFile(LOGS / f"{logs}.zip") as file:
                file.extractall(logs if several else None)
        found = compare_subjects(*find_runs([Path()], given.allow), given, looked_at)
    assert isinstance(found, Comparison), f"{name}: has several tasks or models"
    first, *sections = markdown(found).split("\n\n## ")
    _, _, verdicts = first.partition(END_OF_FIRST_PAGE)[0].partition("\n\n")
    by_title = {section.partition("\n")[0].replace(" ", "-"): section for section in sections}
    parts = [verdicts.replace(f"]({FIGURE})", f"](results/{name}.svg)")]
    parts += [f"### {by_title[title].rstrip()}" for title in titles]
    arms = [arm.name for arm in found.arms]
    return "\n" + "\n\n".join(parts) + "\n\n", line_chart(found.charts[0], arms, alone=True) + "\n"


def main() -> int:
    """Write or check all studies of the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; end with code 1 if it would")
    parser.add_argument("--only", default="", help="part of a study's name")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    files = {}

    def measured(found: re.Match[str]) -> str:
        if arguments.only not in found[2]:
            return found[0]
        part, files[LOGS / f"{found[2]}.svg"] = study(found[2], found[3].split())
        return found[1] + part

    text = BANDS.sub(lambda found: f"{found[1]}\n{bands.table(bands.stored())}\n\n", text)
    files[PAGE] = STUDY.sub(measured, text)
    changed = [
        path for path, new in files.items() if not path.exists() or path.read_text(encoding="utf-8") != new
    ]
    for path in changed:
        print(f"{path.relative_to(DOCS)}: {'is not what the logs say' if arguments.check else 'written'}")
        if not arguments.check:
            path.write_text(files[path], encoding="utf-8")
    if not changed:
        print(f"{PAGE.name}: is what the logs say")
    return 1 if changed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
