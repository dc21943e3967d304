"""Coverage-guided fuzzing of the reader of shards; see target.py for what is promised.

    make fuzz                                   five minutes
    python -m tests.fuzz -max_total_time=60 data/fuzz tests/fuzz/corpus

Inputs that reach new code are kept in the first directory; one that breaks a promise is written to a file, whose name
is told: `python -m tests.fuzz FILE` runs it again.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mmsr_pt.data", "json", "PIL"]):
    from mmsr_pt.data import preprocess
    from tests.fuzz.target import one_input, seeds


def main() -> None:
    """Begins from the seeds where the first directory is empty."""
    preprocess.MAX_PIXELS = 1_000_000  # larger ones only take longer
    for word in sys.argv[1:]:
        if Path(word).is_dir() and not any(Path(word).iterdir()):
            for number, seed in enumerate(seeds()):
                (Path(word) / f"seed_{number}").write_bytes(seed)
    atheris.Setup([*sys.argv, "-max_len=8192", "-timeout=20", "-rss_limit_mb=3000"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
