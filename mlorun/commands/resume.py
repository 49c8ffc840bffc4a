"""mlorun resume RUN [OVERRIDES...]: go on with a run, or a sweep, that was interrupted or killed, to the same bits.

RUN is the folder of a run or a sweep, `latest`, or a name, whose newest is taken. A run goes on with its saved config,
from its newest good checkpoint. Overrides may change engine.train_iters (more steps), engine.log_every,
engine.valid_every, checkpoint.*, logger.* and run.*. A run that is finished prints its result.

Of a sweep, jobs that are finished are left alone, those that were interrupted go on, and those that never ran start;
with --failed, those that failed are tried again. Overrides may change sweep.jobs and sweep.fail_fast.

  mlorun resume latest
  mlorun resume runs/mwn_mnist/20260101-120000-000
  mlorun resume mwn_mnist engine.train_iters=6000
  mlorun resume sweeps/mwn_digits/20260101-120000-000000 --failed sweep.jobs=2
"""

from __future__ import annotations

from pathlib import Path

from mlorun.errors import ConfigError, MlorunError
from mlorun.loggers.numbers import format_metric
from mlorun.report import show
from mlorun.run.find import find, is_sweep
from mlorun.run.folder import RunFolder
from mlorun.sweeps.processes import warm_up

FAILED = "--failed"


def main(args: list[str]) -> int:
    """Resume one run or sweep; its exit code."""
    words = [text for text in args if "=" not in text and text != FAILED]
    overrides = [text for text in args if "=" in text]
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError(
            "mlorun resume goes on with one run",
            where=" ".join(["mlorun resume", *args]),
            fix="mlorun resume latest, or the folder of a run or a sweep; mlorun ls runs lists them",
        )
    folder = find(words[0])
    if is_sweep(folder):
        warm_up()
        from mlorun.sweeps.resume import resume_sweep

        return resume_sweep(folder, overrides, failed=FAILED in args)
    if FAILED in args:
        raise ConfigError(f"{FAILED} is for sweeps", where=str(folder), fix=f"mlorun resume {words[0]}")
    return _resume_run(folder, overrides)


def _resume_run(folder: Path, overrides: list[str]) -> int:
    from mlorun.config.compose import prepare
    from mlorun.restart import Restart, began_elsewhere

    prepare()
    home = RunFolder(folder)
    restart = Restart.of(home, overrides)
    done = home.final_result
    more = any(text.startswith("engine.train_iters=") for text in overrides)  # also of one that stopped early
    if done is not None and not (more and restart.config.engine.train_iters > done["steps"]):
        print(f"finished already: {folder}")
        for name, value in done["metrics"].items():
            print(f"  {name}  {format_metric(name, float(value))}")
        return 0
    from mlorun.training import go_on

    with began_elsewhere(home):
        result = go_on(restart)
    if isinstance(result.error, MlorunError):
        show(result.error)
    return result.exit_code
