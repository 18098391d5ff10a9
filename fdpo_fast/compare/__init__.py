"""Grids of runs over divergences and strengths: trained by a crew, analysed and reported."""
