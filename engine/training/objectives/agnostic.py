"""One occluder for all classes: what class-wise ones are compared with."""

from __future__ import annotations

from .pure import Pure


class Agnostic(Pure):
    """The margin of `pure` over the pictures of all classes, and one occluder that minimises it.

    Every row of the bank is the same occluder. The pictures of all classes are in memory together.

    Source: Moosavi-Dezfooli et al., CVPR 2017, for one perturbation of all classes.
    """

    name = "agnostic"
    shared = True
