"""What a vector is of, where it is not a whole text: a window, a word, a token, a span, a group of rows.

Knows token places and states; nothing of tokenizers, models or files.
"""
