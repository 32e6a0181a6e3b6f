"""The weights of `malcli_score`, as `python benchmarks/score.py TRAIN --write` made them.

For each of `confidence.EVIDENCE` that cross-validation kept, and the intercept.
"""

WEIGHTS = {
    "intercept": -0.4399,
    "certainty": 1.2381,
    "touch": -0.5423,
    "overlap": -1.7620,
    "corner": -0.2794,
}
