"""Film the page: a recording is chosen, its words arrive, and one listens to them.

    PYTHONPATH=. python tests/animation.py [TARGET]

Writes `docs/screenshots/words.gif` by default, with a real server and the real page. The model is
that of the tests, which knows the recording's sentences; the page's note about it is hidden.
`make screenshots` runs it.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from browser import Font, Look, choose, chromium, visit
from conftest import ROOT, SPEECH, running_server
from playwright.sync_api import Page

from parakeet_api.audio.ffmpeg import find_ffmpeg

TARGET = ROOT / "docs" / "screenshots" / "words.gif"
SCREEN = Look(width=1120, height=720, font=Font("Inter", 0.0))
SHOWN_WIDTH = 800
COLOURS = 48
RECORDING = SPEECH / "long-pauses.ogg"
"""Twelve minutes: long enough to see the words come."""
MOST_WORKING = 20
"""Pictures of words arriving."""


class Film:
    """Pictures of a page, each with the time for which it is shown."""

    def __init__(self, page: Page, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._pictures: list[tuple[Path, float]] = []
        self._taken = 0

    def shoot(self, *, seconds: float) -> None:
        """Take a picture, to be shown for `seconds`."""
        path = self._folder / f"{self._taken:05}.png"
        self._page.screenshot(path=path)
        self._taken += 1
        self._pictures.append((path, seconds))

    def shoot_until(self, is_over: Callable[[], bool], *, seconds: float, most: int) -> None:
        """Take pictures until something has happened; keep at most `most`, evenly spread.

        So the animation takes as long wherever it is made.
        """
        before = self._pictures
        self._pictures = []
        while not is_over():
            self.shoot(seconds=seconds)
        step = max(1, math.ceil(len(self._pictures) / most))
        self._pictures = before + self._pictures[::step]

    def write(self, target: Path) -> None:
        """Write the pictures as an animation that repeats, with colours chosen for it."""
        playlist = self._folder / "pictures.txt"
        lines = [f"file '{path}'\nduration {seconds}" for path, seconds in self._pictures]
        # The last picture's duration counts only if the picture is named once more.
        last = f"file '{self._pictures[-1][0]}'"
        playlist.write_text("\n".join(["ffconcat version 1.0", *lines, last]) + "\n")
        palette = (
            f"scale={SHOWN_WIDTH}:-1:flags=lanczos,split[a][b];"
            f"[a]palettegen=max_colors={COLOURS}:stats_mode=full[p];"
            "[b][p]paletteuse=dither=none:diff_mode=rectangle"
        )
        command = [find_ffmpeg(), "-loglevel", "error", "-y", "-f", "concat", "-safe", "0"]
        command += ["-i", str(playlist), "-fps_mode", "vfr", "-filter_complex", palette]
        subprocess.run([*command, str(target)], check=True)


def film(page: Page, film: Film) -> None:
    """Do what a visitor does first."""
    page.locator("#demo-banner").evaluate("(banner) => { banner.style.display = 'none'; }")
    film.shoot(seconds=1.2)
    choose(page, RECORDING)
    film.shoot_until(page.locator("#export-open").is_visible, seconds=0.3, most=MOST_WORKING)
    film.shoot(seconds=1.0)
    page.locator("#sentences .words > *").nth(2).click()
    for _ in range(8):
        film.shoot(seconds=0.3)
    film.shoot(seconds=2.0)


def main(target: Path) -> None:
    """Run a server, film its page, and write the animation."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_server(Path(name), ENABLE_LAZY_LOAD="false") as server,
        chromium() as browser,
        visit(browser, server.url, SCREEN) as page,
    ):
        taken = Film(page, Path(name))
        film(page, taken)
        taken.write(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
