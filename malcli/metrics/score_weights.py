"""The weights of `malcli_score`, as `python benchmarks/score.py TRAIN --write` made them.

For each of `confidence.EVIDENCE` that cross-validation kept, and the intercept.
"""

WEIGHTS = {
    "intercept": -2.6382,
    "certainty": 0.9497,
    "fill": 1.8698,
    "touch": -0.4011,
    "overlap": -1.5658,
    "edge": 0.3337,
    "corner": -0.5017,
    "texture": -0.1873,
    "size": 0.1069,
}
