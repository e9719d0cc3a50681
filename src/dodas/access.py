# SPDX-License-Identifier: Apache-2.0
"""Commands for tokens, proxies and credentials, and the one that finds what is wrong with them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import getpass
import hashlib
import json
import socket
import ssl
import sys
import time
from pathlib import Path

import click
from rich.markup import escape

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import client, files, tokens, web
from ansible_collections.dodas.cluster.plugins.module_utils.x509.deps import x509
from dodas import deployments, doctor, login, proxy, services, show
from dodas.clouds import cloud_option
from dodas.errors import DodasError, InputError
from dodas.options import json_option, name_option

INTERRUPTED = 130  # as a shell says it of SIGINT

file_option = click.option("--file", "path", type=click.Path(path_type=Path, dir_okay=False),
                           help="The proxy.  [default: $X509_USER_PROXY or /tmp/x509up_uUID]")  # fmt: skip


# Login


@click.command("login")
@name_option
@click.option("--client-id", default=login.CLIENT, show_default=True, help="A public client of your provider.")
@click.option("--scope", default=login.SCOPE, show_default=True, help="What to ask for.")
@json_option
def log_in(name, client_id, scope, as_json):
    """Log in to a cluster's identity provider, with a browser on any machine.

    Shows an address and a code, and waits until you have signed in there. The login renews itself until it ends at the
    provider, or with ./dodas logout.
    """
    deployment = deployments.only(name)
    try:
        document, device = login.start(deployment, client_id, scope)
        end = time.time() + _lasts(device)
        if as_json:
            shown = ("verification_uri", "verification_uri_complete", "user_code")
            _event("verification", **{key: device[key] for key in shown if device.get(key)}, expires=_iso(end))
        else:
            _show_device(deployment, device)
        with _Waiting(end, quiet=as_json) as waiting:
            held = login.finish(deployment, document, device, client_id, sleep=waiting.sleep)
    except KeyboardInterrupt:
        if as_json:
            _event("failed", error="interrupted")
        click.echo("dodas: interrupted: nothing was kept", err=True)
        sys.exit(INTERRUPTED)
    except DodasError as error:
        if as_json:
            _event("failed", error=getattr(error, "code", None) or "error")
        raise
    claims = _claims(held)
    if as_json:
        _event("done", **claims)
        return
    groups = f" ({', '.join(claims['groups'])})" if claims["groups"] else ""
    show.console.print(f"[bold green]logged in[/] as {escape(claims['subject'] or 'somebody')}{escape(groups)}")
    if not claims["renews"]:
        left = doctor.span(claims["timeleft"])
        show.console.print(f"for {left}: the provider gave nothing to renew the login with")
    show.console.print(f"get a proxy:  {deployment.command('proxy init')}")


@click.command("logout")
@name_option
def log_out(name):
    """Give the login up, at the provider too."""
    deployment = deployments.only(name)
    try:
        login.end(deployment)
    except client.ClientError as error:
        raise DodasError(f"logged out here, but the provider still thinks otherwise: {error}") from None
    click.echo(f"logged out of {deployment.name}")


def _show_device(deployment, device):
    """What to do now, and what a browser has to know to get there."""
    where = services.of(deployment)
    complete, code = device.get("verification_uri_complete"), device["user_code"]
    echo = click.echo
    echo(f"To log in to {deployment.name}, open this address in a browser:\n")
    echo(f"    {complete or device['verification_uri']}\n")
    echo(f"{'and see that it shows' if complete else 'and enter'} the code  {click.style(code, bold=True)}\n")
    if where.own_iam:
        return
    secrets = deployment.directory / "secrets.json"
    if secrets.exists():
        echo(f"Sign in as  {click.style('physicist', bold=True)}  with the password that this shows:\n")
        echo(f"    grep '\"user_password\"' {secrets}\n")
    host, port, address = services.IDENTITY, where.issuer.rpartition(":")[2], where.resolve.get(services.IDENTITY)
    echo("The provider is the cluster's own, which a browser finds when this was done on its machine, once, as root:\n")
    echo(f"    echo {address} {host} >> /etc/hosts\n")
    echo(f"A machine that does not reach {address} goes through this one, as long as this runs on it, and writes\n"
         f"127.0.0.1 for {address}:\n")  # fmt: skip
    echo(f"    ssh -N -L {port}:{address}:{port} {getpass.getuser()}@{socket.gethostname()}\n")
    print_of = _fingerprint(deployment.directory / "pki" / "identity.crt")
    echo("The browser warns of a certificate that nobody it knows has signed. This is its SHA-256 fingerprint:\n")
    echo(f"    {print_of}\n")


def _fingerprint(path):
    try:
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(Path(path).read_text(encoding="ascii"))).hexdigest()
    except (OSError, ValueError):
        return "unknown"
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2)).upper()


class _Waiting:
    """Says how long there is to sign in, second by second where a person looks on."""

    def __init__(self, end, quiet):
        self.end = end
        self.live = not quiet and show.console.is_terminal
        self.status = show.console.status("") if self.live else None
        if not quiet and not self.live:
            click.echo(f"waiting until {_local(end)}")

    def __enter__(self):
        if self.status:
            self.status.__enter__()
        return self

    def __exit__(self, *exception):
        if self.status:
            self.status.__exit__(*exception)

    def sleep(self, seconds):
        """Sleep, with the time that is left on display."""
        wake = time.monotonic() + seconds
        while (left := wake - time.monotonic()) > 0:
            if self.status:
                self.status.update(f"waiting for you to sign in: {proxy.clock(self.end - time.time())} left")
            time.sleep(min(left, 1))


def _lasts(device):
    lasts = device.get("expires_in")
    return lasts if isinstance(lasts, (int, float)) and lasts > 0 else 600


def _event(kind, **more):
    click.echo(json.dumps({"event": kind, **more}))


# Tokens


@click.group("token")
def token():
    """Look at the access token that you are logged in with."""


@token.command("show")
@name_option
@click.option("--raw", is_flag=True, help="Print the token itself, for scripts; keep it to yourself.")
@json_option
def token_show(name, raw, as_json):
    """Show what the access token says: whose it is, for whom, how long. Refreshes it where that is due.

    With --raw, for scripts: curl -H "Authorization: Bearer $(./dodas token show --raw)" ...
    """
    if raw and as_json:
        raise InputError("--raw prints the token and nothing else: leave out --json")
    deployment = deployments.only(name)
    text = login.access_token(deployment)
    if raw:
        click.echo(text)
        return
    claims = _claims(login.held(deployment))
    if as_json:
        click.echo(json.dumps(claims))
        return
    _rows({
        "subject": claims["subject"],
        "groups": ", ".join(claims["groups"]),
        "scopes": " ".join(claims["scopes"]),
        "issuer": claims["issuer"],
        "client": claims["client"],
        "audience": ", ".join(claims["audience"]),
        "issued": claims["issued"] and _local(claims["issued"]),
        "expires": f"{_local(claims['expires'])}, in {doctor.span(claims['timeleft'])}",
        "renews": "by itself" if claims["renews"] else "no: the provider gave no refresh token",
    })  # fmt: skip


def _claims(held):
    """What is held, without tokens; for opaque tokens what the provider said with them."""
    claims = login.claims(held["access_token"])
    audience = claims.get("aud", held["audience"])
    return {
        "subject": claims.get("sub"),
        "groups": claims.get("wlcg.groups", []),
        "scopes": str(claims.get("scope", "")).split(),
        "issuer": held["issuer"],
        "client": claims.get("client_id", held["client_id"]),
        "audience": audience if isinstance(audience, list) else [audience],
        "issued": claims.get("iat", held["issued"]),
        "expires": claims.get("exp", held["expires"]),
        "timeleft": max(0, int(claims.get("exp", held["expires"]) - time.time())),
        "renews": bool(held.get("refresh_token")),
        "claims": claims,
    }


# Proxies


@click.group("proxy")
def proxies():
    """Make, show and destroy an X.509 proxy, as voms-proxy-init, -info and -destroy do."""


@proxies.command("init")
@name_option
@click.option("--valid", default="12:00", metavar="H:M", show_default=True, help="How long it is to last.")
@click.option("--limited", is_flag=True, help="A limited proxy, which may not start jobs elsewhere.")
@click.option("--kind", type=click.Choice(["proxy", "eec"]), default="proxy", show_default=True,
              help="A proxy, or an end-entity certificate, as web servers want.")  # fmt: skip
@click.option("--out", "path", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to write it.  [default: $X509_USER_PROXY or /tmp/x509up_uUID]")  # fmt: skip
@click.option("--voms", metavar="VO[:FQAN]",
              help="See that it holds attributes of this VO, such as cms:/cms/Role=pilot.")  # fmt: skip
@click.option("--cert", type=click.Path(exists=True, path_type=Path, dir_okay=False),
              help="Sign with a certificate of your own, without the service; a file of PEM.")  # fmt: skip
@click.option("--key", type=click.Path(exists=True, path_type=Path, dir_okay=False),
              help="The key of --cert.  [default: in the same file]")  # fmt: skip
@json_option
def proxy_init(name, valid, limited, kind, path, voms, cert, key, as_json):
    """Get a proxy from the cluster's credentials service with your login; its key is made here and stays here."""
    lifetime = proxy.seconds(valid)
    if lifetime < 60:
        raise InputError("--valid must be a minute or more")
    if kind == "eec" and limited:
        raise InputError("--limited is for proxies, not for --kind eec")
    if key and not cert:
        raise InputError("--key goes with --cert")
    if kind == "eec" and cert:
        raise InputError("--kind eec needs the service: leave out --cert")
    path = path or proxy.default_path()
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link: it is not followed")
    vo, _, fqan = (voms or "").partition(":")
    policy = "limited" if limited else None
    if cert:
        made = proxy.sign(cert, key or cert, lifetime, policy or "inherit-all", _passphrase, vo, [fqan] if fqan else [])
    else:
        made = _request(deployments.only(name), kind, lifetime, policy)
        _see_vo(made, vo, fqan)
    proxy.write(path, made)
    found = proxy.read(path)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _rows({key: found[key] for key in ("subject", "identity", "type", "path")} | _vo_rows(found)
              | {"timeleft": proxy.clock(found["timeleft"])})  # fmt: skip
    if found["timeleft"] < lifetime - 120:
        left = proxy.clock(found["timeleft"])
        click.echo(f"dodas: it lasts {left}, not {valid}: what signed it allows no more", err=True)


def _request(deployment, kind, lifetime, policy):
    text = login.access_token(deployment)
    where = services.of(deployment)
    try:
        return client.request_credential(where.credentials, text, kind, lifetime, policy, timeout=login.TIMEOUT,
                                         **where.at_credentials)  # fmt: skip
    except client.ClientError as error:
        hint = f"; {deployment.command('credentials explain')} shows what you may get" if error.status == 403 else ""
        raise DodasError(f"{error}{hint}") from None


def _see_vo(made, vo, fqan):
    """The rules of the service say which VO's attributes a proxy holds. Raises DodasError for another than wanted."""
    if not vo:
        return
    found = proxy.attributes([made.certificate])
    every = [one.removesuffix("/Capability=NULL").removesuffix("/Role=NULL")
             for attribute in found if attribute["vo"] == vo for one in attribute["fqans"]]  # fmt: skip
    if not every or (fqan and fqan not in every):
        there = ", ".join(every or [attribute["vo"] for attribute in found]) or "no attributes of any VO"
        raise DodasError(f"the service's rules give you {there}, not {fqan or vo}: ask who runs the cluster")


def _passphrase():
    if not sys.stdin.isatty():
        raise InputError("the key has a passphrase, and there is no terminal to ask for it")
    return click.prompt("Passphrase of the key", hide_input=True, err=True)


@proxies.command("info")
@file_option
@click.option("--subject", "what", flag_value="subject", multiple=True, help="Print the subject only.")
@click.option("--issuer", "what", flag_value="issuer", multiple=True, help="Print the issuer only.")
@click.option("--identity", "what", flag_value="identity", multiple=True, help="Print who is behind it only.")
@click.option("--type", "what", flag_value="type", multiple=True, help="Print its type only.")
@click.option("--timeleft", "what", flag_value="timeleft", multiple=True, help="Print the seconds that are left only.")
@click.option("--strength", "what", flag_value="strength", multiple=True, help="Print the bits of its key only.")
@click.option("--path", "what", flag_value="path", multiple=True, help="Print where it is only.")
@click.option("--vo", "what", flag_value="vo", multiple=True, help="Print the VOs only.")
@click.option("--fqan", "what", flag_value="fqans", multiple=True, help="Print the VO attributes only.")
@click.option("--exists", is_flag=True, help="Print nothing: exit status 0 if there is a valid proxy, otherwise 1.")
@click.option("--valid", metavar="H:M", help="With --exists: valid for that long.")
@json_option
def proxy_info(path, what, exists, valid, as_json):
    """Show a proxy: whose it is, its type, how long it lasts, attributes of VOs.

    Options and exit status are those of voms-proxy-info.
    """
    if valid and not exists:
        raise InputError("--valid goes with --exists")
    least = proxy.seconds(valid) if valid else 0
    found = proxy.read(path or proxy.default_path())
    if exists:
        sys.exit(0 if found["timeleft"] > 0 and found["timeleft"] >= least else 1)
    if as_json:
        click.echo(json.dumps(found))
    elif what:
        found["fqans"] = [fqan for one in found["vo"] for fqan in one["fqans"]]
        found["vo"] = [one["vo"] for one in found["vo"]]
        for name in sorted(set(what), key=list(found).index):
            for value in found[name] if isinstance(found[name], list) else [found[name]]:
                click.echo(value)
    else:
        rows = {key: found[key] for key in ("subject", "issuer", "identity", "type")}
        rows |= {"strength": f"{found['strength']} bits", "path": found["path"]}
        _rows({**rows, "timeleft": proxy.clock(found["timeleft"]), **_vo_rows(found)})


def _vo_rows(found):
    rows = {}
    for one in found["vo"]:
        rows[f"VO {one['vo']}"] = f"{', '.join(one['fqans'])}, {proxy.clock(one['timeleft'])} left"
    return rows


@proxies.command("destroy")
@file_option
def proxy_destroy(path):
    """Overwrite a proxy and remove it. Copies of it elsewhere stay good until they end."""
    path = path or proxy.default_path()
    proxy.destroy(path)
    click.echo(f"{path} is gone")


# The credentials service


@click.group("credentials")
def credentials():
    """What the credentials service gives you, and what you gave it."""


@credentials.command("explain")
@click.argument("text", required=False, metavar="[TOKEN|-]")
@name_option
@json_option
def explain(text, name, as_json):
    """Say what the service would give for a token, rule by rule: for yours, or for one read from standard input (-).

    A TOKEN among the arguments works too, but other users of this machine can see it there.
    """
    deployment = deployments.only(name)
    if text == "-":
        text = sys.stdin.read(tokens.MAX_BYTES + 2).strip()
        if not text:
            raise InputError("there is no token on standard input")
    elif text:
        click.echo("dodas: other users of this machine can see a token among the arguments: use - and standard input",
                   err=True)  # fmt: skip
    found = _ask(deployment, "GET", "/v1/explain", token=text)
    if as_json:
        click.echo(json.dumps(found))
        return
    left = f"{doctor.span(found['expires'] - time.time())} left" if found.get("expires") else None
    _rows({"subject": found["subject"], "issuer": found["issuer"], "client": found.get("client"),
           "groups": ", ".join(found["groups"]), "scopes": " ".join(found["scopes"]), "token": left})  # fmt: skip
    table = show.table("kind", "rule", "subject of the certificate, or why not")
    for kind, one in found["kinds"].items():
        why = ", ".join(f"{rule}: {WHY.get(reason, reason)}" for rule, reason in one["why"].items() if reason)
        outcome = escape(one["dn"]) if one["rule"] else f"[yellow]nothing[/] [dim]{escape(why)}[/]"
        table.add_row(kind, one["rule"] or "-", outcome)
    show.console.print(table)


WHY = {"kind": "not for this kind", "issuer": "another issuer", "subject": "another subject",
       "client": "another client", "group": "not in its groups", "scope": "lacks a scope"}  # fmt: skip


@credentials.command("delegate")
@name_option
@json_option
def delegate(name, as_json):
    """Hand your login to the service, so that workers may act for you until you take it back.

    The service renews what it was given by itself; workers get proxies of yours for keys of their own.
    """
    deployment = deployments.only(name)
    made = _ask(deployment, "POST", "/v1/delegations", {})
    if as_json:
        click.echo(json.dumps(made))
        return
    _rows({"id": made["id"], "subject": made["subject"], "lasts": "until you take it back, or the provider ends it"})
    click.echo(f"take it back: {deployment.command('credentials withdraw ' + made['id'])}")


@credentials.command("list")
@name_option
@json_option
def list_delegations(name, as_json):
    """List what you handed to the service."""
    found = _ask(deployments.only(name), "GET", "/v1/delegations")
    if as_json:
        click.echo(json.dumps(found))
        return
    table = show.table("id", "subject", "certificate lasts", "")
    for one in found:
        left = dt.datetime.fromisoformat(one["not_after"]).timestamp() - time.time()
        problem = f"[red]{escape(one['problem'])}[/]" if one.get("problem") else "[green]good[/]"
        table.add_row(one["id"], escape(one["subject"]), doctor.span(left) if left > 0 else "ended", problem)
    if found:
        show.console.print(table)
    click.echo(doctor.counted(len(found), "delegation"))


def _complete_delegations(context, _parameter, incomplete):
    try:
        found = _ask(deployments.only(context.params.get("name")), "GET", "/v1/delegations")
    except DodasError:
        return []
    return [one["id"] for one in found if one["id"].startswith(incomplete)]


@credentials.command("withdraw")
@click.argument("number", metavar="ID", shell_complete=_complete_delegations)
@name_option
def withdraw(number, name):
    """Take back what you handed to the service."""
    if not number.isalnum():
        raise InputError(f"{number!r} is no id: ./dodas credentials list shows them")
    _ask(deployments.only(name), "DELETE", f"/v1/delegations/{number}")
    click.echo(f"{number} was taken back, and the certificate behind its proxies revoked")


@credentials.command("revoke")
@click.argument("what", metavar="FILE|SERIAL", type=click.Path())
@name_option
@json_option
def revoke(what, name, as_json):
    """Revoke the certificate in a FILE, yours, or any by its SERIAL number if you are an administrator.

    For a proxy the certificate that signed it is revoked, and with it all of its proxies. Who checks revocation lists
    refuses them from then on.
    """
    body = {"serial": what}
    if not what.isascii() or not what.isdigit() or Path(what).exists():
        try:
            chain = x509.load_pem_x509_certificates(Path(what).read_bytes())
        except OSError as error:
            raise InputError(f"{what}: {error.strerror}") from None
        except ValueError:
            raise InputError(f"{what} holds no certificate in PEM") from None
        body = {"certificate": b"".join(map(files.certificate_pem, chain)).decode()}  # and not the key
    found = _ask(deployments.only(name), "POST", "/v1/revocations", body)
    click.echo(json.dumps(found) if as_json else f"revoked {found.get('subject') or 'certificate'} ({found['serial']})")


def _ask(deployment, method, path, body=None, token=None):
    """The JSON of the service's answer, with the held token or another. Raises DodasError."""
    where = services.of(deployment)
    headers = {"Authorization": f"Bearer {token or login.access_token(deployment)}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        answer = web.fetch(where.credentials + path, data, headers, timeout=3 * login.TIMEOUT, method=method,
                           **where.at_credentials)  # fmt: skip
        return json.loads(answer or b"null")
    except web.WebError as error:
        raise DodasError(_refusal(error)) from None
    except ValueError as error:
        raise DodasError(f"{where.credentials}: the answer is not JSON") from error


def _refusal(error):
    """Why the service refused, as it says it itself."""
    try:
        body = json.loads(error.body)
        return f"the credentials service refused: {body['message']} ({body['reason']})"
    except (ValueError, LookupError, TypeError):
        return str(error)


# The doctor


@click.command("doctor")
@name_option
@cloud_option
@click.option("--timeout", default=20, show_default=True, help="Seconds to wait for each host.")
@json_option
def call_doctor(name, cloud, timeout, as_json):
    """Find what is wrong: login, issuer, credentials service, and on each host clock, apps, certificates, proxy, pool.

    Names each host that is sick and says what to do. Exit status 1 if there is one. With --cloud, looks at a cloud
    before anything is deployed there: the login and what the project may still have.
    """
    if cloud:
        _look_at_cloud(cloud, as_json)
        return
    deployment = deployments.only(name)
    checks = doctor.look(deployment, timeout)
    bad = [one for one in checks if one.ok is False]
    if as_json:
        found = [dataclasses.asdict(one) for one in checks]
        click.echo(json.dumps({"name": deployment.name, "ok": not bad, "checks": found}))
    else:
        _show_checks(checks)
        for one in bad:
            click.echo(f"dodas: {one.host or deployment.name}: {one.name}: {one.found}", err=True)
            if one.advice:
                click.echo(f"  {one.advice}", err=True)
    hosts = {one.host for one in checks if one.host}
    if bad:
        sys.exit(1)
    if not as_json:
        click.echo(f"{deployment.name}: {doctor.counted(len(hosts), 'host')}, all well")


def _look_at_cloud(cloud, as_json):
    checks = doctor.look_at_cloud(cloud)
    bad = [one for one in checks if one.ok is False]
    if as_json:
        click.echo(json.dumps({"name": cloud, "ok": not bad, "checks": [dataclasses.asdict(one) for one in checks]}))
    else:
        table = show.table("cloud", "", "found")
        for one in checks:
            table.add_row(one.name, MARK[one.ok], escape(one.found))
        show.console.print(table)
    if bad:
        raise DodasError(f"{cloud}: {'; '.join(f'{one.name}: {one.found} ({one.advice})' for one in bad)}")


MARK = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]-[/]"}


def _show_checks(checks):
    table = show.table("cluster", "", "found")
    for one in checks:
        if one.host is None:
            advice = f"  [dim]{escape(one.advice)}[/]" if one.ok is None and one.advice else ""
            table.add_row(one.name, MARK[one.ok], escape(one.found) + advice)
    show.console.print(table)
    columns = ["clock", "apps", "proxy", "CA directory", "certificates", "pool"]
    table = show.table("host", *columns)
    for host in dict.fromkeys(one.host for one in checks if one.host):
        found = {one.name: one for one in checks if one.host == host}
        if "connection" in found:
            table.add_row(host, *["[red]✗[/] unreachable", *[""] * (len(columns) - 1)])
            continue
        table.add_row(host, *[_cell(found.get(name)) for name in columns])
    show.console.print(table)


def _cell(one):
    return f"{MARK[one.ok]} {escape(one.found) if one.ok is not False else '[red]sick[/]'}" if one else ""


def _rows(rows):
    """Show names and values, those that have one."""
    width = max(map(len, rows))
    for name, value in rows.items():
        if value:
            click.echo(f"{name:<{width}} : {value}")


def _iso(seconds):
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def _local(seconds):
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


COMMANDS = (log_in, log_out, token, proxies, credentials, call_doctor)
