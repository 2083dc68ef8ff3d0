"""A name and a seed decide what is drawn; another of either draws anew."""

import torch

from tasks.formats.seeding import generator_for


def test_the_same_names_draw_the_same_and_others_do_not():
    def draw(*names):
        return torch.rand(4, generator=generator_for(*names)).tolist()

    assert draw(0, "up", 3) == draw(0, "up", 3)
    assert len({tuple(draw(*names)) for names in ((0, "up", 3), (1, "up", 3), (0, "down", 3), (0, "up", 4), (0, "up"))}) == 5


def test_bits_are_those_of_every_earlier_run():
    assert torch.randint(1 << 30, (2,), generator=generator_for(7, "layer", 2)).tolist() == [431210071, 642285224]
