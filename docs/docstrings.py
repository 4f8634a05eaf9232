"""Docstrings as Sphinx reads them. Ours are plain text in sections ("Args:"), with `code` as in
Markdown; napoleon makes fields of the sections, once a line of them is a name and a colon.
"""

import re

SECTION = re.compile(r"(Args|Raises[^:]*|Returns|Inputs|Outputs)\b.*?(:|cells|outputs)$|(Inputs|Outputs): ")
FIELD = re.compile(r"[\w, ]+: ?")


def to_restructured_text(app, what, name, obj, options, lines):
    """Sphinx's event: `lines` are changed in place."""
    lines[:] = joined([escaped(line) for line in lines])


def escaped(line: str) -> str:
    """L*D and weight_hh_ are no markup, **input** and lists are."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    line = re.sub(r"(?<![*\s])\*(?![*])|(?<![*])\*(?=[,)])", r"\*", line)
    return re.sub(r"(?<=\w)_(?![\w])", r"\_", line)


def joined(lines: list[str]) -> list[str]:
    """Within "Args:" and "Raises:", a line that begins no field goes on with the one before."""
    found, fields = [], False
    for line in lines:
        if line and not line.startswith(" "):
            fields = line in ("Args:", "Raises:")
            if line.startswith(("Inputs: ", "Outputs: ")):
                head, _, rest = line.partition(": ")
                line = f"**{head}:** {rest}\n"
                found += [f"**{head}:** {rest}", ""]
                continue
        within = fields and line.startswith("    ")
        goes_on = within and found[-1].startswith("    ") and not FIELD.match(line[4:])
        if within and (goes_on or found[-1].endswith(",")) and not line.startswith("     "):
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    return found
