"""Reports of runs and comparisons: pages, pictures, and what a run has written."""
