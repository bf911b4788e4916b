from __future__ import annotations

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
