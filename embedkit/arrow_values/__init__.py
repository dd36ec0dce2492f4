"""Values of kept columns, ids and groups: in Arrow, as JSON, as text, and sorted.

A kept value is a Python value where that is exact (None, str, bool, int, float). Any other value stays in its
Arrow array, with a `Cell` referring to it, so that nothing is rounded, cut, or limited to the years of `datetime`.
"""

from embedkit.arrow_values.order import first_alike, is_missing, number_in, order_keys
from embedkit.arrow_values.stored_types import (
    Cell,
    holds,
    is_binary,
    is_exact,
    is_nested,
    is_string,
    kept_values,
    named_type,
    stored,
    stored_type,
    type_name,
    typed_array,
)
from embedkit.arrow_values.text import has_non_finite, json_values, plain_value, plain_values, text_of, texts

__all__ = [
    "Cell",
    "first_alike",
    "has_non_finite",
    "holds",
    "is_binary",
    "is_exact",
    "is_missing",
    "is_nested",
    "is_string",
    "json_values",
    "kept_values",
    "named_type",
    "number_in",
    "order_keys",
    "plain_value",
    "plain_values",
    "stored",
    "stored_type",
    "text_of",
    "texts",
    "type_name",
    "typed_array",
]
