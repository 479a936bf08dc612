"""Measure the page with a long recording: memory of its tab, first words, smoothness of scrolling.

    .venv/bin/python -m benchmarks.page [HOURS]

Needs Chromium and this repository's packages; serves the demo model by itself.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from parakeet_api.audio.ffmpeg import find_ffmpeg

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "samples" / "speech" / "long-dense.ogg"
SOURCE_HOURS = 0.2
PORT = "5693"
MB = 1024 * 1024

_SCROLL = """async () => {
    const frames = [];
    let before = performance.now();
    for (let frame = 0; frame < 200; frame += 1) {
        scrollBy(0, 400);
        await new Promise(requestAnimationFrame);
        frames.push(performance.now() - before);
        before = performance.now();
    }
    return frames;
}"""


def main() -> None:
    """Print one line a figure."""
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with tempfile.TemporaryDirectory() as folder:
        recording = _record(Path(folder) / "long.mp3", hours)
        server = subprocess.Popen(
            [
                "env",
                "HOST=127.0.0.1",
                f"PORT={PORT}",
                "DEMO_MODEL=grammar",
                sys.executable,
                "app.py",
            ],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        try:
            _measure(recording)
        finally:
            server.terminate()
            server.wait()


def _record(path: Path, hours: float) -> Path:
    repeats = round(hours / SOURCE_HOURS) - 1
    command = [find_ffmpeg(), "-loglevel", "error", "-stream_loop", str(repeats), "-i", str(SOURCE)]
    subprocess.run([*command, "-b:a", "48k", str(path)], check=True)
    return path


def _measure(recording: Path) -> None:
    executable = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.set_default_timeout(600_000)
        _open(page)
        tab = _tab_process()
        empty_mb = _mb(tab)
        started = time.monotonic()
        page.locator("#file").set_input_files(recording)
        page.locator("#live p").first.wait_for()
        print(f"first words after {time.monotonic() - started:.1f} s")
        most_mb = empty_mb
        while not page.locator("#sentences li").count():
            most_mb = max(most_mb, _mb(tab))
            time.sleep(0.5)
        print(f"transcript after {time.monotonic() - started:.1f} s")
        print(f"{page.locator('#sentences li').count()} sentences")
        print(f"memory of the tab: {empty_mb:.0f} MB empty, {most_mb:.0f} MB at most while working")
        print(f"{_mb(tab):.0f} MB with the transcript")
        busy_before_s = _busy_s(tab)
        frames = sorted(page.evaluate(_SCROLL))
        # The tab's CPU time per frame is more meaningful than wall time on a busy machine.
        busy_ms = (_busy_s(tab) - busy_before_s) / len(frames) * 1000
        print(
            f"scrolling {len(frames)} frames of 400 px: median {statistics.median(frames):.0f} ms,"
            f" of which the tab works {busy_ms:.0f} ms; {_mb(tab):.0f} MB afterwards"
        )
        browser.close()


def _open(page: Page) -> None:
    while True:
        try:
            page.goto(f"http://127.0.0.1:{PORT}/")
            break
        except Exception:
            time.sleep(0.5)
    page.locator("#page").wait_for()


def _tab_process() -> psutil.Process:
    """Find the tab's process; the others are spare ones that Chromium keeps."""
    children = psutil.Process().children(recursive=True)
    renderers = [process for process in children if "--type=renderer" in process.cmdline()]
    return max(renderers, key=_mb)


def _mb(process: psutil.Process) -> float:
    """Return a process' memory, with its share of what processes share."""
    size: int = process.memory_full_info().pss
    return size / MB


def _busy_s(process: psutil.Process) -> float:
    """Return the processor time of all of a process' threads so far."""
    spent = process.cpu_times()
    return float(spent.user + spent.system)


if __name__ == "__main__":
    main()
