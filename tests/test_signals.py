"""The thread that hears signals, dead ranks and hangs: in processes of its own, since it ends them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BEFORE = """
    import ctypes, os, signal, sys, threading, time
    from mmsr_pt import signals
    from mmsr_pt.signals import Watch, hear_parent_only, watched

    def say(word):
        print(word, flush=True)

    def until_asked(watch):
        while watch.asked is None:
            time.sleep(0.01)

    def deaf(seconds):
        # in a library that holds on through signals, as a wait for a GPU does
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        ctypes.CDLL(None).usleep(int(1e6 * seconds))

    def main(watch):
"""


def started(body: str, **variables: str) -> subprocess.Popen[str]:
    """A process whose `main(watch)` is `body`; it has said its first word."""
    program = textwrap.dedent(BEFORE) + textwrap.indent(textwrap.dedent(body), "    ") + "\nwatched(main)()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def ended(process: subprocess.Popen[str], timeout: float = 30) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_the_first_step_there_is_nothing_to_save(number: signal.Signals) -> None:
    process = started("say('ready'); deaf(20)")
    process.send_signal(number)
    before = time.monotonic()
    code, _, err = ended(process)
    assert time.monotonic() - before < 10
    assert code == 85
    assert f"{number.name}: ended" in err


def test_a_signal_between_steps_is_noted_and_its_echo_too() -> None:
    process = started("""
        with watch.steps({}, 0):
            say("ready")
            until_asked(watch)
            say(watch.asked.name)
            time.sleep(1)
            raise signals.Stopped
    """)
    for _ in range(3):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    code, out, err = ended(process)
    assert out == "SIGUSR1\n"
    assert "Stopped" in err
    assert err.count("SIGUSR1: the run will be saved") == 1
    assert code == 1  # of the exception; user_facing makes 85 of it


def test_a_second_request_ends_at_once_but_no_save() -> None:
    process = started("""
        signals._ECHO = 0.1
        with watch.steps({}, 0):
            say("ready")
            until_asked(watch)
            with watch.saving():
                say("saving")
                time.sleep(1.5)
            say("saved")
            deaf(20)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(1)
    assert process.poll() is None, "another signal is no second request"
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM again" in err


def test_a_request_that_comes_behind_the_last_step_is_obeyed_when_steps_are_over() -> None:
    process = started("""
        with watch.steps({}, 0):
            say("ready")
            until_asked(watch)
        say("not reached")
    """)
    process.send_signal(signal.SIGTERM)
    code, out, _ = ended(process)
    assert code == 85
    assert out == ""


@pytest.mark.parametrize("asks", [False, True])
def test_when_another_rank_has_died_no_step_is_waited_for(asks: bool) -> None:
    """Not even in a library that holds on through signals; the launcher's request makes it quicker."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = started(f"with watch.steps({{1: {other.pid}}}, 0):\n    say('ready'); deaf(20)")
    other.kill()
    before = time.monotonic()
    if asks:
        process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    other.wait()
    assert code == 1
    assert time.monotonic() - before < 15
    assert f"rank 1 (process {other.pid}) has ended" in err


def test_a_collective_that_fails_of_a_dead_rank_is_not_the_first_word() -> None:
    """gloo fails when the connections of a rank close, a moment before it has ended."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = started(f"""
        with watch.steps({{1: {other.pid}}}, 0):
            say("ready")
            sys.stdin.readline()
            raise RuntimeError("Connection closed by peer")
    """)
    process.stdin.write("now\n")
    process.stdin.flush()
    time.sleep(0.1)
    other.kill()
    _, _, err = ended(process)
    other.wait()
    assert f"rank 1 (process {other.pid}) has ended" in err.partition("Connection closed")[0]


def test_when_the_launcher_has_died_the_run_is_asked_to_end() -> None:
    program = """
        if os.fork() == 0:
            os.environ["CROSS_RANK"] = "0"
            own = Watch()
            own.start()
            with own.steps({}, 0):
                say("ready")
                until_asked(own)
                say(own.asked.name)
            os._exit(0)
        time.sleep(1)
        os._exit(0)
    """
    code, out, err = ended(started(program))
    assert code == 0
    assert out == "SIGTERM\n"
    assert "the launcher is gone" in err


def test_a_process_without_a_launcher_outlives_its_shell() -> None:
    program = """
        if os.fork() == 0:
            own = Watch()
            own.start()
            with own.steps({}, 0):
                say("ready")
                time.sleep(3)
            say(own.asked)
            os._exit(0)
        time.sleep(1)
        os._exit(0)
    """
    assert ended(started(program))[1] == "None\n"


def test_a_hang_is_reported_with_its_stack_and_goes_on() -> None:
    process = started(
        """
        def a_function_that_hangs():
            time.sleep(4)
        with watch.steps({}, 1.0):
            watch.now("behind step 7")
            say("ready")
            a_function_that_hangs()
        say("over")
        """,
        RANK="3",
    )
    code, out, err = ended(process)
    assert code == 0
    assert out == "over\n"
    assert "[rank 3] nothing has ended for 1 s, behind step 7" in err
    assert "in a_function_that_hangs" in err


def test_a_loader_process_hears_its_parent_alone() -> None:
    process = started("""
        import multiprocessing
        def work():
            hear_parent_only(0)
            say(f"ready\\n{os.getpid()}")
            time.sleep(60)
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        time.sleep(2)
        say(worker.is_alive())
        worker.terminate()
        worker.join(10)
        say(worker.exitcode)
    """)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker, number)
    code, out, err = ended(process)
    assert (code, out, err) == (0, "True\n0\n", "")
