"""The weights of `malcli_score`, as `python benchmarks/score.py TRAIN --write` made them.

For each of `confidence.EVIDENCE` that cross-validation kept, and the intercept.
"""

WEIGHTS = {
    "intercept": -2.7075,
    "certainty": 1.0996,
    "fill": 2.1579,
    "touch": -0.5258,
    "overlap": -1.4528,
}
