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
    location = access.pop("locations", {}).get(host)
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
    from .. import images as library

    pattern = options.arguments[0] if options.arguments else None
    found = [image for image in library.listed(session.store) if _fits(image, pattern)]
    found = [image for image in found if _passes(session, image, options)]
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


def save(session, options):
    import sys

    from .. import archives

    names = [name for name in options.arguments if name != "-"]
    if not names:
        raise Error("which images are to be saved?")
    target = options.output
    if target in (None, "-"):
        if os.isatty(1):
            raise Error("an archive does not go to a terminal: give -o FILE")
        archives.save(session.store, names, sys.stdout.fileno(), "oci" if options.oci else "docker")
        return
    if os.path.exists(target) and not session.docker:
        raise Error(f"output file already exists: {target}")
    archives.save(session.store, names, target, "oci" if options.oci else "docker")


def import_(session, options):
    from .. import archives, exchange

    source, name = [*options.arguments, None][:2]
    source = 0 if source == "-" else _local(session, source)
    config = exchange._changed({}, options.change)["config"] if options.change else None
    if options.tocontainer or options.clone:
        container = archives.import_container(
            session.store, source, name=options.name, image=name or "", platform=options.platform, clone=options.clone,
            options={"dialect": session.dialect},
        )  # fmt: skip
        session.out(container.id)
        return
    if not name:
        raise Error("what is the image to be called? Give a name after the archive")
    image = archives.import_(session.store, source, name, options.platform, config, options.message or "")
    if options.mv and isinstance(source, str):
        os.unlink(source)
    if session.docker:
        session.out(image.config)


def _local(session, source):
    """The path of an archive; one at a URL is read from there."""
    if "://" not in source:
        if not os.path.exists(source):
            raise NotFound(f"{source}: no such file")
        return source
    from ..registry import client

    answer = client(session.store).request("GET", source)
    if answer.status != 200:
        raise Error(f"{source}: the server answers {answer.status}")
    return _Body(answer)


class _Body:
    """What a server answers, to be read in pieces."""

    def __init__(self, answer):
        self.answer = answer

    def read(self, size):
        buffer = bytearray(size)
        return bytes(buffer[: self.answer.readinto(buffer)])


def export(session, options):
    import sys

    from .. import archives, containers

    *target, key = options.arguments
    target = options.output or (target[0] if target else "-")
    container = containers.find(session.store, key)
    if target == "-":
        if os.isatty(1):
            raise Error("an archive does not go to a terminal: give -o FILE")
        archives.export(container, sys.stdout.fileno(), options.clone)
        return
    if not session.docker:
        session.say(f"exporting to file {target}")
    archives.export(container, target, options.clone)


# One image


def tag(session, options):
    from .. import images as library

    source, target = options.arguments
    image = library.find(session.store, source)
    if not session.docker:
        name = reference.parse(target).name
        if any(other.name == name for other in session.store.images()):
            raise Error("target already exists")
        if library.is_protected(session.store, image.name):
            raise Error("source repository is protected")
    library.tag(session.store, image, target)


def rmi(session, options):
    from .. import images as library
    from .containers import each

    def remove(key):
        try:
            image = library.find(session.store, key)
        except NotFound:
            if options.force and session.docker:
                return
            raise
        if not session.docker:
            session.say(f"deleting image: {key}")
        # For udocker 1.3.17 containers have nothing to do with images any more; here they keep their layers.
        done = library.remove(session.store, image, options.force or not session.docker, not options.no_prune)
        if session.docker:
            for what, name in done:
                session.out(f"{what.capitalize()}: {name}")

    return each(session, options.arguments, remove)


def verify(session, options):
    from .. import images as library
    from .progress import of

    image = library.find(session.store, options.arguments[0])
    session.say(f"verifying: {library.familiar(image.name)}")
    with of(session, True) as progress:
        problems = library.verify(session.store, image, progress)
    for problem in problems:
        session.error(problem)
    if problems:
        raise Error("image verification failure: pull the image again")
    session.say("image Ok")


def history(session, options):
    from .. import images as library
    from . import output, template

    rows = library.history(session.store, library.find(session.store, options.arguments[0]))
    if options.json or session.json:
        session.out(output.pretty(rows))
        return
    facts = []
    for one in rows:
        by = " ".join(one["created_by"].split())
        short = not options.no_trunc and not options.format
        identifier = one["id"] if options.no_trunc or ":" not in one["id"] else one["id"].partition(":")[2][:12]
        moment = _seconds(one["created"])
        facts.append({
            "ID": identifier, "CreatedAt": one["created"],
            "CreatedSince": output.ago(moment) if moment else "N/A",
            "CreatedBy": by[:44] + "\u2026" if short and len(by) > 45 else by,
            "Size": output.size(one["size"]), "Comment": one["comment"],
        })  # fmt: skip
    if options.quiet:
        for one in facts:
            session.out(one["ID"])
        return
    form = options.format or "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
    for line in template.rows(form, facts, {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedBy": "CREATED BY"}):
        session.out(line)


def _seconds(text):
    from .containers import moment

    try:
        return moment(text, "created")
    except Error:
        return 0


def inspect(session, options):
    """Of containers and images; in udocker's dialect what container.json holds, in docker's a list."""
    from . import output, template

    if options.type not in (None, "container", "image"):
        raise Error(f"--type {options.type}: container or image")
    found, status = [], 0
    for key in options.arguments:
        try:
            found.append(_inspected(session, options, key))
        except NotFound as exc:
            session.error(str(exc) if options.type else f"no such object: {key}")
            status = 1
    if options.p:
        for one in found:
            session.out(one)
    elif options.format:
        for one in found:
            session.out(template.render(options.format, one))
    elif session.docker:
        session.out(output.pretty(found))
    else:
        for one in found:
            session.out(output.pretty(one))
    return status


def _inspected(session, options, key):
    from .. import containers
    from .. import images as library

    if options.type != "image":
        try:
            container = containers.find(session.store, key)
        except NotFound:
            if options.type or options.p:
                raise
        else:
            if options.p:
                return containers.materialise(container)
            if not session.docker and not options.format:
                return container.configuration()
            return _container_facts(container, options)
    image = library.find(session.store, key)
    if not session.docker and not options.format:
        return library.configuration(session.store, image)
    facts = library.inspect(session.store, image)
    facts["Metadata"] = {"LastTagTime": containers.timestamp(image.created)}
    return facts


def _container_facts(container, options):
    """What docker inspect says, and what tools ask of it besides."""
    from .. import containers
    from .. import images as library

    facts = containers.inspect(container)
    facts["State"].setdefault("OOMKilled", False)
    settings = facts["NetworkSettings"]
    settings.setdefault("IPAddress", "")
    settings.setdefault("Networks", {facts["HostConfig"]["NetworkMode"]: {"IPAddress": "", "Gateway": ""}})
    facts["Config"].setdefault("Image", library.familiar(container.image))
    facts["Config"].setdefault("Hostname", os.uname().nodename)
    facts.setdefault("Mounts", [_mount(text) for text in container.options["volume"]])
    if options.size:
        size = library.container_size(container)
        facts["SizeRw"] = facts["SizeRootFs"] = size
    return facts


def _mount(text):
    source, _colon, rest = text.partition(":")
    target, _colon, more = rest.partition(":")
    writable = "ro" not in more.split(",")
    return {"Type": "bind", "Source": source, "Destination": target or source, "Mode": more, "RW": writable}


# All of them


def prune(session, options):
    import sys

    from .. import containers
    from .. import images as library
    from .output import size

    only_containers = getattr(options, "containers_only", False)
    only_images = getattr(options, "images_only", False)
    if session.docker and not options.force and sys.stdin.isatty():
        answer = input("This removes what nothing uses. Are you sure? [y/N] ")
        if not answer.strip().lower().startswith("y"):
            return
    if session.docker and not only_images:
        removed = _prune_containers(session, options)
        if removed:
            session.out("Deleted Containers:")
            for identifier in removed:
                session.out(identifier)
    else:
        containers.tidy(session.store)
    if only_containers:
        session.out("\nTotal reclaimed space: 0B")
        return
    gone = library.prune(session.store, options.all)
    for name in gone["images"]:
        session.out(("untagged: " if session.docker else "") + name)
    freed = size(gone["bytes"])
    if session.docker:
        session.out(f"\nTotal reclaimed space: {freed}")
    else:
        session.say(f"{freed} freed: {len(gone['layers'])} layers, {len(gone['blobs'])} blobs")


def _prune_containers(session, options):
    """Those that do not run, and that the filters mean."""
    from .. import containers
    from .containers import passes

    filters = [text.partition("=")[::2] for text in options.filter]

    def wanted(container):
        return all(passes(session, container, key, [value]) for key, value in filters if key != "until")

    return containers.prune(session.store, wanted, lambda error: session.warn(str(error)))


def df(session, options):
    from .. import images as library
    from ..records import dumps
    from . import output, template

    found = library.usage(session.store)
    if options.json or session.json:
        session.out(dumps(found))
        return
    containers, images = found["containers"], found["images"]
    own = sum(one["size"] for one in containers)
    idle = sum(one["size"] for one in containers if not one["running"])
    unused = sum({one["id"]: one["unique"] for one in images if not one["containers"]}.values())
    facts = [
        _usage("Images", len(images), sum(bool(one["containers"]) for one in images), found["layers"], unused),
        _usage("Containers", len(containers), sum(one["running"] for one in containers), own, idle),
        _usage("Archives", len(images), len(images), found["blobs"], found["reclaimable"]),
    ]
    form = options.format or "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
    for line in template.rows(form, facts, {"TotalCount": "TOTAL"}):
        session.out(line)
    if options.verbose:
        rows = [["", ""], ["IMAGE", "SIZE", "SHARED", "UNIQUE", "CONTAINERS"]]
        rows += [
            [library.familiar(one["name"]), *(output.size(one[key]) for key in ("size", "shared", "unique")),
             str(one["containers"])] for one in images
        ]  # fmt: skip
        rows += [["", ""], ["CONTAINER", "SIZE", "IMAGE"]]
        rows += [[one["name"], output.size(one["size"]), library.familiar(one["image"])] for one in containers]
        for line in output.columns(rows):
            session.out(line)


def _usage(kind, total, active, size, reclaimable):
    from .output import size as text

    share = f" ({100 * reclaimable // size}%)" if size else ""
    return {"Type": kind, "TotalCount": str(total), "Active": str(active), "Size": text(size),
            "Reclaimable": text(reclaimable) + share}  # fmt: skip
