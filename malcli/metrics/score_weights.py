"""The weights of `malcli_score`, as `python benchmarks/score.py TRAIN --write` made them.

For each of `confidence.EVIDENCE` that cross-validation kept, and the intercept.
"""

WEIGHTS = {
    "intercept": -1.7210,
    "certainty": 1.2411,
    "fill": 0.8976,
    "touch": -0.6360,
    "overlap": -1.6865,
    "edge": 0.1227,
    "corner": -0.2494,
    "texture": -0.1300,
}
