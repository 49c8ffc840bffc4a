"""mlorun resume RUN [OVERRIDES...]: go on with a run that was interrupted, preempted or killed, to the same bits.

RUN is a run folder, `latest`, or the name of runs, whose newest is taken. The run goes on with its saved config, from
its newest good checkpoint. Overrides may change engine.train_iters (more steps), engine.log_every, engine.valid_every,
checkpoint.*, logger.* and run.*. A run that is finished prints its result.

  mlorun resume latest
  mlorun resume runs/mwn_mnist/20260101-120000-000
  mlorun resume mwn_mnist engine.train_iters=6000
"""

from __future__ import annotations

import json

from mlorun.errors import ConfigError, MlorunError
from mlorun.report import show


def main(args: list[str]) -> int:
    """Resume one run; its exit code."""
    words = [text for text in args if "=" not in text]
    if len(words) != 1:
        raise ConfigError(
            "mlorun resume goes on with one run",
            where=" ".join(["mlorun resume", *args]),
            fix="mlorun resume latest, or a run folder; mlorun ls runs lists them",
        )
    from mlorun.config.compose import prepare
    from mlorun.restart import Restart, find_run

    prepare()
    folder = find_run(words[0])
    restart = Restart.of(folder, [text for text in args if "=" in text])
    if folder.is_finished and restart.config.engine.train_iters <= (folder.facts().get("steps") or 0):
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        print(f"finished already: {folder.path}")
        for name, value in result["metrics"].items():
            print(f"  {name}  {value}")
        return 0
    from mlorun.training import go_on

    result = go_on(restart)
    if isinstance(result.error, MlorunError):
        show(result.error)
    return result.exit_code
