# SPDX-License-Identifier: Apache-2.0
"""Help, made from the table: an overview, a command's options and examples, and the reference in Markdown."""

from .table import COMMANDS, GENERAL, GROUPS

WIDTH = 100


def overview(dialect):
    """What there is: commands by group, general options, a way to begin."""
    lines = [f"Usage: {dialect} [OPTIONS] COMMAND [ARGUMENTS]", ""]
    lines.append("Containers without root: get images, run them, build them.")
    for key, title in GROUPS:
        lines += ["", title + ":"]
        for name, (group, _arguments, summary, *_rest) in COMMANDS.items():
            if group == key:
                lines.append(f"  {name:<12} {summary}")
    lines += ["", "Options before the command:", *_options(GENERAL), "", "To begin:"]
    for line, text in (
        ("pull debian", "get an image"),
        ("run --rm debian cat /etc/os-release", "run a command in it"),
        ("run -it --name work debian bash", "a shell, in a container that stays"),
        ("ps", "what containers there are"),
        ("COMMAND --help", "options and examples of a command"),
    ):
        lines.append("  {:<52} {}".format(dialect + " " + line, text).rstrip())
    return "\n".join(lines) + "\n"


def command(name, dialect):
    """Help of one command."""
    _group, arguments, summary, _function, options, examples, text = COMMANDS[name]
    shown = [option for option in options if is_shown(option)]
    usage = " ".join(filter(None, (dialect, name, "[OPTIONS]" if shown else "", arguments)))
    lines = ["Usage: " + usage, "", summary + "."]
    if text:
        lines += ["", *wrapped(text, WIDTH)]
    if shown:
        lines += ["", "Options:", *_options(shown)]
    hidden = [option[0] for option in options if "-" in option[1]]
    if hidden:
        lines += ["", *wrapped("Taken, without effect here: " + " ".join(hidden), WIDTH)]
    if examples:
        lines += ["", "Examples:"]
        for line, what in examples:
            line = f"  {dialect} {line}"
            lines.append(f"{line:<60}  {what}".rstrip())
    return "\n".join(lines) + "\n"


def is_shown(option):
    """Whether help lists an option: those without effect and those that are refused stay out."""
    return bool(option[3]) and not option[1].endswith(("-", "!"))


def _options(options):
    """Lines about options; the texts begin in one column."""
    lines = []
    for spellings, kind, value, text in options:
        names = sorted(spellings.split(), key=len)
        left = ("" if len(names[0]) == 2 else "    ") + ", ".join(names)
        if value:
            left += f"[={value}]" if kind == "?" else ("=" if "--" in left else " ") + value
        first, *rest = wrapped(text, WIDTH - 36)
        lines.append(f"  {left:<32}  {first}")
        lines += [" " * 36 + line for line in rest]
    return lines


def wrapped(text, width):
    """Lines of at most `width` characters, where words allow."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = line + " " + word if line else word
    return [*lines, line]


def reference():
    """docs/udocker-reference.md: commands and their options, configuration, variables."""
    from ..config import MEANING, VARIABLES

    lines = ["# udocker: reference", "", *wrapped(_ABOUT, 118), "", "Options before the command:", ""]
    lines += _table(GENERAL)
    for key, title in GROUPS:
        lines += ["", "## " + title]
        for name, (group, arguments, summary, _function, options, examples, text) in COMMANDS.items():
            if group != key:
                continue
            usage = " ".join(filter(None, ("udocker", name, "[OPTIONS]" if options else "", arguments)))
            about = summary + "." + (" " + text if text else "")
            lines += ["", f"### {name}", "", f"    {usage}", "", *wrapped(about, 118)]
            shown = [option for option in options if is_shown(option)]
            if shown:
                lines += ["", *_table(shown)]
            hidden = " ".join(f"`{option[0].split()[-1]}`" for option in options if "-" in option[1])
            if hidden:
                lines += ["", *wrapped("Taken, without effect: " + hidden, 118)]
            if examples:
                lines += ["", "```"]
                lines += [f"udocker {line:<64} # {what}" if what else f"udocker {line}" for line, what in examples]
                lines.append("```")
    lines += ["", "## Configuration", "", *wrapped(_FILES, 118), ""]
    lines += ["| name | default | variable | |", "|---|---|---|---|"]
    variables = {name: variable for variable, name in VARIABLES.items()}
    for name, default, meaning in MEANING:
        shown = " ".join(default) if isinstance(default, list) else str(default or "")
        variable = f"`{variables[name]}`" if name in variables else ""
        lines.append(f"| `{name}` | {f'`{shown}`' if shown else ''} | {variable} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


_ABOUT = (
    "What `udocker --help` and `udocker COMMAND --help` say. An option's value is written --x=y or --x y; short ones "
    "may be joined: -it. Made from the program's table of commands: `python3 -m "
    "ansible_collections.dodas.cluster.plugins.module_utils.udocker.cli.help`."
)
_FILES = (
    "Read in this order, the last one holds: /etc/udocker.conf (not with UDOCKER_NOSYSCONF), ~/.udocker/udocker.conf, "
    "udocker.conf of the store, the file of --config, variables, options. Lines are `name = value`. Names of udocker "
    "1.3.17 that have no meaning here are taken; unknown ones are warned of. `udocker showconf` prints what holds."
)


def _table(options):
    lines = ["| option | |", "|---|---|"]
    for spellings, kind, value, text in options:
        names = ", ".join(f"`{spelling}`" for spelling in sorted(spellings.split(), key=len))
        shown = "" if not value else f" [`{value}`]" if kind == "?" else f" `{value}`"
        lines.append(f"| {names}{_cell(shown)} | {_cell(text)} |")
    return lines


def _cell(text):
    return text.replace("|", "\\|")


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference())
