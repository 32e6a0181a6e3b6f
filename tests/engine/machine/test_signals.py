import os
import signal
import threading
import time
from pathlib import Path

import pytest

from malcli.config.label import LabelConfig
from malcli.engine.machine.signals import StopFlag, command_of


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_nothing_else(signum):
    with StopFlag() as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        assert stop.signum == signum


def test_a_second_signal_exits_as_shells_say():
    with StopFlag():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


def signal_then_sleep():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def test_work_that_is_dropped_anyway_ends_where_the_signal_arrives():
    with StopFlag() as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            signal_then_sleep()
        assert stop.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            raise AssertionError("work began after the signal")


def test_handlers_come_back_after_nested_flags():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopFlag() as outer, StopFlag() as inner:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (outer.signum, inner.signum) == (0, signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_can_open_the_flag():
    seen = []

    def work():
        with StopFlag() as stop:
            seen.append(stop.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_the_command_says_what_differs_from_the_defaults():
    config = LabelConfig(
        boxes=Path("my boxes.json"), out=Path("m.json"), strict=True, threshold="0.4", margin=0.4
    )
    assert command_of(config, "label") == (
        "malcli label --strict --boxes 'my boxes.json' --out m.json --threshold 0.4"
    )
