"""Configs and command lines as a slip, a bad copy or a stranger makes them; a case is a function of a number.

A case starts from a good experiment of a user's own, in one of three forms: a whole config in one file, a short file
with a defaults list, and a file beside an option of the user's own. Its text, its values or its overrides are changed.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from omegaconf import OmegaConf

from mlorun.config.compose import composed
from mlorun.config.locations import configs_dir

EXPERIMENTS = ("mwn_digits", "hpo_digits", "maml_sinusoid")
TARGETS = (
    "os.system", "builtins.eval", "torch.load", "torch.nn.Linear", "torch.nn.ReLU", "torch.optim.SGD", "recipes.mine.X",
    "torch", "", ".", "torch.", "a b", "torch.nn.Linear.forward", "mlorun.cli.main", "mlorun.recipes.modules.mlp",
    "mlorun.recipes.reweighting.Reweight", "mlorun.data.digits.digits_long_tailed", "torch.hub.load", "ünïcode.Täst",
    "mlorun.hypergradient.solvers.conjugate_gradient.ConjugateGradient", "torch.nn.LSTM", "torch.nn.Embedding",
    "torch.optim.lr_scheduler.StepLR", "torchvision.models.resnet18", "mlorun.loggers.console.ConsoleLogger",
)  # fmt: skip
INTERPOLATIONS = (
    "${seed}", "${name}", "${problems}", "${.}", "${..}", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${oc.env:X,3}",
    "${oc.select:nothing,1}", "${oc.create:{a:1}}", "${oc.decode:'[1,'}", "${oc.dict.keys:problems}", "${nothing}",
    "${", "${}", "${${seed}}", "${seed", "${hydra:job.name}", "${now:%Y}", "${optimizer_default:sgd,0.1}", "${a.b.c}",
    "${oc.deprecated:seed}", "\\${seed}", "${optimizer_default:}", "${problems.classifier.module}", "${data}", "${run}",
    "${problems.classifier}", "${oc.dict.values:problems}", "${engine.train_iters}${seed}", "x${name}x${name}",
)  # fmt: skip
# the smaller numbers are lawful sizes; 10**5 at most, or building what they describe takes its time
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**5, 10**9, 10**18, 10**30, -(10**18), 0.5, -0.0, 1e308, 1e-308, float("nan"),
    float("inf"), -float("inf"), "", " ", "x", "none", "null", "true", "1", "1e3", "../../x", "/", "~", "a" * 5000,
    "\u00fc\u4e2d\u6587", "\u202eabc", "\x1b[31mred\x1b[0m", "bell\x07", "a\nb", "\t", "???", "cuda", "cpu", "cuda:99",
    [], [1], [[]], ["x", 1, None], [0, 0, 0], [10**9, 10**9], {}, {"a": 1}, {"_target_": 3}, {"_target_": "os.system"},
    {"_target_": "torch.nn.Linear"}, {1: 2}, {None: 1}, {"": 1}, {"a.b": 1}, {"_partial_": True}, {"_args_": [1]},
    "\ud7ff", "2026-01-01", "0x10", "1_000", "yes", "[1,2", "{a:", "reweight", "classifier", "train", "after",
)  # fmt: skip
TEXTS = (
    "\x00", "\x1b[2J", "\x07", "\u202e", "\ufeff", "\u2028", "&a ", "*a ", "!!python/object/apply:os.system [id]",
    "<<: ", "%YAML 9.9\n", "---\n", "...\n", "? ", "- ", ": ", "# @package hydra\n", "!!binary aGk=", "!!set {a, b}",
    "| ", "> ", "[" * 90, "{a: " * 60, "]" * 5, "'", '"', "\t",
    "@", "`", "!!float x", "!!int ''", "2001-13-45", "=", "\\", "\r",
)  # fmt: skip
OVERRIDES = (
    "seed=1", "classifier.optimizer.lr=0.05", "classifier.optimizer=adam", "classifier.hypergradient=neumann",
    "engine.train_iters=7", "hypergradient@problems.classifier.hypergradient=cg", "data=digits_long_tailed",
    "callback=early_stopping", "callback.early_stopping.metric=reweight/loss", "+new=1", "++problems.classifier.x=1",
    "~classifier.scheduler", "~data", "seed=1,2", "seed=range(3)", "seed=choice(1,2)", "name=a/b", "run.root=/proc/x",
    "classifier.module.sizes=[64,10]", "classifier.module={_target_:torch.nn.Linear}", "problems={}", "problems=null",
    "dependencies={}", "dependencies.u2l={classifier:[reweight]}", "hydra.mode=MULTIRUN", "hydra/launcher=x", "a=b=c",
    "logger=none", "logger.console=null", "classifier.problem=tuned_classifier", "nobody.optimizer=sgd", "-m", "--info",
    "device=gpu", "precision=fp8", "threads=0", "init_from=nothing", "checkpoint.metric=x/y", "trusted_packages=[os]",
    "seed=${seed}", "name=${name}", "seed='1'", 'name="x"', "classifier.batch_size=1e3", "classifier.unroll_steps=1e30",
    "+a={b:{c:{d:[1,2,{e:f}]}}}", "classifier.gradient_clip=null", "classifier.evaluate_on=[train,test]", "@x=1", "x@y",
)  # fmt: skip
SIGNS = (
    "+", "++", "~", "'", '"', ",", "[", "]", "{", "}", "(", ")", "=", "@", ".", "/", "$", "${", ":", "\\", " ", "*",
    "\x1b[31m", "\x00", "\n", "ü", "-", "--", "range(", "choice(", "glob(*)", "sort(", "null", "???", "_",
)  # fmt: skip

Files = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """Files below the working folder, and the words after `mlorun check`."""

    files: Files
    words: tuple[str, ...]


def case(seed: int, number: int) -> Case:
    """The case of this number."""
    draw = random.Random(f"{seed}/{number}")
    kind = draw.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
    return KINDS[kind][0](draw)


def overrides(draw: random.Random) -> Case:
    """A good experiment and a list of overrides, some of them bent."""
    words = [f"experiment={draw.choice(EXPERIMENTS)}", *draw.sample(OVERRIDES, draw.randint(0, 3))]
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        at = draw.randrange(len(words))
        words[at] = bent(words[at], SIGNS, draw)
    if draw.random() < 0.2:
        words.append(f"{draw.choice(('seed', 'name', 'classifier.module', '+x'))}={draw.choice(ODD)!s}")
    if draw.random() < 0.1:
        words.append(f"{draw.choice(('name', 'seed', '+x', 'data.seed'))}={draw.choice(INTERPOLATIONS)}")
    # what no operating system passes on
    return Case({}, tuple(word.replace("\x00", "") for word in words))


def text(draw: random.Random) -> Case:
    """A file whose text is changed, byte by byte or line by line."""
    path, content, words = base(draw)
    data = content.encode()
    for _ in range(draw.choice((1, 1, 2, 5))):
        data = draw.choice(TEXT_CHANGES)(data, draw)
    return Case({path: data}, words)


def values(draw: random.Random) -> Case:
    """A file in which values, keys and targets are replaced by others."""
    path, content, words = base(draw)
    head, tree = content.partition("\n")[0], yaml.safe_load(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        change_tree(tree, draw)
    written = yaml.safe_dump(tree, allow_unicode=draw.random() < 0.5, sort_keys=False)
    return Case({path: f"{head}\n{written}".encode(errors="surrogatepass")}, words)


def bomb(draw: random.Random) -> Case:
    """What grows without end: aliases, references, nesting, long lists."""
    width, depth = draw.choice((2, 3, 9)), draw.choice((3, 6, 12, 30, 200))
    kind = draw.choice(("aliases", "references", "lists of references", "circle", "nesting", "long", "chain", "merge"))
    if kind == "aliases":
        lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth))]
    elif kind == "references":
        lines = ["a0: lol", *(f"a{n}: {reference(n - 1, width)}" for n in range(1, depth))]
    elif kind == "lists of references":
        lines = ["a0: [1, 1]", *(f"a{n}: [{', '.join([reference(n - 1)] * width)}]" for n in range(1, depth))]
    elif kind == "circle":
        lines = [f"a{n}: ${{constants.a{(n + 1) % depth}}}" for n in range(depth)]
    elif kind == "nesting":
        lines = ["a: " + "{b: " * depth + "1" + "}" * depth, "c: '" + "${oc.decode:" * depth + "1" + "}" * depth + "'"]
    elif kind == "long":
        lines = [f"a: {[0] * 10 ** draw.choice((2, 3, 4))}"]
    elif kind == "chain":
        lines = ["a0: 1", *(f"a{n}: ${{constants.a{n - 1}}}" for n in range(1, depth * 5))]
    else:
        lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: *a{n - 1}, y{n}: *a{n - 1}}}" for n in range(1, depth))]
    head, *rest = short("mwn_digits").splitlines()
    place = draw.choice(("top", "data", "module"))
    last = f"constants.{lines[-1].partition(':')[0]}"
    body = "\n".join(("constants:", *(f"  {line}" for line in lines)))
    if place == "module":
        body += f"\nproblems: {{classifier: {{module: {{sizes: '${{{last}}}'}}}}}}"
    elif place == "data":
        body += f"\ndata: {{head_size: '${{{last}}}'}}"
    return Case({"configs/experiment/mine.yaml": "\n".join((head, *rest, body)).encode()}, ("experiment=mine",))


def reference(number: int, times: int = 1) -> str:
    return '"' + f"${{constants.a{number}}}" * times + '"'


KINDS: dict[str, tuple[Callable[[random.Random], Case], int]] = {
    "overrides": (overrides, 7), "text": (text, 6), "values": (values, 6), "bomb": (bomb, 1),
}  # fmt: skip


@cache
def whole(experiment: str) -> str:
    """The config of an experiment in one file."""
    return "# @package _global_\n" + OmegaConf.to_yaml(composed([f"experiment={experiment}"]))


@cache
def short(experiment: str) -> str:
    """The file of an experiment, as it is."""
    return (configs_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")


def base(draw: random.Random) -> tuple[str, str, tuple[str, ...]]:
    """Path and text of a good file, and the words that use it."""
    form = draw.choice(("whole", "short", "option"))
    experiment = draw.choice(EXPERIMENTS)
    if form == "option":
        group, option, word = draw.choice(
            (
                ("module", "mlp_digits", "classifier.module=mine"),
                ("optimizer", "adam", "classifier.optimizer=mine"),
                ("hypergradient", "neumann", "classifier.hypergradient=mine"),
                ("problem", "weighted_classifier", "classifier.problem=mine"),
                ("data", "digits_long_tailed", "data=mine"),
                ("scheduler", "cosine", "classifier.scheduler=mine"),
                ("callback", "early_stopping", "callback=mine"),
            )
        )
        content = (configs_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
        return f"configs/{group}/mine.yaml", content, ("experiment=mwn_digits", word)
    content = whole(experiment) if form == "whole" else short(experiment)
    return "configs/experiment/mine.yaml", content, ("experiment=mine",)


def bent(word: str, marks: Sequence[str], draw: random.Random) -> str:
    """A word with a letter less, twice, swapped, or with a mark in it."""
    at = draw.randrange(len(word) + 1)
    way = draw.choice(("drop", "double", "swap", "mark", "mark", "cut", "front", "typo"))
    if way == "drop":
        return word[:at] + word[at + 1 :]
    if way == "double":
        return word[:at] + word[at : at + 1] * 2 + word[at + 1 :]
    if way == "swap":
        return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    if way == "cut":
        return word[:at]
    if way == "typo":
        return word[:at] + draw.choice("abcxyz_.=0") + word[at + 1 :]
    mark = draw.choice(marks)
    return mark + word if way == "front" else word[:at] + mark + word[at:]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One bit the other way round."""
    at = draw.randrange(max(len(data), 1))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :] if data else data


def cut(data: bytes, draw: random.Random) -> bytes:
    """The rest of the file is missing."""
    return data[: draw.randrange(len(data) + 1)]


def inserted(data: bytes, draw: random.Random) -> bytes:
    """A mark of YAML, a control character, or a tag, anywhere."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(TEXTS).encode() + data[at:]


def lines_changed(data: bytes, draw: random.Random) -> bytes:
    """A line is gone, there twice, elsewhere, or further in."""
    lines = data.split(b"\n")
    at, to = draw.randrange(len(lines)), draw.randrange(len(lines))
    way = draw.choice(("remove", "double", "move", "indent", "join"))
    line = lines.pop(at)
    if way == "double":
        lines[at:at] = [line, line]
    elif way == "move":
        lines.insert(to, line)
    elif way == "indent":
        lines.insert(at, b" " * draw.randint(1, 3) + line if draw.random() < 0.5 else line.lstrip())
    elif way == "join":
        lines[at : at + 1] = [line + b"".join(lines[at : at + 1])]
    return b"\n".join(lines)


def value_in_text(data: bytes, draw: random.Random) -> bytes:
    """What stands behind a colon is another text."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    key, colon, _ = lines[at].partition(b": ")
    if colon:
        odd = str(draw.choice((*ODD, *TEXTS, *INTERPOLATIONS, *TARGETS)))
        lines[at] = key + colon + odd.encode(errors="surrogatepass")
    return b"\n".join(lines)


TEXT_CHANGES = (flipped, flipped, cut, inserted, lines_changed, lines_changed, value_in_text, value_in_text)


def change_tree(tree: Any, draw: random.Random) -> None:
    """One value of a tree is another, one key is misspelt, missing, or new."""
    places = [(node, key) for node in nodes(tree) for key in (node if isinstance(node, dict) else range(len(node)))]
    if not places:
        return
    node, key = draw.choice(places)
    way = draw.choice(("odd", "odd", "odd", "reference", "target", "target", "remove", "rename", "new", "copy"))
    if way == "odd":
        node[key] = copy.deepcopy(draw.choice(ODD))
    elif way == "reference":
        node[key] = draw.choice(INTERPOLATIONS)
    elif way == "target":
        targets = [place for place in places if place[1] == "_target_"]
        node, key = draw.choice(targets or places)
        node[key] = draw.choice((*TARGETS, *ODD))
    elif way == "remove":
        del node[key]
    elif way == "rename" and isinstance(node, dict):
        node[bent(str(key), SIGNS, draw)] = node.pop(key)
    elif way == "copy":
        other, name = draw.choice(places)
        node[key] = copy.deepcopy(other[name])
    elif isinstance(node, dict):
        node[draw.choice(("new", "_args_", "_convert_", "_recursive_", "hydra", "defaults", "_", "a.b", "é"))] = (
            draw.choice(ODD)
        )


def nodes(tree: Any) -> list[Any]:
    """Every mapping and every list of a tree."""
    if not isinstance(tree, dict | list):
        return []
    below = tree.values() if isinstance(tree, dict) else tree
    return [tree, *(node for value in below for node in nodes(value))]
