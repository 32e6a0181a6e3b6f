"""Mean field in log-odds form against the unfolded formulation: CPU time and agreement.

    python benchmarks/mean_field.py [--repeats N] [--json]

Runs both by turns (A B A B ...) on one thread, so that a busy machine slows both alike, and
compares CPU seconds, not wall time. Wanted: the log-odds form is at least 15 times as fast.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from malcli.losses.crf import mean_field

BATCH, SIDE, ITERATIONS = 4, 128, 100
ZETAS = (0.1, 0.5)
EPSILON = 1e-6


def unfold_mean_field(
    image_BChw: Tensor, unary_Bhw: Tensor, box_Bhw: Tensor, zeta: float
) -> Tensor:
    """Return refined masks as mal.md 6 writes it: a 3x3 window unfolded in every iteration."""
    batch, channels, height, width = image_BChw.shape
    shifted = image_BChw + 10  # so that the zeros outside the image are far from every colour
    window = F.unfold(shifted, 3, padding=1).view(batch, channels, 9, height * width)
    distance = (window - shifted.view(batch, channels, 1, -1)).square().sum(dim=1)
    kernel_B9N = (distance / (-2 * zeta**2)).exp()
    foreground = (unary_Bhw * box_Bhw).clamp(0.1, 0.9)
    for _ in range(ITERATIONS):
        cost = -torch.stack([1 - foreground, foreground], dim=1).log()
        cost_B2N9 = F.unfold(cost, 3, padding=1).view(batch, 2, 9, -1)
        energy = (kernel_B9N[:, None] * cost_B2N9).sum(dim=2).neg().exp()
        background, foreground = energy.view(batch, 2, height, width).unbind(dim=1)
        foreground = foreground * box_Bhw
        foreground = (foreground / (background + foreground + EPSILON)).clamp(0.1, 0.9)
    return (foreground > 0.5).float()


def draw_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a smooth random image with noise, a smooth unary and a soft-edged box."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(BATCH, 3, 9, 9, generator=generator)
    image = F.interpolate(smooth, (SIDE, SIDE), mode="bicubic")
    image = image + 0.03 * torch.randn(image.shape, generator=generator)
    unary = F.interpolate(
        2 * torch.randn(BATCH, 1, 9, 9, generator=generator), (SIDE, SIDE), mode="bicubic"
    )
    box = torch.zeros(BATCH, SIDE, SIDE)
    box[:, 15 : SIDE - 15, 15 : SIDE - 15] = 0.5
    box[:, 16 : SIDE - 16, 16 : SIDE - 16] = 1.0
    return image, unary[:, 0].sigmoid(), box


def cpu_seconds(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return CPU seconds and the result of a call."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def measure(zeta: float, repeats: int) -> dict[str, float]:
    """Return medians over paired runs, and the pixels that differ, for one bandwidth."""
    reference_s, ours_s, ratios, differing, pixels = [], [], [], 0, 0
    for repeat in range(repeats):
        image, unary, box = draw_case(repeat)
        slow, wanted = cpu_seconds(lambda: unfold_mean_field(image, unary, box, zeta))  # noqa: B023
        fast, masks = cpu_seconds(
            lambda: mean_field(image, unary, box, zeta=zeta, iterations=ITERATIONS)  # noqa: B023
        )
        reference_s.append(slow)
        ours_s.append(fast)
        ratios.append(slow / fast)
        differing += int((wanted != masks).sum())
        pixels += masks.numel()
    return {
        "zeta": zeta,
        "unfold_s": statistics.median(reference_s),
        "log_odds_s": statistics.median(ours_s),
        "ratio": statistics.median(ratios),
        "pixels": pixels,
        "pixels_differing": differing,
    }


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7, help="paired runs a bandwidth")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as the training loop does; helps both
    unfold_mean_field(*draw_case(0), 0.1)  # warm-up
    mean_field(*draw_case(0))
    rows = [measure(zeta, options.repeats) for zeta in ZETAS]
    if options.json:
        print(json.dumps({"load_average": os.getloadavg()[0], "results": rows}))
        return
    print(f"B={BATCH}, {SIDE}x{SIDE}, {ITERATIONS} iterations, load {os.getloadavg()[0]:.1f}")
    for row in rows:
        print(
            f"zeta {row['zeta']}: unfold {row['unfold_s']:.3f} s, log-odds "
            f"{row['log_odds_s'] * 1000:.1f} ms, {row['ratio']:.1f} times as fast; "
            f"{row['pixels_differing']} of {row['pixels']} mask pixels differ"
        )


if __name__ == "__main__":
    main()
