# SPDX-License-Identifier: Apache-2.0
"""Commands about images, registries and archives."""

import os

from .. import reference
from ..errors import Error, NotFound


def _reach(session, options):
    """Let the store's registries be reached as the command says."""
    if getattr(options, "httpproxy", None):
        session.store.access["proxy"] = options.httpproxy


def pull(session, options):
    from .. import transfer
    from .progress import of

    name = options.arguments[0]
    _reach(session, options)
    names = [name]
    if options.all_tags:
        place = reference.parse(name, options.registry)
        names = [f"{name}:{tag}" for tag in transfer.tags(place, session.store)]
    for each in names:
        wanted = reference.parse(each)
        asked = reference.parse(each, options.registry) if options.registry else wanted
        with of(session, options.quiet) as progress:
            image = transfer.pull(session.store, asked, options.platform, progress)
        if asked.name != wanted.name:  # a registry's image under the name that was given
            image.name = wanted.name
            session.store.write_image(image)
        if session.docker:
            if not options.quiet:
                session.out("Digest: " + image.manifest)
                session.out("Status: Image is up to date for " + wanted.familiar)
            session.out(wanted.name)
        else:
            session.debug(f"{wanted.name} is {image.manifest}")


def push(session, options):
    from .. import images as library
    from .. import transfer
    from .progress import of

    _reach(session, options)
    name = options.arguments[0]
    names = [name]
    if options.all_tags:
        repository = reference.parse(name).name.rpartition(":")[0]
        names = [image.name for image in session.store.images() if image.name.rpartition(":")[0] == repository]
        if not names:
            raise NotFound(f"no image {name} in the store")
    for each in names:
        image = library.find(session.store, each)
        target = reference.parse(each, options.registry) if options.registry else None
        with of(session, options.quiet) as progress:
            digest = transfer.push(session.store, image.name, target, progress)
        if session.docker:
            where = target or reference.parse(each)
            session.out("{}: digest: {} size: {}".format(where.tag or "", digest, image.size))
        else:
            session.out(digest)


def search(session, options):
    from .. import transfer

    _reach(session, options)
    expression = options.arguments[0]
    if options.list_tags:
        for tag in transfer.tags(reference.parse(expression, options.registry), session.store):
            session.out(tag)
        return
    index = options.index or session.config.dockerio_index_url or None
    host = _registry(options.registry) if options.registry else None
    found = transfer.search(expression, host, index, session.store)
    limit = _number(options.limit, "limit") if options.limit else 0
    if options.format:
        _search_formatted(session, options, found, limit)
        return
    _search_table(session, options, found, limit)


def _number(text, what):
    try:
        return int(text)
    except ValueError:
        raise Error(f"--{what} {text} is no number") from None


def _search_formatted(session, options, found, limit):
    from . import template

    rows = []
    for one in found:
        if limit and len(rows) == limit:
            break
        stars, official = str(one["stars"]), "[OK]" if one["official"] else ""
        rows.append({"Name": one["name"], "Description": one["description"], "StarCount": stars,
                     "IsOfficial": official, "IsAutomated": ""})  # fmt: skip
    heads = {"StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}
    for line in template.rows(options.format, rows, heads):
        session.out(line)


def _search_table(session, options, found, limit):
    """udocker's columns; on a terminal it stops at a screenful, unless -a."""
    import shutil
    import sys

    form = "%-55s %8s %-70s %5s" if options.no_trunc else "%-55.80s %8.8s %-70.70s %5.5s"
    pauses = not options.a and not session.docker and sys.stdin.isatty() and sys.stdout.isatty()
    lines = shutil.get_terminal_size().lines - 2
    if not session.quiet:
        session.out((form % ("NAME", "OFFICIAL", "DESCRIPTION", "STARS")).rstrip())
    for count, one in enumerate(found, 1):
        text = "".join(char for char in (one["description"] or "").split("\n")[0] if char.isprintable())
        official = "[OK]" if one["official"] else "----"
        session.out(form % (one["name"], official, text, one["stars"]))
        if limit and count == limit:
            return
        if pauses and count % lines == 0:
            sys.stdout.flush()
            if input("[return or q to quit]").strip().lower() in ("q", "e"):
                return


def login(session, options):
    from .. import auth, registry
    from ..http import Client

    where = options.registry or (options.arguments[0] if options.arguments else "")
    host = _registry(where)
    name, password = options.username, options.password
    if options.password_stdin:
        import sys

        if not name and session.docker:
            raise Error("--password-stdin needs --username")
        password = sys.stdin.readline().rstrip("\r\n")
    if password is not None and not options.password_stdin:
        session.warn("a password on the command line is seen by others: use --password-stdin")
    if not name:
        name = input("username: ")
    if password is None:
        import getpass

        password = getpass.getpass("password: ")
    access = dict(session.store.access)
    keystore = access.pop("keystore")
    access.pop("locations", {}).get(host)
    access.pop("mirrors", None)
    client = Client(**access)
    try:
        kept, asked = registry.login(host, name, password, auth.Credentials(keystore), client, location)
    finally:
        client.close()
    if not asked:
        session.warn(f"{host} asks nobody for a password")
    if session.docker:
        session.out("Login Succeeded")
    session.debug(f"kept in {kept}")


def logout(session, options):
    from .. import auth

    where = options.registry or (options.arguments[0] if options.arguments else "")
    host = None if options.all else _registry(where)
    gone = auth.Credentials(session.store.access["keystore"]).forget(host)
    if session.docker:
        session.out("Removing login credentials for " + (host or "all registries"))
    elif not gone and host:
        raise Error(f"there are no credentials for {host}")


def _registry(where):
    return reference.parse("x", where).registry if where else reference.DEFAULT_REGISTRY


def manifest(session, options):
    from .. import transfer
    from .output import pretty

    action, name = options.arguments
    if action != "inspect":
        from .parser import UsageError

        raise UsageError(f"manifest {action}: there is inspect alone", "manifest")
    _reach(session, options)
    document = transfer.inspect(reference.parse(name, options.registry), options.platform, session.store)
    session.out(pretty(document))


# Images of the store


def images(session, options):
    pattern = options.arguments[0] if options.arguments else None
    found = [image for image in session.store.images() if _fits(image, pattern) and _passes(session, image, options)]
    as_json = options.json or session.json
    if options.quiet:
        seen = []
        for image in found:
            identifier = image.config if options.no_trunc else image.config.partition(":")[2][:12]
            if identifier not in seen:
                seen.append(identifier)
                session.out(identifier)
        return
    if session.docker or options.format or as_json or options.digests:
        facts = [row(image, options) for image in sorted(found, key=lambda image: -image.created)]
        if as_json:
            from ..records import dumps

            session.out(dumps(facts))
            return
        from . import template

        names = ["Repository", "Tag"] + (["Digest"] if options.digests else []) + ["ID", "CreatedSince", "Size"]
        form = options.format or "table " + "\t".join("{{." + name + "}}" for name in names)
        for line in template.rows(form, facts, HEADINGS):
            session.out(line)
        return
    _udocker_list(session, options, found)


HEADINGS = {"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT"}


def _udocker_list(session, options, found):
    from .. import images as library

    if not session.quiet:
        session.out("REPOSITORY")
    for image in found:
        mark = "P" if library.is_protected(session.store, image.name) else "."
        name = library.familiar(image.name)
        if options.p:
            session.out(f"{image.platform or 'unknown/unknown':<18.18} {mark} {name}")
        else:
            session.out(f"{name}    {mark}")
        if options.l:
            session.out(" " + image.manifest)
            for layer in image.layers:
                megabytes = layer["size"] // (1024 * 1024) or (1 if layer["size"] else 0)
                session.out("    {} ({} MB)".format(layer["digest"], megabytes))


def _fits(image, pattern):
    """Whether `docker images PATTERN` lists it: a repository, with or without tag, with wildcards."""
    if not pattern:
        return True
    import fnmatch

    from .. import images as library

    name = library.familiar(image.name)
    repository = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
    try:
        asked = reference.parse(pattern)
        any_tag = ":" not in pattern.rpartition("/")[2] and "@" not in pattern
        if image.name == asked.name or (any_tag and image.name.rpartition(":")[0] == asked.name.rpartition(":")[0]):
            return True
    except Error:
        pass
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(repository, pattern)


def _passes(session, image, options):
    for text in options.filter:
        key, _equals, value = text.partition("=")
        if key == "reference":
            good = _fits(image, value)
        elif key == "dangling":
            good = value.lower() in ("false", "0")
        elif key == "label":
            good = _has_label(session, image, value)
        elif key in ("before", "since"):
            from .. import images as library

            other = library.find(session.store, value)
            good = image.created < other.created if key == "before" else image.created > other.created
        else:
            raise Error(f"--filter {key}: one of reference, label, before, since, dangling")
        if not good:
            return False
    return True


def _has_label(session, image, text):
    from .. import records

    labels = (records.loads(session.store.read_blob(image.config).decode()).get("config") or {}).get("Labels") or {}
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)


def row(image, options=None):
    """What `docker images --format` can name."""
    from .. import images as library
    from . import output

    name = library.familiar(image.name)
    repository, _at, digest = name.partition("@")
    tag = ""
    if not digest:
        repository, _colon, tag = name.rpartition(":")
    whole = options is not None and options.no_trunc
    return {
        "ID": image.config if whole else image.config.partition(":")[2][:12],
        "Repository": repository,
        "Tag": tag or "<none>",
        "Digest": image.manifest,
        "CreatedSince": output.ago(image.created),
        "CreatedAt": output.stamp(image.created),
        "Size": output.size(image.size),
        "VirtualSize": output.size(image.size),
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
        "Containers": "N/A",
        "Platform": image.platform,
    }


# Archives


def load(session, options):
    from .. import archives
    from .progress import of

    arguments = list(options.arguments)
    source = options.input
    if arguments[:1] == ["-"]:
        source = arguments.pop(0)
    name = arguments[0] if arguments else None
    if source in (None, "-"):
        source = 0
        if os.isatty(0):
            raise Error("an archive is expected at standard input: give it with -i FILE")
    with of(session, options.quiet) as progress:
        loaded = archives.load(session.store, source, name, options.platform, progress=progress)
    from .. import images as library

    for image in loaded:
        name = library.familiar(image.name)
        session.out("Loaded image: " + name if session.docker else name)
