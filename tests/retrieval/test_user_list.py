"""The number of candidates that the triggers of a user keep."""

from hypothesis import given
from hypothesis import strategies as st

from mtmh.retrieval.user_list import trigger_widths


def test_few_triggers_keep_more_and_a_short_list_more_again() -> None:
    assert list(trigger_widths(30, 500, 50)) == [30, 60, 120, 240, 480, 500]
    assert list(trigger_widths(30, 500, 2)) == [480, 500]
    assert list(trigger_widths(30, 500, 1)) == [500]
    assert list(trigger_widths(30, 10, 3)) == [30]


@given(st.integers(1, 60), st.integers(1, 700), st.integers(1, 60))
def test_the_first_width_could_fill_the_list_and_the_last_one_does_with_any_trigger(
    k: int, length: int, num_triggers: int
) -> None:
    widths = list(trigger_widths(k, length, num_triggers))
    assert k <= widths[0] <= max(k, length)
    assert widths[0] * num_triggers >= length
    assert widths[0] == k or widths[0] // 2 * num_triggers < length
    assert widths == sorted(set(widths))
    assert widths[-1] == max(k, length)
