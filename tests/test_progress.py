"""Progress bars: a killed process stops no other, and threads share a terminal."""

import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gritrag.progress import ProgressBar, StagesBar

# In a process of its own, because a lock that is lost stays lost. The child dies where a bar is made, lock in hand.
KILLED = """
import os, signal, threading
from multiprocessing import get_context
from gritrag.progress import ProgressBar
from tqdm.auto import tqdm

for bar in (tqdm, ProgressBar):
    bar(disable=True).close()  # locks are made before the fork, as they are in a process that has shown a bar

def die():
    with {held}.get_lock():
        os.kill(os.getpid(), signal.SIGKILL)

child = get_context("fork").Process(target=die)
child.start()
child.join()
thread = threading.Thread(target=lambda: {made}(disable=True).close(), daemon=True)
thread.start()
thread.join(5)
print("waits for ever" if thread.is_alive() else "goes on", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("held", "made", "expected"),
    [
        ("ProgressBar", "ProgressBar", "goes on"),
        ("tqdm", "ProgressBar", "goes on"),  # other libraries show bars, too
        ("tqdm", "tqdm", "waits for ever"),
    ],
)
def test_a_process_killed_in_a_bar_stops_no_other(held: str, made: str, expected: str) -> None:
    """The last is why `gritrag.progress` is there: where tqdm mends it, that can go."""
    script = KILLED.format(held=held, made=made)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.strip() == expected


def test_a_forked_child_of_a_thread_that_holds_the_lock_can_show_bars() -> None:
    script = """
import os, threading
from gritrag.progress import ProgressBar

held, done = threading.Event(), threading.Event()

def hold():
    with ProgressBar.get_lock():
        held.set()
        done.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    ProgressBar(disable=True).close()
    os._exit(7)
done.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "7"


def test_threads_show_bars_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def run(number: int) -> int:
        return sum(ProgressBar(range(100), desc=f"bar {number}", mininterval=0))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [4950] * 8
    written = capsys.readouterr().err
    assert all(f"bar {number}: 100%" in written for number in range(8))


def test_a_bar_of_stages_names_them_and_knows_how_far_each_reaches(capsys: pytest.CaptureFixture[str]) -> None:
    with StagesBar({"catalog": 300, "states": 600, "vectors": 100}, is_shown=True) as bar:
        bar.begin("catalog")
        bar.advance(900)  # an estimate was too low
        assert bar._bar.n == 300
        bar.begin("states")
        bar.begin("vectors")  # and here too high
    shown = [line.split("|")[0] for line in capsys.readouterr().err.split("\r")]
    assert [line for number, line in enumerate(shown) if line and line != shown[number - 1]] == [
        "  0%",
        "catalog:   0%",
        "states:  30%",
        "vectors:  90%",
        "vectors: 100%",
    ]
    with pytest.raises(KeyError), StagesBar({"catalog": 300}, is_shown=True) as bar:
        bar.begin("a stage that fails")
    assert "100%" not in capsys.readouterr().err
    with StagesBar({"catalog": 300}, is_shown=False) as bar:
        bar.begin("catalog")
        bar.advance(300)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("bar", "shown"),
    [
        ("for _ in ProgressBar(range(3), desc='read', disable=None): pass", "read: 100%"),
        ("with ReadingBar(100, 7) as bar: bar.advance(50, 3, 2, 0, 1.0)", " 50%|"),
    ],
)
def test_a_terminal_of_no_columns_gets_a_bar_of_80(bar: str, shown: str) -> None:
    """A new pseudo-terminal has 0 rows and 0 columns until somebody sets its size."""
    ours, theirs = pty.openpty()
    assert os.get_terminal_size(theirs) == (0, 0)
    script = f"from gritrag.progress import ProgressBar, ReadingBar\n{bar}"
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=120)
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 1 << 16):
            written += data
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    lines = written.decode().replace("\r", "\n").split("\n")
    assert [line for line in lines if shown in line], lines
    assert 60 < max(map(len, lines)) <= 80
