# SPDX-License-Identifier: Apache-2.0
"""Names of images: [registry[:port]/]repository[:tag][@digest]."""

from .errors import Error

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
# The default registry goes by several names: its interface answers at one, and credentials are kept under another.
ENDPOINT = f"registry-1.{DEFAULT_REGISTRY}"
INDEX = f"index.{DEFAULT_REGISTRY}"
CREDENTIALS_KEY = f"https://{INDEX}/v1/"
ALIASES = (DEFAULT_REGISTRY, INDEX, ENDPOINT)

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX = frozenset("0123456789abcdef")
_DIGESTS = {"sha256": 64, "sha512": 128}


class Reference:
    """What image is meant. `tag` or `digest` may be None, never both; of the two, the digest decides.

    registry: host[:port]; repository: path below it, with `library/` where the default registry puts it there
    """

    __slots__ = ("digest", "registry", "repository", "tag")

    def __init__(self, registry, repository, tag=None, digest=None):
        self.registry = registry
        self.repository = repository
        self.tag = tag
        self.digest = digest

    @property
    def target(self):
        """What the registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag

    @property
    def name(self):
        """The full name, one for each image: registry/repository:tag, or registry/repository@digest."""
        return f"{self.registry}/{self.repository}{self._suffix()}"

    @property
    def familiar(self):
        """The name as people type it: without the default registry and its `library/`."""
        repository = self.repository
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        if repository.startswith("library/"):
            repository = repository[len("library/") :]
        return repository + self._suffix()

    def _suffix(self):
        return f"@{self.digest}" if self.digest else f":{self.tag}"

    def __str__(self):
        return self.familiar

    def __repr__(self):
        return f"Reference({self.name!r})"

    def __eq__(self, other):
        return isinstance(other, Reference) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self):
        return self.registry, self.repository, self.tag, self.digest


def parse(text, registry=None):
    """The Reference that `text` stands for; raises Error, saying which part of it is wrong.

    registry: where names that say none are looked for, instead of the default registry; a host or a URL
    `docker://` in front, as job descriptions write it, is taken.
    """
    rest = text.strip()
    if rest.startswith("docker://"):
        rest = rest[len("docker://") :]
    if not rest:
        raise Error("the name of the image is empty")
    if "://" in rest:
        raise _wrong(text, "an image's name is no URL: write host:port/name:tag")
    rest, at, digest = rest.partition("@")
    if at:
        check_digest(digest, text)
    head, slash, tail = rest.partition("/")
    if slash and _is_host(head):
        host, rest = head, tail
        _check_host(host, text)
    elif slash and head.startswith("["):
        raise _wrong(text, f"{head!r} is no host")
    else:
        host = _host_of(registry) if registry else DEFAULT_REGISTRY
    repository, colon, tag = rest.partition(":")
    if colon:
        check_tag(tag, text)
    _check_repository(repository, text)
    host = host.lower()
    if host in ALIASES:
        host = DEFAULT_REGISTRY
        if "/" not in repository:
            repository = "library/" + repository
    return Reference(host, repository, tag or (None if digest else DEFAULT_TAG), digest or None)


def check_digest(digest, text=None):
    """Raises Error unless `digest` is sha256:HEX or sha512:HEX."""
    algorithm, _colon, value = digest.partition(":")
    if len(value) != _DIGESTS.get(algorithm) or not _HEX.issuperset(value):
        raise _wrong(text or digest, f"{digest!r} is no digest: sha256: and 64 lower-case hexadecimal digits are")


def check_tag(tag, text=None):
    """Raises Error unless `tag` is one."""
    if not tag:
        raise _wrong(text or tag, "there is no tag after the colon")
    if len(tag) > 128:
        raise _wrong(text or tag, "a tag has 128 characters at most")
    if tag[0] in ".-" or not _ALNUM.issuperset(tag.replace("_", "").replace(".", "").replace("-", "")):
        raise _wrong(text or tag, f"the tag {tag!r} holds other than letters, digits and _ . - (first: no . or -)")


def _is_host(head):
    """Whether what is before the first slash names a registry: a dot, a port or `localhost` tell it from a folder."""
    return any(char in head for char in ".:") or head == "localhost"


def _check_host(host, text):
    name, port = host, ""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or not name or not (_HEX | frozenset("ABCDEF:.")).issuperset(name) or ":" not in name:
            raise _wrong(text, f"{host!r} is no IPv6 address in brackets")
        if port and not port.startswith(":"):
            raise _wrong(text, f"after the address, {port!r} is no port")
        port, colon = port[1:], port[:1]
    else:
        name, colon, port = host.partition(":")
        for label in name.split("."):
            if not label or label.strip("-") != label or not _ALNUM.issuperset(label.replace("-", "")):
                raise _wrong(text, f"{name!r} is no name of a host")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _wrong(text, f"{port!r} is no port")


def _check_repository(repository, text):
    if not repository:
        raise _wrong(text, "there is no name of a repository")
    if repository != repository.lower():
        raise _wrong(text, f"{repository!r} must be lower case")
    if len(repository) > 255:
        raise _wrong(text, "the name of a repository has 255 characters at most")
    for part in repository.split("/"):
        if not part:
            raise _wrong(text, "there is nothing between two slashes, or at an end")
        between = "".join("/" if char in _LOWER else char for char in part)
        if part[0] not in _LOWER or part[-1] not in _LOWER:
            raise _wrong(text, f"{part!r} does not begin and end with a letter or digit")
        for separator in filter(None, between.split("/")):
            if separator not in (".", "_", "__") and separator.strip("-"):
                raise _wrong(text, f"{separator!r} in {part!r} is not allowed: one of . _ __ - separates")
    if len(repository) == 64 and _HEX.issuperset(repository):
        raise _wrong(text, "64 hexadecimal digits are an identifier, no name")


def _host_of(registry):
    """The host[:port] of what was configured as a registry: that, or its URL."""
    host = registry.split("://", 1)[-1].split("/", 1)[0]
    _check_host(host, registry)
    return host


def _wrong(text, why):
    return Error(f"{text!r} is no name of an image: {why}")
