"""Programs whose hypergradients are known in closed form: Q1 to Q8. Float64, tiny, each at its optimum.

A case gives, for every lower problem n that the upper one passes: H_n, the cross blocks B_nm = d2 L_n / dm dtheta_n,
and v_n = dF/dtheta_n; so that what any solve should give follows by `expected`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.hypergradient.estimator import Hypergradient

Matrix = Tensor
Loss = Callable[[Tensor], Tensor]
SolveOn = Callable[[Matrix, Tensor], Tensor]  # (H, v) to about H^-1 v


class Row(nn.Module):
    """One row of parameters."""

    row: Tensor

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(row.clone())


class Given(Problem):
    """A problem whose loss is a function of every problem's row, by name; `start`: whose row it starts from."""

    def __init__(
        self, *, loss: Callable[[Mapping[str, Tensor]], Tensor], start: str | None = None, **problem: Any
    ) -> None:
        super().__init__(**problem)
        self.given = loss
        self.start = start

    def initial_parameters(self) -> Iterable[Tensor] | None:
        return None if self.start is None else self._peers[self.start].module.parameters()

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        return self.given({name: cast(Tensor, peer.module.row) for name, peer in self._peers.items()})


@dataclass(frozen=True)
class Case:
    """`cross[n][m]` is B_nm (rows of m, columns of n). `start`: the lower problem starts at the upper one's row.

    totals   of every problem that steers others: its total H_n and B_nm, where those others answer by a given solve
    """

    losses: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]]
    points: Mapping[str, Tensor]
    graph: ProblemGraph
    upper: str
    direct: Tensor
    cotangents: Mapping[str, Tensor]  # v_n, of the n that F reads
    hessians: Mapping[str, Matrix]
    cross: Mapping[str, Mapping[str, Matrix]]
    start: bool = False
    totals: Mapping[str, Callable[[SolveOn], tuple[Matrix, Mapping[str, Matrix]]]] = field(default_factory=dict)

    def problems(self, hypergradient: Callable[[], Hypergradient], lr: float = 0.1) -> list[Given]:
        return [
            Given(
                name=name,
                module=Row(self.points[name]),
                optimizer=lambda theta: torch.optim.SGD(theta, lr=lr),
                hypergradient=hypergradient(),
                loss=self.losses[name],
                start=self.upper if self.start and name != self.upper else None,
            )
            for name in self.graph.names
        ]

    def expected(self, solve: SolveOn) -> Tensor:
        """The hypergradient with this solve on every level: ALGORITHMS' sweep, with matrices."""
        v = dict(self.cotangents)
        g = self.direct.clone()
        for node in self.graph.sweep_order(self.upper):
            if node in self.totals:
                hessian, cross = self.totals[node](solve)
            else:
                hessian, cross = self.hessians[node], self.cross[node]
            x = solve(hessian, v[node])
            for m, block in cross.items():
                if m == self.upper:
                    g = g - block @ x
                else:
                    v[m] = v.get(m, torch.zeros(len(block))) - block @ x
        return g

    def exact(self) -> Tensor:
        return self.expected(torch.linalg.solve)


def _definite(size: int, seed: int) -> Matrix:
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=draw)).Q
    matrix: Matrix = basis @ torch.diag(torch.linspace(0.5, 3, size)) @ basis.T
    return matrix


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quadratic() -> Case:
    """Q1. L = theta'A theta / 2 + lam'C theta + a'theta, F = (theta - t)'Q(theta - t) / 2 + lam'R lam / 2."""
    a_, c, a, t, q, r = (
        _definite(5, 1),
        _random(2, 3, 5),
        _random(3, 5),
        _random(4, 5),
        _definite(5, 5),
        _definite(3, 6),
    )
    lam = _random(7, 3)
    theta = -torch.linalg.solve(a_, c.T @ lam + a)
    return Case(
        losses={
            "up": lambda p: (p["low"] - t) @ q @ (p["low"] - t) / 2 + p["up"] @ r @ p["up"] / 2,
            "low": lambda p: p["low"] @ a_ @ p["low"] / 2 + p["up"] @ c @ p["low"] + a @ p["low"],
        },
        points={"up": lam, "low": theta},
        graph=ProblemGraph.build(["up", "low"], {"up": ["low"]}),
        upper="up",
        direct=r @ lam,
        cotangents={"low": q @ (theta - t)},
        hessians={"low": a_},
        cross={"low": {"up": c}},
    )


def _data(seed: int, rows: int = 8, columns: int = 4) -> tuple[Tensor, Tensor]:
    x = _random(seed, rows, columns)
    return x, x @ _random(seed + 1, columns) + 0.3 * _random(seed + 2, rows)


def ridge() -> Case:
    """Q2. L = norm(X theta - y)^2 / 2 + sum_j exp(alpha_j) theta_j^2 / 2, F on other data."""
    (x, y), (xv, yv) = _data(11), _data(21)
    alpha = 0.3 * _random(31, 4)
    h = x.T @ x + torch.diag(alpha.exp())
    theta = torch.linalg.solve(h, x.T @ y)
    return Case(
        losses={
            "up": lambda p: (xv @ p["low"] - yv).square().sum() / 2,
            "low": lambda p: (x @ p["low"] - y).square().sum() / 2 + (p["up"].exp() * p["low"].square()).sum() / 2,
        },
        points={"up": alpha, "low": theta},
        graph=ProblemGraph.build(["up", "low"], {"up": ["low"]}),
        upper="up",
        direct=torch.zeros(4),
        cotangents={"low": xv.T @ (xv @ theta - yv)},
        hessians={"low": h},
        cross={"low": {"up": torch.diag(alpha.exp() * theta)}},
    )


def weighted_ridge() -> Case:
    """Q3. L = sum_i s_i (x_i'theta - y_i)^2 / 2 + norm(theta)^2 / 2: data cleaning."""
    (x, y), (xv, yv) = _data(12), _data(22)
    s = 0.5 + torch.rand(8, generator=torch.Generator().manual_seed(32))
    h = x.T @ torch.diag(s) @ x + torch.eye(4)
    theta = torch.linalg.solve(h, x.T @ (s * y))
    return Case(
        losses={
            "up": lambda p: (xv @ p["low"] - yv).square().sum() / 2,
            "low": lambda p: (p["up"] * (x @ p["low"] - y).square()).sum() / 2 + p["low"].square().sum() / 2,
        },
        points={"up": s, "low": theta},
        graph=ProblemGraph.build(["up", "low"], {"up": ["low"]}),
        upper="up",
        direct=torch.zeros(8),
        cotangents={"low": xv.T @ (xv @ theta - yv)},
        hessians={"low": h},
        cross={"low": {"up": torch.diag(x @ theta - y) @ x}},
    )


def three_levels() -> Case:
    """Q4. Pretrain by weighted ridge, finetune towards it with strength lam, F on the finetuned model."""
    (x, y), (xf, yf), (xv, yv) = _data(13), _data(23), _data(33)
    s = 0.5 + torch.rand(8, generator=torch.Generator().manual_seed(43))
    lam = 0.7
    h_pre = x.T @ torch.diag(s) @ x + torch.eye(4)
    theta = torch.linalg.solve(h_pre, x.T @ (s * y))
    h_fine = xf.T @ xf + lam * torch.eye(4)
    phi = torch.linalg.solve(h_fine, xf.T @ yf + lam * theta)
    return Case(
        losses={
            "s": lambda p: (xv @ p["fine"] - yv).square().sum() / 2,
            "fine": lambda p: (
                (xf @ p["fine"] - yf).square().sum() / 2 + lam * (p["fine"] - p["pre"]).square().sum() / 2
            ),
            "pre": lambda p: (p["s"] * (x @ p["pre"] - y).square()).sum() / 2 + p["pre"].square().sum() / 2,
        },
        points={"s": s, "fine": phi, "pre": theta},
        graph=ProblemGraph.build(["s", "fine", "pre"], {"s": ["pre"]}, {"pre": ["fine"], "fine": ["s"]}),
        upper="s",
        direct=torch.zeros(8),
        cotangents={"fine": xv.T @ (xv @ phi - yv)},
        hessians={"fine": h_fine, "pre": h_pre},
        cross={"fine": {"pre": -lam * torch.eye(4)}, "pre": {"s": torch.diag(x @ theta - y) @ x}},
    )


def diamond() -> Case:
    """Q5. top -> base -> {left, right} -> top, all quadratic; top steers left as well."""
    h = {name: _definite(4, seed) for name, seed in (("base", 51), ("left", 52), ("right", 53))}
    b_base, b_left, b_right, b_top = (_random(seed, *shape) for seed, shape in
                                      ((54, (3, 4)), (55, (4, 4)), (56, (4, 4)), (57, (3, 4))))  # fmt: skip
    lam, t = _random(58, 3), _random(59, 4)
    base = -torch.linalg.solve(h["base"], b_base.T @ lam)
    left = -torch.linalg.solve(h["left"], b_left.T @ base + b_top.T @ lam)
    right = -torch.linalg.solve(h["right"], b_right.T @ base)
    return Case(
        losses={
            "top": lambda p: (
                (p["left"] - t).square().sum() / 2 + (p["right"] * p["left"]).sum() + p["top"].square().sum()
            ),
            "left": lambda p: (
                p["left"] @ h["left"] @ p["left"] / 2 + (p["base"] @ b_left + p["top"] @ b_top) @ p["left"]
            ),
            "right": lambda p: p["right"] @ h["right"] @ p["right"] / 2 + p["base"] @ b_right @ p["right"],
            "base": lambda p: p["base"] @ h["base"] @ p["base"] / 2 + p["top"] @ b_base @ p["base"],
        },
        points={"top": lam, "left": left, "right": right, "base": base},
        graph=ProblemGraph.build(
            ["top", "left", "right", "base"],
            {"top": ["base", "left"]},
            {"base": ["left", "right"], "left": ["top"], "right": ["top"]},
        ),
        upper="top",
        direct=2 * lam,
        cotangents={"left": left - t + right, "right": left},
        hessians=h,
        cross={"left": {"base": b_left, "top": b_top}, "right": {"base": b_right}, "base": {"top": b_base}},
    )


def nested() -> Case:
    """Q8. mu, which top steers, steers beta. L_beta = beta'R beta / 2 + (mu'C + lam'P) beta; and jointly quadratic in
    z = (mu - mu0, beta - beta0), L_mu = z'W z / 2 + (lam - lam0)'(D, E) z.

    With S = d beta* / d mu = -R^-1 C' and T = d beta* / d lam = -R^-1 P', the total Hessian is (I, S')W(I, S), and the
    total cross (D, E)(I, S) + T'W_beta(I, S). Both losses are at their least there, whatever the solve for S.
    """
    mu, beta, lam = 4, 3, 2
    r, w = _definite(beta, 71) + torch.eye(beta) / 2, _definite(mu + beta, 72) + torch.eye(mu + beta) / 2
    c, p = 0.5 * _random(73, mu, beta), _random(74, lam, beta)
    d, k, t = _random(75, lam, mu + beta), _random(76, beta), _random(77, mu)
    lam0, mu0 = _random(78, lam), _random(79, mu)
    beta0 = -torch.linalg.solve(r, c.T @ mu0 + p.T @ lam0)

    def middle(q: Mapping[str, Tensor]) -> Tensor:
        z = torch.cat([q["middle"] - mu0, q["bottom"] - beta0])
        return z @ w @ z / 2 + (q["top"] - lam0) @ d @ z

    def total(solve: SolveOn) -> tuple[Matrix, Mapping[str, Matrix]]:
        s = torch.cat([torch.eye(mu), -solve(r, c.T)])
        return s.T @ w @ s, {"top": (d - solve(r, p.T).T @ w[mu:]) @ s}

    return Case(
        losses={
            "top": lambda q: (q["middle"] - t).square().sum() / 2 + k @ q["bottom"] + q["top"].square().sum() / 2,
            "middle": middle,
            "bottom": lambda q: q["bottom"] @ r @ q["bottom"] / 2 + (q["middle"] @ c + q["top"] @ p) @ q["bottom"],
        },
        points={"top": lam0, "middle": mu0, "bottom": beta0},
        graph=ProblemGraph.build(
            ["top", "middle", "bottom"],
            {"top": ["middle", "bottom"], "middle": ["bottom"]},
            {"bottom": ["middle", "top"], "middle": ["top"]},
        ),
        upper="top",
        direct=lam0,
        cotangents={"middle": mu0 - t, "bottom": k},
        hessians={"bottom": r},
        cross={"bottom": {"middle": c, "top": p}},
        totals={"middle": total},
    )


def logistic() -> Case:
    """Q7. Logistic regression with one penalty exp(alpha_j) a feature, by Newton's method to 1e-12."""
    (x, y), (xv, yv) = _data(17, rows=20), _data(27, rows=20)
    labels, held_out = (y > 0).to(x.dtype), (yv > 0).to(x.dtype)
    alpha = 0.2 * _random(37, 4)
    theta = logistic_optimum(x, labels, alpha)
    p = (x @ theta).sigmoid()
    return Case(
        losses={
            "up": lambda q: nn.functional.binary_cross_entropy_with_logits(xv @ q["low"], held_out, reduction="sum"),
            "low": lambda q: (
                nn.functional.binary_cross_entropy_with_logits(x @ q["low"], labels, reduction="sum")
                + (q["up"].exp() * q["low"].square()).sum() / 2
            ),
        },
        points={"up": alpha, "low": theta},
        graph=ProblemGraph.build(["up", "low"], {"up": ["low"]}),
        upper="up",
        direct=torch.zeros(4),
        cotangents={"low": xv.T @ ((xv @ theta).sigmoid() - held_out)},
        hessians={"low": x.T @ torch.diag(p * (1 - p)) @ x + torch.diag(alpha.exp())},
        cross={"low": {"up": torch.diag(alpha.exp() * theta)}},
    )


def logistic_optimum(x: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """Newton's method until the gradient's norm is below 1e-12."""
    theta = torch.zeros(x.shape[1])
    for _ in range(50):
        p = (x @ theta).sigmoid()
        gradient = x.T @ (p - labels) + alpha.exp() * theta
        if gradient.norm() < 1e-12:
            break
        theta = theta - torch.linalg.solve(x.T @ torch.diag(p * (1 - p)) @ x + torch.diag(alpha.exp()), gradient)
    return theta


def minimum(case: Case, upper: Tensor) -> dict[str, Tensor]:
    """Every lower problem solved again for another value of the upper one: by Newton's method on its own loss."""
    points = {**case.points, case.upper: upper}
    for name in case.graph.order:
        if name == case.upper:
            continue
        for _ in range(30):
            row = points[name].detach().requires_grad_()
            loss: Loss = lambda r, name=name: case.losses[name]({**points, name: r})  # type: ignore[misc]  # noqa: E731
            (gradient,) = torch.autograd.grad(loss(row), row)
            if gradient.norm() < 1e-13:
                break
            h = torch.autograd.functional.hessian(loss, row.detach())
            points[name] = row.detach() - torch.linalg.solve(h, gradient)
    return points


def difference_quotient(case: Case, h: float = 1e-4) -> Tensor:
    """Central difference of F at the re-solved lower problems, entry by entry."""
    start = case.points[case.upper]

    def value(row: Tensor) -> Tensor:
        return case.losses[case.upper](minimum(case, row))

    units = torch.eye(len(start))
    return torch.stack([(value(start + h * e) - value(start - h * e)) / (2 * h) for e in units])


def maml(lr: float = 0.05) -> Case:
    """Q6. One-step MAML on a quadratic: theta' = theta - a (A theta - b), F = theta''A' theta' / 2 - b''theta'."""
    a_, b, a_query, b_query = _definite(4, 61), _random(62, 4), _definite(4, 63), _random(64, 4)
    theta = _random(65, 4)
    adapted = theta - lr * (a_ @ theta - b)
    step = torch.eye(4) - lr * a_
    return Case(
        losses={
            "up": lambda p: p["low"] @ a_query @ p["low"] / 2 - b_query @ p["low"],
            "low": lambda p: p["low"] @ a_ @ p["low"] / 2 - b @ p["low"],
        },
        points={"up": theta, "low": theta},
        graph=ProblemGraph.build(["up", "low"], {"up": ["low"]}),
        upper="up",
        direct=torch.zeros(4),
        cotangents={"low": a_query @ adapted - b_query},
        hessians={"low": torch.eye(4)},
        cross={"low": {"up": -step.T}},  # (I - aA)'(A' theta' - b')
        start=True,
    )


CASES: dict[str, Callable[[], Case]] = {
    "Q1 quadratic": quadratic,
    "Q2 ridge": ridge,
    "Q3 weighted ridge": weighted_ridge,
    "Q4 three levels": three_levels,
    "Q5 diamond": diamond,
    "Q7 logistic": logistic,
}
NESTED_CASES: dict[str, Callable[[], Case]] = {"Q8 nested": nested}
