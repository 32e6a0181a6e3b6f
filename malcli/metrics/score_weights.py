"""The weights of `malcli_score`, as `python benchmarks/score.py TRAIN --write` made them.

For each of `confidence.EVIDENCE` that cross-validation kept, and the intercept.
"""

WEIGHTS = {
    "intercept": -0.4372,
    "certainty": 1.2377,
    "touch": -0.5459,
    "overlap": -1.7653,
    "corner": -0.2797,
}
