"""Where problems come from: files, hub data sets and benchmarks -> problem records; decontamination.

python -m mathse.problems --help
"""

from mathse.problems.benchmarks import SPLITS
from mathse.problems.columns import parse_fields
from mathse.problems.official import RULES
from mathse.problems.sources import open_source

__all__ = ["RULES", "SPLITS", "open_source", "parse_fields"]
