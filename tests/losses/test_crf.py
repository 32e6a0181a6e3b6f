"""Mean field against the literal loop of mal.md 6, in float64; the CRF loss by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from malcli.losses import crf
from malcli.losses.crf import crf_loss, mean_field, pair_weights, stacked_weights

# mal.md 6.3: keeps 0 / 0 away, and pulls a pixel between equal claims towards background.
RELEASED_EPSILON = 1e-6


def refine_literally(image, unary, box, zeta, omega=1.0, iterations=100, epsilon=0.0):
    """Return the foreground's probability of one sample, (h, w) float64.

    mal.md 6 pixel by pixel in its exp and log form; omega multiplies the 8 neighbours' weights.
    """
    _, height, width = image.shape
    weights = {}
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if not (0 <= y + dy < height and 0 <= x + dx < width):
                        continue  # the release's 10 against 0 makes it exp(-large)
                    distance = ((image[:, y + dy, x + dx] - image[:, y, x]) ** 2).sum()
                    weight = math.exp(-distance / (2 * zeta**2))
                    weights[y, x, dy, dx] = weight * (1.0 if dy == dx == 0 else omega)
    t = np.ones((height, width)) if box is None else box
    prob = np.clip(unary * t, 0.1, 0.9)
    for _ in range(iterations):
        cost_on, cost_off = -np.log(prob), -np.log(1 - prob)
        energy_on, energy_off = np.zeros_like(prob), np.zeros_like(prob)
        for (y, x, dy, dx), weight in weights.items():
            energy_on[y, x] += weight * cost_on[y + dy, x + dx]
            energy_off[y, x] += weight * cost_off[y + dy, x + dx]
        on, off = np.exp(-energy_on) * t, np.exp(-energy_off)
        prob = np.clip(on / (off + on + epsilon), 0.1, 0.9)
    return prob


def draw_case(seed, height, width, noise=0.1, channels=3):
    """Return image, unary and box of one sample: flat patches with noise, a rectangle."""
    rng = np.random.default_rng(seed)
    patches = rng.normal(size=(channels, 3, 3))
    image = np.kron(patches, np.ones((math.ceil(height / 3), math.ceil(width / 3))))
    image = image[:, :height, :width] + noise * rng.normal(size=(channels, height, width))
    box = np.zeros((height, width))
    box[1 : height - 1, 2 : width - 1] = 1
    box[1, 2 : width - 1] = 0.5  # soft edges, as resampling leaves them
    return image, rng.random((height, width)), box


def as_batch(*arrays):
    return [torch.tensor(np.stack(array), dtype=torch.float32) for array in arrays]


def assert_same_masks(refined, probs, tie=1e-4):
    """Masks are equal but where the reference is at a tie: |x - 0.5| <= tie."""
    probs = np.stack(probs)
    clear = np.abs(probs - 0.5) > tie
    assert clear.mean() > 0.9  # the comparison is not empty
    assert np.array_equal(refined.numpy()[clear], (probs > 0.5)[clear].astype(np.float32))


@pytest.mark.parametrize("zeta", [0.05, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("with_box", [True, False])
@pytest.mark.parametrize("shape", [(9, 9), (7, 12)])
def test_mean_field_equals_the_literal_loop(zeta, with_box, shape):
    cases = [draw_case(seed, *shape) for seed in range(3)]
    images, unaries, boxes = zip(*cases, strict=True)
    image, unary, box = as_batch(images, unaries, boxes)
    refined = mean_field(image, unary, box if with_box else None, zeta=zeta)
    probs = [
        refine_literally(image, unary, box if with_box else None, zeta)
        for image, unary, box in cases
    ]
    assert refined.shape == unary.shape
    assert refined.dtype == torch.float32
    assert_same_masks(refined, probs)


@pytest.mark.parametrize("zeta", [0.1, 0.5])
def test_with_its_epsilon_the_mean_field_is_the_released_one_to_the_pixel(zeta):
    cases = [draw_case(seed, 9, 10, noise=0.3) for seed in range(4)]
    image, unary, box = (one.double() for one in as_batch(*zip(*cases, strict=True)))
    unary = 0.3 + unary / 2  # a quarter to three quarters of the pixels end on
    wanted = np.stack(
        [
            refine_literally(*(part.numpy() for part in case), zeta, epsilon=RELEASED_EPSILON)
            for case in zip(image, unary, box, strict=True)
        ]
    )
    refined = mean_field(image, unary, box, zeta=zeta, epsilon=RELEASED_EPSILON)
    assert 0.1 < refined.mean() < 0.9
    assert np.array_equal(refined.numpy(), wanted > 0.5)


def test_the_released_epsilon_puts_a_pixel_between_equal_claims_into_the_background():
    # One colour, z = 4e-5 everywhere: nine of them are 3.6e-4, and log(1 + 1e-6 * 2^9) is 5.1e-4.
    image, unary = torch.zeros(1, 3, 6, 6), torch.full((1, 6, 6), 0.50001)
    plain, released = (mean_field(image, unary, epsilon=one) for one in (0.0, RELEASED_EPSILON))
    assert (plain == 1).all()
    assert (released[:, 1:-1, 1:-1] == 0).all()


@pytest.mark.parametrize("zeta", [0.1, 0.5])
def test_mean_field_equals_the_released_epsilon_off_ties(zeta):
    # E0 + E1 >= 2 * 0.09^4.5 = 4e-5, so 1e-6 moves a tied x from 0.5 to 0.5 / 1.025 = 0.488 a step.
    cases = [draw_case(seed, 9, 10) for seed in range(4)]
    image, unary, box = as_batch(*zip(*cases, strict=True))
    probs = [refine_literally(*case, zeta, epsilon=RELEASED_EPSILON) for case in cases]
    assert_same_masks(mean_field(image, unary, box, zeta=zeta), probs, tie=0.03)


@pytest.mark.parametrize("omega", [0.0, 0.3, 2.0])
def test_omega_weighs_the_eight_neighbours(omega):
    # Without the release's epsilon, which products of 8 omega factors may fall below.
    cases = [draw_case(seed, 8, 9) for seed in range(3)]
    image, unary, box = as_batch(*zip(*cases, strict=True))
    refined = mean_field(image, unary, box, zeta=0.5, omega=omega, iterations=6)
    assert_same_masks(
        refined, [refine_literally(*case, 0.5, omega=omega, iterations=6) for case in cases]
    )


def test_omega_changes_masks():
    image, unary, box = as_batch(*([part] for part in draw_case(5, 20, 20)))
    weak, strong = (
        mean_field(image, unary, box, zeta=0.5, omega=omega, iterations=5) for omega in (0.1, 2.0)
    )
    assert not torch.equal(weak, strong)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    iterations=st.integers(0, 12),
    zeta=st.sampled_from([0.1, 0.3, 1.0]),
)
def test_mean_field_equals_the_literal_loop_on_tiny_maps(seed, height, width, iterations, zeta):
    rng = np.random.default_rng(seed)
    image = rng.normal(scale=0.3, size=(2, 3, height, width))
    unary, box = rng.random((2, height, width)), rng.random((2, height, width))
    refined = mean_field(*as_batch(image, unary, box), zeta=zeta, iterations=iterations)
    for sample in range(2):
        prob = refine_literally(
            image[sample], unary[sample], box[sample], zeta, iterations=iterations
        )
        clear = np.abs(prob - 0.5) > 1e-3
        assert np.array_equal(refined[sample].numpy()[clear], (prob > 0.5)[clear])


def refine_without_self(image, unary, box, zeta, omega, iterations):
    """Return z of one sample (h, w): z <- clamp(sum of w * z over 8 neighbours + log t), no more.

    Pixel by pixel, in float64.
    """
    _, height, width = image.shape
    clamp = math.log(9)
    z = np.clip(unary * box, 0.1, 0.9)
    z = np.log(z / (1 - z))
    for _ in range(iterations):
        new = np.empty_like(z)
        for y in range(height):
            for x in range(width):
                total = math.log(box[y, x]) if box[y, x] else -math.inf
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        at = y + dy, x + dx
                        if (dy or dx) and 0 <= at[0] < height and 0 <= at[1] < width:
                            distance = ((image[:, *at] - image[:, y, x]) ** 2).sum()
                            total += omega * math.exp(-distance / (2 * zeta**2)) * z[at]
                new[y, x] = min(max(total, -clamp), clamp)
        z = new
    return z


def test_the_epsilon_by_hand_without_the_pixel_itself():
    # One neighbour of weight 1 that is nearly on: x = 0.9 / (0.1 + 0.9 + 0.81), below 0.5.
    image, unary = torch.zeros(1, 3, 1, 2), torch.tensor([[[0.9, 0.4]]])
    for epsilon, second in ((0.79, 1.0), (0.81, 0.0)):
        refined = mean_field(image, unary, iterations=1, include_self=False, epsilon=epsilon)
        assert refined.tolist() == [[[0.0, second]]]


@pytest.mark.parametrize("iterations", [1, 2, 7, 30])
@pytest.mark.parametrize(("zeta", "omega"), [(0.5, 2.0), (0.3, 0.7)])
def test_without_the_pixel_itself_only_its_eight_neighbours_count(zeta, omega, iterations):
    cases = [draw_case(seed, 8, 9) for seed in range(2)]
    image, unary, box = as_batch(*zip(*cases, strict=True))
    refined = mean_field(
        image, unary, box, zeta=zeta, omega=omega, iterations=iterations, include_self=False
    )
    z = np.stack([refine_without_self(*case, zeta, omega, iterations) for case in cases])
    clear = np.abs(z) > 1e-3
    assert clear.mean() > 0.9
    assert np.array_equal(refined.numpy()[clear], (z > 0)[clear].astype(np.float32))


def test_a_pixel_among_its_neighbours_changes_masks():
    image, unary, box = as_batch(*([part] for part in draw_case(5, 20, 20, noise=0.5)))
    kept, left_out = (
        mean_field(image, unary, box, zeta=0.5, iterations=5, include_self=own)
        for own in (True, False)
    )
    assert not torch.equal(kept, left_out)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    iterations=st.integers(0, 20),
    zeta=st.sampled_from([0.1, 0.3, 1.0]),
    omega=st.sampled_from([0.5, 1.0, 2.0]),
    include_self=st.booleans(),
    with_box=st.booleans(),
)
def test_stacked_neighbours_give_the_z_of_neighbour_by_neighbour(
    seed, shape, iterations, zeta, omega, include_self, with_box
):
    rng = np.random.default_rng(seed)
    image = torch.tensor(rng.normal(scale=0.3, size=(shape[0], 3, *shape[1:])))
    z = torch.tensor(rng.uniform(-2, 2, size=shape))
    share = rng.choice([0.0, 0.5, 1.0], size=shape) if with_box else np.ones(shape)
    log_box = torch.tensor(share).log()
    stacked = crf._iterate_stacked(
        z, log_box, stacked_weights(image, zeta, omega, include_self), iterations
    )
    pairs = crf._iterate_pairs(
        z, log_box, pair_weights(image, zeta, omega), iterations, include_self
    )
    assert stacked.shape == pairs.shape == z.shape
    # Sums of another order drift apart by rounding; on float64 far below what a mask would show.
    torch.testing.assert_close(stacked, pairs, rtol=0, atol=1e-9)


def test_a_cpu_goes_neighbour_by_neighbour(monkeypatch):
    taken = []
    monkeypatch.setattr(crf, "_iterate_stacked", lambda z, *args: taken.append("stacked") or z)
    monkeypatch.setattr(crf, "_iterate_pairs", lambda z, *args: taken.append("pairs") or z)
    mean_field(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4))
    assert taken == ["pairs"]


def test_samples_of_a_batch_do_not_mix():
    cases = [draw_case(seed, 6, 11) for seed in range(4)]
    image, unary, box = as_batch(*zip(*cases, strict=True))
    together = mean_field(image, unary, box, zeta=0.5)
    for i in range(4):
        alone = mean_field(image[i : i + 1], unary[i : i + 1], box[i : i + 1], zeta=0.5)
        assert torch.equal(together[i], alone[0])


def test_rows_do_not_touch_across_the_map_s_sides():
    # One colour: column 0 pulls, column 5 is its neighbour only if rows wrap round.
    image, unary = torch.zeros(1, 3, 4, 6), torch.full((1, 4, 6), 0.2)
    unary[:, :, 0] = 0.9
    refined = mean_field(image, unary, zeta=0.5, iterations=1)
    prob = refine_literally(image[0].numpy(), unary[0].numpy(), None, 0.5, iterations=1)
    assert np.array_equal(refined[0].numpy(), (prob > 0.5).astype(np.float32))
    assert refined[0].sum(dim=0).tolist() == [4, 0, 0, 0, 0, 0]


def test_one_iteration_on_two_pixels_by_hand():
    # weight = exp(-(0.1)^2 / (2 * 0.1^2)) = exp(-0.5) = 0.607
    image, unary = torch.tensor([[[[0.0, 0.1]]]]), torch.tensor([[[0.8, 0.4]]])
    # pixel 1: logit(0.4) + 0.607 logit(0.8) = -0.405 + 0.607 * 1.386 = 0.436 > 0: on
    assert mean_field(image, unary, zeta=0.1, iterations=1).tolist() == [[[1.0, 1.0]]]
    # at zeta 0.05 the weight is exp(-2) = 0.135: -0.405 + 0.188 < 0: stays off
    assert mean_field(image, unary, zeta=0.05, iterations=1).tolist() == [[[1.0, 0.0]]]
    # omega's turning point: 0.405 / (0.607 * 1.386) = 0.482
    for omega, second in ((0.475, 0.0), (0.490, 1.0)):
        refined = mean_field(image, unary, zeta=0.1, omega=omega, iterations=1)
        assert refined.tolist() == [[[1.0, second]]]


def test_without_iterations_the_start_is_thresholded():
    unary = torch.tensor([[[0.2, 0.5, 0.51], [0.9, 1.0, 0.0]]])
    box = torch.tensor([[[1.0, 1.0, 1.0], [0.5, 0.6, 1.0]]])
    image = torch.zeros(1, 3, 2, 3)
    plain, boxed = (mean_field(image, unary, b, iterations=0) for b in (None, box))
    assert plain.tolist() == [[[0, 0, 1], [1, 1, 0]]]
    assert boxed.tolist() == [[[0, 0, 1], [0, 1, 0]]]  # 0.45 and 0.6 after the box


@pytest.mark.parametrize("omega", [1.0, 1e5])
def test_nothing_grows_outside_the_box(omega):
    image, unary = torch.zeros(1, 3, 12, 12), torch.ones(1, 12, 12)
    box = torch.zeros(1, 12, 12)
    box[:, 3:9, 4:10] = 1
    refined = mean_field(image, unary, box, zeta=1.0, omega=omega, iterations=3)
    assert (refined[box == 0] == 0).all()
    assert (refined[:, 5:7, 6:8] == 1).all()  # three steps do not reach the middle


def test_stopping_early_equals_all_iterations(monkeypatch):
    cases = [draw_case(seed, 9, 9, noise=0.01) for seed in range(2)]
    image, unary, box = as_batch(*zip(*cases, strict=True))
    early = mean_field(image, unary, box, zeta=0.1, iterations=400)
    looked: list[bool] = []

    def never(a, b):
        looked.append(bool((a == b).all()))
        return False

    monkeypatch.setattr(torch, "equal", never)
    whole = mean_field(image, unary, box, zeta=0.1, iterations=400)
    monkeypatch.undo()
    assert torch.equal(early, whole)
    assert len(looked) == 80
    assert any(looked)  # a fixed point was there to stop at


def test_mean_field_leaves_inputs_and_gradients_alone():
    image, unary, box = as_batch(*([part] for part in draw_case(6, 8, 8)))
    unary.requires_grad_()
    copies = [tensor.detach().clone() for tensor in (image, unary, box)]
    refined = mean_field(image, unary, box)
    assert not refined.requires_grad
    for tensor, copy in zip((image, unary, box), copies, strict=True):
        assert torch.equal(tensor.detach(), copy)


def test_mean_field_takes_half_precision_and_strided_maps():
    image, unary, box = as_batch(*([part, part] for part in draw_case(7, 8, 10)))
    wanted = mean_field(image.half().float(), unary.half().float(), box)
    assert torch.equal(mean_field(image.half(), unary.half(), box.half()), wanted)
    strided = unary.half().float().mT.contiguous().mT
    assert torch.equal(mean_field(image.half().float(), strided, box), wanted)


def test_crf_loss_by_hand():
    prob = torch.tensor([[[0.8, 0.1], [0.6, 0.0]]], requires_grad=True)
    refined = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    # 1 - 2 (0.8 + 0.6) / (0.64 + 0.01 + 0.36 + 3 + 0.002)
    loss = crf_loss(prob, refined)
    assert loss.tolist() == pytest.approx([1 - 2.8 / 4.012])
    loss.sum().backward()
    assert prob.grad is not None
    # d/dp of -2 P / S: -2 (r S - 2 p P) / S^2, P = 1.4, S = 4.012
    wanted = [-2 * (r * 4.012 - 2 * p * 1.4) / 4.012**2 for p, r in ((0.8, 1), (0.1, 0), (0.6, 1))]
    assert prob.grad.flatten().tolist()[:3] == pytest.approx(wanted)


def test_crf_loss_ignores_pixels_outside_the_image():
    generator = torch.Generator().manual_seed(0)
    prob = torch.rand(2, 3, 4, generator=generator, requires_grad=True)
    refined = (torch.rand(2, 3, 4, generator=generator) > 0.5).float()
    inside = torch.ones(2, 3, 4)
    inside[:, 0] = 0
    loss = crf_loss(prob, refined, inside)
    assert loss.tolist() == pytest.approx(crf_loss(prob[:, 1:], refined[:, 1:]).tolist())
    loss.sum().backward()
    assert prob.grad is not None
    assert (prob.grad[:, 0] == 0).all()
    assert (prob.grad[:, 1:] != 0).all()


def test_crf_loss_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(1)
    prob = torch.rand(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    refined = (torch.rand(2, 2, 3, generator=generator) > 0.5).double()
    # `flat` computes in float32, so the differences are coarser than gradcheck's own.
    assert gradcheck(
        lambda p: crf_loss(p, refined).double(), (prob,), eps=1e-3, atol=1e-3, nondet_tol=0.0
    )
