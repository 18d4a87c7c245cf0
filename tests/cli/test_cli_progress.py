from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from prune2deploy import progress
from prune2deploy.cli.progress import Bars, Lines, bars, duration

Terminal = Callable[..., tuple[int, str]]


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_plain_lines_come_at_the_start_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress.use(Lines(stream, clock)), progress.task("Training", 8) as task:
        for number in range(8):
            clock.now += 4
            task.advance(info=f"loss {number}")
    assert lines_of(stream) == [
        "Training ...",
        "Training 3/8, loss 2, about 20 s left",
        "Training 6/8, loss 5, about 8 s left",
        "Training: 32 s (loss 7)",
    ]


def test_short_work_leaves_one_plain_line() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress.use(Lines(stream, clock)), progress.task("Tracing"):
        clock.now += 1.9
    assert lines_of(stream) == ["Tracing ..."]


def test_work_without_a_total_says_how_long_it_took() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress.use(Lines(stream, clock)), progress.task("Scanning") as task:
        clock.now += 11
        task.advance(5, "5 files")
    assert lines_of(stream) == ["Scanning ...", "Scanning, 5 files", "Scanning: 11 s (5 files)"]


@pytest.mark.parametrize(
    ("total", "done", "amount"),
    [(1, 0.154, "15 %"), (50_000, 12_345, "12345/50000")],
)
def test_amounts_are_short(total: float, done: float, amount: str) -> None:
    shown = Lines(io.StringIO(), Clock()).open("Work", total)
    shown.advance(done)
    assert shown.amount == amount


def test_work_that_broke_off_says_where() -> None:
    stream, clock = io.StringIO(), Clock()

    def work() -> None:
        with progress.task("Training", 20) as task:
            task.advance(7)
            clock.now += 60
            raise KeyError

    with progress.use(Lines(stream, clock)), pytest.raises(KeyError):
        work()
    assert lines_of(stream)[-1] == "Training: stopped at 7/20, 1 min 00 s"


def test_two_pieces_of_work_each_have_their_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress.use(Lines(stream, clock)), progress.task("Outer", 2) as outer:
        with progress.task("Inner", 2) as inner:
            clock.now += 12
            inner.advance()
        outer.advance()
    assert lines_of(stream) == [
        "Outer ...",
        "Inner ...",
        "Inner 1/2, about 12 s left",
        "Inner: stopped at 1/2, 12 s",
        "Outer 1/2, about 12 s left",
        "Outer: stopped at 1/2, 12 s",
    ]


def picture(clock: Clock, width: int, *, plain: bool = False) -> str:
    shown = Lines(io.StringIO(), clock).open("Fine-tuning", 4)
    clock.now += 10
    shown.advance(1, "loss [red] 0.5")
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(bars([shown], plain=plain))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def test_a_bar_shows_amount_time_left_and_info_as_it_is() -> None:
    assert picture(Clock(), 100) == (
        f"Fine-tuning {'━' * 7}{'─' * 21} 1/4 30 s left  loss [red] 0.5"
    )


def test_a_narrow_terminal_loses_the_info_first() -> None:
    line = picture(Clock(), 60)
    assert "30 s left" in line
    assert len(line) <= 60


def test_a_terminal_without_unicode_gets_letters() -> None:
    assert picture(Clock(), 100, plain=True).isascii()


def test_bars_leave_a_line_for_work_that_took_long() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = Bars(Console(file=stream, force_terminal=True, width=80), clock)
    with progress.use(shown):
        with progress.task("Long", 1) as task:
            clock.now += 70
            task.advance()
        with progress.task("Short"):
            clock.now += 1
        shown.say("warning: [careful]")
    assert "Long: 1 min 10 s" in stream.getvalue()
    assert "Short" not in stream.getvalue()
    assert "warning: [careful]" in stream.getvalue()


PROGRAM = """\
import logging, time
from prune2deploy import progress
from prune2deploy.cli.session import session
with session():
    with progress.task("Training", 20) as task:
        for _ in range(20):
            time.sleep(0.06)
            task.advance(info="loss 0.5")
    logging.getLogger("prune2deploy.x").warning("look here")
    print("result")
"""


def test_a_terminal_has_a_bar_that_goes_away(
    on_terminal: Terminal, environment: dict[str, str]
) -> None:
    code, shown = on_terminal(PROGRAM, environment)
    assert code == 0
    assert "━" in shown
    assert "left" in shown
    assert "\x1b[2K" in shown  # the line is erased
    assert shown.endswith("warning: look here\r\nresult\r\n")


def test_no_color_is_respected(on_terminal: Terminal, environment: dict[str, str]) -> None:
    _, shown = on_terminal(PROGRAM, {**environment, "NO_COLOR": "1"})
    assert "Training" in shown
    assert "\x1b[3" not in shown
    assert "\x1b[9" not in shown


def test_a_dumb_terminal_has_plain_lines(
    on_terminal: Terminal, environment: dict[str, str]
) -> None:
    _, shown = on_terminal(PROGRAM, {**environment, "TERM": "dumb"})
    assert shown == "Training ...\r\nwarning: look here\r\nresult\r\n"
