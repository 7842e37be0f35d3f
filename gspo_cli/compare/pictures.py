"""Figures as files for slides: figures/<name>.svg and .png, in light colors on white; of several tasks
or models figures/section-<number>/<name>.

The library that draws PNG, resvg, is optional. It takes its fonts from the machine."""

from __future__ import annotations

from pathlib import Path

from gspo_cli.compare.across_content import arms_across, comparisons
from gspo_cli.compare.figures import FONTS, GROUND, light_chart
from gspo_cli.compare.result import Across, Comparison
from gspo_cli.config.checks import require
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.run.files import make_folder, write_atomically

FOLDER = "figures"
WIDTH = 1920  # pixels of a PNG
LETTERS = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20" width="40">'
    f'<text y="15" font-family="{FONTS}">{{}}</text></svg>'
)


def write_figures(found: Comparison | Across, folder: Path) -> Path:
    """Write every chart as SVG and PNG, those of several comparisons in a folder for each; returns their
    folder. All are drawn before the first is written. Raises UserError if one cannot be written;
    `require_png` finds out whether they can be drawn."""
    arms = arms_across(found)
    files: dict[Path, str | bytes] = {}
    for comparison, section in comparisons(found):
        for chart in comparison.charts:
            svg, path = light_chart(chart, arms), folder / FOLDER / section / chart.key
            files |= {
                path.with_name(f"{chart.key}.svg"): svg + "\n",
                path.with_name(f"{chart.key}.png"): png(svg),
            }
    make_folder(folder / FOLDER, "compare.folder")
    for path, content in files.items():
        make_folder(path.parent, "compare.folder")
        write_atomically(path, content)
    return folder / FOLDER


def require_png() -> None:
    """Raise UserError where PNG cannot be drawn: without the library, or without a font, as text would
    silently be missing."""
    try:
        drawn = png(LETTERS.format("Ag")) != png(LETTERS.format(""))
    except ImportError as error:
        raise UserError(f"--png: needs the package resvg-py; {install('figures')}") from error
    require(
        drawn, "--png: no font was found to write with; install one, e.g. apt-get install fonts-dejavu-core"
    )


def png(svg: str) -> bytes:
    """An svg element as a PNG file of WIDTH pixels."""
    from resvg_py import svg_to_bytes

    # the background is behind the last row too, which rounding to whole pixels may leave open
    return bytes(svg_to_bytes(svg_string=svg, width=WIDTH, background=GROUND[0]))
