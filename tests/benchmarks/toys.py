"""Contestants that say what they are told to."""

import multiprocessing
import time
from pathlib import Path


class Toy:
    """Returns the given values in turn, prints noise, and notes in a file that it ran."""

    def __init__(self, name: str, values: list[float], diary: str) -> None:
        self.name, self.values, self.diary = name, iter(values), Path(diary)
        print("a library that talks to standard output")

    def run(self) -> dict[str, float]:
        print("noise")
        with self.diary.open("a") as file:
            file.write(f"{self.name}\n")
        return {"speed": next(self.values)}

    def work(self) -> dict[str, object]:
        return {"units": 4, "flops": {"matmul float32": 200.0, "conv bfloat16": 600.0}}


class Broken:
    """Sets up and then fails."""

    def run(self) -> dict[str, float]:
        raise ValueError("this\ncannot be")


class WithChild:
    """Holds a process of its own, as a loader does."""

    def __init__(self) -> None:
        self.child = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
        self.child.start()

    def run(self) -> dict[str, float]:
        assert self.child.pid is not None
        return {"child": self.child.pid}
