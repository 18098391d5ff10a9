"""The page on which a person judges pairs of images, and the file that the answers go to."""
