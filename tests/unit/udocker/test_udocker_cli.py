# SPDX-License-Identifier: Apache-2.0
"""The command line without containers: what is understood, what is said of it, what it looks like."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import bundle, cli, containers
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.cli import (
    completion,
    help,
    output,
    parser,
    progress,
    table,
    template,
)
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.config import Config
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error


def parsed(name, *words):
    declared = table.COMMANDS[name]
    options = parser.parse(declared[4], words, name, name in parser.FIRST_ENDS_OPTIONS)
    parser.check_arguments(name, declared[1], options.arguments)
    return options


def least(arguments):
    """The fewest words that a command takes."""
    return ["bash" if "bash" in part else "x" for part in arguments.split() if not part.startswith("[")]


# The table


@pytest.mark.parametrize("name", sorted(table.COMMANDS))
def test_every_command_is_complete(name):
    group, _arguments, summary, function, options, examples, text = table.COMMANDS[name]
    assert group in dict(table.GROUPS)
    assert summary and not summary.endswith(".")
    module, attribute = function.split(".")
    path = Path(cli.__file__).parent / f"{module}.py"
    assert f"def {attribute}(session, options)" in path.read_text()
    assert text == text.strip()
    spelled = [spelling for option in options for spelling in option[0].split()]
    assert len(spelled) == len(set(spelled))
    for _spellings, kind, value, about in options:
        assert kind.rstrip("-!") in ("", "=", "*", "?")
        assert bool(value) == (kind[:1] in ("=", "*", "?")) or kind.endswith(("-", "!"))
        assert about or kind.endswith("-")
    for line, _what in examples:
        if line.split()[0] == name and "$(" not in line:
            words = [word for word in line.split()[1:] if word not in ("|", "<", ">")]
            parser.parse(options, words[: len(words) - ("|" in line) * 2], name, name in parser.FIRST_ENDS_OPTIONS)


@pytest.mark.parametrize("name", sorted(table.COMMANDS))
def test_every_option_is_understood_in_each_way(name):
    _group, arguments, _summary, _function, options, *_rest = table.COMMANDS[name]
    words = least(arguments)
    for spellings, kind, _value, _about in options:
        attribute = parser.name_of(spellings)
        for spelling in spellings.split():
            if kind.endswith("!"):
                with pytest.raises(parser.UsageError, match="not possible"):
                    parsed(name, f"{spelling}=x", *words)
                continue
            valued = kind.rstrip("-") in ("=", "*")
            forms = [[spelling, "v"], [f"{spelling}=v"]] if valued else [[spelling]]
            if valued and len(spelling) == 2:
                forms.append([f"{spelling}v"])
            for form in forms:
                found = parsed(name, *form, *words)
                expected = (["v"] if kind[0] == "*" else "v") if valued else "" if kind[:1] == "?" else True
                assert getattr(found, attribute) == expected
                assert found.given == {attribute}
                assert found.arguments == words


@pytest.mark.parametrize("name", sorted(table.COMMANDS))
def test_every_command_names_the_nearest_option(name):
    with pytest.raises(parser.UsageError) as raised:
        parsed(name, "--no-such-option-at-all")
    assert "unknown option --no-such-option-at-all" in str(raised.value)
    assert raised.value.command == name
    long_ones = [spelling for option in table.COMMANDS[name][4] for spelling in option[0].split() if len(spelling) > 6]
    if long_ones:
        with pytest.raises(parser.UsageError, match="did you mean"):
            parsed(name, long_ones[0][:-1] + "#")


def test_options_of_containers_are_those_that_libraries_take():
    """Whatever `run` takes and the library knows has the same name in both."""
    named = {parser.name_of(option[0]) for option in table.RUN}
    only_here = {"domainname", "expose", "force", "quiet", "index", "registry", "httpproxy"}
    effective = {parser.name_of(option[0]) for option in table.RUN if not option[1].endswith(("-", "!"))}
    assert effective - set(containers.OPTIONS) <= only_here
    assert set(containers.OPTIONS) - {"dialect"} <= named


# Words


def test_options_after_the_image_belong_to_the_command():
    options = parsed("run", "--rm", "-it", "image", "ls", "--rm", "-la", "--", "x")
    assert options.rm and options.interactive and options.tty
    assert options.arguments == ["image", "ls", "--rm", "-la", "--", "x"]


def test_options_of_others_may_come_behind():
    options = parsed("rm", "one", "-f", "two")
    assert options.force and options.arguments == ["one", "two"]
    assert parsed("rm", "--", "-f").arguments == ["-f"]


@pytest.mark.parametrize(
    "words, attribute, value",
    [
        (["-v", "/a:/b", "--volume=/c", "-v/d"], "volume", ["/a:/b", "/c", "/d"]),
        (["-e", "A=1", "--env=B=2=3"], "env", ["A=1", "B=2=3"]),
        (["--entrypoint", ""], "entrypoint", ""),
        (["--entrypoint="], "entrypoint", ""),
        (["-u=0:0"], "user", "0:0"),
        (["-p8080:80", "-p", "9090:90"], "publish", ["8080:80", "9090:90"]),
        (["--rm=true"], "rm", True),
        (["--rm=false"], "rm", False),
        (["-itd"], "detach", True),
        (["-itw/tmp"], "workdir", "/tmp"),
        (["--net", "none"], "network", "none"),
        (["--pull", "always"], "pull", "always"),
        (["--workdir", "-odd"], "workdir", "-odd"),
    ],
)
def test_spellings_of_run(words, attribute, value):
    options = parsed("run", *words, "image")
    assert getattr(options, attribute) == value
    assert options.arguments == ["image"]


@pytest.mark.parametrize(
    "name, words, said",
    [
        ("run", ["--name"], "--name needs a value"),
        ("run", ["--rm=maybe", "x"], "takes no value but true and false"),
        ("run", ["--link=a", "x"], "--link is not possible: containers share the host's network"),
        ("run", ["-Z", "x"], "unknown option -Z"),
        ("rm", [], "rm needs CONTAINER"),
        ("tag", ["one"], "tag needs IMAGE NEW-NAME"),
        ("version", ["x"], "version takes no arguments, and not 'x'"),
        ("tag", ["a", "b", "c"], "and not 'c'"),
    ],
)
def test_what_is_wrong_is_named(name, words, said):
    with pytest.raises(parser.UsageError) as raised:
        parsed(name, *words)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "words, name, rest",
    [
        (["-D", "--repo", "/r", "ps", "-m"], "ps", ["-m"]),
        (["--repo=/r", "--quiet", "run", "--rm", "x"], "run", ["--rm", "x"]),
        (["-q"], None, []),
    ],
)
def test_general_options_come_first(words, name, rest):
    general, found, left = parser.split(words)
    assert (found, left) == (name, rest)
    assert general.repo == ("/r" if "/r" in " ".join(words) else None)


@pytest.mark.parametrize(
    "words, name, rest",
    [
        (["container", "ls", "-a"], "ps", ["-a"]),
        (["image", "rm", "x"], "rmi", ["x"]),
        (["image", "prune"], "image-prune", []),
        (["system", "df"], "df", []),
        (["buildx", "build", "."], "build", ["."]),
        (["ls"], "ps", []),
    ],
)
def test_groups_of_docker(words, name, rest):
    assert parser.resolve(words[0], words[1:]) == (name, rest)


@pytest.mark.parametrize(
    "words, said",
    [
        (["rnu"], "did you mean run"),
        (["container", "lss"], "did you mean ls"),
        (["container"], "One of: attach"),
        (["pause", "x"], "pause is not possible"),
        (["network", "create"], "network is not possible"),
    ],
)
def test_commands_that_are_not(words, said):
    with pytest.raises(parser.UsageError) as raised:
        parser.resolve(words[0], words[1:])
    assert said in str(raised.value)


# Help


@pytest.mark.parametrize("name", sorted(table.COMMANDS))
@pytest.mark.parametrize("dialect", ["udocker", "docker"])
def test_help_of_every_command(name, dialect):
    text = help.command(name, dialect)
    assert text.startswith(f"Usage: {dialect} {name}")
    assert all(len(line) <= 120 for line in text.splitlines())
    for option in table.COMMANDS[name][4]:
        assert help.is_shown(option) == (f"{sorted(option[0].split(), key=len)[-1]}" in text.partition("Taken")[0]) or (
            not help.is_shown(option)
        )


def test_help_of_run_teaches():
    text = help.command("run", "udocker")
    for part in (
        "Usage: udocker run [OPTIONS] [IMAGE|CONTAINER] [COMMAND...]",
        "  -e, --env=NAME[=VALUE]            Set a variable; without a value, to the host's",
        "      --rm                          Remove the container when it has ended",
        "Taken, without effect here: ",
        "Examples:\n  udocker run --rm debian cat /etc/os-release",
        "128+N that signal N ended it",
    ):
        assert part in text


def test_overview_lists_every_command():
    text = help.overview("udocker")
    assert all(f"\n  {name:<12} " in text for name in table.COMMANDS)
    assert "Usage: udocker [OPTIONS] COMMAND" in text
    assert "To begin:" in text


def test_the_reference_in_the_documentation_is_what_the_table_says():
    text = (Path(__file__).parents[3] / "docs" / "udocker-reference.md").read_text()
    assert text == help.reference(), "python3 -m ...udocker.cli.help > docs/udocker-reference.md"


# Templates


FACTS = {
    "Id": "abc", "Name": "/web", "Config": {"Env": ["A=1", "B=2"], "Labels": {"a.b": "c", "d": "e"}, "Image": "x"},
    "State": {"Running": True, "ExitCode": 0, "Error": 'a "quoted"\nline', "Pid": 7}, "Mounts": [],
    "Ports": {"80/tcp": [{"HostPort": "8080"}]}, "None": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{{.Id}}", "abc"),
        ("{{ .State.Running }} {{.State.ExitCode}}", "true 0"),
        ("{{json .State.Error}}", '"a \\"quoted\\"\\nline"'),
        ("{{json .Config.Env}}", '["A=1", "B=2"]'),
        ("{{range .Config.Env}}<{{.}}>{{end}}", "<A=1><B=2>"),
        ("{{range $i, $e := .Config.Env}}{{$i}}={{$e}};{{end}}", "0=A=1;1=B=2;"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}:{{$v}} {{end}}", "a.b:c d:e "),
        ("{{range .Mounts}}x{{else}}none{{end}}", "none"),
        ('{{index .Config.Labels "a.b"}}', "c"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ('{{index .Config.Labels "no"}}', "<no value>"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .None}}a{{else if .Id}}b{{else}}c{{end}}", "b"),
        ("{{with .Config}}{{.Image}}{{end}}", "x"),
        ("{{with $x := .Config}}{{$x.Image}}{{$.Id}}{{end}}", "xabc"),
        ('{{join .Config.Env ","}}', "A=1,B=2"),
        ("{{.Name | upper | json}}", '"/WEB"'),
        ('{{printf "%s-%d" .Id .State.Pid}}', "abc-7"),
        ("{{len .Config.Env}}", "2"),
        ('{{eq .Id "abc"}} {{ne .Id "abc"}} {{not .State.Running}}', "true false false"),
        ('{{if and .State.Running (eq .State.ExitCode 0)}}ok{{end}}', "ok"),
        ("a {{- .Id -}} b", "aabcb"),
        ("{{/* nothing */}}{{.Id}}", "abc"),
        ('{{"{{"}}{{.Id}}', "{{abc"),
        ("{{println .Id}}", "abc\n"),
        ('{{slice .Id 0 2}}{{slice .Id 1}}', "abbc"),
        ("{{.Config.Env}} {{.Config.Labels}}", "[A=1 B=2] map[a.b:c d:e]"),
        ('ContainerId="{{.Id}}"\nPid={{.State.Pid}}\n', 'ContainerId="abc"\nPid=7\n'),
    ],
)  # fmt: skip
def test_templates(text, expected):
    assert template.render(text, FACTS) == expected


@pytest.mark.parametrize(
    "text, said",
    [
        ("{{.Nothing}}", "asks for .Nothing, and there is: Config Id"),
        ("{{.Id", "not closed"),
        ("{{if .Id}}x", "lacks an {{end}}"),
        ("{{end}}", "ends nothing"),
        ("{{nonsense .Id}}", "function nonsense is not known"),
        ("{{.Id.More}}", "of what has no fields"),
        ("{{$x}}", "knows no variable $x"),
        ("{{.Id .Name}}", "cannot be read from"),
        ("{{}}", "empty"),
    ],
)
def test_templates_that_are_wrong(text, said):
    with pytest.raises(Error) as raised:
        template.render(text, FACTS)
    assert said in str(raised.value)


def test_tables_of_templates_are_aligned():
    rows = [{"ID": "1", "Name": "one"}, {"ID": "22222", "Name": "two"}]
    lines = template.rows("table {{.ID}}\t{{.Name}}", rows, {"ID": "CONTAINER ID"})
    assert lines == ["CONTAINER ID   NAME", "1              one", "22222          two"]
    assert template.rows("{{.ID}}", rows) == ["1", "22222"]
    assert template.rows("json", rows[:1]) == ['{"ID": "1", "Name": "one"}']


# Sizes, times, progress


@pytest.mark.parametrize(
    "count, text", [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_234_567, "1.23MB"), (104e6, "104MB"), (5e15, "5e+03TB")]
)
def test_sizes(count, text):
    assert output.size(count) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (61, "1 minute"), (7300, "2 hours"),
     (90000, "25 hours"), (200000, "2 days"), (86400 * 15, "2 weeks"), (86400 * 400, "13 months")],
)  # fmt: skip
def test_spans(seconds, text):
    assert output.span(seconds) == text


def test_progress_is_plain_lines_where_no_terminal_is():
    stream = io.StringIO()
    with progress.Progress(3, stream) as shown:
        states = ("waiting", 0), ("downloading", 0), ("downloading", 500), ("unpacking", 1000), ("done", 1000)
        for state, done in states:
            shown("layer", digest="sha256:" + "ab" * 32, done=done, total=1000, state=state)
        shown("warning", message="take care")
    assert stream.getvalue().splitlines() == [
        "Info: layer abababababab: downloading (1kB)",
        "Info: layer abababababab: unpacking (1kB)",
        "Info: layer abababababab: done (1kB)",
        "Warning: take care",
    ]


def test_progress_draws_a_line_a_layer_on_a_terminal():
    stream = io.StringIO()
    with progress.Progress(3, stream, terminal=True, columns=80, lines=24) as shown:
        shown("layer", digest="sha256:" + "ab" * 32, done=0, total=2000, state="downloading")
        shown("layer", digest="sha256:" + "cd" * 32, done=0, total=2000, state="exists")
        shown.next = 0
        shown("layer", digest="sha256:" + "ab" * 32, done=1000, total=2000, state="downloading")
    last = stream.getvalue().split("\x1b[2A\x1b[J")[-1].splitlines()
    assert last[0].startswith("abababababab  downloading  [============>           ]     1kB/2kB")
    assert last[1].startswith("cdcdcdcdcdcd  already here")
    assert all(len(line) < 80 for line in last)


def test_progress_fits_a_small_terminal():
    stream = io.StringIO()
    with progress.Progress(3, stream, terminal=True, columns=40, lines=6) as shown:
        for number in range(30):
            shown("layer", digest=f"sha256:{number:064x}", done=0, total=9, state="done" if number < 20 else "waiting")
    drawn = stream.getvalue().split("\x1b[J")[-1].splitlines()
    assert drawn[0] == "20 of 30 layers done"
    assert len(drawn) == 4


# Configuration


def config(tmp_path, text, environment=None, **more):
    path = tmp_path / "own.conf"
    path.write_text(text)
    environment = {"UDOCKER_NOSYSCONF": "1", **(environment or {})}
    return Config(file=str(path), environment=environment, **more)


def test_values_have_their_types(tmp_path):
    found = config(
        tmp_path,
        "[DEFAULT]\n# a comment\nverbose_level = 5\nhttp_insecure = True\n"
        "registry_mirrors = a:5000, b:5000\nhttp_proxy = 'socks5://u:p%40@h:1'\ntmpdir=/x\n"
        "docker_registries = {'a.b': ['http://c', 'd'], 'e.f': 'g'}\ninsecure_registries = ('a:1',\n  'b:2')\n",
    )
    assert (found.verbose_level, found.http_insecure, found.tmpdir) == (5, True, "/x")
    assert found.registry_mirrors == ["a:5000", "b:5000"]
    assert found.http_proxy == "socks5://u:p%40@h:1"
    assert found.docker_registries == {"a.b": "http://c", "e.f": "g"}
    assert found.insecure_registries == ["a:1", "b:2"]
    assert found.warnings == []


def test_unknown_names_and_wrong_values_are_told(tmp_path):
    found = config(tmp_path, "verbose_level = many\nno_such = 1\nnonsense\ntarball = x\ncmd = y\nreposdir = z\n")
    assert [text.partition(", ")[2] for text in found.warnings] == [
        "line 1: verbose_level: 'many' is no number",
        "line 2: nothing is called no_such",
        "line 3: 'nonsense' is no `name = value`",
        "line 6: the store is one folder: UDOCKER_DIR or topdir says where",
    ]
    assert found.verbose_level == 3


def test_what_comes_later_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".udocker").mkdir()
    (tmp_path / ".udocker" / "udocker.conf").write_text("timeout = 1\nctimeout = 1\nverbose_level = 1\nengine = a\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "udocker.conf").write_text("ctimeout = 2\nverbose_level = 2\nengine = b\ntopdir = /no\n")
    found = config(
        tmp_path, "verbose_level = 4\nengine = c\n", {"UDOCKER_ENGINE": "d", "UDOCKER_DIR": str(tmp_path / "store")}
    )
    assert (found.timeout, found.ctimeout, found.verbose_level, found.engine) == (1, 2, 4, "d")
    assert found.topdir == str(tmp_path / "store")
    assert config(tmp_path, "", {}, root="/repo").topdir == "/repo"


def test_a_configuration_that_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(Error, match="cannot be read"):
        Config(file=str(tmp_path / "none"))


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell):
    text = completion.script(shell)
    for name in table.COMMANDS:
        assert name in text
    assert "--volume" in text or "-l volume" in text


@pytest.mark.parametrize(
    "line, expected",
    [
        ("udocker ru", ["run"]),
        ("udocker run --entry", ["--entrypoint"]),
        ("udocker rm wo", ["work"]),
        ("udocker --repo /x rmi deb", ["debian:12"]),
        ("udocker run deb", ["debian:12"]),
        ("udocker rmi debian:1", ["12"]),
    ],
)
def test_bash_completes(tmp_path, line, expected):
    (tmp_path / "udocker").write_text(
        '#!/bin/sh\ncase $1 in ps) echo work,other ;; images) echo debian:12; echo alpine:3 ;; esac\n'
    )
    (tmp_path / "udocker").chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        {completion.script("bash")}
        COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
        COMP_WORDS=({line.replace(":", " : ")}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _udocker udocker "${{COMP_WORDS[COMP_CWORD]}}" ""
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == expected, done.stderr


# The one file


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "udocker"
    bundle.write(str(path))
    return path


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def test_the_program_runs_in_every_way(program, tmp_path):
    expected = f"version: {bundle.version()}\n"
    assert run(program, "version").stdout == expected
    assert run(sys.executable, "-IS", program, "version").stdout == expected
    assert run("sh", "udocker", "version", cwd=program.parent).stdout == expected
    link = tmp_path / "docker"
    link.symlink_to(program)
    assert run(link, "--version").stdout.startswith("Docker version ")
    assert run(program, "docker", "-v").stdout.startswith("Docker version ")
    module = run(sys.executable, "-m", cli.__name__.rpartition(".")[0], "version",
                 env={"PYTHONPATH": ":".join(filter(None, sys.path))})  # fmt: skip
    assert module.stdout == expected


def test_the_same_sources_make_the_same_bytes(program, tmp_path):
    path = tmp_path / "again"
    assert run(sys.executable, "-IS", bundle.__file__, path).returncode == 0
    assert path.read_bytes() == program.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o755


def test_another_python_compiles_once_into_the_cache(program, tmp_path):
    """A Python that reads other compiled code is what a program is to this one whose tag is another."""
    from ansible_collections.dodas.cluster.plugins.module_utils.udocker import boot

    other = tmp_path / "udocker"
    other.write_bytes(program.read_bytes().replace(f"'tag': '{boot.tag()}'".encode(), b"'tag': '00000000'"))
    other.chmod(0o755)
    cache = tmp_path / "cache"
    assert run(other, "version", env={"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"}).stdout
    (made,) = (cache / "udocker").iterdir()
    before = made.stat().st_mtime_ns
    assert run(other, "version", env={"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"}).stdout
    assert made.stat().st_mtime_ns == before
    made.write_bytes(b"damaged")
    assert run(other, "version", env={"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"}).stdout
    (cache / "udocker").chmod(0o777)  # others could put code there
    made.write_bytes(b"damaged")
    assert run(other, "version", env={"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"}).stdout
    assert made.read_bytes() == b"damaged"
    assert run(other, "version", env={"XDG_CACHE_HOME": "/proc/none", "PATH": "/usr/bin:/bin"}).stdout


def test_errors_have_a_status_and_a_way_on(program):
    done = run(program, "rnu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: unknown command rnu: did you mean run?\nSee: udocker --help\n"
    assert run(program, "docker", "run", "--nme=x").returncode == 125
    assert "Traceback" in run(program, "--debug", "rnu").stderr
    assert run(program).stdout.startswith("Usage: udocker")
    assert run(program, "run", "--help").stdout.startswith("Usage: udocker run")


def test_a_reader_that_goes_away_is_no_error(program):
    done = subprocess.run(f"{program} help run | head -1; echo ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash",
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] in ("0", "141")


def test_without_python_it_says_what_is_missing(program, tmp_path):
    done = run("/bin/sh", program, "version", env={"PATH": str(tmp_path)})
    assert done.returncode == 127
    assert "needs Python 3.8 or newer" in done.stderr


# What start-up is made of: each of these takes longer to import than all of the command line.
HEAVY = {
    "argparse", "collections", "contextlib", "ctypes", "dataclasses", "datetime", "enum", "functools", "hashlib",
    "importlib.util", "inspect", "json", "logging", "pathlib", "random", "re", "shutil", "socket", "ssl", "subprocess",
    "tempfile", "threading", "typing", "urllib", "zipfile",
}  # fmt: skip


@pytest.mark.parametrize("words", [["version"], ["ps"], ["ps", "-m", "-q"], ["rm", "--help"], ["showconf"]])
def test_what_needs_nothing_loads_nothing(program, tmp_path, words):
    command = [sys.executable, "-IS", "-X", "importtime", "-c", bundle.STARTS, program, f"--repo={tmp_path}", *words]
    done = run(*command, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "udocker.cli" in loaded
    assert not loaded & HEAVY


def test_the_line_of_shell_is_the_one_that_is_tested(program):
    assert f"'{bundle.STARTS}' \"$0\" \"$@\"".encode() in program.read_bytes()[: bundle.SHELL]
