"""The report in a browser, where one is installed (Debian's package chromium)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sleepc.tune.choose import choose
from sleepc.tune.record import Limits
from sleepc.tune.report import page
from sleepc.tune.schedules import Wanted, compare
from tests.tune.test_choose import ALL
from tests.tune.test_schedules import BIG, SMALL

BROWSER = shutil.which("chromium")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    file, picture = tmp_path / "r.html", tmp_path / "r.png"
    hover = "".join(
        f"document.querySelector('circle[data-row={row}]').dispatchEvent(new Event('mouseenter'));"
        for row in ("c-slow", "s-1")
    )
    html = page("a <b> & c", ALL, choose(ALL, Limits(memory=20)), compare([BIG, SMALL], "recall", Wanted(Limits())))
    file.write_text(html.replace("</script>", f"{hover}</script>"))
    assert BROWSER is not None
    command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    shown = subprocess.run([*command, "--dump-dom"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "<h1>a &lt;b&gt; &amp; c</h1>" in shown.stdout
    for said in ("slow: 10.00 ms per token", "b passes=1: 0.7 recall"):
        assert f'<p class="said">{said}' in shown.stdout  # what the script writes
    done = subprocess.run([*command, f"--screenshot={picture}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert picture.stat().st_size > 5000
