"""Markdown tables."""


def table(header, rows, text_columns):
    """Rows of text; the columns behind the first `text_columns` hold numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
