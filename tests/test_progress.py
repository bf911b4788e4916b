from __future__ import annotations

import re
import time

import pytest

from sae_placebo.progress import LineProgress


def test_the_rate_is_of_what_was_done_after_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress().track("train", 1_000, before=900) as advance:
        time.sleep(0.1)
        advance(100)
    said = capsys.readouterr().err
    assert said.startswith("train: 100 tokens after 900 before a stop in 0.1 s, ")
    assert int(said.split(", ")[1].split()[0].replace(",", "")) <= 1_000


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(every=0.05).track("use", 1_000, "firings", before=400) as advance:
        time.sleep(0.1)
        advance(200)
        advance(1)  # too soon for another line
        time.sleep(0.1)
        advance(399)  # the end has a line of its own
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"use: 600 of 1,000 firings, \d[\d,]+ firings/s, 0:0\d left", first)
    assert last.startswith("use: 600 firings after 400 before a stop in 0.2 s")
