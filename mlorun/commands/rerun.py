"""mlorun rerun RUN [OVERRIDES...]: run the config of a run again, from the start, in a new folder.

RUN is the folder of a run, `latest`, or a name, whose newest is taken. Overrides may change any key. Options of groups
were resolved when the run was made: `classifier.optimizer=adam` belongs to a new command, with the `overrides` that
run.json has.

  mlorun rerun latest
  mlorun rerun mwn_mnist seed=1 classifier.optimizer.lr=0.05
"""

from __future__ import annotations

from mlorun.errors import ConfigError, MlorunError
from mlorun.report import show
from mlorun.run.find import find_run


def main(args: list[str]) -> int:
    """Run once; the exit code."""
    words = [text for text in args if "=" not in text]
    overrides = [text for text in args if "=" in text]
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError(
            "mlorun rerun repeats one run",
            where=" ".join(["mlorun rerun", *args]),
            fix="mlorun rerun latest, or the folder of a run, or a name; mlorun ls runs lists them",
        )
    from mlorun.config.compose import prepare
    from mlorun.restart import began_elsewhere, changed, saved_config
    from mlorun.training import train

    prepare()
    home = find_run(words[0])
    config = changed(saved_config(home), overrides, command="mlorun rerun")
    with began_elsewhere(home):
        result = train(config, [*home.facts()["overrides"], *overrides])
    if isinstance(result.error, MlorunError):
        show(result.error)
    return result.exit_code
