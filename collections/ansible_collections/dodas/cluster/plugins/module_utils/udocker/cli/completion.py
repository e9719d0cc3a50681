# SPDX-License-Identifier: Apache-2.0
"""Completion for bash, zsh and fish, made from the table; names of containers and images are asked for."""

from ..errors import Error
from .help import is_shown
from .table import COMMANDS, GENERAL

CONTAINERS = "ps --format '{{.Names}}'"
IMAGES = "images --format '{{.Repository}}:{{.Tag}}'"

BASH = """\
_udocker_names() {{ # containers|images: what there is
  case $1 in
    containers) "${{COMP_WORDS[0]}}" {containers} ;;
    images) "${{COMP_WORDS[0]}}" {images} ;;
  esac 2>/dev/null | tr ',' '\\n'
}}
_udocker() {{
  local current=$2 command="" before words="" names="" index word
  for ((index = 1; index < COMP_CWORD; index++)); do
    word=${{COMP_WORDS[index]}}
    case $word in
      {valued}) ((index++)) ;;
      -* | =) ;;
      *)
        command=$word
        break
        ;;
    esac
  done
  before=${{COMP_WORDS[COMP_CWORD - 1]}}
  case $command in
    "") words="{commands}" ;;
{cases}  esac
  # A colon ends a word for readline: what is before it stays.
  local whole=${{COMP_LINE:0:COMP_POINT}} kept=""
  whole=${{whole##*[[:space:]]}}
  case $before in
    {files}) COMPREPLY=($(compgen -f -- "$current")) && return ;;
  esac
  if [[ $current == -* || -z $command ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    return
  fi
  [[ $whole == *:* ]] && kept=${{whole%:*}}:
  for word in $names; do
    COMPREPLY+=($(compgen -W "$(_udocker_names "$word")" -- "$whole"))
  done
  COMPREPLY=("${{COMPREPLY[@]#"$kept"}}")
}}
complete -o default -F _udocker udocker
"""

ZSH = """\
#compdef udocker
_udocker() {{
  local -a options
  local index command=""
  for ((index = 2; index < CURRENT; index++)); do
    case ${{words[index]}} in
      {valued}) ((index++)) ;;
      -*) ;;
      *)
        command=${{words[index]}}
        break
        ;;
    esac
  done
  case $command in
    "")
      options=({commands})
      _describe command options
      return
      ;;
{cases}  esac
  if [[ ${{words[CURRENT]}} == -* ]]; then
    _describe option options
  elif [[ -z $kinds ]]; then
    _files
  else
    local kind
    for kind in ${{=kinds}}; do
      case $kind in
        containers) compadd -- $(${{words[1]}} {containers} 2>/dev/null | tr ',' '\\n') ;;
        images) compadd -- $(${{words[1]}} {images} 2>/dev/null) ;;
      esac
    done
  fi
}}
compdef _udocker udocker
"""


def script(shell):
    """The text that a shell evaluates; raises Error for one that is not known."""
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in makers:
        raise Error(f"no completion for {shell}: there is bash, zsh and fish")
    return makers[shell]().rstrip("\n")


def kinds_of(arguments):
    """What a command's arguments name: containers, images."""
    kinds = []
    for word in arguments.replace("...", "").replace("[", "").replace("]", "").replace("|", " ").split():
        kind = {"CONTAINER": "containers", "IMAGE": "images"}.get(word)
        if kind and kind not in kinds:
            kinds.append(kind)
    return kinds


def _spellings(options, valued=None):
    for spellings, kind, _value, _text in options:
        if valued is None or kind.startswith(("=", "*")) == valued:
            yield from spellings.split()


def _bash():
    cases = []
    files = {"--config", "--repo"}
    for name, (_group, arguments, _summary, _function, options, _examples, _text) in COMMANDS.items():
        words = " ".join(_spellings([option for option in options if is_shown(option)]))
        kinds = " ".join(kinds_of(arguments))
        cases.append(f'    {name}) words="{words} --help" names="{kinds}" ;;\n'.replace('" --help', '"--help'))
        files |= {spelling for option in options if option[2] in ("FILE", "FOLDER", "PATH")
                  for spelling in option[0].split() if spelling.startswith("--")}  # fmt: skip
    return BASH.format(
        containers=CONTAINERS,
        images=IMAGES,
        valued=" | ".join(_spellings(GENERAL, True)),
        commands=" ".join([*COMMANDS, *_spellings(GENERAL)]),
        cases="".join(cases),
        files=" | ".join(sorted(files)),
    )


def _quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh():
    cases = []
    for name, (_group, arguments, _summary, _function, options, _examples, _text) in COMMANDS.items():
        described = [
            _quoted(spelling + ":" + option[3].replace(":", "\\:"))
            for option in options if is_shown(option) for spelling in option[0].split()
        ]  # fmt: skip
        kinds = _quoted(" ".join(kinds_of(arguments)))
        cases.append("    {}) local kinds={}; options=({}) ;;\n".format(name, kinds, " ".join(described)))
    commands = [_quoted(name + ":" + COMMANDS[name][2]) for name in COMMANDS]
    return ZSH.format(
        valued=" | ".join(_spellings(GENERAL, True)), commands=" ".join(commands), cases="".join(cases),
        containers=CONTAINERS, images=IMAGES,
    )  # fmt: skip


def _fish():
    lines = ["complete -c udocker -f"]
    bare = "__fish_use_subcommand"
    for option in GENERAL:
        lines.append(_fish_option(bare, option))
    for name, (_group, arguments, summary, _function, options, _examples, _text) in COMMANDS.items():
        lines.append(f"complete -c udocker -n {bare} -a {name} -d {_quoted(summary)}")
        seen = _quoted("__fish_seen_subcommand_from " + name)
        lines += [_fish_option(seen, option) for option in options if is_shown(option)]
        for kind in kinds_of(arguments):
            ask = {"containers": CONTAINERS, "images": IMAGES}[kind]
            ask = f"(udocker {ask} 2>/dev/null | string split ,)"
            lines.append(f"complete -c udocker -n {seen} -a {_quoted(ask)} -d {kind[:-1]}")
        if not kinds_of(arguments) and arguments:
            lines.append(f"complete -c udocker -n {seen} -F")
    return "\n".join(lines)


def _fish_option(condition, option):
    spellings, kind, value, text = option
    line = f"complete -c udocker -n {condition}"
    for spelling in spellings.split():
        line += " -l " + spelling[2:] if spelling.startswith("--") else " -s " + spelling[1:]
    if kind in ("=", "*"):
        line += " -r" + ("F" if value in ("FILE", "FOLDER", "PATH") else "")
    return line + " -d " + _quoted(text)
