"""A sweep of many tiny jobs: when the first one starts, how much memory its process takes; and sweeps that are killed.

    python -m tests.reliability.sweeps --jobs 300
    python -m tests.reliability.sweeps --kills 50

The first prints the time from the command to the first step, of a single run and of the sweep, and the memory of the
sweep's process after each tenth of the jobs. The second kills the process of a sweep of six jobs, or one of its jobs,
at random instants, resumes it until it is done, and compares every job with that of a sweep that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.sweeps import tiny

JOBS = 6
_COMMAND = [sys.executable, "-m", "mlorun"]
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}


def _start(folder: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_COMMAND, *words],
        cwd=folder,
        env=_ENVIRONMENT,
        stdout=open(folder / "screens.txt", "ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _until(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> float:
    """Seconds until such a file has something in it."""
    began = time.monotonic()
    while process.poll() is None:
        if any(path.stat().st_size for path in folder.glob(pattern)):
            return time.monotonic() - began
        time.sleep(0.005)
    raise RuntimeError("it ended before")


def _memory(pid: int) -> float:
    """Resident megabytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def many(count: int) -> None:
    """Time to the first step and memory, printed."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        tiny.write(folder)
        for attempt in ("cold", "warm"):
            single = _start(folder, ["experiment=tiny", f"name={attempt}"])
            seconds = _until(folder, f"runs/{attempt}/2*/metrics.jsonl", single)
            single.wait()
            print(f"a single run, {attempt}: first report after {seconds:.2f} s")
        seeds = ",".join(map(str, range(count)))
        began = time.monotonic()
        sweep = _start(folder, ["-m", "experiment=tiny", f"seed={seeds}", "hydra.sweep.dir=sweep"])
        print(f"{count} jobs: first report after {_until(folder, 'sweep/*/metrics.jsonl', sweep):.2f} s")
        done = 0
        while sweep.poll() is None:
            now = len(list(folder.glob("sweep/*/result.json")))
            if now >= done + count // 10:
                done = now
                print(f"  {done} done after {time.monotonic() - began:.1f} s, {_memory(sweep.pid):.1f} MB")
            time.sleep(0.02)
        record = json.loads((folder / "sweep" / "sweep.json").read_text())
        finished = sum(job["status"] == "finished" for job in record["jobs"])
        print(f"{finished} of {count} finished in {time.monotonic() - began:.1f} s, exit code {sweep.returncode}")


def _outcomes(folder: Path) -> list[tuple[str, bytes] | None]:
    return [_outcome(folder / str(number)) for number in range(JOBS)]


def _outcome(job: Path) -> tuple[str, bytes] | None:
    """params_sha256 and metrics.jsonl of a job; None where it has no result."""
    result, metrics = job / "result.json", job / "metrics.jsonl"
    return (json.loads(result.read_text())["params_sha256"], metrics.read_bytes()) if result.exists() else None


def _job(sweep: int) -> int | None:
    """The process of a job of a sweep: the child of the server, which is its child."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            parent = Path(f"/proc/{fields[1]}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parent[1]) == sweep:
            return int(path.parent.name)
    return None


def killed(count: int, seed: int) -> int:
    """Kill and resume, print the counts; the number of faults."""
    chance = random.Random(seed)
    kills, faults = {"sweep": 0, "job": 0}, 0
    with TemporaryDirectory() as place:
        folder = Path(place)
        tiny.write(folder)
        words = [
            "-m",
            "experiment=tiny",
            "seed=0,1,2,3,4,5",
            "engine.train_iters=40",
            "checkpoint.every=5",
            "threads=1",
        ]
        words += ["+one.pause=0.02"]
        began = time.monotonic()
        assert _start(folder, [*words, "hydra.sweep.dir=whole"]).wait() == 0
        length, whole = time.monotonic() - began, _outcomes(folder / "whole")
        attempt = 0
        while sum(kills.values()) < count:
            attempt += 1
            name = f"sweep{attempt}"
            process = _start(folder, [*words, f"hydra.sweep.dir={name}", f"sweep.jobs={chance.choice((1, 2))}"])
            for _ in range(3):
                try:
                    process.wait(chance.uniform(1.0, length))
                    break
                except subprocess.TimeoutExpired:
                    victim = _job(process.pid) if chance.random() < 0.5 else None
                    os.kill(process.pid if victim is None else victim, signal.SIGKILL)
                    kills["sweep" if victim is None else "job"] += 1
                    if victim is not None:
                        process.wait()
                if not (folder / name / "sweep.json").exists():
                    break  # killed before there was a sweep
                time.sleep(0.5)  # jobs that saw their sweep die save and end
                process = _start(folder, ["resume", name])
            else:
                process.wait()
            if not (folder / name / "sweep.json").exists():
                continue
            code = 3
            for _ in range(3):
                code = _start(folder, ["resume", name]).wait()
                if code == 0:
                    break
                time.sleep(0.5)
            if code != 0 or _outcomes(folder / name) != whole:
                faults += 1
                others = [number for number in range(JOBS) if _outcome(folder / name / str(number)) != whole[number]]
                jobs = json.loads((folder / name / "sweep.json").read_text())["jobs"]
                print(f"FAULT in {name}: exit code {code}; {[(job['status'], job['error']) for job in jobs]}")
                print(f"  jobs with another outcome: {others}; the last screens:")
                print("\n".join((folder / "screens.txt").read_text(errors="replace").splitlines()[-40:]))
            print(
                f"{attempt} sweeps, {kills['sweep']} sweeps and {kills['job']} jobs killed, {faults} faults", flush=True
            )
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.jobs:
        many(given.jobs)
    if given.kills:
        sys.exit(killed(given.kills, given.seed) > 0)
