"""What the benchmarks' own evaluations set, each with the line in which it stands."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A number or rule and where it is written."""

    value: object
    repository: str
    commit: str
    file: str
    line: int
    quote: str


_GRADING = ("LiveCodeBench/LiveCodeBench", "15808c76fbd459a73ce6b60d111e56860ab45f6d", "lcb_runner/evaluation/testing_util.py")
PUBLISHED = {
    "livecodebench seconds a test": Published(
        6.0,
        "LiveCodeBench/LiveCodeBench",
        "08b707430b3dcca59554b299657ba00f4e054de2",
        "lcb_runner/runner/parser.py",
        75,
        'parser.add_argument("--timeout", type=int, default=6, help="Timeout for evaluation")',
    ),
    "livecodebench recursion": Published(50000, *_GRADING, 27, "sys.setrecursionlimit(50000)"),
    "livecodebench lines": Published("stripped", *_GRADING, 190, 'return [val_line.strip() for val_line in val.split("\\n")]'),
    "livecodebench numbers": Published("Decimal", *_GRADING, 180, "decimal_line = [Decimal(elem) for elem in line.split()]"),
    "livecodebench tuples": Published("list", *_GRADING, 230, "prediction = list(prediction)"),
    "humaneval seconds": Published(
        3.0,
        "openai/human-eval",
        "9d3aa8bd1f0f972422d6fea2782eeaf3e3094048",
        "human_eval/evaluation.py",
        43,
        "timeout: float = 3.0,",
    ),
    "leetcode seconds": Published(
        3.0,
        "newfacade/LeetCodeDataset",
        "477ccb2313bacc324851f2f2576e489065cf5767",
        "eval_lcd/evaluate.py",
        45,
        "timeout: float = 3.0,",
    ),
}
CONTEST_S, CHECK_S = 6.0, 3.0
"""Seconds for each test of LiveCodeBench, and for all calls of a program of HumanEval and LeetCodeDataset."""
RECURSION = 50000
"""Frames of a contest's program."""
