r"""Answers: what is in the box, and what means the same."""

import multiprocessing
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.envs import MathEnv, math_checking
from sdar.envs.math_checking import boxed_span, is_correct, last_boxed, number, plain
from sdar.errors import ConfigError, EnvironmentFault

RIGHT = [
    ("42", "42"),
    ("42", " 42. "),
    ("42", "$42$"),
    ("42", "42.0"),
    ("042", "42"),
    ("42", "042"),
    ("-7", "-7"),
    ("1000", "1,000"),
    ("1234567", "1,234,567"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}"),
    (r"-\frac{3}{4}", "-0.75"),
    ("100000", "1e5"),
    ("(1,2)", "( 1 , 2 )"),
    (r"\left(1,2\right)", "(1,2)"),
    (r"\sqrt{2}", "2^{1/2}"),
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("2x+2", "2(x+1)"),
    ("x=3", "3"),
    ("3", "x=3"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"50\%", "0.5"),
    (r"\text{Evelyn}", "Evelyn"),
    ("6", r"\boxed{6}"),
    ("7", r"7 \text{ apples}"),
    ("2100", "2{,}100"),
    ("2100", r"2,\!100"),
    ("x=1,200", "x=1200"),
    (r"\frac{1}{12}", "0.08333333333333333"),  # as a program prints it
    ("0.3", "0.30000000000000004"),
    (r"1-\frac{1}{\mathrm{e}}", r"1-\frac{1}{e}"),
    (r"\frac{1}{2^{99}}", "2^{-99}"),
    ("5\\text{ cm}", "5 cm"),
    ("1, 2, \\ldots, n", "1,2,\\ldots,n"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
]
WRONG = [
    ("42", "43"),
    ("42", ""),
    ("", ""),
    ("42", "42,43"),
    ("42", "4 2 1"),
    ("1/2", "1/3"),
    ("1/2", "1/0"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    (r"\sqrt{2}", "1.41"),
    (r"\pi", "3.14159"),
    ("5", r"\frac{"),
    ("5", "((((((("),
    ("5", "five hundred"),
    ("5", "\x00<|im_end|>"),
    ("5", "x" * 100_000),
    ("1", "1e99"),
    ("2, 100", "2100"),
    ("x=1, 200", "x=1200"),
    ("(0, 100)", "(0100)"),
    ("(0,100)", "(0100)"),
    (r"\{1, 200\}", r"\{1200\}"),
    ("1, 200, 300", "1200300"),
    ("12", "1 2"),
    ("12/3", "1 2/3"),
    ("1/12", "0.0833"),
    (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{2^{2005}+1}{3\cdot 2^{2006}}", r"\frac{1}{3 \cdot 2^{2006}}"),
    (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1"),
    ("2024-01-01", "2022"),
    ("5 cm", "5 m"),
    (r"5\text{ cm}^2", r"5\text{ cm}"),
]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_an_answer_that_means_the_same_is_right(gold, answer):
    assert is_correct(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_any_other_is_wrong(gold, answer):
    assert not is_correct(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), [("5", "9^{9^{9^9}}"), ("9^{9^{9^9}}", "5")])
def test_a_comparison_that_takes_too_long_is_wrong_and_the_next_one_works(gold, answer):
    is_correct(r"\sqrt{2}", "2^{1/2}")  # its process runs
    began = time.monotonic()
    assert not is_correct(gold, answer, deadline_s=0.5)
    assert time.monotonic() - began < 5
    assert is_correct(r"\sqrt{3}", "3^{1/2}")


def test_answers_are_compared_in_any_thread():
    verdicts = []
    threads = [threading.Thread(target=lambda: verdicts.append(is_correct(r"2\sqrt{3}", r"\sqrt{12}"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 3


def test_answers_are_compared_in_a_daemon_process():
    """A worker of the pool is one, and may have no children of multiprocessing."""
    context = multiprocessing.get_context("fork")
    verdicts = context.SimpleQueue()

    def compare():
        verdicts.put(is_correct(r"\sqrt{12}", r"2\sqrt{3}"))
        math_checking._checker().stop()

    process = context.Process(target=compare, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0 and verdicts.get()


def test_an_interrupted_comparison_leaves_no_answer_behind(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    assert is_correct("x+1", "1+x")  # the process is there
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(math_checking.select, "poll", interrupt)
        is_correct("2x", "x+x")  # true
    assert not is_correct("x+1", "2+x")
    assert is_correct("x+1", "1+x")


def test_without_math_verify_it_is_said(monkeypatch):
    monkeypatch.setattr(math_checking, "_checker", math_checking._Checker)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert is_correct("42", "42.0")
    for ask in (lambda: is_correct("x+1", "1+y"), math_checking.check):
        with pytest.raises(ConfigError, match=r"math-verify is not installed: .*pip install .*\[math\]"):
            ask()


def test_math_verify_may_be_that_of_another_interpreter(tmp_path):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\ntouch "{tmp_path}/asked"\nexec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    assert is_correct("x+1", "1+x", python=str(other))
    assert (tmp_path / "asked").exists()
    math_checking._checker(str(other)).stop()
    with pytest.raises(ConfigError, match=r"env.verify_python is '/no/python', which cannot be started .*has math-verify"):
        MathEnv(verify_python="/no/python").check()


def test_a_math_verify_that_compares_nothing_is_found_at_the_start(monkeypatch):
    math_checking.check()
    monkeypatch.setattr(math_checking._Checker, "verify", lambda *_: False)
    with pytest.raises(EnvironmentFault, match=r"math-verify does not find x \+ 1 and 1 \+ x equal"):
        math_checking.check()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{ 3 }", "3"),
        (r"\fbox{3} \boxed {4}", "4"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{}", ""),
        (r"\boxed{ }", ""),
        ("42", None),
        (r"\boxed{{}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_counts(text, content):
    assert last_boxed(text) == content


@given(st.text(alphabet="\\boxed{} a1", max_size=60))
def test_a_box_lies_in_its_text(text):
    span = boxed_span(text)
    assert span is None or 0 <= span[0] <= span[1] <= len(text)


@given(st.fractions())
def test_fractions_are_read_exactly(value):
    assert number(str(value)) == value
    assert number(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value
    assert is_correct(str(value), str(value)) and not is_correct(str(value), str(value + 1))


@given(st.text(max_size=200))
def test_any_text_can_be_made_plain(text):
    assert isinstance(plain(text), str)
    number(plain(text))
