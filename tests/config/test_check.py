"""Every fault of a config, at once and by its path."""

from __future__ import annotations

import pytest

from mlorun.config.check import check
from mlorun.config.compose import composed
from mlorun.errors import ConfigError, ConfigErrors
from tests.experiments import PLAIN, Experiments

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"
CLASSIFIER = "problems.classifier"


def faults_of(*overrides: str) -> tuple[ConfigError, ...]:
    with pytest.raises(ConfigError) as caught:
        check(composed([DIGITS, *overrides]))
    error = caught.value
    return error.faults if isinstance(error, ConfigErrors) else (error,)


def fault_of(*overrides: str) -> ConfigError:
    (fault,) = faults_of(*overrides)
    return fault


def test_an_experiment_as_it_is_has_no_faults() -> None:
    check(composed([DIGITS]))


def test_all_faults_are_told_together() -> None:
    faults = faults_of(
        "engine.train_iters=-1",
        "classifier.batch_size=0",
        "classifier.optimizer.lr=fast",
        "+classifier.temperature=2",
        "reweight.module._target_=mlorun.recipes.modules.WieghtNet",
    )
    assert {fault.where for fault in faults} == {
        "engine.train_iters",
        f"{CLASSIFIER}.batch_size",
        f"{CLASSIFIER}.optimizer.lr",
        f"{CLASSIFIER}.temperature",
        "problems.reweight.module._target_",
    }


def test_without_an_experiment_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigError, match="no experiment was chosen") as caught:
        check(composed([]))
    assert "mwn_digits" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("engine.train_iters=-1", "engine.train_iters"),
        ("engine.valid_every=-1", "engine.valid_every"),
        ("engine.log_every=0", "engine.log_every"),
        ("threads=0", "threads"),
        ("classifier.batch_size=0", f"{CLASSIFIER}.batch_size"),
        ("classifier.unroll_steps=0", f"{CLASSIFIER}.unroll_steps"),
        ("classifier.warmup_steps=-1", f"{CLASSIFIER}.warmup_steps"),
        ("classifier.gradient_accumulation=0", f"{CLASSIFIER}.gradient_accumulation"),
        ("classifier.gradient_clip=0", f"{CLASSIFIER}.gradient_clip"),
        ("classifier.gradient_clip=nan", f"{CLASSIFIER}.gradient_clip"),
        ("classifier.evaluation_batch_size=0", f"{CLASSIFIER}.evaluation_batch_size"),
    ],
)
def test_a_number_out_of_range_is_a_fault(override: str, path: str) -> None:
    assert fault_of(override).where == path


@pytest.mark.parametrize(
    "override",
    [
        "engine.train_iters=0",
        "engine.valid_every=0",
        "threads=1",
        "classifier.gradient_clip=null",
        "classifier.gradient_clip=0.1",
    ],
)
def test_a_number_at_the_edge_of_its_range_is_none(override: str) -> None:
    check(composed([DIGITS, override]))


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["classifier.optimizer.lr=abc"], "classifier.optimizer.lr"),
        (["classifier.optimizer.lr=true"], "classifier.optimizer.lr"),
        (["classifier.optimizer.nesterov=1.5"], "classifier.optimizer.nesterov"),
        (["reweight.optimizer.betas=[0.9]"], "reweight.optimizer.betas"),
        (["classifier.scheduler=step", "classifier.scheduler.gamma=x"], "classifier.scheduler.gamma"),
        (
            ["classifier.scheduler=multi_step", "classifier.scheduler.milestones=[1,b]"],
            "classifier.scheduler.milestones",
        ),
        (
            ["classifier.scheduler=one_cycle", "classifier.scheduler.anneal_strategy=cosine"],
            "classifier.scheduler.anneal_strategy",
        ),
        (["classifier.module.sizes=3"], "classifier.module.sizes"),
        (["classifier.module.dropout=null"], "classifier.module.dropout"),
        (
            ["classifier.hypergradient=cg", "classifier.hypergradient.solve.iterations=ten"],
            "classifier.hypergradient.solve.iterations",
        ),
        (["data.head_size=many"], "data.head_size"),
    ],
)
def test_an_argument_of_the_wrong_type_is_told_by_its_path(overrides: list[str], path: str) -> None:
    fault = fault_of(*overrides)
    assert (fault.where or "").removeprefix("problems.") == path
    assert "wrong type" in fault.message
    assert " takes " in (fault.fix or "")


@pytest.mark.parametrize(
    ("override", "name", "nearest"),
    [
        ("+classifier.optimizer.lrr=1", "lrr", "lr"),
        ("+classifier.module.drop=0.1", "drop", "dropout"),
        ("+classifier.hypergradient.solve.scal=1", "scal", "scale"),
        ("+classifier.batchsize=5", "batchsize", "batch_size"),
        ("+data.imbalance=5", "imbalance", "imbalance_factor"),
    ],
)
def test_a_mistyped_argument_gets_the_nearest_right_one(override: str, name: str, nearest: str) -> None:
    fault = fault_of(override)
    assert f"has no argument {name!r}" in fault.message
    assert f"did you mean {nearest}?" in (fault.fix or "")


def test_a_number_for_the_name_of_an_argument_is_told() -> None:
    assert "has no argument 0" in fault_of("+classifier.hypergradient.solve={0: 1}").message


@pytest.mark.parametrize("name", ["name", "update_schedule", "stream"])
def test_what_every_problem_gets_cannot_be_set(name: str) -> None:
    assert f"has no argument {name!r}" in fault_of(f"+classifier.{name}=1").message


def test_a_missing_argument_is_named() -> None:
    assert "needs an argument 'sizes'" in fault_of("~problems.classifier.module.sizes").message


def test_a_scheduler_needs_all_but_the_optimizer() -> None:
    fault = fault_of("classifier.scheduler=step", "~classifier.scheduler.step_size")
    assert "needs an argument 'step_size'" in fault.message


def test_an_optimizer_that_is_not_partial_is_told_so() -> None:
    assert "_partial_=true" in (fault_of("~classifier.optimizer._partial_").fix or "")


@pytest.mark.parametrize("key", ["module", "optimizer", "hypergradient", "scheduler"])
def test_a_part_without_a_target_is_a_fault_with_its_options(key: str) -> None:
    overrides = [f"~{key}@{CLASSIFIER}.{key}", f"++{CLASSIFIER}.{key}={{x:1}}"]
    fault = fault_of(*overrides)
    assert (fault.where, "has no _target_" in fault.message) == (f"{CLASSIFIER}.{key}", True)
    assert f"choose one: classifier.{key}=OPTION" in (fault.fix or "")


def test_a_missing_value_is_told_by_its_path() -> None:
    fault = fault_of("engine.train_iters=???")
    assert (fault.where, fault.seen) == ("engine.train_iters", "???")


def test_a_problem_may_have_an_empty_scheduler_and_hypergradient(own_configs: Experiments) -> None:
    own_configs.raw("experiment/bare.yaml", PLAIN)
    check(composed(["experiment=bare"]))


def test_a_recipe_that_passes_keywords_on_takes_its_own_and_its_bases(own_configs: Experiments) -> None:
    own_configs.folder.with_name("recipes").mkdir()
    (own_configs.folder.with_name("recipes") / "warm.py").write_text(
        "from mlorun.recipes.classification import Classifier\n"
        "class Warm(Classifier):\n"
        "    def __init__(self, *, temperature: float, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.temperature = temperature\n"
        "class Closed(Classifier):\n"
        "    def __init__(self, name, module):\n"
        "        pass\n"
    )
    warm = f"{CLASSIFIER}._target_=recipes.warm.Warm"
    check(composed([DIGITS, warm, "+classifier.temperature=2.0"]))
    assert "needs an argument 'temperature'" in fault_of(warm).message
    assert "wrong type" in fault_of(warm, "+classifier.temperature=hot").message
    closed = fault_of(f"{CLASSIFIER}._target_=recipes.warm.Closed")
    assert "optimizer" in (closed.seen or "")
    assert "**kwargs" in (closed.fix or "")


def test_a_package_is_trusted_once_the_config_says_so() -> None:
    target = "classifier.optimizer._target_=collections.OrderedDict"
    assert "not a trusted package" in fault_of(target).message
    check(composed([DIGITS, target, "trusted_packages=[collections]"]))


@pytest.mark.parametrize("name", ["class", "step", "module", "get_batch"])
def test_a_problem_is_not_called_as_what_a_loss_has_already(name: str) -> None:
    assert fault_of(f"+problem@problems.{name}=classifier").where == f"problems.{name}"
