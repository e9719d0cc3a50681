# SPDX-License-Identifier: Apache-2.0
"""Reads a command line by the table: --x=y, --x y, -xy, -abc; what follows a command's first argument stays as it is.

argparse would be half of start-up, and knows no options that may be anywhere but behind the image.
"""

from ..errors import Error
from .table import ALIASES, COMMANDS, GENERAL, REFUSED, SUBCOMMANDS

# After the first argument, everything belongs to the program that is run.
FIRST_ENDS_OPTIONS = ("run", "exec", "create", "top")

TRUE = ("true", "1", "t", "yes")
FALSE = ("false", "0", "f", "no")


class UsageError(Error):
    """The command line is wrong; `command` is where help can be had."""

    def __init__(self, message, command=None, status=1):
        super().__init__(message, status)
        self.command = command


class Options:
    """Values by name, as attributes: flags are bool, single values text or None, others lists."""

    def __init__(self, declared):
        self.arguments = []
        self.given = set()  # names of options that the line has
        self.without_effect = []  # their spellings
        for spellings, kind, _value, _help in declared:
            setattr(self, name_of(spellings), [] if "*" in kind else None if kind[:1] in ("=", "?") else False)


def name_of(spellings):
    """The attribute of an option: its first long spelling, without dashes."""
    for spelling in spellings.split():
        if spelling.startswith("--"):
            return spelling[2:].replace("-", "_")
    return spellings.split()[0][1:]


def parse(declared, words, command=None, first_ends=False):
    """The Options that `words` stand for; raises UsageError. `declared` as in the table."""
    found = Options(declared)
    spelled = {}
    for option in declared:
        for spelling in option[0].split():
            spelled.setdefault(spelling, option)
    words = list(words)
    words.reverse()
    while words:
        word = words.pop()
        if word == "--":
            found.arguments.extend(reversed(words))
            break
        if word[:1] != "-" or word == "-":
            found.arguments.append(word)
            if first_ends:
                found.arguments.extend(reversed(words))
                break
            continue
        if word.startswith("--"):
            spelling, equals, value = word.partition("=")
            option = spelled.get(spelling)
            if option is None:
                raise _unknown(spelling, spelled, command)
            _take(found, option, spelling, value if equals else None, words, command)
        else:
            _take_letters(found, spelled, word, words, command)
    return found


def _take_letters(found, spelled, word, words, command):
    """-a, -ab, -ovalue, -o value, -o=value."""
    position = 1
    while position < len(word):
        spelling = "-" + word[position]
        option = spelled.get(spelling)
        if option is None:
            raise _unknown(word if position == 1 else spelling, spelled, command)
        rest = word[position + 1 :]
        if rest[:1] == "=":
            _take(found, option, spelling, rest[1:], words, command)
            return
        if option[1][:1] in ("=", "*"):
            _take(found, option, spelling, rest or None, words, command)
            return
        _take(found, option, spelling, None, words, command)
        position += 1


def _take(found, option, spelling, value, words, command):
    spellings, kind, metavar, text = option
    name = name_of(spellings)
    if kind.endswith("!"):
        raise UsageError(f"{spelling} is not possible: {text}", command)
    if kind.endswith("-"):
        found.without_effect.append(spelling)
        kind = kind[:-1]
    found.given.add(name)
    if kind in ("=", "*"):
        if value is None:
            if not words:
                raise UsageError(f"{spelling} needs a value: {spelling}={metavar or 'VALUE'}", command)
            value = words.pop()
        if kind == "=":
            setattr(found, name, value)
        else:
            getattr(found, name).append(value)
    elif kind == "?":
        setattr(found, name, "" if value is None else value)
    elif value is None or value.lower() in TRUE:
        setattr(found, name, True)
    elif value.lower() in FALSE:
        setattr(found, name, False)
    else:
        raise UsageError(f"{spelling} is a flag: it takes no value but true and false", command)


def _unknown(spelling, spelled, command):
    message = f"unknown option {spelling}"
    shown = [name for name in spelled if name.startswith("--")]
    return UsageError(message + suggestion(spelling, shown), command)


def suggestion(word, known):
    """", did you mean X?", or nothing."""
    import difflib

    close = difflib.get_close_matches(word, known, 1, 0.6) or [name for name in known if name.startswith(word)][:1]
    return f": did you mean {close[0]}?" if close else ""


def split(words):
    """A command line's (general Options, command's name or None, the words after it); raises UsageError."""
    words = list(words)
    count = 0
    valued = {spelling for spellings, kind, _v, _h in GENERAL if kind for spelling in spellings.split()}
    while count < len(words) and words[count].startswith("-"):
        count += 2 if words[count] in valued else 1
    general = parse(GENERAL, words[:count])
    name = words[count] if count < len(words) else None
    return general, name, words[count + 1 :]


def resolve(name, words):
    """The table's name of a command, and its words, after docker's groups; raises UsageError."""
    if name in SUBCOMMANDS and name not in COMMANDS:
        group = SUBCOMMANDS[name]
        if not words or words[0] in ("-h", "--help"):
            raise UsageError("{} what? One of: {}".format(name, ", ".join(sorted(group))), name)
        if words[0] not in group:
            raise UsageError(f"unknown command {name} {words[0]}" + suggestion(words[0], list(group)), name)
        return group[words[0]], words[1:]
    name = ALIASES.get(name, name)
    if name in COMMANDS:
        return name, words
    if name in REFUSED:
        raise UsageError(f"{name} is not possible: {REFUSED[name]}")
    raise UsageError(f"unknown command {name}" + suggestion(name, list(COMMANDS)))


def check_arguments(command, arguments, given):
    """Raises UsageError unless there are as many arguments as the table says."""
    least, most = 0, 0
    for part in arguments.split():
        if part.endswith("...") or part.endswith("...]"):
            most = None
        elif most is not None:
            most += 1
        least += not part.startswith("[")
    if len(given) < least:
        raise UsageError(f"{command} needs {arguments}", command)
    if most is not None and len(given) > most:
        what = arguments or "no arguments"
        raise UsageError(f"{command} takes {what}, and not {given[most]!r}", command)
