"""Solves for a Hessian that is not positive definite: CG on the normal equations, and MINRES."""

from __future__ import annotations

from typing import Any

import torch

from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.krylov import KrylovSolver
from mlorun.hypergradient.vectors import Vector


class NormalConjugateGradient(KrylovSolver):
    """min over x of norm(H x - v)^2 + damping norm(x)^2: conjugate gradients on (H H + damping I) x = H v.

    iterations   two Hessian products each, and one at the start
    damping      of the squared system
    tolerance    stop at norm(H (v - H x) - damping x) <= tolerance norm(H v)

    Exact in P iterations, but the condition number counts squared.
    """

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        x = vectors.zeros_like(v)
        residual = v  # v - H x, kept beside the squared system's: less is lost than by H (H direction)
        slope = direction = level.hvp(v)  # H residual - damping x
        square = vectors.dot(slope, slope)
        enough = (self.tolerance**2) * square
        going = square > enough
        taken = torch.zeros_like(square)
        for _ in range(self.iterations):
            if square.device.type == "cpu" and not going:
                break  # free to ask on the CPU; elsewhere it would wait for the device
            taken = taken + going
            image = level.hvp(direction)
            curvature = vectors.dot(image, image) + self.damping * vectors.dot(direction, direction)
            going = going & (curvature > 0)
            length = vectors.quotient(square, curvature, going)
            x = vectors.add(x, direction, alpha=length)
            residual = vectors.add(residual, image, alpha=-length)
            slope = vectors.add(level.hvp(residual), x, alpha=-self.damping)
            fresh = vectors.dot(slope, slope)
            going = going & (fresh > enough)
            direction = vectors.add(slope, direction, alpha=vectors.quotient(fresh, square, going))
            square = fresh
        if level.report is not None:
            level.report("iterations", taken)
        return x, None


class Minres(KrylovSolver):
    """The x of least norm(H x - v) in each Krylov space, for symmetric H (Paige and Saunders 1975).

    iterations   one Hessian product each
    damping      added to the diagonal of H
    tolerance    stop at norm(residual) <= tolerance norm(v)

    Exact in P iterations, whatever the signs of the eigenvalues.
    """

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        """Lanczos, with the tridiagonal matrix reduced by Givens rotations on the way."""
        x = w = w_before = basis_before = vectors.zeros_like(v)
        beta = eta = vectors.norm(v)
        zero, one = torch.zeros_like(beta), torch.ones_like(beta)
        basis = vectors.scale(v, vectors.quotient(one, beta, beta > 0))
        cosine = cosine_before = one
        sine = sine_before = zero
        enough = self.tolerance * beta
        going = beta > 0
        taken = torch.zeros_like(beta)
        for _ in range(self.iterations):
            taken = taken + going
            image = self.damped_product(level, basis)
            alpha = vectors.dot(basis, image)
            following = vectors.add(vectors.add(image, basis, alpha=-alpha), basis_before, alpha=-beta)
            beta_next = vectors.norm(following)
            delta = cosine * alpha - cosine_before * sine * beta
            second = sine * alpha + cosine_before * cosine * beta
            third = sine_before * beta
            first = torch.hypot(delta, beta_next)
            going = going & (first > 0)
            cosine_before, sine_before = cosine, sine
            cosine, sine = vectors.quotient(delta, first, going), vectors.quotient(beta_next, first, going)
            fresh = vectors.add(vectors.add(basis, w_before, alpha=-third), w, alpha=-second)
            w_before, w = w, vectors.scale(fresh, vectors.quotient(one, first, going))
            x = vectors.add(x, w, alpha=torch.where(going, cosine * eta, zero))
            eta = -sine * eta
            going = going & (eta.abs() > enough) & (beta_next > 0)
            basis_before, basis = basis, vectors.scale(following, vectors.quotient(one, beta_next, going))
            beta = beta_next
            if beta.device.type == "cpu" and not going:
                break  # free to ask on the CPU; elsewhere it would wait for the device
        if level.report is not None:
            level.report("iterations", taken)
        return x, None
