"""The parts of docs/compare.md that are made by programs, between markers.

Apart from these, of which each makes some of them.
"""

import sys

BEGIN, END = "<!-- made by make compare: {} -->\n", "<!-- end of {} -->"


def table(rows):
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write(path, parts):
    """Puts each text into the part of that name."""
    text = path.read_text()
    for part, made in parts.items():
        begin, end = BEGIN.format(part), END.format(part)
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            sys.exit(f"{path} has no markers for {part}")
        text = f"{before}{begin}\n{made}\n{end}{after}"
    path.write_text(text)
