"""The report in a real browser: nothing on the console, nothing wider than the window, dark where dark is wanted."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infoprune.report import render_html
from tests.sample_record import sample_record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page; return the document after loading and what the browser wrote to its console."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    done = subprocess.run(
        [CHROMIUM, *flags, *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_report_loads_without_a_word_on_the_console(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(sample_record()), encoding="utf-8")
    document, console = browse(page, tmp_path / "profile")
    assert console == []
    for section in ("result", "layers", "scores", "run", "coupling", "frozen", "load", "reproduce"):
        assert f'<section id="{section}">' in document


def test_the_page_may_neither_run_scripts_nor_fetch(tmp_path: Path) -> None:
    html = render_html(sample_record()).replace(
        "</main>", '<script>document.title="ran"</script><img src="picture.png"></main>'
    )
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    document, console = browse(page, tmp_path / "profile")
    assert "<title>ran" not in document
    assert len([line for line in console if "Content Security Policy" in line]) >= 1


@pytest.mark.parametrize("width", [360, pytest.param(1200, marks=pytest.mark.slow)])
def test_no_part_is_wider_than_the_window(tmp_path: Path, width: int) -> None:
    report = tmp_path / "report.html"
    # The probe stands beside the report's own policy, so it is let through here and only here.
    probe = (
        "<script>addEventListener('load', () => { const d = document.documentElement;"
        "const out = [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.closest('section').id);"
        "parent.postMessage(`${d.scrollWidth}:${innerWidth}:${out}`, '*') })</script>"
    )
    html = render_html(sample_record())
    policy = re.search(r"<meta http-equiv[^>]*>", html)
    assert policy is not None
    report.write_text(html.replace(policy[0], "").replace("</main>", probe + "</main>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<p id=seen></p><script>onmessage = e => seen.textContent = e.data</script>"
        f"<iframe src=report.html style='width:{width}px;height:900px;border:0'></iframe>"
    )
    document, _ = browse(frame, tmp_path / "profile", "--virtual-time-budget=3000")
    seen = re.search(r'<p id="seen">(\d+):(\d+):(.*?)</p>', document)
    assert seen is not None, document[:500]
    wide, window, overflowing = seen.groups()
    assert int(wide) <= int(window)
    assert overflowing == ""
