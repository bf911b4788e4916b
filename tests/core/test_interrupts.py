from __future__ import annotations

import signal
import threading

import pytest

from sae_placebo.cli import main as cli
from sae_placebo.core import interrupts


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_stop_waits_for_the_end_of_a_held_block(
    number: signal.Signals, kind: type[BaseException]
) -> None:
    done = []

    def work() -> None:
        with interrupts.held():
            signal.raise_signal(number)
            done.append("the rest of the block")
        done.append("never")

    with interrupts.listening():
        with pytest.raises(kind):
            work()
        with pytest.raises(kind):
            signal.raise_signal(number)
        with interrupts.held():
            done.append("a stop is raised once")
    assert done == ["the rest of the block", "a stop is raised once"]


def test_handlers_return_and_those_of_others_are_left_alone() -> None:
    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        with interrupts.listening():
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_command_line_listens_from_its_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(_: object) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cli, "app", verb)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 143
    assert capsys.readouterr().err == "stopped; run the same command again to go on\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_outside_the_main_thread_nothing_is_set() -> None:
    found = []

    def listen() -> None:
        with interrupts.listening(), interrupts.held():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
