"""A rank that looks at all of the weights where others take a sample."""

from fdpo_fast.training import movement


def train(arguments):
    from fdpo_fast.train import main

    movement.TENSORS, movement.ELEMENTS = 10**6, 10**9
    main(arguments)
