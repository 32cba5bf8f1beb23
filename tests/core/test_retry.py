"""Trying again: while an error is transient, and no longer than it pays."""

import itertools

import pytest

from mlops_ext.retry import doubling, retry


class Call:
    """Fails as often as told, on a clock that only pauses move."""

    def __init__(self, *errors):
        self.errors, self.tries, self.now, self.told = list(errors), 0, 0.0, []

    def __call__(self):
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def sleep(self, seconds):
        self.now += seconds

    def retry(self, pauses, **more):
        return retry(
            self,
            pauses=pauses,
            is_transient=lambda error: isinstance(error, OSError),
            on_retry=lambda error, pause_s: self.told.append((str(error), pause_s)),
            sleep=self.sleep,
            clock=lambda: self.now,
            **more,
        )


def test_a_transient_error_is_tried_again_after_each_pause():
    call = Call(OSError("a"), OSError("b"))
    assert call.retry([1.0, 2.0, 4.0]) == "done"
    assert (call.tries, call.now) == (3, 3.0)
    assert call.told == [("a", 1.0), ("b", 2.0)]


def test_what_succeeds_is_called_once():
    call = Call()
    assert call.retry([1.0]) == "done"
    assert (call.tries, call.now, call.told) == (1, 0.0, [])


def test_where_the_pauses_end_the_last_error_is_raised_as_it_is():
    last = OSError("b")
    call = Call(OSError("a"), last)
    with pytest.raises(OSError, match="b") as caught:
        call.retry([1.0])
    assert caught.value is last
    assert call.tries == 2


def test_another_error_is_raised_at_once():
    call = Call(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        call.retry([1.0])
    assert (call.tries, call.told) == (1, [])


def test_no_further_try_is_made_after_the_total_time():
    call = Call(*(OSError(str(number)) for number in range(9)))
    with pytest.raises(OSError, match="3"):
        call.retry(itertools.repeat(1.0), total_s=2.0)
    assert (call.tries, call.now) == (4, 3.0)


def test_pauses_double_up_to_the_longest_without_end():
    assert list(itertools.islice(doubling(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert next(itertools.islice(doubling(1e-300, 7.0), 5000, None)) == pytest.approx(
        1e-300 * 2**60
    )
