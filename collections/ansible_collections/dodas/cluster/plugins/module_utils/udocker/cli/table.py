# SPDX-License-Identifier: Apache-2.0
"""What the command line knows: commands, their options, arguments, texts and examples, and nothing else.

Parser, help, completion, the reference in docs/ and what is said of a wrong line are made from it. Plain tuples, since
they are read at every start.

A command: (group, arguments, summary, function, options, examples, more text). An option: (spellings, kind, value,
help), kind being "" for a flag, "=" for one value, "*" for any number of them, "?" for a value that may be missing,
then "-" where it has no effect here, and "!" where it is refused: the help then says why.
"""

GENERAL = (
    ("-D --debug", "", "", "Say what is done, and where errors come from"),
    ("-q --quiet", "", "", "Print results and errors only"),
    ("--insecure", "", "", "Talk to registries whose certificate cannot be verified"),
    ("--repo", "=", "FOLDER", "Keep images and containers there  [default: $UDOCKER_DIR or ~/.udocker]"),
    ("--config", "=", "FILE", "Read this configuration after the others"),
    ("--engine", "=", "NAME", "Run containers with overlay, directory, fuse or proot  [default: what works here]"),
    ("--json", "", "", "Print lists as JSON"),
    ("--allow-root", "", "", "Accepted: root needs no permission here"),
    ("-h --help", "", "", "Show this help, or that of a command"),
    ("-V -v --version", "", "", "Show the version"),
)

GROUPS = (
    ("run", "Run"),
    ("containers", "Containers"),
    ("images", "Images"),
    ("registries", "Registries"),
    ("files", "Archives"),
    ("here", "This installation"),
)

_TRANSFER = (
    ("--registry", "=", "URL", "Use this registry for names that say none"),
    ("--index", "=", "URL", "Search there"),
    ("--httpproxy", "=", "URL", "http, https, socks4, socks4a, socks5 or socks5h proxy: socks5://user:pass@host:port"),
)
_PLATFORM = ("--platform", "=", "OS/ARCH", "Another system's image: linux/arm64")
_TRUST = ("--disable-content-trust", "-", "", "")
_FORMAT = ("--format", "=", "TEMPLATE", "Print fields: '{{.ID}} {{.Names}}', 'table ...', or json")
_FILTER = ("-f --filter", "*", "KEY=VALUE", "Only what is so")
_JSON = ("--json", "", "", "Print JSON")
_ENV = (
    ("-e --env", "*", "NAME[=VALUE]", "Set a variable; without a value, to the host's"),
    ("--env-file", "*", "FILE", "Set the variables of a file"),
)
_STDIO = (
    ("-i --interactive", "", "", "Keep standard input open"),
    ("-t --tty", "", "", "Give it a terminal"),
)
_KEYS = ("--detach-keys", "=", "KEYS", "Keys that leave a container alone  [default: ctrl-p,ctrl-q]")

CREATE = (
    ("--name", "=", "NAME", "Name of the container"),
    ("-v --volume", "*", "SOURCE[:TARGET[:ro]]", "Show a file or folder of the host in the container"),
    ("--mount", "*", "KEY=VALUE,...", "The same: type=bind|tmpfs,source=...,target=...[,readonly]"),
    ("--tmpfs", "*", "TARGET[:OPTIONS]", "A file system in memory"),
    ("--volumes-from", "*", "CONTAINER", "What another container was given"),
    ("--novol", "*", "PATH", "Leave out a folder that is shown otherwise"),
    ("--nosysdirs", "", "", "Show neither /dev, /proc, /sys nor the host's resolver"),
    ("--bindhome", "", "", "Show the home folder"),
    ("--location", "=", "FOLDER", "Run this tree, which is no container of the store"),
    ("--read-only", "", "", "The container cannot write to its root file system"),
    *_ENV,
    ("--hostenv", "", "", "Pass the host's environment"),
    ("--nometa", "", "", "Ignore the image's environment, user, folder and command"),
    ("--entrypoint", "=", "PROGRAM", "Instead of the image's; \"\" for none"),
    ("-w --workdir --cwd", "=", "PATH", "The folder to start in"),
    ("-u --user", "=", "USER[:GROUP]", "Run as this user of the container"),
    ("--group-add", "*", "GROUP", "A further group"),
    ("--hostauth", "", "", "Users and groups of the host"),
    ("--containerauth", "", "", "Users and groups of the container alone"),
    ("-h --hostname", "=", "NAME", "The container's host name"),
    ("--domainname", "=", "NAME", "The container's domain"),
    ("--network --net", "=", "NAME", "host, or none for loopback alone  [default: host]"),
    ("-p --publish", "*", "[IP:]PORT:PORT", "Reach a port of the container at one of the host"),
    ("-P --publish-all --netcoop", "", "", "Reach all ports that the image exposes"),
    ("--expose", "*", "PORT", "Say that the container listens there"),
    ("--dns", "*", "ADDRESS", "Ask this name server"),
    ("--dns-search", "*", "DOMAIN", "Look for names in this domain"),
    ("--dns-option --dns-opt", "*", "OPTION", "Option of the resolver"),
    ("--add-host", "*", "NAME:ADDRESS", "A line of the container's /etc/hosts"),
    ("--device", "*", "PATH", "A device of the host"),
    ("--gpus", "=", "all", "NVIDIA's devices and libraries"),
    ("--nvidia", "", "", "The same"),
    ("--dri", "", "", "Direct rendering: devices and libraries of the host"),
    ("--cpuset-cpus", "=", "CPUS", "Run on these processors: 0,2-3"),
    ("--ulimit", "*", "NAME=SOFT[:HARD]", "Limit a resource: nofile=1024:2048"),
    ("--shm-size", "=", "SIZE", "Size of /dev/shm: 512m"),
    ("--kernel", "=", "RELEASE", "Pretend to be this kernel"),
    ("--init", "", "", "A first process that reaps children (there always is one)"),
    ("--restart", "=", "POLICY", "no, always, unless-stopped or on-failure[:TIMES]"),
    ("--stop-signal", "=", "SIGNAL", "What asks it to end  [default: the image's, or TERM]"),
    ("--stop-timeout", "=", "SECONDS", "How long it may take to end"),
    ("-l --label", "*", "KEY=VALUE", "Remember this of the container"),
    ("--label-file", "*", "FILE", "The same from a file"),
    ("--cidfile", "=", "FILE", "Write the container's id there"),
    ("--health-cmd", "=", "COMMAND", "Tells whether the container is well"),
    ("--health-interval", "=", "TIME", "Between two checks: 30s"),
    ("--health-timeout", "=", "TIME", "What a check may take"),
    ("--health-retries", "=", "COUNT", "So many failures in turn mean unhealthy"),
    ("--health-start-period", "=", "TIME", "Failures do not count before"),
    ("--health-start-interval", "=-", "TIME", ""),
    ("--no-healthcheck", "", "", "No check, even if the image has one"),
    ("--log-driver", "=", "NAME", "json-file or none"),
    ("--log-opt", "*", "KEY=VALUE", "Rotate the log: max-size=10m, max-file=3"),
    ("--pull", "=", "WHEN", "missing, always, never, or reuse: the container of --name  [default: missing]"),
    _PLATFORM,
    ("--engine", "=", "NAME", "overlay, directory, fuse, proot, or a mode of udocker 1.3.17: P1, R1"),
    ("--force", "", "", "Create it without its name, if another container has that"),
    *_TRANSFER,
    ("--nobanner", "-", "", ""),
    # What docker's users write and what changes nothing that a process can tell, or is so anyway
    *_STDIO,
    ("-a --attach", "*", "STREAM", "Attach stdin, stdout or stderr"),
    ("-q --quiet", "", "", "Say nothing of a pull"),
    ("--privileged", "-", "", ""),
    ("--cap-add", "*-", "", ""),
    ("--cap-drop", "*-", "", ""),
    ("--security-opt", "*-", "", ""),
    ("--userns", "=-", "", ""),
    ("--cgroupns", "=-", "", ""),
    ("--cgroup-parent", "=-", "", ""),
    ("--ipc", "=-", "", ""),
    ("--uts", "=-", "", ""),
    ("--pid", "=-", "", ""),
    ("--isolation", "=-", "", ""),
    ("-m --memory", "=-", "", ""),
    ("--memory-reservation", "=-", "", ""),
    ("--memory-swap", "=-", "", ""),
    ("--memory-swappiness", "=-", "", ""),
    ("--kernel-memory", "=-", "", ""),
    ("--cpus", "=-", "", ""),
    ("-c --cpu-shares", "=-", "", ""),
    ("--cpu-period", "=-", "", ""),
    ("--cpu-quota", "=-", "", ""),
    ("--cpu-rt-period", "=-", "", ""),
    ("--cpu-rt-runtime", "=-", "", ""),
    ("--cpuset-mems", "=-", "", ""),
    ("--pids-limit", "=-", "", ""),
    ("--blkio-weight", "=-", "", ""),
    ("--blkio-weight-device", "*-", "", ""),
    ("--device-cgroup-rule", "*-", "", ""),
    ("--device-read-bps", "*-", "", ""),
    ("--device-read-iops", "*-", "", ""),
    ("--device-write-bps", "*-", "", ""),
    ("--device-write-iops", "*-", "", ""),
    ("--oom-kill-disable", "-", "", ""),
    ("--oom-score-adj", "=-", "", ""),
    ("--sysctl", "*-", "", ""),
    ("--storage-opt", "*-", "", ""),
    ("--annotation", "*-", "", ""),
    ("--network-alias --net-alias", "*-", "", ""),
    ("--link-local-ip", "*-", "", ""),
    ("--use-api-socket", "-", "", ""),
    _TRUST,
    ("--runtime", "=!", "NAME", "there is one runtime here; --engine chooses how it works"),
    ("--link", "*!", "CONTAINER", "containers share the host's network: use the other one's port on localhost"),
    ("--ip", "=!", "ADDRESS", "containers have the host's addresses"),
    ("--ip6", "=!", "ADDRESS", "containers have the host's addresses"),
    ("--mac-address", "=!", "ADDRESS", "containers have the host's network devices"),
    ("--volume-driver", "=!", "NAME", "volumes are folders of the host here"),
)

RUN = (
    ("--rm", "", "", "Remove the container when it has ended"),
    ("-d --detach", "", "", "Run in the background, print the id"),
    _KEYS,
    ("--sig-proxy", "-", "", ""),
    *CREATE,
)

COMMANDS = {
    # Run
    "run": (
        "run", "[IMAGE|CONTAINER] [COMMAND...]", "Run a command in a container", "run.run", RUN,
        (
            ("run --rm debian cat /etc/os-release", "in a new container, pulled if need be, then removed"),
            ("run -it --name work -v $PWD:/data -w /data debian bash", "a shell that sees this folder"),
            ("run work make", "the same container again"),
            ("run -d --name web -p 8080:80 --network none httpd", "in the background, see: logs, stop, rm"),
            ("run --user $USER --bindhome --hostauth --hostenv work ./analysis", "as on the host"),
        ),
        "An image gives a new container; a container runs again as it is, with what it has written. Options come "
        "before the image or container; what follows belongs to the command, and its exit status is udocker's: "
        "1 (docker: 125) tells that it was not started, 126 that it cannot be executed, 127 that there is no such "
        "program, 128+N that signal N ended it.",
    ),
    "exec": (
        "run", "CONTAINER COMMAND...", "Run a command in a container that is running", "run.execute",
        (
            ("-d --detach", "", "", "Do not wait for it"),
            *_STDIO, *_ENV,
            ("-u --user", "=", "USER[:GROUP]", "Run as this user of the container"),
            ("-w --workdir --cwd", "=", "PATH", "The folder to start in"),
            _KEYS,
            ("--privileged", "-", "", ""),
        ),
        (("exec -it web bash", "a shell beside what runs there"),),
        "",
    ),
    "create": (
        "run", "IMAGE [COMMAND...]", "Create a container, print its id", "run.create", CREATE,
        (("create --name work debian", "then: run work COMMAND, or start work"),), "",
    ),
    "build": (
        "run", "FOLDER|URL|-", "Build an image from a Containerfile or Dockerfile", "build.build",
        (
            ("-t --tag", "*", "NAME[:TAG]", "Name of the image"),
            ("-f --file", "=", "FILE", "The file  [default: Containerfile or Dockerfile of the folder]"),
            ("--build-arg", "*", "NAME[=VALUE]", "Value of an ARG"),
            ("--target", "=", "STAGE", "End with this stage"),
            ("--label", "*", "KEY=VALUE", "A label of the image"),
            ("--no-cache", "", "", "Do all steps again"),
            ("--pull", "?", "WHEN", "Pull base images even if they are here"),
            ("-q --quiet", "", "", "Print the id alone"),
            ("--iidfile", "=", "FILE", "Write the image's id there"),
            ("--squash", "-", "", ""),
            ("-v --volume", "*", "PATH[:PATH:ro]", "Show RUN a file or folder of the host"),
            ("--secret", "*", "id=...,src=FILE", "A file that RUN --mount=type=secret may read"),
            ("--build-context", "*", "NAME=FOLDER", "A folder that COPY --from may name"),
            ("--network", "=", "NAME", "host, or none  [default: host]"),
            ("--add-host", "*", "NAME:ADDRESS", "A line of /etc/hosts for RUN"),
            ("--engine", "=", "NAME", "How RUN is run: overlay, directory, fuse or proot"),
            ("-o --output", "=", "DEST", "Also write the result: FILE.tar, type=local,dest=FOLDER"),
            _PLATFORM,
            ("--progress", "=-", "", ""),
            ("--rm", "-", "", ""),
            ("--force-rm", "-", "", ""),
            ("--load", "-", "", ""),
            ("--push", "!", "", "push the image when it has been built: udocker push NAME"),
            ("--compress", "-", "", ""),
            ("--cache-from", "*-", "", ""),
            ("--cache-to", "*-", "", ""),
            ("--provenance", "?-", "", ""),
            ("--sbom", "?-", "", ""),
            ("-m --memory", "=-", "", ""),
            ("--shm-size", "=-", "", ""),
            ("--ulimit", "*-", "", ""),
            ("--security-opt", "*-", "", ""),
            ("--ssh", "*!", "", "keys are given with --secret"),
            _TRUST,
        ),
        (
            ("build -t analysis .", "what ./Containerfile says"),
            ("build -t analysis --build-arg VERSION=2 -f deploy/Dockerfile .", ""),
        ),
        "",
    ),
    # Containers
    "ps": (
        "containers", "", "List containers", "containers.ps",
        (
            ("-m", "", "", "Show the engine"),
            ("-s --size", "", "", "Show the size in MB"),
            ("-p", "", "", "Show the platform"),
            ("-r --running", "", "", "Only those that run"),
            ("-S --status", "", "", "Show what they do"),
            ("-a --all", "", "", "All of them (they are listed anyway)"),
            ("-q --quiet", "", "", "Print ids alone"),
            ("-l --latest", "", "", "Only the one made last"),
            ("-n --last", "=", "COUNT", "Only so many, made last"),
            ("--no-trunc", "", "", "Shorten nothing"),
            _FILTER, _FORMAT, _JSON,
        ),
        (("ps -m -s", ""), ("ps --filter name=work -q", ""), ("ps --format '{{.ID}} {{.Status}}'", "")), "",
    ),
    "start": (
        "containers", "CONTAINER...", "Start containers in the background", "containers.start",
        (
            ("-a --attach", "", "", "Show its output, and wait for its end"),
            ("-i --interactive", "", "", "Give it standard input"),
            _KEYS,
        ),
        (("start -a work", ""),), "",
    ),
    "stop": (
        "containers", "CONTAINER...", "Ask containers to end", "containers.stop",
        (
            ("-t --time --timeout", "=", "SECONDS", "Kill them after so long  [default: 10]"),
            ("-s --signal", "=", "SIGNAL", "Ask with this signal"),
        ),
        (("stop -t 30 web", ""),), "",
    ),
    "kill": (
        "containers", "CONTAINER...", "Send containers a signal", "containers.kill",
        (("-s --signal", "=", "SIGNAL", "By name or number  [default: KILL]"),), (("kill -s HUP web", ""),), "",
    ),
    "restart": (
        "containers", "CONTAINER...", "Stop containers and start them again", "containers.restart",
        (
            ("-t --time --timeout", "=", "SECONDS", "Kill them after so long  [default: 10]"),
            ("-s --signal", "=", "SIGNAL", "Ask with this signal"),
        ),
        (), "",
    ),
    "wait": (
        "containers", "CONTAINER...", "Wait for containers to end, print their exit codes", "containers.wait",
        (), (), "",
    ),
    "logs": (
        "containers", "CONTAINER", "Show what a container has written", "containers.logs",
        (
            ("-f --follow", "", "", "Go on until it ends"),
            ("-n --tail", "=", "LINES", "Only the last lines"),
            ("-t --timestamps", "", "", "Show when"),
            ("--since", "=", "TIME", "Only from then on: 2024-05-06T07:08:09, or 10m ago"),
            ("--until", "=", "TIME", "Only until then"),
            ("--details", "-", "", ""),
        ),
        (("logs -f --tail 20 web", ""),), "",
    ),
    "attach": (
        "containers", "CONTAINER", "See a container's output, type its input", "containers.attach",
        (_KEYS, ("--no-stdin", "", "", "Do not type"), ("--sig-proxy", "-", "", "")), (), "",
    ),
    "rm": (
        "containers", "CONTAINER...", "Remove containers", "containers.rm",
        (
            ("-f --force", "", "", "Kill those that run"),
            ("-v --volumes", "-", "", ""),
            ("-l --link", "!", "", "there are no links between containers"),
        ),
        (("rm work", ""), ("rm -f $(udocker ps -q)", "all that are not protected")), "",
    ),
    "rename": ("containers", "NAME NEW-NAME", "Change a container's name", "containers.rename", (), (), ""),
    "name": ("containers", "CONTAINER NAME", "Give a container a further name", "containers.name", (), (), ""),
    "rmname": ("containers", "NAME", "Take a name from a container", "containers.rmname", (), (), ""),
    "clone": (
        "containers", "CONTAINER", "Duplicate a container, print the new id", "containers.clone",
        (("--name", "=", "NAME", "Name of the new one"),), (("clone --name trial work", ""),), "",
    ),
    "commit": (
        "containers", "CONTAINER [IMAGE]", "Make an image of what a container has become", "containers.commit",
        (
            ("-m --message", "=", "TEXT", "What was done"),
            ("-a --author", "=", "NAME", "Who did it"),
            ("-c --change", "*", "INSTRUCTION", "ENV, CMD, ENTRYPOINT, LABEL ... of the image"),
            ("-p --pause", "-", "", ""),
        ),
        (("commit -c 'CMD [\"bash\"]' work mine:1", ""),), "",
    ),
    "diff": ("containers", "CONTAINER", "List files that a container has Added, Changed, Deleted",
             "containers.diff", (_JSON,), (), ""),
    "cp": (
        "containers", "SOURCE TARGET", "Copy between a container and the host", "containers.cp",
        (
            ("-a --archive", "", "", "Keep owners"),
            ("-L --follow-link", "", "", "Follow a symbolic link that SOURCE is"),
            ("-q --quiet", "-", "", ""),
        ),
        (("cp work:/etc/passwd .", ""), ("cp data work:/srv/", ""), ("cp work:/var/log - | tar t", "")), "",
    ),
    "port": ("containers", "CONTAINER [PORT]", "Show a container's published ports", "containers.port", (), (), ""),
    "top": ("containers", "CONTAINER [OPTION...]", "Show what runs in a container", "containers.top", (), (), ""),
    "stats": (
        "containers", "[CONTAINER...]", "Show what containers use", "containers.stats",
        (
            ("--no-stream", "", "", "Once (it is always once)"), ("-a --all", "", "", "Also those that do not run"),
            ("--no-trunc", "", "", "Shorten nothing"), _FORMAT,
        ),
        (), "",
    ),
    "protect": ("containers", "CONTAINER|IMAGE", "Let nobody remove it", "containers.protect", (), (), ""),
    "unprotect": ("containers", "CONTAINER|IMAGE", "Let it be removed again", "containers.unprotect", (), (), ""),
    "setup": (
        "containers", "CONTAINER", "Choose how a container is run", "containers.setup",
        (
            ("--execmode", "=", "MODE", "A mode of udocker 1.3.17, or overlay, directory, fuse, proot"),
            ("--nvidia", "", "", "Give it NVIDIA's devices and libraries"),
            ("--purge", "", "", "Remove what mounts have left in its tree"),
            ("--fixperm", "", "", "Make its files the user's own"),
            ("--force", "", "", "Even if that loses something"),
        ),
        (("setup --execmode=R1 work", "a plain folder: best for many small files"),),
        "P1 and P2 are PRoot, R1, R2 and R3 a plain folder in a user namespace. F1 to F4 and S1 have no like here: "
        "the engine that fits this host is used.",
    ),
    # Images
    "images": (
        "images", "[NAME]", "List images", "images.images",
        (
            ("-l", "", "", "Show their layers"),
            ("-p", "", "", "Show their platform"),
            ("-a --all", "", "", "All of them (they are listed anyway)"),
            ("-q --quiet", "", "", "Print ids alone"),
            ("--digests", "", "", "Show digests"),
            ("--no-trunc", "", "", "Shorten nothing"),
            _FILTER, _FORMAT, _JSON,
        ),
        (("images -l", ""), ("images --format '{{.Repository}}:{{.Tag}} {{.Size}}'", "")), "",
    ),
    "inspect": (
        "images", "CONTAINER|IMAGE...", "Show what is known of containers and images", "images.inspect",
        (
            ("-p", "", "", "Print where a container's tree is on the host"),
            ("-f --format", "=", "TEMPLATE", "Print fields: '{{.State.Pid}}', '{{json .Config}}'"),
            ("--type", "=", "KIND", "container or image"),
            ("-s --size", "", "", "Show sizes too"),
        ),
        (("inspect -p work", ""), ("inspect --format '{{.State.Status}}' web", "")), "",
    ),
    "history": (
        "images", "IMAGE", "Show how an image was made", "images.history",
        (
            ("-q --quiet", "", "", "Print ids alone"), ("--no-trunc", "", "", "Shorten nothing"),
            ("-H --human", "", "", "Sizes and times for people"), _FORMAT, _JSON,
        ),
        (), "",
    ),
    "tag": (
        "images", "IMAGE NEW-NAME", "Give an image a further name", "images.tag", (), (("tag debian mine:1", ""),), "",
    ),
    "rmi": (
        "images", "IMAGE...", "Remove images", "images.rmi",
        (
            ("-f --force", "", "", "Even if containers use it"),
            ("--no-prune", "", "", "Keep layers that no image uses any more"),
            ("--platform", "=-", "", ""),
        ),
        (), "",
    ),
    "verify": ("images", "IMAGE", "Check that an image is whole and what it says", "images.verify", (), (), ""),
    "prune": (
        "images", "", "Remove what nothing uses: half-made, layers, images without name", "images.prune",
        (
            ("-a --all", "", "", "Also images that no container uses"),
            ("-f --force", "", "", "Do not ask"),
            ("--volumes", "-", "", ""),
            ("--filter", "*", "KEY=VALUE", "Only what is so"),
        ),
        (), "",
    ),
    # Registries
    "pull": (
        "registries", "IMAGE", "Get an image from a registry", "images.pull",
        (
            _PLATFORM, *_TRANSFER,
            ("-q --quiet", "", "", "Show no progress"),
            ("-a --all-tags", "", "", "All tags of the repository"),
            _TRUST,
        ),
        (
            ("pull debian:12", ""), ("pull registry.example.org:5000/group/image@sha256:...", ""),
            ("pull --platform=linux/arm64 debian", ""),
        ),
        "",
    ),
    "push": (
        "registries", "IMAGE", "Give an image to a registry", "images.push",
        (
            *_TRANSFER,
            ("-q --quiet", "", "", "Show no progress"),
            ("-a --all-tags", "", "", "All tags of the repository"),
            ("--platform", "=-", "", ""),
            _TRUST,
        ),
        (("push registry.example.org/group/mine:1", ""),), "",
    ),
    "search": (
        "registries", "EXPRESSION", "Search a registry for images", "images.search",
        (
            ("-a", "", "", "Do not stop at a screenful"),
            ("--list-tags", "", "", "List the tags of a repository"),
            ("--no-trunc", "", "", "Shorten nothing"),
            ("--limit", "=", "COUNT", "At most so many"),
            _FILTER, _FORMAT, *_TRANSFER,
        ),
        (("search root", ""), ("search --list-tags debian", "")), "",
    ),
    "login": (
        "registries", "[REGISTRY]", "Log in to a registry", "images.login",
        (
            ("-u --username", "=", "NAME", "Who"),
            ("-p --password", "=", "TEXT", "Password: others may see it in the list of processes"),
            ("--password-stdin", "", "", "Read the password from standard input"),
            ("--registry", "=", "URL", "Where, if not at the default registry"),
        ),
        (("login --username me --password-stdin registry.example.org < token", ""),), "",
    ),
    "logout": (
        "registries", "[REGISTRY]", "Forget credentials of a registry", "images.logout",
        (
            ("-a --all", "", "", "Of all registries"),
            ("--registry", "=", "URL", "Where, if not at the default registry"),
        ),
        (), "",
    ),
    "manifest": (
        "registries", "inspect IMAGE", "Show an image's manifest in its registry", "images.manifest",
        (_PLATFORM, *_TRANSFER, ("-v --verbose", "-", "", "")), (("manifest inspect debian:12", ""),), "",
    ),
    # Archives
    "load": (
        "files", "[-] [NAME]", "Load images from an archive of docker or OCI", "images.load",
        (
            ("-i --input", "=", "FILE", "The archive  [default: standard input]"),
            ("-q --quiet", "", "", "Show no progress"),
            _PLATFORM,
        ),
        (("load -i image.tar", ""), ("load < image.tar.gz", "")), "",
    ),
    "save": (
        "files", "[-] IMAGE...", "Write images to an archive", "images.save",
        (
            ("-o --output", "=", "FILE", "The archive  [default: standard output]"),
            ("--oci", "", "", "As an OCI layout instead of docker's format"),
            ("--platform", "=-", "", ""),
        ),
        (("save -o image.tar debian:12", ""),), "",
    ),
    "import": (
        "files", "FILE|URL|- [IMAGE]", "Make an image or container of a tree's archive", "images.import_",
        (
            ("--mv", "", "", "The archive is not needed any more"),
            ("--tocontainer", "", "", "Make a container instead"),
            ("--clone", "", "", "From export --clone: a container with all that is known of it"),
            ("--name", "=", "NAME", "Name of the container"),
            ("-m --message", "=", "TEXT", "What it is"),
            ("-c --change", "*", "INSTRUCTION", "ENV, CMD, ENTRYPOINT ... of the image"),
            _PLATFORM,
        ),
        (("import root.tar.xz mine:1", ""), ("import --clone container.tar", "")), "",
    ),
    "export": (
        "files", "[FILE|-] CONTAINER", "Write a container's tree to an archive", "images.export",
        (
            ("-o --output", "?", "FILE", "The archive  [default: standard output]"),
            ("--clone", "", "", "With all that is known of the container, for import --clone"),
        ),
        (("export -o tree.tar work", ""), ("export work | tar t", "")), "",
    ),
    # This installation
    "info": (
        "here", "", "Show what this host offers: engines, and why others do not work", "here.info",
        (("-f --format", "=", "TEMPLATE", "Print fields, or json"), _JSON, ("--probe", "", "", "Find out again")),
        (), "",
    ),
    "version": (
        "here", "", "Show versions", "here.version",
        (("-f --format", "=", "TEMPLATE", "Print fields, or json"),), (), "",
    ),
    "df": ("here", "", "Show what takes how much of the disk", "images.df",
           (("-v --verbose", "", "", "Each image and container"), _FORMAT, _JSON), (), ""),
    "showconf": ("here", "", "Show the configuration", "here.showconf", (), (), ""),
    "mkrepo": ("here", "FOLDER", "Make another place for images and containers", "here.mkrepo", (),
               (("mkrepo /scratch/me/udocker", "then: udocker --repo=/scratch/me/udocker ..."),), ""),
    "install": (
        "here", "", "Accepted: nothing needs to be installed", "here.install",
        (("--force", "", "", "No effect"), ("--purge", "", "", "No effect")), (), "",
    ),
    "completion": ("here", "bash|zsh|fish", "Print completion for a shell", "here.completion", (),
                   (('eval "$(udocker completion bash)"', ""),), ""),
    "help": ("here", "[COMMAND]", "Show help", "here.help_", (), (), ""),
}  # fmt: skip

# Sub-commands as docker groups them.
SUBCOMMANDS = {
    "container": {
        "ls": "ps", "list": "ps", "ps": "ps", "inspect": "inspect", "prune": "container-prune",
        **{name: name for name in (
            "attach", "commit", "cp", "create", "diff", "exec", "export", "kill", "logs", "port", "rename", "restart",
            "rm", "run", "start", "stats", "stop", "top", "wait",
        )},
    },
    "image": {
        "ls": "images", "list": "images", "rm": "rmi", "remove": "rmi", "inspect": "inspect", "prune": "image-prune",
        **{name: name for name in ("build", "history", "import", "load", "pull", "push", "save", "tag")},
    },
    "system": {"df": "df", "info": "info", "prune": "prune"},
    "builder": {"build": "build", "prune": "image-prune"},
    "buildx": {"build": "build"},
}  # fmt: skip

# Commands that have no entry above but are made from one: (like, summary, fixed values of options)
VARIANTS = {
    "container-prune": ("prune", {"containers_only": True}),
    "image-prune": ("prune", {"images_only": True}),
}

# Commands of docker that are refused, and why.
REFUSED = {
    "pause": "stopping all processes of a container at once takes control groups, which are root's",
    "unpause": "stopping all processes of a container at once takes control groups, which are root's",
    "update": "limits take control groups, which are root's: give options to run or create",
    "events": "no daemon watches containers here: see ps, logs -f and wait",
    "network": "containers have the host's network, or none: see run --network",
    "volume": "volumes are folders of the host: run -v /a/folder:/target",
    "compose": "start containers one by one",
    "swarm": "there is one host",
    "service": "there is one host",
    "stack": "there is one host",
    "node": "there is one host",
    "secret": "give a file: run -v /a/file:/target:ro",
    "config": "give a file: run -v /a/file:/target:ro",
    "context": "there is no daemon to connect to",
    "plugin": "there are no plugins",
    "trust": "digests are verified; signatures are not read",
    "checkpoint": "containers cannot be frozen to disk",
}

ALIASES = {"list": "ps", "ls": "ps", "remove": "rm", "delete": "rm"}
