"""The plain training step, written out."""

from __future__ import annotations

import torch

from gfo.bench.plain_loop import PlainTraining
from gfo.export.classifier import FrozenClassifier

EPSILON, SIZE = 8.0, 3.0


def test_training_is_adam_on_the_margin_in_the_ball(tiny_classifier: FrozenClassifier) -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 3, 3, 0, 0, 4])
    plain = PlainTraining(tiny_classifier, torch.device("cpu"), EPSILON, SIZE)
    wanted, first, second = torch.zeros(3, 3, 16, 16)
    preprocessing = tiny_classifier.preprocessing
    mean, std = (torch.tensor(three)[:, None, None] for three in (preprocessing.mean, preprocessing.std))
    for count in range(1, 6):
        wanted.requires_grad_(True)
        logits = tiny_classifier.network(((images + wanted).clamp(0, 255) / 255 - mean) / std)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        rival = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        (gradient,) = torch.autograd.grad((own - rival).clamp_min(-10).sum(), wanted)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        move = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        wanted = (wanted.detach() - SIZE * move).clamp(-EPSILON, EPSILON)
        plain.step(images, labels)
    torch.testing.assert_close(plain.occluder.detach(), wanted, rtol=0, atol=1e-2)
    assert plain.occluder.abs().max() == EPSILON
    plain.restart()
    assert not plain.occluder.any()
