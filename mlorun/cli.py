"""The entry point: a verb, or Hydra. Help imports neither Hydra nor torch; verbs import what they need."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import getdoc

from mlorun.errors import ConfigError, MlorunError, did_you_mean

VERBS = {
    "ls": "the experiments and options: mlorun ls, mlorun ls GROUP",
    "show": "the resolved config: mlorun show OVERRIDES...",
    "check": "all mistakes of a config, nothing trained: mlorun check OVERRIDES...",
    "graph": "levels, paths, order of steps: mlorun graph OVERRIDES...",
    "resume": "go on with a run or a sweep, to the same bits: mlorun resume RUN (a folder, latest, or a name)",
    "rerun": "the config of a run again, in a new folder: mlorun rerun RUN OVERRIDES...",
    "verify": "is this hypergradient right? mlorun verify (closed forms); mlorun verify OVERRIDES... (your program)",
}

HELP = """\
mlorun runs multilevel optimization experiments from the shell. Three to start with:

  mlorun experiment=mwn_digits                             a bilevel run of a few seconds, data included
  mlorun experiment=mwn_digits classifier.optimizer.lr=0.05 classifier.hypergradient=neumann
  mlorun -m experiment=mwn_digits seed=0,1,2               a sweep, with a table at the end

Verbs (mlorun VERB --help explains one):
{verbs}

Every other word is an override in Hydra's grammar: key=value, +key=value, ~key, group=option; -m sweeps
over values with commas between them. NAME.key=value sets a key of the problem NAME; NAME.module=,
.optimizer=, .scheduler=, .hypergradient=OPTION choose an option for it, and NAME.problem=OPTION replaces it
by another problem. --cfg job, --info, --hydra-help and hydra/launcher=... are Hydra's own.

Exit codes: 0 done, 1 the run failed, 2 the command or the config is wrong (nothing was run), 3 some jobs of
a sweep failed, 4 stopped on a non-finite value, 5 out of disk or memory, 6 the run folder is in use, 75
preempted and 130 interrupted, both resumable."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & {*args} and args[0] in VERBS:
        print(getdoc(import_module(f"mlorun.commands.{args[0]}")))
        return 0
    if not args or "-h" in args or "--help" in args or args == ["help"]:
        print(HELP.format(verbs="\n".join(f"  {verb:8s}{text}" for verb, text in VERBS.items())))
        return 0
    if args in (["--version"], ["version"]):
        from mlorun.version import __version__

        print(f"mlorun {__version__}")
        return 0
    from mlorun.run.signals import INTERRUPTED, PREEMPTED, Terminated, behind, raising

    try:
        with raising():
            return _run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return PREEMPTED
    except BrokenPipeError:
        # the reader of our output is gone (`mlorun ls | head`); the buffer is flushed to nowhere at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from mlorun.report import named, show

        if (came := behind(error)) is not None:
            return INTERRUPTED if isinstance(came, KeyboardInterrupt) else PREEMPTED
        fault = error if isinstance(error, MlorunError) else named(error)
        show(fault)
        return fault.exit_code


def _say_at_once() -> None:
    """On a terminal, a word before torch is there, which takes seconds; what comes next is written over it."""
    if sys.stdout.isatty():
        sys.stdout.write("loading ...\r")
        sys.stdout.flush()


SLOW = ("check", "resume", "rerun", "verify")  # they wait for torch

# words that other programs have for what mlorun does
MEANT = {
    "list": "mlorun ls",
    "load": "in Python: mlorun.load(RUN)",
    "config": "mlorun show OVERRIDES...",
    "sweep": "mlorun -m OVERRIDES...",
}
RUN = ("run", "train", "start", "fit", "experiment")


def _no_verb(first: str, rest: Sequence[str]) -> ConfigError:
    """The ConfigError of a first word that is no verb, with the line to type where that is plain."""
    from mlorun.config.locations import options

    overrides = [word for word in rest if "=" in word]
    names = [word for word in (first, *rest) if word in options("experiment")]
    if first in RUN or names:
        experiment = [f"experiment={names[0] if names else 'NAME'}"]
        chosen = [] if any(word.startswith("experiment=") for word in overrides) else experiment
        fix = f"a run has no verb: {' '.join(['mlorun', *chosen, *overrides])}"
    elif first in MEANT:
        fix = MEANT[first]
    else:
        fix = f"{did_you_mean(first, VERBS)}; a run is mlorun experiment=NAME"
    return ConfigError(f"there is no verb {first!r}", where=f"mlorun {first}", fix=fix)


def _run(args: list[str]) -> int:
    from mlorun.run.secrets import masked

    # what a shell has put in is a reference again: no file and no screen shows it
    args = [masked(text) if "=" in text else text for text in args]
    first = args[0]
    if "=" in first or first[:1] in ("-", "+", "~"):
        _say_at_once()
        if {"-m", "--multirun"} & {*args}:
            from mlorun.sweeps.processes import warm_up

            warm_up()
        from mlorun.commands.run import run

        return run(args)
    if first not in VERBS:
        raise _no_verb(first, args[1:])
    if first in SLOW:
        _say_at_once()
    verb: Callable[[list[str]], int] = import_module(f"mlorun.commands.{first}").main
    return verb(args[1:])
