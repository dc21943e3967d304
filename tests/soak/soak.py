"""A run that is hurt again and again, on drawn layouts, beside one that is left alone.

    python -m tests.soak.soak                      # an hour
    python -m tests.soak.soak --minutes 2 --seed 7 --keep /tmp/soak

One process trains undisturbed. Then come rounds of the same training, each from nothing. Every attempt of a round has a
drawn number of ranks, ZeRO stage and number of loader processes, and ends by a drawn fault at a drawn moment, which may
be before its first step or within a save. At the end of a round the steps that are in its weights must have the users
and, within rounding, the losses of the undisturbed run, every user once an epoch, and nothing may be left behind.
Memory, threads and open files of the undisturbed run, which takes a fifth of the time, must stay where they are.

The exit code is 0 only if all held. What was seen is printed; with --keep all that was written stays there, and
picture.py draws it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from mmsr_pt.data.domain import Domain
from mmsr_pt.signals import RESUME_EXIT_CODE
from tests.conftest import build_drawn
from tests.pretrain.launching import SMALL, ds_config, group_members, losses, metrics, ranks_of, start

OBSERVED_RUN = Path(__file__).with_name("observed.py")
GLOBAL_BATCH = 16
EVAL_EVERY, SAVE_EVERY = 25, 6
LONGEST_END = 60.0
"""Seconds in which all of a run must be gone, once one of its processes is."""
LEARNING_RATE = 1e-5
"""So small that rounding, which is another on other ranks, stays rounding: some 1e-6 of a loss after 120 steps. At 5e-4
Adam doubles it from step to step, as it divides gradients of nearly 0 by themselves."""
TOLERANCE = 5e-5
"""Of a loss, relative. A step that is left out changes it by 3e-4, as the loss falls by a tenth in 300 steps."""
_MIB = 2**20


@dataclass(frozen=True)
class Layout:
    """How an attempt shares out its work."""

    num_ranks: int
    stage: int
    num_workers: int

    @classmethod
    def drawn(cls, draw: random.Random) -> Layout:
        """One of 36, with four ranks seldom, as they share a few cores."""
        return cls(draw.choice((1, 1, 2, 2, 2, 4)), draw.randrange(4), draw.randrange(3))

    def __str__(self) -> str:
        return f"{self.num_ranks} x ZeRO-{self.stage}, {self.num_workers} loaders"


@dataclass
class Attempt:
    """One start of a round, and how it ended."""

    layout: Layout
    fault: str
    first: int = 0
    """Steps done when it began."""
    last: int = 0
    """The last step that some rank has noted."""
    steps: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """What ranks noted, by step."""
    begin: float = 0.0
    end: float = 0.0
    """Seconds since the soak began."""
    end_seconds: float = 0.0
    """From the fault until all processes were gone."""
    is_done: bool = False


class Broken(AssertionError):  # noqa: N818
    """A promise that did not hold."""


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise Broken(sentence)


def kill_all(process: subprocess.Popen[str], draw: random.Random) -> None:
    """As a machine that goes down."""
    os.killpg(process.pid, signal.SIGKILL)


def kill_one(process: subprocess.Popen[str], draw: random.Random) -> None:
    """As the kernel does where memory is short."""
    _send(_drawn_rank(process, draw), signal.SIGKILL)


def kill_launcher(process: subprocess.Popen[str], draw: random.Random) -> None:
    """Its ranks must not train on for nobody."""
    _send(_launcher(process), signal.SIGKILL)


def warn_one(process: subprocess.Popen[str], draw: random.Random) -> None:
    """SLURM's warning, heard by one rank."""
    _send(_drawn_rank(process, draw), signal.SIGUSR1)


def ask_all(process: subprocess.Popen[str], draw: random.Random) -> None:
    """As a service manager ends what it has started."""
    os.killpg(process.pid, signal.SIGTERM)


FAULTS: dict[str, Callable[[subprocess.Popen[str], random.Random], None]] = {
    "SIGKILL to all": kill_all,
    "SIGKILL to a rank": kill_one,
    "SIGKILL to the launcher": kill_launcher,
    "SIGUSR1 to a rank": warn_one,
    "SIGTERM to all": ask_all,
}
ASKS = {"SIGUSR1 to a rank", "SIGTERM to all"}
"""Faults behind which a run saves its last step and says so."""


def _launcher(process: subprocess.Popen[str]) -> psutil.Process | None:
    """What starts the ranks: below the `deepspeed` command, once that has come so far; none once all have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid)
        for one in started.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                if "deepspeed.launcher.launch" in one.cmdline():
                    return one
        return started
    return None


def _drawn_rank(process: subprocess.Popen[str], draw: random.Random) -> psutil.Process | None:
    """A rank; who starts them, as long as there are none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if ranks := ranks_of(process.pid, OBSERVED_RUN.name):
            return draw.choice(ranks)
    return _launcher(process)


def _send(process: psutil.Process | None, number: signal.Signals) -> None:
    try:
        if process is not None:
            process.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it was quicker


class Soak:
    """The undisturbed run, and rounds of the same that are disturbed."""

    def __init__(self, out: Path, domain: Domain, seed: int, steps: int) -> None:
        """Nothing is known yet.

        Args:
            out: directory for all that is written.
            domain: to train on.
            seed: of layouts, faults and their moments.
            steps: of a round.
        """
        self.out, self.domain, self.steps, self.draw = out, domain, steps, random.Random(seed)
        self.begun = time.monotonic()
        self.steps_per_epoch = math.ceil(domain.num_users / GLOBAL_BATCH)
        self.attempts: list[Attempt] = []
        self.rounds = 0
        self.losses: list[float] = []
        self.users: dict[int, Counter[int]] = {}
        self.largest_difference = 0.0

    def flags(self, run_dir: Path, layout: Layout, steps: int) -> list[object]:
        """Of a run without dropout, which is other numbers on other ranks."""
        name = f"{layout.num_ranks}_{layout.stage}.json"
        config = ds_config(self.out / name, layout.stage, GLOBAL_BATCH // layout.num_ranks)
        run = ["--ds_config", config, "--data", self.domain.path, "--run_dir", run_dir, "--steps", steps]
        events = ["--eval_every", EVAL_EVERY, "--checkpoint_every", SAVE_EVERY, "--patience", 0]
        # the rates are to be those of one run, whatever its steps
        rates = ["--lr", LEARNING_RATE, "--decay_from", 1]
        return [*run, *SMALL, *events, *rates, "--dropout", 0, "--num_workers", layout.num_workers]

    def undisturbed(self, seconds: float) -> dict[str, str]:
        """Trains for so long, and until a round's steps are done; what of the process stayed where it was."""
        run_dir, seen = self.out / "undisturbed", self.out / "undisturbed.seen"
        flags = self.flags(run_dir, Layout(1, 1, 1), 10**6)
        until = time.monotonic() + seconds
        with self._started(flags, seen, Layout(1, 1, 1)) as (process, said):
            while time.monotonic() < until or len(noted(seen).get(self.steps, [])) == 0:
                require(process.poll() is None, f"the undisturbed run has ended:\n{said.read_text()[-3000:]}")
                time.sleep(0.5)
            process.send_signal(signal.SIGUSR1)
            process.wait(LONGEST_END)
        lines = [line for _, (line,) in sorted(noted(seen).items())]
        self.losses = [line["loss"] for line in lines]
        self.users = {line["step"]: Counter(line["users"]) for line in lines}
        self.require_each_user_once(self.users)
        return {name: self.flat([line[name] for line in lines], name) for name in ("memory", "threads", "files")}

    def flat(self, values: list[int], name: str) -> str:
        """Of the middle third against the last; what was found."""
        third = len(values) // 3
        middle, end = values[third : 2 * third], values[2 * third :]
        if name != "memory":
            require(max(end) <= max(middle), f"{name} grew from {max(middle)} to {max(end)} in {len(values)} steps")
            return f"at most {max(middle)}, later {max(end)}, in {len(values)} steps"
        before, after = statistics.median(middle) / _MIB, statistics.median(end) / _MIB
        require(after < 1.02 * before + 8, f"memory grew from {before:.0f} to {after:.0f} MiB in {len(values)} steps")
        return f"{before:.0f} MiB, later {after:.0f} MiB, in {len(values)} steps"

    def round(self, is_over: Callable[[], bool]) -> None:
        """One training from nothing to its end, disturbed until it is done or time is over; then checked."""
        self.rounds += 1
        run_dir = self.out / f"round_{self.rounds:03}"
        attempts: list[Attempt] = []
        while not (attempts and attempts[-1].is_done):
            attempts.append(self._attempt(run_dir, None if is_over() else self.draw.choice(list(FAULTS))))
            self.attempts.append(attempts[-1])
            self._tell(attempts)
        self._check_round(run_dir, attempts)
        shutil.rmtree(run_dir)

    def _attempt(self, run_dir: Path, fault: str | None) -> Attempt:
        layout = Layout.drawn(self.draw)
        attempt = Attempt(layout, fault or "none", begin=time.monotonic() - self.begun)
        number = len(self.attempts) + 1
        seen = self.out / f"attempt_{number:03}.seen"
        flags = [*self.flags(run_dir, layout, self.steps), "--resume_or_start"]
        is_early, moment = self.draw.random() < 0.15, self.draw.random()
        with self._started(flags, seen, layout) as (process, said):
            if fault is None:
                process.wait(600)
            elif is_early:
                _wait(process, moment * 8)
            else:
                until = time.monotonic() + 300
                while process.poll() is None and not noted(seen):
                    require(time.monotonic() < until, f"no step after 300 s:\n{said.read_text()[-3000:]}")
                    time.sleep(0.1)
                _wait(process, moment * 12)
            if process.poll() is None and fault is not None:
                FAULTS[fault](process, self.draw)
            since = time.monotonic()
            while process.poll() is None or group_members(process.pid):
                took = time.monotonic() - since
                require(took < LONGEST_END, f"{group_members(process.pid)} still there {took:.0f} s after {fault}")
                time.sleep(0.05)
            attempt.end_seconds = time.monotonic() - since
            attempt.end = time.monotonic() - self.begun
            text = said.read_text()
        attempt.steps = noted(seen)
        attempt.last = max(attempt.steps, default=0)
        # not by exit code 0, with which deepspeed ends, too, when the process that it started is killed
        attempt.is_done = "its best model" in text
        resumed = re.findall(r"resumed at step (\d+) of", text)
        attempt.first = int(resumed[0]) if resumed else 0
        self._check_end(attempt, process.returncode, text)
        self.check_steps(attempt)
        return attempt

    def _check_end(self, attempt: Attempt, code: int, text: str) -> None:
        """What a run says and leaves with."""
        said = f"{attempt.layout}, {attempt.fault}, exit code {code}:\n{text[-3000:]}"
        require(code == 0 or attempt.fault != "none", f"ended by itself: {said}")
        require(attempt.is_done or code != 2, f"a mistake of nobody's: {said}")
        if attempt.fault not in ASKS or attempt.is_done:
            return
        require("mmsr_pt/" not in text, f"a traceback: {said}")
        # while Python still loads nobody listens, and a signal ends a process as any other
        require(not attempt.steps or attempt.fault != "SIGUSR1 to a rank" or code == RESUME_EXIT_CODE, said)
        saved = re.findall(r"asked to end: saved at step (\d+)", text)
        # before the first step and behind the last there is nothing to save
        if 0 < attempt.last < self.steps:
            require(saved == [f"{attempt.last}"], said)

    def check_steps(self, attempt: Attempt) -> None:
        """Users and losses of each step that all ranks have made, also of those that are made again later."""
        complete = {step: lines for step, lines in attempt.steps.items() if len(lines) == attempt.layout.num_ranks}
        require(sorted(attempt.steps) == list(range(attempt.first + 1, attempt.last + 1)), f"steps of {attempt}")
        for step, lines in complete.items():
            users = Counter(user for line in lines for user in line["users"])
            require(users == self.users[step], f"step {step} of {attempt.layout} has other users")
            (loss,) = {line["loss"] for line in lines}
            difference = abs(loss / self.losses[step - 1] - 1)
            self.largest_difference = max(self.largest_difference, difference)
            require(difference < TOLERANCE, f"step {step}, {attempt.layout}: {loss}, not {self.losses[step - 1]}")

    def _check_round(self, run_dir: Path, attempts: list[Attempt]) -> None:
        """What is in the final weights, and what stands in the run directory."""
        made: dict[int, Counter[int]] = {}
        begun = [attempt for attempt in attempts if attempt.steps]
        for attempt, following in zip(begun, [*begun[1:], None]):
            last = self.steps if following is None else following.first
            require(attempt.first <= last <= attempt.last, f"{attempt.first} to {attempt.last}, then from {last}")
            for step in range(attempt.first + 1, last + 1):
                made[step] = Counter(user for line in attempt.steps[step] for user in line["users"])
        require(sorted(made) == list(range(1, self.steps + 1)), f"steps {sorted(made)}")
        self.require_each_user_once(made)
        found = losses(run_dir)
        worst = max(abs(one / other - 1) for one, other in zip(found, self.losses))
        require(len(found) == self.steps and worst < TOLERANCE, f"{len(found)} losses in figures, {worst:.2g} off")
        validated = [line["step"] for line in metrics(run_dir, "eval", split="valid", slice="all", model="mmsr")]
        due = sorted({*range(EVAL_EVERY, self.steps + 1, EVAL_EVERY), self.steps})
        require(validated == due, f"validated at {validated}, due at {due}")
        there = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
        require(len(there) <= 3 and {"latest", f"step_{self.steps:08}"} <= set(there), f"in checkpoints: {there}")

    def require_each_user_once(self, steps: dict[int, Counter[int]]) -> None:
        for first in range(1, max(steps) - self.steps_per_epoch + 2, self.steps_per_epoch):
            users = sum((steps[step] for step in range(first, first + self.steps_per_epoch)), Counter())
            require(set(users.values()) == {1}, f"users more than once in the epoch from step {first}")
            require(users.total() == self.domain.num_users, f"{users.total()} users in the epoch from step {first}")

    @contextlib.contextmanager
    def _started(self, flags: list[object], seen: Path, layout: Layout) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        said = seen.with_suffix(".log")
        num_ranks = layout.num_ranks if layout.num_ranks > 1 else 0
        with said.open("w") as into, mock.patch.dict(os.environ, OBSERVED=str(seen)):
            process = start(*flags, num_ranks=num_ranks, script=OBSERVED_RUN, into=into)
        try:
            yield process, said
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tell(self, attempts: list[Attempt]) -> None:
        """Prints a line about the newest, and keeps one for the picture."""
        one = attempts[-1]
        kept = {name: getattr(one, name) for name in ("fault", "first", "last", "begin", "end", "is_done")}
        with (self.out / "attempts.jsonl").open("a") as file:
            file.write(json.dumps({"round": self.rounds, "ranks": one.layout.num_ranks, **kept}) + "\n")
        steps = f"steps {one.first + 1} to {one.last}" if one.steps else "no step"
        how = f"{one.fault}, gone after {one.end_seconds:.1f} s" if not one.is_done else "done"
        place = f"round {self.rounds}, start {len(attempts)} (restart {self.restarts})"
        print(f"{time.strftime('%H:%M:%S')} {place}: {one.layout}: {steps}; {how}", flush=True)

    @property
    def restarts(self) -> int:
        """Starts behind the first of each round."""
        return len(self.attempts) - self.rounds


def noted(seen: Path) -> dict[int, list[dict[str, Any]]]:
    """What ranks have noted, by step."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(seen.glob("rank_*.jsonl")):
        # a process that was killed may have left half a line
        for line in path.read_bytes().split(b"\n")[:-1]:
            one = json.loads(line)
            steps.setdefault(one["step"], []).append(one)
    return dict(sorted(steps.items()))


def _wait(process: subprocess.Popen[str], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def soak(out: Path, minutes: float, seed: int, steps: int) -> dict[str, Any]:
    """All of it; raises Broken where a promise does not hold.

    Args:
        out: directory for all that is written.
        minutes: until the last attempt, which is left to end.
        seed: of layouts, faults and their moments.
        steps: of a round.
    """
    until = time.monotonic() + 60 * minutes
    under = Soak(out, build_drawn(out / "domain", "source", num_users=150, items_per_cell=3), seed, steps)
    flat = under.undisturbed(0.2 * 60 * minutes)
    print(f"undisturbed: {len(under.losses)} steps; {flat}", flush=True)
    while time.monotonic() < until:
        under.round(lambda: time.monotonic() > until)
    ended = Counter(attempt.fault for attempt in under.attempts if not attempt.is_done)
    return {
        "rounds": under.rounds,
        "restarts": under.restarts,
        "faults": dict(ended),
        "before_the_first_step": sum(not attempt.steps for attempt in under.attempts),
        "layouts": len({attempt.layout for attempt in under.attempts}),
        "steps": sum(len(attempt.steps) for attempt in under.attempts),
        "largest_difference_of_a_loss": under.largest_difference,
        "longest_end_seconds": max(attempt.end_seconds for attempt in under.attempts),
        **flat,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of layouts, faults and their moments")
    parser.add_argument("--steps", type=int, default=120, help="of a round")
    parser.add_argument("--keep", type=Path, help="a directory for all that is written, which stays there")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out.mkdir(parents=True, exist_ok=True)
        try:
            found = soak(out, asked.minutes, asked.seed, asked.steps)
        except Broken as error:
            sys.exit(f"broken: {error}")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
