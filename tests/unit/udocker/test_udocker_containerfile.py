# SPDX-License-Identifier: Apache-2.0
"""Containerfiles: their syntax, and the rules by which variables are put in."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import containerfile
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.containerfile import expand, expand_words, parse
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error


def only(text):
    """The one instruction of a file."""
    (instruction,) = parse(f"FROM scratch\n{text}").stages[0].instructions
    return instruction


def test_lines_are_joined_without_comments_and_empty_lines():
    found = only("RUN a \\\n  # why\n\n  && b \\  \n  && c")
    assert (found.words, found.line, found.json) == (["a   && b   && c"], 2, False)


def test_two_backslashes_do_not_join():
    first, second = parse("FROM scratch\nRUN a \\\\\nRUN b").stages[0].instructions
    assert (first.words, second.words, second.line) == (["a \\\\"], ["b"], 3)


def test_only_line_feeds_end_lines():
    assert only("RUN printf 'a\x0cb'").words == ["printf 'a\x0cb'"]
    assert only("RUN a \\\r\n b\r").words == ["a  b"]


def test_byte_order_mark_and_lower_case():
    assert parse("\ufefffrom scratch as X\n").stages[0].name == "x"


def test_escape_directive_changes_what_joins():
    text = "# syntax=docker/dockerfile:1\n# escape=`\nFROM scratch\nRUN dir `\n  C:\\\nUSER x"
    found = parse(text)
    assert found.escape == "`"
    assert [one.words for one in found.stages[0].instructions] == [["dir   C:\\"], ["x"]]


def test_directive_after_a_comment_is_a_comment():
    assert parse("# a comment\n# escape=`\nFROM scratch").escape == "\\"


def test_json_and_shell_forms():
    assert (only('CMD ["a", "b c"]').words, only('CMD ["a", "b c"]').json) == (["a", "b c"], True)
    # What is no list of strings is a command that begins with the program [.
    assert (only("RUN [ -e /x ]").words, only("RUN [ -e /x ]").json) == (["[ -e /x ]"], False)
    assert only('VOLUME ["/a b"]').words == ["/a b"]
    assert only("VOLUME /a /b").words == ["/a", "/b"]
    assert only("CMD").words == []


def test_flags():
    found = only("RUN --mount=type=cache,target=/a --mount=type=tmpfs,target=/b --network=none make --all")
    assert found.flags == {"mount": ["type=cache,target=/a", "type=tmpfs,target=/b"], "network": "none"}
    assert found.words == ["make --all"]
    found = only("COPY --from=a --link --chown=1:2 x y /z/")
    assert found.flags == {"from": "a", "link": True, "chown": "1:2"}
    assert found.words == ["x", "y", "/z/"]


def test_heredoc_of_run():
    found = only("RUN <<EOF\nset -e\n\necho $a \\\n# kept\nEOF")
    assert found.words == ["<<EOF"]
    assert found.heredocs[0].content == "set -e\n\necho $a \\\n# kept\n"


def test_heredocs_of_copy():
    stage = parse("FROM scratch\nCOPY <<-A <<\"B\" /dir/\n\t\tone\n\tA\n\ttwo\nB\nUSER x").stages[0]
    first, second = stage.instructions[0].heredocs
    assert (first.name, first.content, first.expand) == ("A", "one\n", True)
    assert (second.name, second.content, second.expand) == ("B", "\ttwo\n", False)
    assert stage.instructions[1].line == 7


def test_what_is_no_heredoc():
    assert only("RUN echo $((1 << 2)) '<<EOF'").heredocs == []
    assert only("ENV a=<<EOF").heredocs == []


def test_pairs():
    assert only("ENV a=b c='d e' f=g\\ h").words == [("a", "b"), ("c", "'d e'"), ("f", "g\\ h")]
    assert only("ENV a  b c=d ").words == [("a", "b c=d")]
    assert only("ARG a b=c").words == [("a", None), ("b", "c")]
    assert only("ARG a=").words == [("a", "")]


def test_stages():
    found = parse("ARG v=1\nFROM a:$v AS one\nFROM --platform=$TARGETPLATFORM b\nFROM one as Two")
    assert [(one.base, one.name, one.platform) for one in found.stages] == [
        ("a:$v", "one", None), ("b", None, "$TARGETPLATFORM"), ("one", "two", None),
    ]  # fmt: skip
    assert found.arguments[0].words == [("v", "1")]
    assert found.stage("TWO") is found.stage("2") is found.stages[2]
    assert found.stage("three") is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "F: has no FROM"),
        ("RUN x\nFROM a", "F:1: RUN before the first FROM"),
        ("FROM a\nRUM x", "F:2: unknown instruction RUM: did you mean RUN?"),
        ("FROM a\n\nXYZZY", "F:3: unknown instruction XYZZY: there are ADD"),
        ("FROM a b", "F:1: FROM is written"),
        ("FROM a AS 1st", "F:1: stage '1st'"),
        ("FROM a AS x\nFROM b AS X", "F:2: there is a stage x"),
        ("FROM a\nRUN", "F:2: RUN needs"),
        ("FROM a\nCOPY x", "F:2: COPY needs"),
        ("FROM a\nCOPY --fron=b x y", "F:2: COPY has no option --fron: did you mean from?"),
        ("FROM a\nUSER --x y", "F:2: USER has no option --x: USER takes none"),
        ("FROM a\nCOPY --chown x y", "F:2: COPY --chown needs a value"),
        ("FROM a\nCOPY --from=a --from=b x y", "F:2: COPY --from is given twice"),
        ("FROM a\nCOPY --link=maybe x y", "F:2: COPY --link=maybe"),
        ("FROM a\nENV x", "F:2: ENV x has no value"),
        ("FROM a\nENV x=y z", "F:2: ENV: 'z' is not name=value"),
        ("FROM a\nARG 1x=2", "F:2: ARG 1x=2"),
        ("FROM a\nSHELL /bin/bash -c", "F:2: SHELL is written as a JSON list"),
        ("FROM a\nRUN <<EOF\nx", "F:2: RUN has no line EOF"),
        ("FROM a\nONBUILD FROM b", "F:2: ONBUILD FROM is not allowed"),
        ("FROM a\nONBUILD COPPY b", "F:2: unknown instruction COPPY: did you mean COPY?"),
        ("FROM a\nHEALTHCHECK true", "F:2: HEALTHCHECK is followed by"),
        ("FROM a\nHEALTHCHECK CMD", "F:2: HEALTHCHECK is followed by"),
        ("# escape=x\nFROM a", "F:1: escape=x"),
        ("# escape=`\n# escape=`\nFROM a", "F:2: directive escape is given twice"),
    ],
)
def test_errors_name_the_line_and_what_to_do(text, error):
    with pytest.raises(Error) as caught:
        parse(text, "F")
    assert str(caught.value).startswith(error)


def test_onbuild_keeps_the_text():
    assert only("ONBUILD RUN a b").words == ["RUN a b"]
    trigger = containerfile.parse_trigger("RUN a b", "F")
    assert (trigger.name, trigger.words) == ("RUN", ["a b"])
    with pytest.raises(Error, match=r"F \(ONBUILD of its base\): unknown instruction"):
        containerfile.parse_trigger("RUM a", "F")


VARIABLES = {"a": "one", "e": "", "path": "/usr/lib/x.tar.gz", "b_2": "two"}


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("$a", "one"),
        ("${a}b", "oneb"),
        ("$ab", ""),
        ("$b_2-x", "two-x"),
        ("\\$a", "$a"),
        ("'$a'", "$a"),
        ('"$a b"', "one b"),
        ('"\\$a \\x \\\\"', "$a \\x \\"),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("5$", "5$"),
        ("${u:-x}${e:-y}${a:-z}", "xyone"),
        ("${u-x}${e-y}", "x"),
        ("${u:+x}${e:+y}${a:+z}", "z"),
        ("${e+y}${u+x}", "y"),
        ("${u:-${a}x}", "onex"),
        ("${u:-'}'}", "}"),
        ("${u:-a\\}b}", "a}b"),
        ("${path#*/}", "usr/lib/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "/usr/lib/x.tar"),
        ("${path%%.*}", "/usr/lib/x"),
        ("${path/lib/share}", "/usr/share/x.tar.gz"),
        ("${path//\\//-}", "-usr-lib-x.tar.gz"),
        ("${a:?no}", "one"),
        ("ü$a", "üone"),
    ],
)
def test_variables(word, result):
    assert expand(word, VARIABLES) == result


@pytest.mark.parametrize("word", ["${a", "${a:x}", "${}", "'a", '"a', "${u:?must be given}", "${u:-x"])
def test_what_cannot_be_expanded(word):
    with pytest.raises(ValueError, match="."):
        expand(word, VARIABLES)


def test_words_are_split_before_variables_are_put_in():
    assert expand_words("$a 'b c' $u d\\ e $x", {"a": "1 2", "x": "3"}) == ["1 2", "b c", "d e", "3"]


def test_other_escape_character():
    assert expand("`$a \\$a", VARIABLES, "`") == "$a \\one"
