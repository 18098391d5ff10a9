"""What alignment has changed: images of base and policy at equal seeds, scored, compared and reported."""
