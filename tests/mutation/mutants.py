"""Bugs to plant in mlorun/core and mlorun/hypergradient, one at a time: each must make a test fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One bug.

    name         what is wrong, in words
    file         under mlorun/
    old, new     text that occurs once in the file, and what stands in its place
    tests        arguments of pytest: what should fail, to be run first
    equivalent   why no test can see it; "" where one must
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    equivalent: str = ""

    @property
    def part(self) -> str:
        """The folder that it is planted in."""
        return self.file.rpartition("/")[0]


ATTACKED = "tests/hypergradient/test_attacked.py"
CLOSED = "tests/hypergradient/test_closed_forms.py"
CUT = "tests/hypergradient/test_cut_kernels.py"
ENGINE = "tests/core/test_engine.py"
EVOLUTION = "tests/hypergradient/test_evolution.py"
FUNCTIONAL = "tests/core/replay/test_functional.py"
GRAPH = "tests/core/program/test_graph.py"
GRAPHS = "tests/hypergradient/test_graphs.py"
HISTORY = "tests/core/replay/test_history.py"
KEPT = "tests/core/test_kept_parameters.py"
NESTED = "tests/hypergradient/test_nested.py"
NETWORKS = "tests/hypergradient/test_networks.py"
PENALTY = "tests/hypergradient/test_penalty.py"
RECOMPUTE = "tests/hypergradient/test_recomputation.py"
RECORDER = "tests/core/replay/test_recorder.py"
REINFORCE = "tests/hypergradient/test_reinforce.py"
ROLL_BACK = "tests/core/test_roll_back.py"
SCHEDULE = "tests/core/program/test_schedule.py"
SOLVES = "tests/hypergradient/test_solves.py"
STOPS = "tests/hypergradient/test_stop_gradients.py"
STATE = "tests/core/test_state.py"
UNROLLED = "tests/hypergradient/test_unrolled.py"
UPDATE = "tests/core/program/test_update.py"
WRONG = "tests/hypergradient/test_wrong_before.py"

_STALE = (
    "if name in self._reevaluated and not (history.current is not None and any(type("
    "self._program.problems[node].hypergradient).__name__ == '{}' for node in self._graph.nodes_on_paths(name))):"
)

PROGRAM = [
    # core/program/graph.py
    Mutant(
        "a problem below counts only where its own loss reads the upper one",
        "core/program/graph.py",
        "            passed |= fresh\n",
        "            passed |= fresh\n            break\n",
        f"{GRAPH} {CLOSED}",
    ),
    Mutant(
        "nodes on paths leave out what is passed by steering alone",
        "core/program/graph.py",
        "if passed.intersection(self.reads(node))}",
        "if passed.intersection((*self.lowers[node], upper)) and (upper in self.reads(node) or "
        "passed.intersection(self.lowers[node]))}",
        f"{GRAPH} {NESTED}",
    ),
    Mutant(
        "nodes on paths in order of execution, not reversed",
        "core/program/graph.py",
        "for node in reversed(self.order) if node in passed - {upper}",
        "for node in self.order if node in passed - {upper}",
        GRAPH,
    ),
    Mutant(
        "a sweep goes in the order of the paths, whatever depends on whom",
        "core/program/graph.py",
        "ready = next((n for n in waiting if not any(n in depends[other] for other in waiting)), None)",
        "ready = waiting[0]",
        f"{GRAPH} {NESTED}",
    ),
    Mutant(
        "a sweep starts with what others do not wait for, the wrong way round",
        "core/program/graph.py",
        "not any(n in depends[other] for other in waiting)",
        "not any(other in depends[n] for other in waiting)",
        f"{GRAPH} {NESTED}",
    ),
    Mutant(
        "own_loss is not looked at in the order of a sweep",
        "core/program/graph.py",
        "own_loss=node in own_loss)) for node in waiting",
        "own_loss=False)) for node in waiting",
        GRAPH,
    ),
    Mutant(
        "an optimum does not depend on what those that answer it read",
        "core/program/graph.py",
        "readers = (name,) if own_loss else",
        "readers = (name,) if True else",
        f"{GRAPH} {NESTED}",
    ),
    Mutant(
        "of several upper problems one alone is read",
        "core/program/graph.py",
        "return (*lowers, *(upper for upper in uppers if name in self.u2l[upper]))",
        "return (*lowers, *uppers[:1])",
        f"{GRAPHS} -k tangents",
    ),
    Mutant(
        "a problem steps after the first of its lowers alone",
        "core/program/graph.py",
        "all(low in done for low in lowers[n])",
        "(not lowers[n] or any(low in done for low in lowers[n]))",
        f"{GRAPH} {SCHEDULE}",
    ),
    Mutant(
        "a steered problem that reaches its upper by others gets no edge",
        "core/program/graph.py",
        "complete[lower] = (*complete[lower], upper)",
        "pass",
        GRAPH,
    ),
    # core/program/schedule.py
    Mutant(
        "an upper problem steps when one of its lowers is due",
        "core/program/schedule.py",
        "if needed <= self.due:",
        "if needed & self.due:",
        SCHEDULE,
    ),
    Mutant(
        "warm-up is one step short",
        "core/program/schedule.py",
        "return self.warm[name] < self.schedules[name].warmup_steps",
        "return self.warm[name] < self.schedules[name].warmup_steps - 1",
        SCHEDULE,
    ),
    Mutant(
        "no inner loop starts after a step above",
        "core/program/schedule.py",
        "            self.fresh[lower] = True\n",
        "",
        SCHEDULE,
    ),
    Mutant(
        "repeated steps start an inner loop again",
        "core/program/schedule.py",
        "self.inner[name].append(replace(action, starts=False))",
        "self.inner[name].append(action)",
        SCHEDULE,
    ),
    Mutant(
        "a problem that two levels above read returns twice",
        "core/program/schedule.py",
        "            if self.inner[lower]:",
        "            if self.schedules[lower].roll_back:",
        SCHEDULE,
    ),
    # core/program/update.py
    Mutant(
        "the gradient is clipped before it is unscaled",
        "core/program/update.py",
        "        if self.scaler is not None:\n            self.scaler.unscale_(self.optimizer)\n"
        "        if self.clip is not None:\n            torch.nn.utils.clip_grad_norm_(self.theta, self.clip)\n",
        "        if self.clip is not None:\n            torch.nn.utils.clip_grad_norm_(self.theta, self.clip)\n"
        "        if self.scaler is not None:\n            self.scaler.unscale_(self.optimizer)\n",
        UPDATE,
    ),
    Mutant(
        "a gradient half accumulated is lost on load",
        "core/program/update.py",
        "parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)",
        "parameter.grad = None",
        UPDATE,
    ),
    Mutant(
        "a schedule does not come back",
        "core/program/update.py",
        'self.scheduler.load_state_dict(dict(state["scheduler"]))',
        "pass",
        UPDATE,
    ),
    Mutant(
        "the loss scale does not come back",
        "core/program/update.py",
        'self.scaler.load_state_dict(dict(state["scaler"]))',
        "pass",
        UPDATE,
    ),
    Mutant(
        "rates stay what they were first",
        "core/program/update.py",
        "if before != values:",
        "if False:",
        UPDATE,
    ),
    Mutant(
        "an optimizer keeps its state where the start is decided",
        "core/program/update.py",
        "            self.optimizer.state.clear()\n",
        "",
        UPDATE,
    ),
    Mutant(
        "a recorded iterate shares the optimizer's state",
        "core/program/update.py",
        "{key: value.clone() if copy else value for",
        "{key: value for",
        f"{UPDATE} {UNROLLED}",
    ),
    Mutant(
        "clipping is left out of the pure update",
        "core/program/update.py",
        "        if self.clip is None:\n            return tuple(gradient)\n",
        "        if True:\n            return tuple(gradient)\n",
        UPDATE,
    ),
    Mutant(
        "the norm that is clipped by is held constant",
        "core/program/update.py",
        "factor = (self.clip / (length + 1e-6)).clamp(max=1.0)",
        "factor = (self.clip / (length + 1e-6)).clamp(max=1.0).detach()",
        f"{UNROLLED} -k clipping",
    ),
    Mutant(
        "decoupled decay counts as part of the objective",
        "core/program/update.py",
        '0.0 if group.get("decoupled_weight_decay") else float(',
        "0.0 if False else float(",
        f"{UPDATE} {SOLVES}",
    ),
    Mutant(
        "learned options are not given to the pure step",
        "core/program/update.py",
        "pure.step({**each, **own}, kept, at, slope)",
        "pure.step({**own, **each}, kept, at, slope)",
        f"{UNROLLED} -k learned",
    ),
    Mutant(
        "every parameter group takes a step with the first one's learned options",
        "core/program/update.py",
        "value if value.dim() == 0 else value[group]",
        "value if value.dim() == 0 else value[0]",
        f"{UPDATE} {UNROLLED} -k group",
    ),
    Mutant(
        "an inner loop starts with the first group's learned options in every group",
        "core/program/update.py",
        "value.expand(len(groups)).tolist()",
        "value.reshape(-1)[:1].expand(len(groups)).tolist()",
        f"{UPDATE} {UNROLLED} -k group",
    ),
    # core/program/pure_steps.py
    Mutant(
        "Nesterov's direction is plain momentum's",
        "core/program/pure_steps.py",
        'direction = grad + momentum * buffer if options["nesterov"] else buffer',
        "direction = buffer",
        UPDATE,
    ),
    Mutant(
        "Adam's step count stands still",
        "core/program/pure_steps.py",
        'return state["step"] + 1 if "step" in state else',
        'return state["step"] if "step" in state else',
        UPDATE,
    ),
]

REPLAY = [
    # core/replay/functional.py
    Mutant(
        "theta is not put in with the parameters",
        "core/replay/functional.py",
        "        self.problems[name].theta = vector\n",
        "",
        KEPT,
    ),
    Mutant(
        "theta is not put back after a replay",
        "core/replay/functional.py",
        "                self._put(name, self._live[name])\n",
        "                before = self.problems[name].theta\n                self._put(name, self._live[name])\n"
        "                self.problems[name].theta = before\n",
        KEPT,
    ),
    Mutant(
        "parameters are not put back after a replay",
        "core/replay/functional.py",
        "                self._put(name, self._live[name])\n",
        "                self.problems[name].theta = self._live[name]\n",
        f"{KEPT} {NETWORKS}",
    ),
    Mutant(
        "a parameter in two places is put into one",
        "core/replay/functional.py",
        "            for table, key in slots:\n                table[key] = tensor\n        self.problems",
        "            for table, key in slots[:1]:\n                table[key] = tensor\n        self.problems",
        FUNCTIONAL,
    ),
    Mutant(
        "random numbers are not put back after a replay",
        "core/replay/functional.py",
        "            generators.write(state, self.device)\n            self.clock.step = step\n",
        "            self.clock.step = step\n",
        FUNCTIONAL,
    ),
    Mutant(
        "modes are not put back after a replay",
        "core/replay/functional.py",
        "            self._set_modes(modes)\n            self._set_buffers(kept)",
        "            self._set_buffers(kept)",
        f"{ENGINE} {NETWORKS}",
    ),
    Mutant(
        "buffers are not put back after a replay",
        "core/replay/functional.py",
        "            self._set_modes(modes)\n            self._set_buffers(kept)",
        "            self._set_modes(modes)",
        NETWORKS,
    ),
    Mutant(
        "a replay draws other random numbers than its step",
        "core/replay/functional.py",
        "        generators.write(snapshot.generators, self.device)\n",
        "",
        FUNCTIONAL,
    ),
    Mutant(
        "a replay has the present buffers",
        "core/replay/functional.py",
        "self._set_buffers([buffer.clone() for buffer in snapshot.buffers])",
        "self.scratch_buffers()",
        FUNCTIONAL,
    ),
    Mutant(
        "a replay moves the buffers of its snapshot in place",
        "core/replay/functional.py",
        "self._set_buffers([buffer.clone() for buffer in snapshot.buffers])",
        "self._set_buffers(snapshot.buffers)",
        FUNCTIONAL,
    ),
    Mutant(
        "a snapshot shares the live buffers",
        "core/replay/functional.py",
        "buffers = tuple(table[key].clone() for ((table, key), *_) in self._buffers)",
        "buffers = tuple(table[key] for ((table, key), *_) in self._buffers)",
        FUNCTIONAL,
    ),
    Mutant(
        "a replay has the present modes",
        "core/replay/functional.py",
        "        self._set_modes(snapshot.modes)\n",
        "",
        FUNCTIONAL,
    ),
    Mutant(
        "Python's and NumPy's generators are never replayed",
        "core/replay/functional.py",
        "        self._latest: GeneratorState | None = None\n        self._host = True\n",
        "        self._latest: GeneratorState | None = None\n        self._host = False\n",
        FUNCTIONAL,
    ),
    Mutant(
        "many micro-batches give the sum of their losses",
        "core/replay/functional.py",
        "return total if len(snapshots) == 1 else total / len(snapshots)",
        "return total",
        f"{NETWORKS} -k accumulated",
    ),
    Mutant(
        "autocast stays on in a replay",
        "core/replay/functional.py",
        "return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()",
        "return nullcontext()",
        FUNCTIONAL,
    ),
    Mutant(
        "two states of the generators are always the same",
        "core/replay/functional.py",
        "return alone and torch.equal(one.cpu, other.cpu)",
        "return alone",
        FUNCTIONAL,
    ),
    Mutant(
        "evaluation in training mode",
        "core/replay/functional.py",
        "            self._set_modes((False,) * len(self._modules))\n",
        "",
        f"{ENGINE} -k evaluation",
    ),
    # core/replay/recompute.py
    Mutant(
        "a recomputed loss is recomputed after other parameters are back",
        "core/replay/recompute.py",
        "    with _replaced({**dict.fromkeys(_GENERATORS, _kept), _REENTRANT: plain}):\n",
        "    with _replaced({_REENTRANT: plain}):\n",
        RECOMPUTE,
    ),
    Mutant(
        "torch's checkpoint is not put back",
        "core/replay/recompute.py",
        "            setattr(_MODULE, name, value)\n\n\ndef",
        "            pass\n\n\ndef",
        RECOMPUTE,
    ),
    Mutant(
        "reentrant recomputation of anything is refused",
        "core/replay/recompute.py",
        "if any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(outputs)):",
        "if True:",
        RECOMPUTE,
    ),
    Mutant(
        "the line of a reentrant call is torch's own",
        "core/replay/recompute.py",
        'frame.f_globals.get("__name__", "").split(".")[0] == "torch"',
        "False",
        RECOMPUTE,
    ),
    # core/replay/history.py
    Mutant(
        "the window of an accumulation does not come back",
        "core/replay/history.py",
        'self.window = [Snapshot.unpack(one) for one in packed["window"]]',
        "self.window = []",
        f"{STATE} -k accumulation",
    ),
    Mutant(
        "what was let go is forgotten on load",
        "core/replay/history.py",
        'self.dropped = packed["dropped"]',
        "self.dropped = 0",
        HISTORY,
    ),
    Mutant(
        "one update too many is differentiated",
        "core/replay/history.py",
        "max(0, len(self.updates) - steps)",
        "max(0, len(self.updates) - steps - 1)",
        HISTORY,
    ),
    Mutant(
        "every inner loop is whole",
        "core/replay/history.py",
        "whole=self.dropped == 0",
        "whole=True",
        HISTORY,
    ),
    Mutant(
        "a new inner loop counts what the last one let go",
        "core/replay/history.py",
        "self.updates, self.dropped, self.tangents, self.starts = [], 0, tangents, True",
        "self.updates, self.tangents, self.starts = [], tangents, True",
        HISTORY,
    ),
    Mutant(
        "a new inner loop has the tangents of the last one",
        "core/replay/history.py",
        "self.updates, self.dropped, self.tangents, self.starts = [], 0, tangents, True",
        "self.updates, self.dropped, self.starts = [], 0, True",
        HISTORY,
    ),
    # core/replay/recorder.py
    Mutant(
        "a copy of a lower optimum is never renewed",
        "core/replay/recorder.py",
        "if name not in self._copies or self._copies[name][0] != versions:",
        "if name not in self._copies:",
        RECORDER,
    ),
    Mutant(
        "the batch of a lower problem is that of its first step",
        "core/replay/recorder.py",
        "        history.last = tuple(history.window)\n        history.window = []\n        if estimate",
        "        history.last = history.last or tuple(history.window)\n        history.window = []\n"
        "        if estimate",
        f"{NETWORKS} {UNROLLED} {STATE}",
    ),
    Mutant(
        "the window of an accumulation is never emptied",
        "core/replay/recorder.py",
        "        history.last = tuple(history.window)\n        history.window = []\n        if estimate",
        "        history.last = tuple(history.window)\n        if estimate",
        f"{NETWORKS} {UNROLLED}",
    ),
    *(
        Mutant(
            f"{name} has the upper batch of its first call",
            "core/replay/recorder.py",
            "        if name in self._reevaluated:\n            history.current",
            f"        {_STALE.format(name)}\n            history.current",
            f"{WRONG} -k 'accumulated and {name.lower()}'",
        )
        for name in ("F2SA", "BOME", "Evolution", "Reinforce")
    ),
    Mutant(
        "a look at the next batch takes it",
        "core/replay/recorder.py",
        "            problem.stream.load_state_dict(position)\n",
        "            pass\n",
        f"{STATE} -k next_step",
    ),
    Mutant(
        "a batch of the recipe's own is made again by its stream",
        "core/program/problem.py",
        "return self.stream is None or not plain",
        "return self.stream is None",
        f"{STATE} -k tasks",
    ),
    Mutant(
        "iterates of a nested problem are computed again",
        "core/replay/recorder.py",
        "stride = checkpointing.stride(problem.update_schedule.unroll_steps) if alone else 1",
        "stride = checkpointing.stride(problem.update_schedule.unroll_steps)",
        RECORDER,
    ),
    Mutant(
        "parameters before a step are kept for everybody",
        "core/replay/recorder.py",
        'if estimate.needs.linearize == "before":',
        "if True:",
        CUT,
    ),
    Mutant(
        "iterates are recorded at another stride once some were let go",
        "core/replay/recorder.py",
        "(len(history.updates) + history.dropped) % stride",
        "(len(history.updates) + history.dropped + bool(history.dropped)) % stride",
        f"{UNROLLED} -k truncation",
    ),
    Mutant(
        "tangents do not come back",
        "core/replay/recorder.py",
        "history.tangents = None if estimate is None else estimate.unpack_tangents(packed)",
        "history.tangents = None",
        f"{STATE} -k forward",
    ),
    # core/replay/views.py
    Mutant(
        "a micro-batch at hand is not put in",
        "core/replay/views.py",
        "replace(self._histories[name], current=snapshot)",
        "self._histories[name]",
        f"{STATE} {PENALTY}",
    ),
    Mutant(
        "the point before a step is the present one",
        "core/replay/views.py",
        "return self.views.history(self.name).before or vectors.detach(self.views.theta(self.name))",
        "return vectors.detach(self.views.theta(self.name))",
        CLOSED,
    ),
    Mutant(
        "a view in float64 leaves the parameters where they are",
        "core/replay/views.py",
        "        with self.program.parameters_as(self._dtype), constants, draws:\n            yield\n",
        "        with constants, draws:\n            yield\n",
        FUNCTIONAL,
    ),
    # core/replay/snapshot.py
    Mutant(
        "a batch that nobody can make again is let go",
        "core/replay/snapshot.py",
        "return self if self.position is None else replace(self, batch=None)",
        "return replace(self, batch=None)",
        RECOMPUTE,
    ),
]

CORE = [
    # core/probe.py
    Mutant(
        "parameters that are kept elsewhere are let through",
        "core/probe.py",
        "                require_replays(program, problem, batch)\n",
        "                pass\n",
        KEPT,
    ),
    Mutant(
        "only starts and options are looked at for parameters kept elsewhere",
        "core/reevaluation.py",
        '{"training_step": (loss,), **others}.items()',
        "others.items()",
        KEPT,
    ),
    Mutant(
        "the streams of a probe are not put back",
        "core/probe.py",
        "        stream.load_state_dict(state)\n",
        "        pass\n",
        f"{ENGINE} -k probe",
    ),
    Mutant(
        "a loss that is another one the second time is let through",
        "core/probe.py",
        "                warn_unless_it_repeats(program, problem, batch)\n",
        "                pass\n",
        f"{ENGINE} -k state_of_its_own",
    ),
    Mutant(
        "an edge that is read past the dependencies is let through",
        "core/edges.py",
        "    _require_declared(program, graph, problem, loss)\n    for",
        "    for",
        f"{ENGINE} {WRONG} -k 'declared'",
    ),
    Mutant(
        "a probe says that no loss draws from Python's or NumPy's generators",
        "core/probe.py",
        "drew = drew or _host_rng() != before",
        "drew = False",
        FUNCTIONAL,
    ),
    Mutant(
        "an edge that acts in two ways passes with an estimator of one",
        "core/edges.py",
        "        elif unseen:\n",
        "        elif unseen == used and unseen:\n",
        f"{WRONG} {UNROLLED}",
    ),
    # core/roll_back.py
    Mutant(
        "a roll-back leaves the stream",
        "core/roll_back.py",
        'problem.stream.load_state_dict(copy["stream"])',
        "pass",
        ROLL_BACK,
    ),
    Mutant(
        "a roll-back leaves the buffers",
        "core/roll_back.py",
        "            buffer.copy_(value)",
        "            pass",
        ROLL_BACK,
    ),
    Mutant(
        "a roll-back leaves the optimizer's state",
        "core/roll_back.py",
        '        problem.update.load_state_dict({**deepcopy(copy["update"]), "scaler": None})\n',
        "",
        ROLL_BACK,
    ),
    Mutant(
        "a roll-back has the optimizer's state of now",
        "core/roll_back.py",
        "deepcopy(problem.update.state_dict())",
        "problem.update.state_dict()",
        ROLL_BACK,
    ),
    Mutant(
        "steps after a roll-back change what it keeps",
        "core/roll_back.py",
        '{**deepcopy(copy["update"]), "scaler": None}',
        '{**copy["update"], "scaler": None}',
        ROLL_BACK,
    ),
    # core/adjoint.py
    Mutant(
        "carries are dropped",
        "core/adjoint.py",
        "        self.carries[upper] = swept.carries\n",
        "",
        f"{GRAPHS} {PENALTY} -k carr",
    ),
    Mutant(
        "the gradients before do not come back",
        "core/adjoint.py",
        'self._previous = {name: tuple(vector) for name, vector in state["previous"].items()}',
        "self._previous = {}",
        f"{STATE} -k goes_on_from",
    ),
    Mutant(
        "cotangents of a scaled loss stay scaled",
        "core/adjoint.py",
        "            cotangents = {node: vectors.scale(part, inverse) for node, part in cotangents.items()}\n",
        "",
        f"{WRONG} -k accumulated",
    ),
    Mutant(
        "what comes through optima is not scaled again",
        "core/adjoint.py",
        "gradient = direct if indirect is None else vectors.add(direct, indirect, alpha=one)",
        "gradient = direct if indirect is None else vectors.add(direct, indirect)",
        f"{WRONG} -k accumulated",
    ),
    Mutant(
        "the direct gradient is left out",
        "core/adjoint.py",
        "gradient = direct if indirect is None else vectors.add(direct, indirect, alpha=one)",
        "gradient = direct if indirect is None else vectors.scale(indirect, one)",
        CLOSED,
    ),
    Mutant(
        "a nested problem is differentiated by its own loss alone",
        "core/adjoint.py",
        "tuple(low for low in upwards if low in below[name]),",
        "(),",
        NESTED,
    ),
    Mutant(
        "problems below are solved in the order of the sweep",
        "core/adjoint.py",
        "tuple(low for low in upwards if low in below[name]),",
        "tuple(low for low in order if low in below[name]),",
        NESTED,
    ),
    # core/engine.py
    Mutant(
        "the place in a global step does not come back",
        "core/engine.py",
        'self._actions_done = state["actions_done"]',
        "self._actions_done = 0",
        f"{STATE} -k middle_of",
    ),
    Mutant(
        "modes do not come back",
        "core/engine.py",
        "        module.training = training\n",
        "        pass\n",
        f"{STATE} -k next_report",
    ),
    Mutant(
        "what a report will say does not come back",
        "core/engine.py",
        '        self.reporter.load_state_dict(state["report"])\n',
        "",
        f"{STATE} -k next_report",
    ),
    Mutant(
        "a recipe's own state does not come back",
        "core/engine.py",
        '    problem.load_state_dict(state["own"])\n',
        "",
        f"{STATE} -k recipe",
    ),
    Mutant(
        "what a roll-back keeps does not come back",
        "core/engine.py",
        'roll_back.load_state_dict(state["roll_back"][name])',
        "pass",
        f"{STATE} -k 'goes_on_from and roll'",
    ),
    Mutant(
        "a gradient for others moves the carries",
        "core/engine.py",
        "            adjoint = Adjoint(self.graph, views)\n"
        "            adjoint.load_state_dict(self.adjoint.state_dict())\n",
        "            adjoint = self.adjoint\n            adjoint._views = views\n",
        f"{STATE} -k next_step",
    ),
    Mutant(
        "a gradient for others starts without carries",
        "core/engine.py",
        "            adjoint.load_state_dict(self.adjoint.state_dict())\n",
        "",
        f"{STATE} -k next_step",
    ),
    Mutant(
        "an evaluation draws from the caller's generators",
        "core/engine.py",
        "with self._held_generators(), self.precision.autocast():\n                metrics",
        "with self.precision.autocast():\n                metrics",
        f"{ENGINE} -k evaluation",
    ),
    # core/stepper.py
    Mutant(
        "a micro-batch counts whole in an accumulation",
        "core/stepper.py",
        "            loss = loss / count\n",
        "            loss = loss / 1\n",
        f"{ENGINE} -k scheduler",
    ),
    Mutant(
        "a roll-back goes on in the same inner loop",
        "core/stepper.py",
        "            self._recorder.start_inner_loop(problem.name)\n",
        "",
        f"{WRONG} -k roll_back",
    ),
    Mutant(
        "a roll-back keeps the old start and options",
        "core/stepper.py",
        "            problem.restart_inner_loop()  # under the new upper parameters\n",
        "",
        f"{WRONG} -k roll_back",
    ),
    Mutant(
        "what is kept for a roll-back is from before the new start",
        "core/stepper.py",
        "            problem.restart_inner_loop()\n"
        "            written = vectors.versions(problem.theta)\n"
        "            problem.on_inner_loop_start()\n"
        "            if name in self._roll_backs:\n"
        "                self._recorder.watch.at_start(problem, written)\n"
        "                self._roll_backs[name].keep()\n",
        "            if name in self._roll_backs:\n"
        "                self._roll_backs[name].keep()\n"
        "            problem.restart_inner_loop()\n"
        "            problem.on_inner_loop_start()\n",
        f"{ENGINE} -k roll_back",
    ),
    Mutant(
        "a gradient is never cleared",
        "core/stepper.py",
        "            problem.update.clear_gradient()\n",
        "",
        f"{ENGINE} {CLOSED} {UNROLLED}",
    ),
    # core/nonfinite.py
    Mutant(
        "a hypergradient that is not finite is let through",
        "core/nonfinite.py",
        "        finite = vectors.is_finite(gradient)\n",
        "        finite = torch.ones((), dtype=torch.bool)\n",
        f"{ENGINE} -k not_finite",
    ),
]

HYPERGRADIENT = [
    # hypergradient/lower_optima.py
    Mutant(
        "the derivative of a lower optimum has the other sign",
        "hypergradient/lower_optima.py",
        "return tuple(-t for t in pulled)",
        "return tuple(pulled)",
        NESTED,
    ),
    Mutant(
        "the derivative of a solution leaves out dH",
        "hypergradient/lower_optima.py",
        "return (*v, *(-t for t in turned))",
        "return (*v, *(0 * t for t in turned))",
        NESTED,
    ),
    Mutant(
        "the derivative of a solution has dH with the other sign",
        "hypergradient/lower_optima.py",
        "return (*v, *(-t for t in turned))",
        "return (*v, *turned)",
        NESTED,
    ),
    Mutant(
        "full and Gauss-Newton are swapped",
        "hypergradient/lower_optima.py",
        "        self._constant = constant\n",
        "        self._constant = not constant\n",
        NESTED,
    ),
    Mutant(
        "the solve of a lower optimum sees a graph",
        "hypergradient/lower_optima.py",
        "w = detach(self._solve(self.level, detach(g)))",
        "w = self._solve(self.level, g)",
        NESTED,
        "with_pull_back takes the values of a solution without their graph",
    ),
    Mutant(
        "under Gauss-Newton a solution is a constant of what it solves for",
        "hypergradient/lower_optima.py",
        "            return derivatives.with_pull_back(w, g, lambda _w, _g, cotangent: "
        "self._solution(theta, inputs, cotangent))\n",
        "            return w\n",
        NESTED,
    ),
    Mutant(
        "under Gauss-Newton C has a derivative",
        "hypergradient/lower_optima.py",
        "if self._constant or not t.requires_grad else t.view_as(t)",
        "if not t.requires_grad else t.view_as(t)",
        f"{NESTED} -k 'curves or pointed_out'",
    ),
    Mutant(
        "a residual of the right-hand side alone",
        "hypergradient/lower_optima.py",
        "left = vectors.add(self.level.hvp(detach(self._solve(self.level, g))), g, alpha=-1.0)",
        "left = vectors.add(vectors.zeros_like(g), g, alpha=-1.0)",
        f"{NESTED} -k 'curves or pointed_out'",
    ),
    Mutant(
        "lower optima do not see those before them",
        "hypergradient/lower_optima.py",
        "complete[optimum.level.name] = optimum.at(complete)",
        "complete[optimum.level.name] = optimum.at(values)",
        NESTED,
    ),
    # hypergradient/node.py
    Mutant(
        "a solve that leaves 70 % passes",
        "hypergradient/node.py",
        "LARGEST_RESIDUAL = 0.1",
        "LARGEST_RESIDUAL = 0.7",
        f"{NESTED} -k 'curves or pointed_out'",
    ),
    Mutant(
        "a solve that leaves 1 % is warned of",
        "hypergradient/node.py",
        "LARGEST_RESIDUAL = 0.1",
        "LARGEST_RESIDUAL = 0.01",
        f"{NESTED} -k 'curves or pointed_out'",
    ),
    Mutant(
        "solves below a nested problem are not checked",
        "hypergradient/node.py",
        "        self._check_solves()\n",
        "",
        f"{NESTED} -k 'curves or pointed_out'",
    ),
    Mutant(
        "kernels under a nested problem are not checked",
        "hypergradient/node.py",
        "            if fault is not None:\n                raise",
        "            if False:\n                raise",
        NESTED,
    ),
    Mutant(
        "the kernels of a nested problem's own loss are not checked",
        "hypergradient/node.py",
        "for node in (self, *self.below):",
        "for node in self.below:",
        NESTED,
    ),
    Mutant(
        "the kernels below a nested problem are not checked",
        "hypergradient/node.py",
        "for node in (self, *self.below):",
        "for node in (self,):",
        NESTED,
    ),
    Mutant(
        "every nested problem takes the full derivatives",
        "hypergradient/node.py",
        'constant = self.estimate.needs.nested == "gauss_newton"',
        "constant = False",
        f"{NESTED} -k 'curves or pointed_out'",
    ),
    # hypergradient/sweep.py
    Mutant(
        "the carries of the caller change",
        "hypergradient/sweep.py",
        "after = dict(carries)",
        "after = carries",
        f"{PENALTY} {EVOLUTION} -k carry",
    ),
    Mutant(
        "a cotangent is written over, not added to",
        "hypergradient/sweep.py",
        "v[other] = vectors.add(v[other], part) if other in v else part",
        "v[other] = part",
        CLOSED,
    ),
    Mutant(
        "what comes through others counts as direct",
        "hypergradient/sweep.py",
        "cotangents.get(name), v[name])",
        "v[name], v[name])",
        PENALTY,
    ),
    Mutant(
        "a nested node is never checked",
        "hypergradient/sweep.py",
        "            node.check()\n",
        "            pass\n",
        NESTED,
    ),
    # hypergradient/level.py
    Mutant(
        "the upper loss leaves out what comes through others",
        "hypergradient/level.py",
        "return loss + vectors.inner(vectors.add(self.cotangent, self.direct, alpha=-1.0), theta)",
        "return loss",
        f"{GRAPHS} -k twice",
    ),
    Mutant(
        "a Hessian product leaves weight decay out",
        "hypergradient/level.py",
        "return product if self.decay is None else",
        "return product if True else",
        NETWORKS,
    ),
    Mutant(
        "a loss is evaluated without stop-gradients held",
        "hypergradient/level.py",
        "        with stops.held():\n            return self.loss(theta, lam)",
        "        return self.loss(theta, lam)",
        CUT,
    ),
    Mutant(
        "differences are asked for and not taken",
        "hypergradient/level.py",
        "        self._differences = True\n",
        "",
        CUT,
    ),
    Mutant(
        "second derivatives of a total loss are those of its own",
        "hypergradient/level.py",
        "values if self._answers is None else self._answers(values)",
        "values",
        NESTED,
    ),
    # hypergradient/stop_gradients.py
    Mutant(
        "no stopped value is put in",
        "hypergradient/stop_gradients.py",
        "        return value.clone()\n",
        "        return part\n",
        STOPS,
    ),
    Mutant(
        "stopped values are put in one late",
        "hypergradient/stop_gradients.py",
        "        self._next: Iterator[Any] = iter(values)\n",
        "        self._next: Iterator[Any] = iter([*values[:1], *values])\n",
        STOPS,
    ),
    Mutant(
        "a stopped value that was computed in place is not put in",
        "hypergradient/stop_gradients.py",
        "                return part.copy_(value)",
        "                return part",
        STOPS,
    ),
    Mutant(
        "a number from item is not held",
        "hypergradient/stop_gradients.py",
        "        elif not isinstance(part, float):\n",
        "        else:\n",
        STOPS,
    ),
    Mutant(
        "the forward pass of an autograd Function stops gradients",
        "hypergradient/stop_gradients.py",
        "for x in given) or self._in_kernel():",
        "for x in given):",
        CUT,
    ),
    Mutant(
        "a stopped value is recorded without a copy",
        "hypergradient/stop_gradients.py",
        "part.detach().clone() if isinstance(part, Tensor) else part)",
        "part.detach() if isinstance(part, Tensor) else part)",
        STOPS,
    ),
    # hypergradient/trajectory.py
    Mutant(
        "an update is differentiated in the lower optima of now",
        "hypergradient/trajectory.py",
        "vectors.detach(then.get(name, vector))",
        "vectors.detach(vector)",
        f"{UNROLLED} -k that_it_saw",
    ),
    Mutant(
        "an update reads lower optima as they are now",
        "hypergradient/trajectory.py",
        "{**update.lower_optima, **lam, self.name: theta}",
        "{**lam, self.name: theta}",
        f"{UNROLLED} -k that_it_saw",
    ),
    Mutant(
        "a decided start counts though earlier updates were let go",
        "hypergradient/trajectory.py",
        "return self._problem.start(lam) if self.whole else None",
        "return self._problem.start(lam)",
        f"{UNROLLED} -k truncated",
    ),
    Mutant(
        "an iterate is computed again from the first one",
        "hypergradient/trajectory.py",
        "start = max(i for i",
        "start = min(i for i",
        UNROLLED,
        "it costs more and gives the same iterate",
    ),
    Mutant(
        "a run again has the learned options of now",
        "hypergradient/trajectory.py",
        "iterate = self.phi(t, iterate, shifted(self.lam_at(t)), learned)",
        "iterate = self.phi(t, iterate, shifted(self.lam_at(t)))",
        EVOLUTION,
    ),
    Mutant(
        "a run again has the start of now",
        "hypergradient/trajectory.py",
        "iterate = Iterate(vectors.detach(start), iterate.state)",
        "pass",
        EVOLUTION,
    ),
    # hypergradient/derivatives.py
    Mutant(
        "a central difference is twice as long",
        "hypergradient/derivatives.py",
        "alpha=-1.0), 0.5 / eps)",
        "alpha=-1.0), 1.0 / eps)",
        f"{NETWORKS} {CUT}",
    ),
    Mutant(
        "a difference of one side",
        "hypergradient/derivatives.py",
        "alpha=sign)) for sign in (1.0, -1.0))",
        "alpha=sign)) for sign in (2.0, 0.0))",
        f"{NETWORKS} {CUT}",
    ),
    Mutant(
        "rows of a Jacobian that nothing depends on are left out",
        "hypergradient/derivatives.py",
        "            rows.extend([zero] * t.numel())\n            continue",
        "            rows.extend([zero])\n            continue",
        f"{UNROLLED} -k forward_mode",
    ),
    Mutant(
        "a short rule is taken under a loss that calls autograd",
        "hypergradient/forward_ad.py",
        "        if func is torch.autograd.grad and self._shortened:\n            raise InnerDerivative\n",
        "",
        f"{WRONG} -k penalty",
    ),
    Mutant(
        "forward mode sees through no_grad",
        "hypergradient/forward_ad.py",
        "            with forward_ad._set_fwd_grad_enabled(False):\n                return func(*args, **kwargs)",
        "            return func(*args, **kwargs)",
        f"{NETWORKS} -k no_grad",
    ),
]

CROSSES = [
    # hypergradient/crosses/reference.py
    Mutant(
        "every Hessian product passes",
        "hypergradient/crosses/reference.py",
        "return self._hessian_error() if self._moves else 0.0",
        "return 0.0",
        CUT,
    ),
    Mutant(
        "every cross passes",
        "hypergradient/crosses/reference.py",
        "return self._cross_error(cross, rough) if self._moves and self.level.flat_lam() else 0.0",
        "return 0.0",
        CUT,
    ),
    Mutant(
        "the reference sees through stop-gradients",
        "hypergradient/crosses/reference.py",
        "self.level.held_loss(leaves, lam)",
        "self.level.loss(leaves, lam)",
        CUT,
    ),
    Mutant(
        "the direction of a check is that of the call alone",
        "hypergradient/crosses/reference.py",
        "return vectors.add(vectors.scale(x, 1 / length), r, alpha=sign)",
        "return vectors.scale(x, 1 / length)",
        f"{CUT} -k pull_on",
    ),
    Mutant(
        "a check is never made in float64",
        "hypergradient/crosses/reference.py",
        "near = None if double else level.in_double()",
        "near = None",
        CUT,
    ),
    Mutant(
        "a check is made on a kink",
        "hypergradient/crosses/reference.py",
        "OFF_POINT = 1e-4",
        "OFF_POINT = 0.0",
        f"{CUT} -k kink",
    ),
    Mutant(
        "differences that differ among themselves prove an error",
        "hypergradient/crosses/reference.py",
        "if spread < CONSISTENT * off:",
        "if True:",
        f"{CUT} -k 'prove or proves'",
    ),
    Mutant(
        "rounding proves an error",
        "hypergradient/crosses/reference.py",
        "ROUNDING = 100.0",
        "ROUNDING = 0.0",
        f"{CUT} -k 'prove or proves'",
    ),
    Mutant(
        "what has no gradient moves",
        "hypergradient/crosses/reference.py",
        "self.x = tuple(t * (g != 0) for t, g in zip(x, self._gradient(theta, {}), strict=True))",
        "self.x = x",
        CUT,
    ),
    Mutant(
        "a product of half its size passes",
        "hypergradient/crosses/reference.py",
        "FINE, COARSE = Bounds(1e-3, 1e-4, 1e-2), Bounds(0.05, 0.05, 0.05)",
        "FINE, COARSE = Bounds(0.6, 0.6, 0.6), Bounds(0.6, 0.6, 0.6)",
        CUT,
    ),
    # hypergradient/crosses/choice.py
    Mutant(
        "a nested level takes the cross that it is given",
        "hypergradient/crosses/choice.py",
        "return DoubleBackward(), False",
        "return cross, False",
        f"{NESTED} -k always_double",
    ),
    Mutant(
        "the decision for differences is not kept",
        "hypergradient/crosses/choice.py",
        "return _honest(cross, reference, level, v), differences",
        "return _honest(cross, reference, level, v), False",
        f"{CUT} {STATE}",
    ),
    Mutant(
        "a wrong kernel does not matter to unrolled where the Hessian passes",
        "hypergradient/crosses/choice.py",
        "return _fault_of_hessian(reference, level, v) or _fault(DoubleBackward(), reference, level, v)",
        "return _fault_of_hessian(reference, level, v)",
        CUT,
    ),
    Mutant(
        "a wrong kernel does not matter to unrolled where the cross passes",
        "hypergradient/crosses/choice.py",
        "return _fault_of_hessian(reference, level, v) or _fault(DoubleBackward(), reference, level, v)",
        "return _fault(DoubleBackward(), reference, level, v)",
        CUT,
    ),
    Mutant(
        "the first stand-in is taken, right or wrong",
        "hypergradient/crosses/choice.py",
        "        if fault is None:\n            break\n        faults.append",
        "        if fault is None or candidate is not cross:\n            break\n        faults.append",
        CUT,
    ),
    Mutant(
        "nobody is warned of stop-gradients",
        "hypergradient/crosses/choice.py",
        "    if error > LARGEST_DIFFERENCE_ERROR:\n",
        "    if False:\n",
        NETWORKS,
    ),
    # the other crosses
    Mutant(
        "a central difference holds nothing",
        "hypergradient/crosses/central_difference.py",
        "derivatives.gradient(level.held_loss(vectors.leaves(theta)), lam)",
        "derivatives.gradient(level.loss(vectors.leaves(theta)), lam)",
        CUT,
    ),
    Mutant(
        "a relative radius is taken for an absolute one",
        "hypergradient/crosses/central_difference.py",
        "return self.radius * vectors.norm(level.theta) if self.relative else self.radius",
        "return self.radius",
        f"{NETWORKS} -k radius",
    ),
]

ESTIMATORS = [
    # hypergradient/estimators/implicit.py
    Mutant(
        "an implicit hypergradient has the other sign",
        "hypergradient/estimators/implicit.py",
        "{name: vectors.negate(part) for name, part in crossed.items()}",
        "dict(crossed)",
        CLOSED,
    ),
    Mutant(
        "a Hessian that needs differences is used all the same",
        "hypergradient/estimators/implicit.py",
        "        if differences:\n            level.take_differences()\n",
        "",
        CUT,
    ),
    Mutant(
        "a decision for differences is forgotten at the second call",
        "hypergradient/estimators/implicit.py",
        "        if differences:\n            level.take_differences()\n",
        "        if differences and carry is None:\n            level.take_differences()\n",
        f"{CUT} -k later_calls",
    ),
    Mutant(
        "a solve starts afresh at every call",
        "hypergradient/estimators/implicit.py",
        "self.solve(level, v, carry.solve if carry else None)",
        "self.solve(level, v, None)",
        f"{SOLVES} {GRAPHS}",
    ),
    Mutant(
        "a stand-in does not come back",
        "hypergradient/estimators/implicit.py",
        'STAND_INS[packed["stand_in"]]()',
        "self.cross",
        f"{CUT} -k later_calls",
    ),
    Mutant(
        "differences do not come back",
        "hypergradient/estimators/implicit.py",
        'packed["solve"], packed["differences"])',
        'packed["solve"], False)',
        f"{CUT} -k later_calls",
    ),
    Mutant(
        "the residual that is reported is of the other sign of v",
        "hypergradient/estimators/implicit.py",
        "residual = vectors.add(level.hvp(x), v, alpha=-1.0)",
        "residual = vectors.add(level.hvp(x), v)",
        f"{ENGINE} -k residual",
    ),
    # hypergradient/estimators/unrolled.py
    Mutant(
        "a decided start counts for a truncated loop",
        "hypergradient/estimators/unrolled.py",
        "if trajectory.first == 0 else None",
        "if True else None",
        f"{UNROLLED} -k truncated_loop",
    ),
    Mutant(
        "unrolled leaves the optimizer's state out",
        "hypergradient/estimators/unrolled.py",
        "            on_state[i][key] = next(grads)\n",
        "            on_state[i][key] = torch.zeros_like(next(grads))\n",
        UNROLLED,
    ),
    Mutant(
        "learned options count at the first update alone",
        "hypergradient/estimators/unrolled.py",
        "            on_learned = {k: x + on_options[k] for k, x in on_learned.items()}\n",
        "            on_learned = dict(on_options)\n",
        f"{UNROLLED} -k learned",
    ),
    Mutant(
        "updates that are not to be differentiated are",
        "hypergradient/estimators/unrolled.py",
        "reversed(range(max(start, trajectory.first), stop))",
        "reversed(range(start, stop))",
        f"{UNROLLED} -k 'last_t or truncat'",
    ),
    Mutant(
        "by differences, H c is left out",
        "hypergradient/estimators/unrolled.py",
        "return vectors.add(on_theta, changed[:count]), vectors.split(changed[count:], self._lam)",
        "return on_theta, vectors.split(changed[count:], self._lam)",
        CUT,
    ),
    Mutant(
        "by differences, stop-gradients are not held",
        "hypergradient/estimators/unrolled.py",
        "            with stops.held():\n                loss = self._loss(leaves)\n",
        "            loss = self._loss(leaves)\n",
        CUT,
    ),
    Mutant(
        "segments are pulled back in order",
        "hypergradient/estimators/unrolled.py",
        "for start, stop in reversed(trajectory.segments()):",
        "for start, stop in trajectory.segments():",
        UNROLLED,
    ),
    # hypergradient/estimators/update_map.py
    Mutant(
        "the update map is iterated once less",
        "hypergradient/estimators/update_map.py",
        "for k in range(self.iterations + 1):",
        "for k in range(max(1, self.iterations)):",
        f"{UNROLLED} -k fixed_point",
    ),
    Mutant(
        "the update map is that of the first update",
        "hypergradient/estimators/update_map.py",
        "t = len(trajectory) - 1",
        "t = 0",
        UNROLLED,
        "one update alone is kept for it, so that the first is the last",
    ),
    Mutant(
        "the update map forgets what came by options",
        "hypergradient/estimators/update_map.py",
        "return decided(trajectory, total, on_learned), differences",
        "return total, differences",
        f"{UNROLLED} -k without_iterations",
    ),
    # hypergradient/estimators/forward.py
    Mutant(
        "forward mode leaves out what lam does to the gradient",
        "hypergradient/estimators/forward.py",
        "moved = vectors.add(tuple(curved[i] for i in read), next(mixed))",
        "moved = (tuple(curved[i] for i in read), next(mixed))[0]",
        f"{UNROLLED} -k forward_mode",
    ),
    Mutant(
        "forward mode leaves out the Hessian",
        "hypergradient/estimators/forward.py",
        "moved = vectors.add(tuple(curved[i] for i in read), next(mixed))",
        "moved = next(mixed)",
        f"{UNROLLED} -k forward_mode",
    ),
    Mutant(
        "forward mode starts from zero, whoever decides the start",
        "hypergradient/estimators/forward.py",
        "[vectors.zeros_like(at.theta)] * size if start is None else",
        "[vectors.zeros_like(at.theta)] * size if True else",
        f"{UNROLLED} -k forward_mode",
    ),
    Mutant(
        "forward mode holds the optimizer's state constant",
        "hypergradient/estimators/forward.py",
        "state_row = [row.state[i].get(k, zero) for (i, k), zero in zip(keys, zeros, strict=True)]",
        "state_row = list(zeros)",
        f"{UNROLLED} -k forward_mode",
    ),
    Mutant(
        "forward mode does not look at kernels",
        "hypergradient/estimators/forward.py",
        "fault = fault_of_double_backward(level, v) if carry is None else None",
        "fault = None",
        CUT,
    ),
    # hypergradient/estimators/evolution.py
    Mutant(
        "evolution divides by one run of a pair",
        "hypergradient/estimators/evolution.py",
        "rise = (ahead - behind) / (2 * self.sigma * self.samples)",
        "rise = (ahead - behind) / (self.sigma * self.samples)",
        EVOLUTION,
    ),
    Mutant(
        "evolution draws the same at every call",
        "hypergradient/estimators/evolution.py",
        "(self.seed * 1_000_003 + count)",
        "(self.seed * 1_000_003)",
        EVOLUTION,
    ),
    Mutant(
        "evolution takes differences of one side",
        "hypergradient/estimators/evolution.py",
        "for sign in (self.sigma, -self.sigma))",
        "for sign in (2 * self.sigma, 0.0))",
        f"{EVOLUTION} -k curvature",
    ),
    # hypergradient/estimators/reinforce.py
    Mutant(
        "the baseline of reinforce knows the draws at hand",
        "hypergradient/estimators/reinforce.py",
        'reward if carry is None or self.baseline == "none" else reward - carry\n',
        'reward if carry is None or self.baseline == "none" else reward - (self.decay * carry + (1 - self.decay) '
        "* reward)\n",
        REINFORCE,
    ),
    Mutant(
        "the average reward weighs the newest one as the old ones",
        "hypergradient/estimators/reinforce.py",
        "self.decay * carry + (1 - self.decay) * reward",
        "(1 - self.decay) * carry + self.decay * reward",
        REINFORCE,
    ),
    Mutant(
        "reinforce scores the first update alone",
        "hypergradient/estimators/reinforce.py",
        "        total = {name: vectors.add(part, score[name]) for name, part in total.items()}\n",
        "        return score\n",
        f"{REINFORCE} {WRONG}",
    ),
    # hypergradient/estimators/penalty.py
    Mutant(
        "F2SA leaves its direct difference out",
        "hypergradient/estimators/penalty.py",
        "return level.split_lam(vectors.add(pulled, moved))",
        "return level.split_lam(pulled)",
        f"{PENALTY} -k formula",
    ),
    Mutant(
        "BOME leaves its direct difference out",
        "hypergradient/estimators/penalty.py",
        "return level.split_lam(vectors.add(moved, q_y, alpha=m))",
        "return level.split_lam(vectors.scale(q_y, m))",
        f"{PENALTY} -k formula",
    ),
    Mutant(
        "y starts at theta at every call",
        "hypergradient/estimators/penalty.py",
        "return vectors.add(level.theta, carry.y) if self.follow else carry.y",
        "return level.theta if self.follow else carry.y",
        PENALTY,
    ),
    Mutant(
        "y that follows theta starts where it was left",
        "hypergradient/estimators/penalty.py",
        "kept = vectors.add(y, level.theta, alpha=-1.0) if self.follow else y",
        "kept = y",
        PENALTY,
    ),
    Mutant(
        "y that follows theta descends the plain loss",
        "hypergradient/estimators/penalty.py",
        "return vectors.add(at_y, at_theta, alpha=-1.0) if self.follow else at_y",
        "return at_y",
        PENALTY,
    ),
    Mutant(
        "y always follows theta",
        "hypergradient/estimators/penalty.py",
        "        self.follow = follow\n",
        "        self.follow = True\n",
        PENALTY,
    ),
    Mutant(
        "gamma does not grow",
        "hypergradient/estimators/penalty.py",
        "gamma = self.gamma + self.growth * (carry.count if carry else 0)",
        "gamma = self.gamma",
        f"{PENALTY} -k larger",
    ),
    Mutant(
        "the multiplier of BOME may be negative",
        "hypergradient/estimators/penalty.py",
        "torch.where(square > 0, m.clamp_min(0), torch.zeros_like(m))",
        "torch.where(square > 0, m, torch.zeros_like(m))",
        f"{PENALTY} -k formula",
    ),
    Mutant(
        "a penalty leaves weight decay out",
        "hypergradient/estimators/penalty.py",
        "(level.with_decay(on_theta, vectors.detach(theta)), on_lam)",
        "(on_theta, on_lam)",
        PENALTY,
    ),
    # hypergradient/estimators/first_order.py
    Mutant(
        "first order lets v through",
        "hypergradient/estimators/first_order.py",
        "return {name: vectors.zeros_like(part) for name, part in level.lam.items()}, None",
        "return {name: tuple(t.detach() for t in part) for name, part in level.lam.items()}, None",
        f"{CLOSED} {GRAPHS} {WRONG}",
    ),
]

SOLVERS = [
    Mutant(
        "CG leaves damping out",
        "hypergradient/solvers/krylov.py",
        "return vectors.add(product, x, alpha=self.damping) if self.damping else product",
        "return product",
        SOLVES,
    ),
    Mutant(
        "CG goes on along a direction without curvature",
        "hypergradient/solvers/conjugate_gradient.py",
        "            going = going & (curvature > 0)\n",
        "",
        SOLVES,
    ),
    Mutant(
        "CG that starts warm keeps the residual of zero",
        "hypergradient/solvers/conjugate_gradient.py",
        "residual = vectors.add(v, self.damped_product(level, x), alpha=-1.0)",
        "residual = v",
        f"{SOLVES} -k warm",
    ),
    Mutant(
        "CG never starts warm",
        "hypergradient/solvers/conjugate_gradient.py",
        "return x, x if self.warm_start else None",
        "return x, None",
        f"{SOLVES} -k warm",
    ),
    Mutant(
        "CG stops at ten times its tolerance",
        "hypergradient/solvers/conjugate_gradient.py",
        "enough = (self.tolerance**2) * vectors.dot(v, v)",
        "enough = (10 * self.tolerance) ** 2 * vectors.dot(v, v)",
        f"{SOLVES} -k tolerance",
    ),
    Mutant(
        "CG on the normal equations leaves damping out of the slope",
        "hypergradient/solvers/indefinite.py",
        "slope = vectors.add(level.hvp(residual), x, alpha=-self.damping)",
        "slope = level.hvp(residual)",
        SOLVES,
    ),
    Mutant(
        "MINRES keeps the rotation of one step before",
        "hypergradient/solvers/indefinite.py",
        "third = sine_before * beta",
        "third = sine * beta",
        SOLVES,
    ),
    Mutant(
        "an exact solve without damping",
        "hypergradient/solvers/exact.py",
        "        matrix.diagonal().add_(self.damping)\n",
        "",
        SOLVES,
    ),
    Mutant(
        "an indefinite Hessian is refused as singular",
        "hypergradient/solvers/exact.py",
        "            solution, info = torch.linalg.solve_ex(matrix, right)\n",
        "            solution = right\n",
        SOLVES,
    ),
    Mutant(
        "Neumann's series without its last term",
        "hypergradient/solvers/neumann.py",
        "for _ in range(self.terms):",
        "for _ in range(self.terms - 1):",
        SOLVES,
    ),
    Mutant(
        "a fixed point without momentum",
        "hypergradient/solvers/fixed_point.py",
        "q = vectors.scale_each(s, momenta)",
        "q = vectors.zeros_like(s)",
        SOLVES,
    ),
    Mutant(
        "the identity is never scaled by lr",
        "hypergradient/solvers/identity.py",
        "return vectors.scale_each(v, level.learning_rates), None",
        "return v, None",
        SOLVES,
    ),
    Mutant(
        "Nystrom draws the same columns at every call",
        "hypergradient/solvers/nystrom.py",
        "(self.seed * 1_000_003 + calls)",
        "(self.seed * 1_000_003)",
        SOLVES,
    ),
    Mutant(
        "Nystrom divides by rho once",
        "hypergradient/solvers/nystrom.py",
        "/ self.rho**2",
        "/ self.rho",
        SOLVES,
    ),
    Mutant(
        "rho: auto starts its power iteration afresh at every call",
        "hypergradient/solvers/warm_step.py",
        "        return u, (u, start)\n",
        "        return u, (u, None)\n",
        f"{SOLVES} -k twenty",
    ),
    Mutant(
        "rho: auto is twice what it should be",
        "hypergradient/solvers/spectrum.py",
        "step = torch.where(size > 0, vectors.quotient(torch.ones_like(size), size, size > 0), 1.0)",
        "step = torch.where(size > 0, vectors.quotient(2 * torch.ones_like(size), size, size > 0), 1.0)",
        SOLVES,
    ),
    Mutant(
        "rho: auto iterates twice at the first call, too",
        "hypergradient/solvers/spectrum.py",
        "(start_vector(like), 20) if start is None",
        "(start_vector(like), 2) if start is None",
        f"{SOLVES} -k twenty",
    ),
    Mutant(
        "a warm step without damping",
        "hypergradient/solvers/warm_step.py",
        "product = vectors.add(level.hvp(u), u, alpha=self.damping)",
        "product = level.hvp(u)",
        f"{SOLVES} -k warm",
    ),
    Mutant(
        "a warm step takes v for its residual",
        "hypergradient/solvers/warm_step.py",
        "residual = vectors.add(product, v, alpha=-1.0)",
        "residual = vectors.scale(v, -1.0)",
        SOLVES,
    ),
    Mutant(
        "a warm step that diverges is never named",
        "hypergradient/solvers/warm_step.py",
        "        self._watch.look_at_growth(level, vectors.scale(v, DIVERGED), residual)\n",
        "",
        SOLVES,
    ),
    Mutant(
        "a series that grows is named at every call",
        "hypergradient/solvers/solve_watch.py",
        "            self._said = True\n",
        "",
        SOLVES,
    ),
    Mutant(
        "SAMA takes the gradient's sign for its size",
        "hypergradient/solvers/sama.py",
        "return level.precondition(v), None",
        "return tuple(-t for t in level.precondition(v)), None",
        SOLVES,
    ),
]

# of programs that were invented to break hypergradients, and of what they led to
ATTACKS = [
    Mutant(
        "a step is never held against its replay",
        "core/stepper.py",
        "                watch.see_gradient(problem, due=measure)\n",
        "",
        f"{ATTACKED} -k changed_after",
    ),
    Mutant(
        "a gradient is held against its replay at the first step alone",
        "core/stepper.py",
        "see_gradient(problem, due=measure)",
        "see_gradient(problem, due=False)",
        f"{ATTACKED} -k begins_late",
    ),
    Mutant(
        "a replay that is off does not bring the host's generators back",
        "core/replay/watch.py",
        "            self._views.program.keep_host_generators()\n",
        "",
        f"{ATTACKED} -k begins_late",
    ),
    Mutant(
        "a gradient half off passes",
        "core/replay/watch.py",
        "LARGEST_ERROR, LARGEST_ROUGH_ERROR = 0.05",
        "LARGEST_ERROR, LARGEST_ROUGH_ERROR = 0.95",
        f"{ATTACKED} -k changed_after",
    ),
    Mutant(
        "parameters that a callback writes are not noticed",
        "core/stepper.py",
        "            watch.after_callback(problem, due=measure)\n",
        "",
        f"{ATTACKED} -k projection",
    ),
    Mutant(
        "the versions of a step are those before it",
        "core/stepper.py",
        "            watch.after_step(problem)\n            problem.param_callback()\n",
        "            problem.param_callback()\n            watch.after_step(problem)\n",
        f"{ATTACKED} -k projection",
    ),
    Mutant(
        "tangents go on over parameters that were written",
        "core/replay/recorder.py",
        "                self.watch.before_tangents(problem)\n",
        "                pass\n",
        f"{ATTACKED} -k tangents",
    ),
    Mutant(
        "a state that is put into the parameters counts as a write between updates",
        "core/replay/recorder.py",
        "        self.watch.forget_steps()\n",
        "",
        f"{ATTACKED} -k saved_state",
    ),
    Mutant(
        "a start that a hook writes is not named",
        "core/stepper.py",
        "                self._recorder.watch.at_start(problem, written)\n",
        "",
        f"{ATTACKED} -k repeated",
    ),
    Mutant(
        "a batch of the recipe's own shares its memory",
        "core/replay/recorder.py",
        "return tensor if tensor.requires_grad else tensor.clone()",
        "return tensor",
        f"{ATTACKED} -k filled_again",
    ),
    Mutant(
        "a problem that is read as a constant is read as it is now",
        "core/replay/recorder.py",
        "*sorted(problem.peers_read))",
        "*())",
        f"{ATTACKED} -k takes_for_a_constant",
    ),
    Mutant(
        "a step that was left out is an update all the same",
        "core/stepper.py",
        "            if finite is False:\n                self._recorder.leave_out(name)\n            else:\n",
        "            if True:\n",
        f"{ATTACKED} -k left_out",
    ),
    Mutant(
        "the rates of a step are those of the next one",
        "core/replay/recorder.py",
        "            history.rates = vectors.copy(problem.update.learning_rates)\n",
        "",
        f"{ATTACKED} -k linearization",
    ),
    Mutant(
        "the rates of a step do not come back",
        "core/replay/history.py",
        '            "rates": self.rates,\n',
        '            "rates": None,\n',
        HISTORY,
    ),
    Mutant(
        "what the optimizer does not hold is differentiated",
        "core/program/problem.py",
        "theta = tuple(parameter for parameter in theta if id(parameter) in held)",
        "held = held and {id(parameter) for parameter in theta}",
        f"{ATTACKED} -k not_hold",
    ),
    Mutant(
        "an update that ends elsewhere is not named",
        "hypergradient/estimators/unrolled.py",
        "                off.append(pull_back.distance(following))\n",
        "                pass\n",
        f"{ATTACKED} -k computed_again",
    ),
    Mutant(
        "every update is held against the end of the loop",
        "hypergradient/estimators/unrolled.py",
        "        following = trajectory.recorded_iterate(start).theta\n",
        "",
        f"{ATTACKED} -k plain_program",
    ),
    Mutant(
        "evolution does not look where its loop ends",
        "hypergradient/estimators/evolution.py",
        "            self._watch.look(level, _distance(level))\n",
        "            pass\n",
        f"{ATTACKED} -k computed_again",
    ),
    Mutant(
        "a hook of an optimizer may be unrolled",
        "core/replay/recorder.py",
        "of_optimizer = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks",
        "of_optimizer = optimizer._optimizer_step_pre_hooks",
        f"{ATTACKED} -k by_name",
    ),
    Mutant(
        "a loss may change its batch",
        "core/reevaluation.py",
        "if batch_versions(batch) != tuple(before):",
        "if False:",
        f"{ATTACKED} -k by_name",
    ),
    Mutant(
        "a loss may write its parameters",
        "core/reevaluation.py",
        "    if vectors.versions(flat) != versions:\n",
        "    if False:\n",
        f"{ATTACKED} -k by_name",
    ),
    Mutant(
        "decoupled decay is not named",
        "core/probe.py",
        "        if decay:\n            log",
        "        if False:\n            log",
        f"{ATTACKED} -k decoupled",
    ),
    Mutant(
        "a group that never moves passes",
        "core/probe.py",
        "if problem.scheduler is None and 0.0 in rates and any(rates):",
        "if False:",
        f"{ATTACKED} -k by_name",
    ),
    Mutant(
        "a parameter that was replaced passes",
        "core/replay/functional.py",
        "if table.get(key) is not parameter:",
        "if False:",
        f"{ATTACKED} -k by_name",
    ),
    Mutant(
        "compiled graphs are replayed",
        "core/replay/functional.py",
        'torch.compiler.set_stance("force_eager") if compiled else nullcontext()',
        "nullcontext()",
        f"{ATTACKED} -k compiled",
    ),
    Mutant(
        "a transform of torch.func stops gradients",
        "hypergradient/stop_gradients.py",
        "    while not x.requires_grad and is_functorch_wrapped_tensor(x):\n        x = get_unwrapped(x)\n",
        "",
        f"{ATTACKED} -k torch_func",
    ),
    Mutant(
        "a Hessian that rounding makes regular is solved with",
        "hypergradient/solvers/exact.py",
        " or rounding > LARGEST_ROUNDING",
        "",
        f"{ATTACKED} -k by_name",
    ),
    Mutant(
        "a difference that is off by its radius is blamed on stop-gradients",
        "hypergradient/crosses/choice.py",
        "            if rest < error / 2\n",
        "            if True\n",
        f"{ATTACKED} -k wrong_length",
    ),
    Mutant(
        "rounding of a difference is not looked for",
        "hypergradient/crosses/choice.py",
        "    elif _fault(exact := ForwardOverReverse(), reference, level, v) is None:\n",
        "    elif _fault(exact := ForwardOverReverse(), reference, level, v) is not None:\n",
        f"{ATTACKED} -k wrong_length",
    ),
    Mutant(
        "a reference draws random numbers of its own",
        "core/replay/views.py",
        "draws = nullcontext() if own == self._dtype else OwnDraws(own, self._dtype)",
        "draws = nullcontext() if own else OwnDraws(own, self._dtype)",
        f"{ATTACKED} -k float64_draws",
    ),
    Mutant(
        "Adam's weight decay is decoupled",
        "core/program/pure_steps.py",
        '    if options["decoupled_weight_decay"]:\n',
        "    if True:\n",
        f"{UPDATE} -k the_pure_update",
    ),
    Mutant(
        "amsgrad forgets its maximum",
        "core/program/pure_steps.py",
        '        after["max_exp_avg_sq"] = second\n',
        '        after["max_exp_avg_sq"] = after["exp_avg_sq"]\n',
        f"{UPDATE} -k leaves_the_state",
    ),
    Mutant(
        "RMSprop is never centred",
        "core/program/pure_steps.py",
        '    if options["centered"]:\n',
        "    if False:\n",
        f"{UPDATE} -k the_pure_update",
    ),
    Mutant(
        "Adagrad's rate does not decay",
        "core/program/pure_steps.py",
        '(count.to(_wide(theta)) - 1) * options["lr_decay"]',
        '0 * options["lr_decay"]',
        f"{UPDATE} -k the_pure_update",
    ),
    Mutant(
        "SGD damps its first gradient",
        "core/program/pure_steps.py",
        "buffer = grad if buffer is None else",
        'buffer = (1 - options["dampening"]) * grad if buffer is None else',
        f"{UNROLLED} -k 'running_again and dampened'",
    ),
    Mutant(
        "an inner loop is counted in warm-up",
        "core/program/schedule.py",
        "        starts = self.fresh[name] and not warming\n",
        "        starts = self.fresh[name]\n",
        SCHEDULE,
    ),
    Mutant(
        "dues are never used up",
        "core/program/schedule.py",
        "                self.due -= needed\n",
        "",
        SCHEDULE,
    ),
    Mutant(
        "a Hessian product by differences sees stop-gradients move",
        "hypergradient/level.py",
        "derivatives.gradient(self.held_loss(leaves), leaves)",
        "derivatives.gradient(self.loss(leaves), leaves)",
        CUT,
    ),
    Mutant(
        "a dense Hessian is twice what it is",
        "hypergradient/solvers/exact.py",
        "    return (matrix + matrix.T) / 2\n",
        "    return matrix + matrix.T\n",
        f"{SOLVES} -k exact",
    ),
]

MUTANTS = [*PROGRAM, *REPLAY, *CORE, *HYPERGRADIENT, *CROSSES, *ESTIMATORS, *SOLVERS, *ATTACKS]
