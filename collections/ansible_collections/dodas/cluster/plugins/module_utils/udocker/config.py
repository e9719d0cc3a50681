# SPDX-License-Identifier: Apache-2.0
"""Configuration: /etc/udocker.conf, ~/.udocker/udocker.conf, the store's, --config, then UDOCKER_* variables.

Files are those of udocker 1.3.17: `name = value` lines below [DEFAULT]. Every name that it knows is accepted; those
that mean something here are in MEANING.
"""

import os

# Names, defaults (whose type is the value's), and what they are good for here.
MEANING = (
    ("topdir", "", "where images and containers are kept  (~/.udocker)"),
    ("keystore", "keystore", "file with credentials, besides those of docker and podman"),
    ("tmpdir", "", "for temporary files outside the store"),
    ("scratch", "", "where overlay keeps what containers write, if the store's file system cannot"),
    ("verbose_level", 3, "0 nothing, 1 errors and results, 2 warnings, 3 information, 5 debugging"),
    ("engine", "", "overlay, directory, fuse or proot instead of what fits best"),
    ("override_default_execution_mode", "", "the same by a mode of udocker 1.3.17"),
    ("use_proot_executable", "", "where PRoot is, if not in PATH"),
    ("use_fuse_overlayfs_executable", "", "where fuse-overlayfs is, if not in PATH"),
    ("location", "", "run this tree, as --location does"),
    ("dockerio_registry_url", "", "asked instead of the default registry"),
    ("dockerio_index_url", "", "searched instead of the default registry's index"),
    ("docker_registries", {}, "{registry: URL that is asked instead}, or {registry: [URL, URL of its index]}"),
    ("registry_mirrors", [], "URLs that are asked before the default registry"),
    ("insecure_registries", [], "host:port that may be talked to without a verified certificate, or without TLS"),
    ("http_insecure", False, "the same for all"),
    ("http_proxy", "", "http, https, socks4(a) or socks5(h) URL"),
    ("ca_file", "", "certificates that are trusted besides the system's"),
    ("ctimeout", 0, "seconds to wait for a connection"),
    ("timeout", 0, "seconds to wait for the next bytes"),
)

# What udocker 1.3.17 has and this runtime has no use for.
UNUSED = frozenset((
    "homedir", "bindir", "libdir", "docdir", "tarball_release", "tarball", "installinfo",
    "installretry", "autoinstall", "config", "hostauth_list", "mountpoint_prefixes", "default_execution_modes",
    "proot_noseccomp", "proot_killonexit", "proot_link2symlink", "ld_so_cache", "fakechroot_so",
    "fakechroot_expand_symlinks", "fakechroot_cmd_subst", "libc_search", "fakechroot_libc", "lib_dirs_list_nvidia",
    "lib_dirs_list_essential", "lib_dirs_list_append", "access_files", "use_patchelf_executable",
    "use_runc_executable", "use_singularity_executable", "runc_nomqueue", "runc_capabilities", "singularity_options",
    "cpu_affinity_exec_tools", "http_agent", "use_curl_executable", "nvi_etc_list",
    "nvi_bin_list", "nvi_lib_list", "nvi_dev_list", "cmd", "root_path", "user_path", "sysdirs_list", "dri_list",
    "valid_host_env", "invalid_host_env", "download_timeout",
))  # fmt: skip
# Names that would move parts of the store, which is one folder here.
PLACES = ("containersdir", "reposdir", "layersdir")

VARIABLES = {
    "UDOCKER_DIR": "topdir",
    "UDOCKER_CONTAINERS": "containersdir",
    "UDOCKER_REPOS": "reposdir",
    "UDOCKER_LAYERS": "layersdir",
    "UDOCKER_SCRATCH": "scratch",
    "UDOCKER_LOGLEVEL": "verbose_level",
    "UDOCKER_ENGINE": "engine",
    "UDOCKER_DEFAULT_EXECUTION_MODE": "override_default_execution_mode",
    "UDOCKER_USE_PROOT_EXECUTABLE": "use_proot_executable",
    "UDOCKER_REGISTRY": "dockerio_registry_url",
    "UDOCKER_INDEX": "dockerio_index_url",
    "UDOCKER_KEYSTORE": "keystore",
    "UDOCKER_TMP": "tmpdir",
}


class Config:
    """Values as attributes. `warnings`: texts about names that nobody knows and values that cannot be."""

    def __init__(self, root=None, file=None, environment=None):
        """Read what there is. `root`: where the store is, if the command line says so; `file`: --config."""
        environment = os.environ if environment is None else environment
        self.warnings = []
        self.files = []
        for name, default, _meaning in MEANING:
            setattr(self, name, default)
        home = os.path.join(os.path.expanduser("~"), ".udocker")
        if not environment.get("UDOCKER_NOSYSCONF"):
            self._read("/etc/udocker.conf")
        self._read(os.path.join(home, "udocker.conf"))
        top = root or environment.get("UDOCKER_DIR") or self.topdir or home
        if os.path.abspath(top) != home:
            self._read(os.path.join(top, "udocker.conf"), keep=("topdir",))
        if file:
            self._read(file, needed=True)
        for variable, name in VARIABLES.items():
            if environment.get(variable):
                self._set(name, environment[variable], variable)
        if root:
            self.topdir = root
        self.topdir = os.path.expanduser(self.topdir or home)

    def items(self):
        """(name, value) of all, in the order of MEANING."""
        return [(name, getattr(self, name)) for name, _default, _meaning in MEANING]

    def _read(self, path, needed=False, keep=()):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as source:
                lines = source.read().splitlines()
        except OSError as exc:
            if needed:
                from .errors import Error

                raise Error(f"the configuration cannot be read: {exc}") from None
            return
        self.files.append(path)
        for number, line in enumerate(_joined(lines), 1):
            text = line.strip()
            if not text or text[0] in "#;[":
                continue
            name, equals, value = text.partition("=")
            if not equals:
                name, equals, value = text.partition(":")
            where = f"{path}, line {number}"
            if not equals:
                self.warnings.append(f"{where}: {text!r} is no `name = value`")
            elif name.strip().lower() not in keep:
                self._set(name.strip().lower(), value.strip(), where)

    def _set(self, name, text, where):
        known = {key: default for key, default, _meaning in MEANING}
        if name in UNUSED:
            return
        if name in PLACES:
            self.warnings.append(f"{where}: the store is one folder: UDOCKER_DIR or topdir says where")
            return
        if name not in known:
            self.warnings.append(f"{where}: nothing is called {name}")
            return
        try:
            setattr(self, name, _value(text, known[name]))
        except ValueError as exc:
            self.warnings.append(f"{where}: {name}: {exc}")


def _joined(lines):
    """Lines with those that go on (they begin with white space) put together; as many as there were."""
    joined = []
    for line in lines:
        if line[:1] in (" ", "\t") and line.strip() and joined and joined[-1].strip():
            last = len(joined) - 1
            while last and not joined[last].strip():
                last -= 1
            joined[last] += " " + line.strip()
            joined.append("")
        else:
            joined.append(line)
    return joined


def _value(text, default):
    """`text` as a value of the default's type: a number, yes or no, a list, text; raises ValueError."""
    if text in ("None", "''", '""'):
        return default
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError(f"{text!r} is neither True nor False")
        return text.lower() in ("true", "1", "yes", "on")
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{text!r} is no number") from None
    if isinstance(default, dict):
        import ast

        try:
            found = dict(ast.literal_eval(text))
            return {str(key): str(value if isinstance(value, str) else value[0]) for key, value in found.items()}
        except (ValueError, SyntaxError, TypeError, IndexError, KeyError):
            raise ValueError(f"{text!r} is no mapping") from None
    if isinstance(default, list):
        if text[:1] in "([{":
            import ast

            try:
                return [str(one) for one in ast.literal_eval(text)]
            except (ValueError, SyntaxError, TypeError):
                raise ValueError(f"{text!r} is no list") from None
        return text.replace(",", " ").split()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text
