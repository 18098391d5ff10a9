"""Everything there is to measure on a GPU, in the order of its worth, within the minutes there are."""
