"""Analyses of codes: units chosen, thresholds, concepts detected and localised."""
