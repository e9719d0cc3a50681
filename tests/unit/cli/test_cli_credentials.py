# SPDX-License-Identifier: Apache-2.0
"""What the credentials service gives for a login, and what it was given, from the command line."""

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import proxies
from dodas import login


def test_explain(logged_in):
    found = logged_in.json("credentials", "explain")
    assert found["subject"] == "alice"
    assert found["kinds"]["proxy"]["rule"] == "people" and found["kinds"]["host"]["rule"] is None
    shown = logged_in.run("credentials", "explain").stdout
    assert found["kinds"]["eec"]["dn"] in " ".join(shown.split()) and "not for this kind" in " ".join(shown.split())


def test_explain_a_token_of_standard_input(logged_in):
    token = login.access_token(logged_in.deployment)
    login_file = logged_in.folder / "login.json"
    login_file.unlink()  # nobody's login is needed
    done = logged_in.run("credentials", "explain", "-", input=token + "\n")
    assert "alice" in done.stdout and done.stderr == ""
    assert "no token on standard input" in logged_in.run("credentials", "explain", "-", input="", status=2).stderr


def test_explain_warns_of_a_token_among_the_arguments(logged_in):
    token = login.access_token(logged_in.deployment)
    done = logged_in.run("credentials", "explain", token)
    assert "other users of this machine can see" in done.stderr and token not in done.output


def test_refused_token_says_why(site):
    failed = site.run("credentials", "explain", "-", input="eyJ.e30.x\n", status=1).stderr
    assert failed.startswith("dodas: the credentials service refused: ") and "(malformed)" in failed


def test_delegation_is_given_listed_and_taken_back(logged_in):
    assert logged_in.run("credentials", "list").stdout == "0 delegations\n"
    made = logged_in.json("credentials", "delegate")
    assert made["subject"].startswith("/DC=dodas/O=test/OU=people/CN=alice ")
    shown = logged_in.run("credentials", "list").stdout
    assert made["id"] in shown and "good" in shown and shown.endswith("1 delegation\n")
    assert [one["id"] for one in logged_in.json("credentials", "list")] == [made["id"]]
    assert made["id"] in complete(logged_in, "credentials", "withdraw", "")
    assert f"{made['id']} was taken back" in logged_in.run("credentials", "withdraw", made["id"]).stdout
    assert logged_in.json("credentials", "list") == []
    assert "no such delegation" in logged_in.run("credentials", "withdraw", made["id"], status=1).stderr
    assert "is no id" in logged_in.run("credentials", "withdraw", "../x", status=2).stderr


def test_delegation_outlives_the_login(logged_in):
    made = logged_in.json("credentials", "delegate")
    logged_in.run("logout")
    logged_in.log_in()
    (kept,) = logged_in.json("credentials", "list")
    assert kept["id"] == made["id"] and not kept["problem"]
    logged_in.run("credentials", "withdraw", made["id"])


def complete(site, *words):
    """What tab completion offers after these words."""
    environment = {"COMP_WORDS": " ".join(["dodas", *words]), "COMP_CWORD": str(len(words))}
    return site.run(env={**environment, "_DODAS_COMPLETE": "bash_complete"}, status=None).stdout


def test_completion(site):
    assert "credentials" in complete(site, "cred")
    for words, offered in ((("proxy", ""), "destroy"), (("credentials", "re"), "revoke"), (("token", ""), "show"),
                           (("doctor", "--name", ""), "test"), (("proxy", "init", "--kind", ""), "eec"),
                           (("proxy", "info", "--"), "--exists")):  # fmt: skip
        assert offered in complete(site, *words), words


def test_revoke_a_file_sends_no_key_and_ends_its_proxies(logged_in, tmp_path):
    path = tmp_path / "proxy.pem"
    logged_in.run("proxy", "init", "--valid", "0:05")
    identity = proxies.inspect(path.read_bytes()).identity
    found = logged_in.json("credentials", "revoke", str(path))
    assert found["subject"] == identity
    (line,) = [one for one in logged_in.credentials.audit() if one.get("decision") == "revoked"]
    assert line["serial"] == found["serial"]


def test_revoke_is_not_for_everybody(logged_in, tmp_path):
    failed = logged_in.run("credentials", "revoke", "12345678901234567890", status=1).stderr
    assert "(not_yours)" in failed
    text = tmp_path / "some.txt"
    text.write_text("x")
    assert "no certificate in PEM" in logged_in.run("credentials", "revoke", str(text), status=2).stderr
    assert "No such file" in logged_in.run("credentials", "revoke", str(tmp_path / "nothing"), status=2).stderr


def test_service_that_is_away_is_named(logged_in):
    logged_in.credentials.stop()
    try:
        failed = logged_in.run("credentials", "list", status=1).stderr
        assert "https://credentials.service.consul:8444/v1/delegations" in failed
    finally:
        logged_in.credentials.start()
