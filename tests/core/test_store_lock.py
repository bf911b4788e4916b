"""Two runs never publish into one store at once; whatever kills a run, the next finds it whole or not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sae_placebo.core.errors import StoreError
from sae_placebo.core.store import Step, Store

STEP = Step("stage", "name", 1, {"a": 1})


def write(store: Store, step: Step = STEP, text: str = "made") -> None:
    with store.write(step) as folder:
        (folder / "data").write_text(text)


HOLD = """
import sys
from pathlib import Path
from sae_placebo.core.store import Store
with Store(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


class Other:
    """Another process that holds a store until it is let go or killed."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate("\n" if self.process.poll() is None else None)


def refused(root: Path) -> str:
    with pytest.raises(StoreError) as caught, Store(root).lock():
        pass
    return str(caught.value)


def test_who_holds_the_store_is_named_and_a_deleted_lock_lets_nobody_in(tmp_path: Path) -> None:
    with Other(tmp_path) as other:
        said = refused(tmp_path)
        assert f"in use by another process (pid {other.process.pid})" in said
        assert f"on {socket.gethostname()!r} since '" in said
        (tmp_path / ".lock").unlink()
        assert f"(pid {other.process.pid})" in refused(tmp_path)
        (tmp_path / ".lock").unlink(missing_ok=True)
        (tmp_path / ".holder").unlink()
        assert "(pid unknown)" in refused(tmp_path)
    with Store(tmp_path).lock():
        write(Store(tmp_path))


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with Other(tmp_path) as other:
        other.process.send_signal(signal.SIGKILL)
        other.process.wait()
        assert json.loads((tmp_path / ".holder").read_text())["pid"] == other.process.pid
        with Store(tmp_path).lock():
            assert json.loads((tmp_path / ".holder").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".holder").exists()


def test_a_lock_that_was_removed_is_made_again_before_something_is_published(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    with store.lock():
        (tmp_path / ".lock").unlink()
        write(store)
        assert len(said) == 1
        assert "was removed while this run holds it; it was made again" in said[0]
        write(store, Step("stage", "other", 1, 2))
        assert len(said) == 1
        from filelock import FileLock, Timeout

        with pytest.raises(Timeout):  # what a process of another version would try
            FileLock(tmp_path / ".lock").acquire(timeout=0)
    assert store.find(STEP)


def test_a_run_whose_lock_another_has_taken_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    from sae_placebo.core import locks

    monkeypatch.setattr(locks, "_RETAKE_SECONDS", 0.05)
    store = Store(tmp_path)
    with store.lock():
        (tmp_path / ".lock").unlink()
        theirs = FileLock(tmp_path / ".lock")
        theirs.acquire(timeout=5)
        with pytest.raises(StoreError, match="was removed while this run held it, and the store"):
            write(store)
        theirs.release()
    assert store.find(STEP) is None
    assert not list((tmp_path / "stage").iterdir())


def test_a_store_that_was_replaced_gets_nothing_of_a_run_in_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Store(root)

    def replaced() -> None:
        with store.lock(), store.write(STEP) as folder:
            (folder / "data").touch()
            root.rename(tmp_path / "moved")
            root.mkdir()

    with pytest.raises(StoreError, match="was moved or replaced while this run worked on it"):
        replaced()
    assert not list(root.iterdir())


def test_a_folder_that_cannot_be_locked_leaves_the_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def no_folders(of: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{of}"):  # noqa: PTH112
            raise OSError(9, "Bad file descriptor")
        real(of, how)

    monkeypatch.setattr(fcntl, "flock", no_folders)
    store = Store(tmp_path)
    with store.lock():
        assert "in use by another process" in refused(tmp_path)
        write(store)
    with store.lock():
        assert store.find(STEP)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_wait_that_is_no_time_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(StoreError, match="give 0 or more"), Store(tmp_path).lock(seconds):
        pass


def test_who_waits_says_for_whom(tmp_path: Path) -> None:
    said: list[str] = []
    with Other(tmp_path) as other:
        with pytest.raises(StoreError, match="in use"):
            Store(tmp_path, said.append).lock(0.05).__enter__()
        assert f"waiting up to 0.05 s for the store, in use by another process (pid {other.process.pid})" in (
            said[0]
        )  # fmt: skip


# --- killed anywhere

KILLED = """
import os, signal, sys
from pathlib import Path
from sae_placebo.core.store import Step, Store

root, step = Path(sys.argv[1]), Step("stage", "name", 1, {"a": 1})
left = -1

def count(event, _):
    global left
    if left >= 0 and event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
for n in range(200):
    child = os.fork()
    if child == 0:
        left, store = n, Store(root / str(n))
        with store.lock():
            if store.find(step) is None:
                with store.write(step) as folder:
                    (folder / "sub").mkdir()
                    (folder / "sub" / "data").write_text("made")
        left = -1
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(n)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("before", ["nothing", "damaged", "swapped"])
def test_killed_at_every_step_of_a_write_the_next_run_goes_on(tmp_path: Path, before: str) -> None:
    other = Step("stage", "other", 1, 2)
    for n in range(80) if before != "nothing" else ():
        store = Store(tmp_path / str(n))
        write(store)
        if before == "damaged":
            (store.path(STEP) / "data").write_text("MADE")
        else:
            write(store, other, "other")
            one, two = store.path(STEP), store.path(other)
            one.rename(two.with_name("kept"))
            two.rename(one)
            two.with_name("kept").rename(two)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    n_killed = int(done.stdout)
    assert 8 < n_killed < 80
    for n in range(n_killed + 1):
        store = Store(tmp_path / str(n))
        with store.lock():
            if store.find(STEP) is None:
                write(store)
            folder = store.find(STEP)
            assert folder
            assert "made" in {p.read_text() for p in folder.rglob("data")}
            left = [p.name for p in store.root.rglob("*") if p.name.startswith(".")]
            assert set(left) <= {".lock", ".holder"}
            if before == "swapped":  # put back, or aside: never gone
                kept = (store.root / "stage").glob("*/data")
                assert "other" in {p.read_text() for p in kept}


def publish(root: Path, name: str) -> None:
    store = Store(root)
    for i in range(10):
        with store.lock(60.0):
            write(store, Step("stage", name, 1, [name, i]))


def test_processes_that_take_turns_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    some = [context.Process(target=publish, args=(tmp_path, name)) for name in "ab"]
    for process in some:
        process.start()
    for process in some:
        process.join()
        assert process.exitcode == 0
    store = Store(tmp_path)
    assert all(store.find(Step("stage", n, 1, [n, i])) for n in "ab" for i in range(10))
