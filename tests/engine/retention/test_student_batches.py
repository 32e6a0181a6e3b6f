import pytest

from malcli.engine.retention.student_batches import StepRates


def test_rates_warm_up_then_drop_at_two_thirds_and_eleven_twelfths_of_the_epochs():
    rates = StepRates(peak=0.02, steps_per_epoch=1000, epochs=12)
    assert rates.total == 12_000
    assert 0 < rates.at(0) < 1e-4
    assert all(rates.at(step) < rates.at(step + 1) for step in range(500))
    assert rates.at(500) == rates.at(7999) == pytest.approx(0.02)
    assert rates.at(8000) == rates.at(10_999) == pytest.approx(0.002)
    assert rates.at(11_000) == rates.at(11_999) == pytest.approx(0.0002)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_short_trainings_warm_up_in_a_tenth_of_their_steps_and_never_stand_still(epochs):
    rates = StepRates(peak=1.0, steps_per_epoch=20, epochs=epochs)
    assert max(rates.at(step) for step in range(rates.total)) == 1.0
    assert rates.at(rates.total // 10) == 1.0
    assert min(rates.at(step) for step in range(rates.total)) > 0
