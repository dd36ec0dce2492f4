"""Compares two outputs row by row, and the spaces of their vectors; needs no model.

rows.py         the rows of an output, and which of two outputs belong together
vectors.py      their vectors side by side, in memory that does not grow with the outputs
similarity.py   cosines, linear CKA and shared neighbours
compare.py      the comparison
describe.py     its result as lines and as JSON
"""

from embedkit.comparison.compare import Comparison, ComparisonConfig, VariantComparison, compare_outputs
from embedkit.comparison.describe import as_json, as_lines

__all__ = ["Comparison", "ComparisonConfig", "VariantComparison", "as_json", "as_lines", "compare_outputs"]
