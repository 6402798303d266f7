"""The made images: a function of the seed, different between classes and between instances."""

import pytest
import torch
from pretraining.batches import FORMULAS, draw_batch, make_bank, share_out
from pretraining.images.camera import lose_resolution, resolution_operator
from pretraining.images.splat import fit_box, random_affine, splat
from pretraining.recipe import Camera, Images, Source
from pretraining.streams import stream

SIDE = 32
CAMERA = Camera(
    resolutions=[8, 16], low_resolution_fraction=0.5, invert_fraction=0.25, colour_fraction=0.15, noise=0.05
)
IMAGES = Images(
    side=SIDE,
    sources=[
        Source(formula="strokes", num_classes=4, share=0.6),
        Source(formula="fractals", num_classes=3, share=0.2),
        Source(formula="shapes", num_classes=3, share=0.2),
    ],
    camera=CAMERA,
)


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


@pytest.mark.parametrize("formula", sorted(FORMULAS))
def test_same_seed_gives_the_same_bits(formula):
    def draw() -> torch.Tensor:
        classes = FORMULAS[formula].make_classes(3, stream(7, "classes"))
        return FORMULAS[formula].draw(classes, stream(7, "instances"), SIDE)

    assert torch.equal(draw(), draw())


@pytest.mark.parametrize("formula", sorted(FORMULAS))
def test_ink_lies_between_zero_and_one_and_every_image_shows_something(formula):
    classes = FORMULAS[formula].make_classes(20, stream(1, "classes"))
    ink = FORMULAS[formula].draw(classes, stream(1, "instances"), SIDE)
    assert ink.shape == (20, SIDE, SIDE)
    assert float(ink.min()) >= 0.0
    assert float(ink.max()) <= 1.0
    assert float(ink.std(dim=(1, 2)).min()) > 0.01


@pytest.mark.parametrize("formula", sorted(FORMULAS))
def test_different_classes_and_different_instances_differ(formula):
    classes = FORMULAS[formula].make_classes(2, stream(7, "classes"))
    ink = FORMULAS[formula].draw(classes[[0, 0, 1]], stream(7, "instances"), SIDE)
    assert not torch.equal(ink[0], ink[1])
    assert not torch.equal(ink[0], ink[2])


def test_instances_of_one_drawing_look_more_alike_than_drawings_of_two_classes():
    classes = FORMULAS["strokes"].make_classes(30, stream(7, "classes"))
    ink = FORMULAS["strokes"].draw(classes.repeat(2, 1, 1), stream(7, "instances"), SIDE)
    within = sum(correlation(ink[i], ink[i + 30]) for i in range(30)) / 30
    between = sum(correlation(ink[i], ink[(i + 1) % 30 + 30]) for i in range(30)) / 30
    assert within > between + 0.1


def test_another_seed_gives_other_classes():
    tables = [FORMULAS["strokes"].make_classes(2, stream(seed, "classes")) for seed in (7, 8)]
    assert not torch.equal(*tables)


def test_a_batch_depends_on_its_number_and_purpose_alone():
    bank = make_bank(IMAGES, seed=7)
    images, labels = draw_batch(bank, 10, "training", 3)
    draw_batch(bank, 10, "training", 4)
    again, again_labels = draw_batch(bank, 10, "training", 3)
    assert torch.equal(images, again)
    assert torch.equal(labels, again_labels)
    assert not torch.equal(images, draw_batch(bank, 10, "training", 4)[0])
    assert not torch.equal(images, draw_batch(bank, 10, "held-out", 3)[0])


def test_a_batch_holds_images_in_the_range_of_the_network_and_labels_of_every_source():
    images, labels = draw_batch(make_bank(IMAGES, seed=7), 10, "training", 0)
    assert images.shape == (10, 3, SIDE, SIDE)
    assert float(images.min()) >= -1.0
    assert float(images.max()) <= 1.0
    # 6 strokes (labels 0-3), 2 fractals (4-6), 2 shapes (7-9), in the order of the sources.
    assert labels[:6].max() < 4
    assert set(labels[6:8].tolist()) <= {4, 5, 6}
    assert set(labels[8:].tolist()) <= {7, 8, 9}


def test_shares_of_a_batch_add_up_to_the_batch():
    # 0.6, 0.2, 0.2 of 7 are 4.2, 1.4, 1.4: rounded down 4 + 1 + 1, and the first takes the one left over.
    assert share_out(IMAGES, 7) == [5, 1, 1]


def test_one_point_makes_one_gaussian_spot():
    # Side 2 puts pixel centres at -0.5 and 0.5, sigma is 1. A point on the first centre: 1 there, exp(-1 / 2) one
    # sigma to the right or below, exp(-1) on the diagonal.
    spot = splat(torch.tensor([[[-0.5, -0.5]]]), torch.tensor([1.0]), side=2)
    expected = torch.exp(torch.tensor([[[0.0, -0.5], [-0.5, -1.0]]]))
    torch.testing.assert_close(spot, expected)


def test_fitting_into_a_box_keeps_the_aspect():
    points = torch.tensor([[[0.0, 0.0], [4.0, 2.0]]])
    # Half extents 2 and 1 around (2, 1); the larger becomes 0.8, so the other becomes 0.4.
    torch.testing.assert_close(fit_box(points, torch.tensor([0.8])), torch.tensor([[[-0.8, -0.4], [0.8, 0.4]]]))


def test_a_random_affine_map_without_shear_keeps_areas():
    maps = random_affine(stream(7), 5, turn=0.5, shear=0.0, stretch=0.4)
    torch.testing.assert_close(torch.linalg.det(maps), torch.ones(5))


def test_the_resolution_operator_keeps_constants_and_loses_detail():
    operator = resolution_operator(SIDE, 8)
    torch.testing.assert_close(operator.sum(1), torch.ones(SIDE))
    assert torch.linalg.matrix_rank(operator) == 8


def test_no_resolution_is_lost_at_fraction_zero():
    ink = torch.rand(4, SIDE, SIDE, generator=stream(7))
    torch.testing.assert_close(lose_resolution(ink, stream(8), (8,), 0.0), ink)
