# SPDX-License-Identifier: Apache-2.0
"""Engines run what they are asked to, as users with one id or many, as root, nested, with namespaces denied."""

import os
import platform
import shutil
import subprocess
import time

import pytest

import udocker_engine
import udocker_people

NAMESPACED = ("overlay", "directory")


@pytest.fixture(scope="module", params=[True, False], ids=["subids", "one-id"])
def play(request):
    with udocker_engine.Player(subids=request.param) as player:
        player.subids = request.param
        yield player


@pytest.fixture(scope="module")
def many():
    with udocker_engine.Player(subids=True) as player:
        yield player


@pytest.fixture(scope="module")
def single():
    with udocker_engine.Player(subids=False) as player:
        yield player


@pytest.fixture(params=["overlay", "directory", "proot", "denied"])
def engine(request):
    """Name of an engine, and whether user namespaces are denied."""
    denied = request.param == "denied"
    return ("proot" if denied else request.param), denied


# Start


def test_what_runs_ends_with_its_exit_code_and_output(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        tell(run(e, c, "sh", "-c", "echo $0 $HOME; pwd; id -u; exit 7", cwd="/made/for/it"))
        tell(run(e, c, "script", "a b"))
        tell(run(e, c, "sh", "-c", "kill -9 $$"))
        tell(run(e, c, "sh", "-c", "kill -TERM $$"))
        tell(run(e, c, "sh", "-c", "kill -TERM $$; exit 3", init=False) if {name!r} != "proot" else [3, ""])
        tell(run(e, c, "sh", "-c", "sleep 1000 & exit 255"))
    """, deny=deny)
    assert told == [[7, "sh /root\n/made/for/it\n0"], [0, "script a b"], [137, ""], [143, ""], [3, ""], [255, ""]]


def test_what_cannot_be_executed_is_told_as_docker_tells_it(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        for argv in (["nosuch"], ["/nosuch"], ["/bin/plain"], ["/etc"], ["/etc/passwd/x"], []):
            tell(run(e, c, *argv))
        if {name!r} != "proot":
            tell(run(e, c, "orphan"))
            tell(run(e, c, "garbage"))
        tell(run(e, c, "true", user="nobody"))
        tell(run(e, c, "true", user="web:nobody"))
        tell(run(e, c, "true", mounts=[Mount("bind", "/x", "/nowhere")]))
    """, deny=deny)
    missing, absolute, plain, folder, below, nothing, *more = told
    assert missing == [127, 'exec: "nosuch": executable file not found in $PATH']
    assert absolute == [127, 'exec: "/nosuch": stat /nosuch: no such file or directory']
    assert plain == [126, 'exec: "/bin/plain": /bin/plain: permission denied']
    assert folder == [126, 'exec: "/etc": /etc: is a directory']
    assert below[0] == 127
    assert nothing[0] == 125
    if name != "proot":
        orphan, garbage, *more = more
        assert orphan[0] == 127 and "/bin/orphan" in orphan[1]
        assert garbage[0] == 126 and "exec format error" in garbage[1]
    user, group, mount = more
    assert user == [125, "unable to find user nobody: no matching entries in the container's passwd file"]
    assert group == [125, "unable to find group nobody: no matching entries in the container's group file"]
    assert mount[0] == 125 and "/nowhere" in mount[1] and "/x" in mount[1]


def test_users_of_the_image_and_numbers(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        for user in ("", "web", "33", "web:77", "1000", "1000:1000"):
            look = "id -u; id -g; id -G; echo $HOME; touch /tmp/of && stat -c %u:%g /tmp/of; rm /tmp/of"
            tell(run(e, c, "sh", "-c", look, user=user))
        tell(run(e, c, "true", user="far"))
    """)
    root, web, number, group, unknown, both, far = told
    # With one id there are no supplementary groups to be had.
    further = "33 77" if play.subids else "33"
    assert root == [0, "0\n0\n0\n/root\n0:0"]
    assert web == number
    assert web[1].splitlines()[:2] == ["33", "33"]
    assert set(web[1].splitlines()[2].split()) >= set(further.split()) - {"33"}
    assert web[1].splitlines()[3:] == ["/srv", "33:33"]
    assert group[1].splitlines()[:3] == ["33", "77", "77"]
    assert unknown == [0, "1000\n0\n0\n/\n1000:0"]
    assert both == [0, "1000\n1000\n1000\n/\n1000:1000"]
    if play.subids:
        assert far[0] == 125 and "4000000" in far[1] and "/etc/subuid" in far[1]
    else:
        assert far[0] == 0


def test_streams_are_handed_over_and_nothing_else(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        kept = os.open("/etc/hostname", os.O_RDONLY)
        os.set_inheritable(kept, True)
        os.environ["SECRET"] = "of the host"
        tell(run(e, c, "sh", "-c", "ls /proc/self/fd; env"))
        # What the first process holds open does not keep a reader from seeing the end.
        source, target = os.pipe()
        running = e.start(spec(c, "sh", "-c", "echo said; exec >&- 2>&-; sleep 1000"), (0, target, target))
        os.close(target)
        tell(os.read(source, 100).decode())
        tell(os.read(source, 100).decode() if {name!r} != "proot" else "")
        running.kill()
        tell(running.wait())
    """, deny=deny)
    (code, output), said, end, killed = told
    lines = output.splitlines()
    assert code == 0 and [line for line in lines if line.isdigit()] == ["0", "1", "2", "3"]  # 3 is what lists them
    assert "SECRET" not in output
    assert (said, end, killed) == ("said\n", "", 137)


def test_the_host_is_out_of_sight(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        os.environ["SECRET"] = "of the host"
        tell(run(e, c, "sh", "-c", "ls -d /home /work /proc/1/root/home 2>/dev/null; ls /proc | grep -c '^[0-9]'"))
        tell(run(e, c, "cat", "/proc/1/environ"))
        tell(run(e, c, "sh", "-c", "ls /proc/1/fd"))
        tell(run(e, c, "hostname", hostname="box"))
        tell(run(e, c, "sh", "-c", "cat /proc/net/dev | grep -c :; ifconfig lo | grep -c RUNNING", network="none"))
        tell(run(e, c, "sh", "-c", "echo x > /proc/sys/kernel/hostname; echo x > /sys/kernel/x"))
        tell(run(e, c, "sh", "-c", "mount -o remount,rw /sys && touch /sys/x"))
    """)
    seen, environ, descriptors, name, network, written, remounted = told
    assert seen[1].splitlines()[-1] in ("3", "4") and len(seen[1].splitlines()) == 1
    assert "SECRET" not in environ[1] and environ[0] != 0
    assert descriptors[0] != 0
    assert name == [0, "box"]
    assert network == [0, "1\n1"]
    assert written[0] != 0
    assert remounted[0] != 0


def test_devices_of_a_container(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        tell(run(e, c, "sh", "-c", '''
            set -e
            echo x > /dev/null; test "$(head -c 3 /dev/zero | wc -c)" = 3; test "$(head -c 5 /dev/urandom | wc -c)" = 5
            test -c /dev/full; test -c /dev/tty; echo y > /dev/shm/file; cat /dev/shm/file; echo z | cat /dev/stdin
            readlink /dev/ptmx; readlink /dev/fd; ls /dev | grep -c sda || true'''))
        tell(run(e, c, "sh", "-c", "ls -l /dev/fuse", devices=["/dev/fuse"]))
        tell(run(e, c, "sh", "-c", "script -q -c 'tty' /dev/null || test -c /dev/pts/ptmx && echo pty"))
    """)
    first, fuse, pty = told
    assert first == [0, "y\nz\npts/ptmx\n/proc/self/fd\n0"]
    assert fuse[0] == 0 and fuse[1].startswith("c")
    assert pty[0] == 0


def test_a_terminal_becomes_the_controlling_one(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        master, slave = os.openpty()
        running = e.start(spec(c, "sh", "-c", "tty; echo to the terminal > /dev/tty; read line; echo got $line",
                               terminal=True), (slave, slave, slave))
        os.close(slave)
        os.write(master, b"word\\n")
        said = b""
        try:
            while piece := os.read(master, 1000):
                said += piece
        except OSError:
            pass
        tell([running.wait(), said.decode().replace("\\r", "").splitlines()])
    """, deny=deny)
    code, lines = told
    assert code == 0
    assert "to the terminal" in lines and "got word" in lines
    assert any(line.startswith("/dev/") for line in lines)


# Signals and the end


def test_signals_reach_the_process_and_orphans_are_reaped(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        script = "trap 'echo term; exit 9' TERM; trap 'echo usr1' USR1; trap 'echo hup' HUP; echo ready;"
        script += "while :; do sleep 0.05; done"
        source, target = os.pipe()
        running = e.start(spec(c, "sh", "-c", script), (0, target, target))
        os.close(target)
        stream = open(source)
        tell(stream.readline())
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            running.kill(number)
            tell(stream.readline())
        tell(running.wait())
        script = "(sleep 0.1 &) ; (sleep 0.1 &); sleep 0.4; ps | grep -c '[Z]ombie\\\\|\\\\[sleep\\\\]'"
        tell(run(e, c, "sh", "-c", script) if {name!r} != "proot" else [1, "0"])
    """, deny=deny)
    assert told == ["ready\n", "usr1\n", "hup\n", "term\n", 9, [1, "0"]]


def test_a_container_dies_with_its_starter_and_only_then(play, engine):
    name, deny = engine
    player = play
    script = f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        for attached in (True, False):
            child = os.fork()
            if not child:
                running = e.start(spec(c, "sleep", "1000"), attached=attached)
                with open(home + "/started", "w") as file:
                    file.write(str(running.pid))
                os.kill(os.getpid(), 9)
            os.waitpid(child, 0)
            pid = int(open(home + "/started").read())
            deadline = time.monotonic() + (10 if attached else 0.3)
            while process.started(pid) is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            tell(process.started(pid) is not None)
            if not attached:
                e.kill_all(c) if hasattr(e, "kill_all") else os.kill(pid, 15 if {name!r} == "proot" else 9)
    """
    assert player(script, deny=deny) == [False, True]
    deadline = time.monotonic() + 10
    while any("sleep 1000" in line for line in player.person.processes().values()):
        assert time.monotonic() < deadline, player.person.processes()
        time.sleep(0.02)


# Enter


def test_another_process_enters(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        volume = Mount("bind", "/vol/x", "/etc/hostname")
        running = e.start(spec(c, "sh", "-c", "echo mark > /mark; sleep 1000", mounts=[volume]))
        deadline = time.monotonic() + 10
        while enter(e, running, c, "cat", "/mark") != [0, "mark"] and time.monotonic() < deadline:
            time.sleep(0.01)
        tell(enter(e, running, c, "sh", "-c", "cat /mark /vol/x; exit 5"))
        env = {{"PATH": "/bin", "V": "1"}}
        tell(enter(e, running, c, "sh", "-c", "id -u; pwd; echo $V", user="web", cwd="/tmp", env=env))
        tell(enter(e, running, c, "nosuch"))
        tell(enter(e, running, c, "/bin/plain"))
        tell(enter(e, running, c, "sh", "-c", "ps | grep -c '[s]leep 1000'"))
        running.kill()
        running.wait()
        tell(enter(e, running, c, "true"))
    """, deny=deny)
    with open("/etc/hostname", encoding="utf-8") as source:
        host = source.read().strip()
    first, user, missing, plain, beside, late = told
    assert first == [5, f"mark\n{host}"]
    assert user == [0, "33\n/tmp\n1"]
    assert missing[0] == 127 and plain[0] == 126
    assert beside[0] == 0
    assert late == [125, "the container is not running"]


def test_what_works_inside_sees_the_container_and_cannot_leave_it(play):
    told = play("""
        def look(folder):
            return sorted(os.listdir(folder)), os.path.exists("/home"), os.path.realpath(folder + "up")
        def fail(folder):
            raise errors.NotFound("nothing here", 4)
        def load(folder):
            import this_is_of_the_container
        for name in ("overlay", "directory"):
            e = engines.choose(STORE, name)
            c = container(e, name)
            tell(e.inside(c, layers, look))
            try:
                e.inside(c, layers, fail)
            except errors.NotFound as exc:
                tell([str(exc), exc.status])
            for path in filter(None, sys.path):
                run(e, c, "sh", "-c", f"mkdir -p '{path}' && echo > '{path}/this_is_of_the_container.py'")
            try:
                e.inside(c, layers, load)
                tell("loaded")
            except ImportError:
                tell("refused")
            running = e.start(spec(c, "sleep", "1000", mounts=[Mount("tmpfs", "/added")]))
            tell("added" in e.inside(c, layers, os.listdir))
            running.kill()
            running.wait()
    """)
    for seen, failed, imported, added in (told[:4], told[4:]):
        assert "lower" in seen[0] and seen[1] is False and seen[2] == "/etc"
        assert failed == ["nothing here", 4]
        assert imported == "refused"
        assert added is True


# Files


def test_changes_stay_in_the_container(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c, other = container(e, "one"), container(e, "two")
        change = "echo new > /lower/file; rm -r /lower/inner; mkdir /lower/inner; echo a > /added;"
        change += "mv /etc/group /group; chmod 700 /tmp"
        tell(run(e, c, "sh", "-c", change))
        see = "exec 2>/dev/null; cat /lower/file; ls /lower/inner; ls -d /added /group /etc/group; stat -c %a /tmp"
        tell(run(e, c, "sh", "-c", see))
        tell(run(e, other, "sh", "-c", see))
        copy = STORE.container("three")
        os.makedirs(copy)
        e.clone(c, copy)
        tell(run(e, copy, "sh", "-c", see))
        for one in (c, other, copy):
            e.remove(one)
        tell([os.path.exists(one) for one in (c, other, copy)])
        tell([open(layer + "/lower/file").read(), os.path.exists(layer + "/added")])
    """, deny=deny)
    changed = [0, "new\n/added\n/group\n700"]
    assert told[0] == [0, ""]
    assert told[1] == changed
    assert told[2] == [0, "lowerfile\n/etc/group\n1777"]
    assert told[3] == changed
    assert told[4] == [False, False, False]
    assert told[5] == ["lower", False]


def test_a_directory_is_what_an_overlay_would_show(play):
    told = play(f"""
        def build():
            for number in range(3):
                base = f"{{home}}/l{{number}}"
                for folder in ("all", "gone/sub", "opaque/a", f"own{{number}}/x"):
                    os.makedirs(f"{{base}}/{{folder}}")
                for name in (f"all/{{number}}", "all/same", f"gone/f{{number}}", f"opaque/a/{{number}}", "covered"):
                    with open(f"{{base}}/{{name}}", "w") as target:
                        target.write(str(number))
            with open(home + "/l0/sparse", "wb") as target:
                target.truncate(1 << 26)
                target.seek(1 << 25)
                target.write(b"x" * 100000)
            os.link(home + "/l0/all/same", home + "/l0/other-name")
            os.symlink("/etc/passwd", home + "/l1/link")
            os.mkfifo(home + "/l1/fifo", 0o640)
            os.chmod(home + "/l1/all/1", 0o4751)
            os.setxattr(home + "/l1/all/1", "user.note", b"kept")
            if {play.subids}:
                os.chown(home + "/l1/all/1", 33, 77)
                os.chmod(home + "/l1/all/1", 0o4751)
            os.chmod(home + "/l2/opaque", 0o1777)
            os.utime(home + "/l0/all/0", ns=(1, 1_234_567_890_123_456_789))
            os.mknod(home + "/l1/own0", 0o020000 | 0o644, 0)
            trees.remove(home + "/l2/gone")
            os.mknod(home + "/l2/gone", 0o020000 | 0o644, 0)
            os.unlink(home + "/l1/covered")
            os.makedirs(home + "/l1/covered/now-a-folder")
            os.setxattr(home + "/l2/opaque/a", "user.overlay.opaque", b"y")
            os.setxattr(home + "/l2/all", "user.overlay.origin", b"of overlay")
        def look(folder):
            found = {{}}
            for parent, folders, files in os.walk(folder):
                for name in folders + files:
                    path = os.path.join(parent, name)
                    status = os.lstat(path)
                    regular = os.path.isfile(path) and not os.path.islink(path)
                    content = open(path, "rb").read(3).decode("latin1") if regular else ""
                    size = 0 if os.path.isdir(path) else status.st_size
                    times = status.st_mtime_ns
                    marks = os.listxattr(path, follow_symlinks=False)
                    marks = [one for one in marks if not one.startswith("user.overlay")]
                    found[path] = [status.st_mode, status.st_uid, status.st_gid, size, times, content, marks]
            return found
        userns.call(build)
        stack = [layer] + [f"{{home}}/l{{number}}" for number in range(3)]
        seen = {{}}
        for name in ("overlay", "directory"):
            e = engines.choose(STORE, name)
            c = container(e, name, stack)
            seen[name] = e.inside(c, stack, look)
            copy = STORE.container(name + "-copy")
            os.makedirs(copy)
            e.clone(c, copy)
            assert e.inside(copy, stack, look) == seen[name], name
        tell(seen["directory"])
        tell(seen["overlay"])
        tree = STORE.container("directory") + "/ROOT"
        same = os.stat(tree + "/bin/sh").st_ino == os.stat(tree + "/bin/ls").st_ino
        tell([same, os.stat(tree + "/sparse").st_blocks < 1000])
        for number in range(3):
            trees.remove(f"{{home}}/l{{number}}")
    """)
    directory, overlay, (linked, sparse) = told
    assert directory == overlay
    assert linked and sparse
    assert directory["/all/1"][0] & 0o7777 == 0o4751 and directory["/all/1"][6] == ["user.note"]
    assert directory["/all/1"][1:3] == ([33, 77] if play.subids else [0, 0])
    assert directory["/all/0"][4] == 1_234_567_890_123_456_789
    assert "/covered/now-a-folder" in directory or directory["/covered"][5] == "2"
    assert "/own0" not in directory and "/gone" not in directory
    assert [path for path in directory if path.startswith("/opaque/a/")] == ["/opaque/a/2"]


def test_hard_links_to_layers_on_demand(many):
    told = many("""
        e = engines.choose(STORE, "directory")
        directory = STORE.container("linked")
        os.makedirs(directory)
        e.prepare(directory, layers, links=True)
        tell(os.stat(directory + "/ROOT/lower/file").st_ino == os.stat(layer + "/lower/file").st_ino)
        tell(run(e, directory, "sh", "-c", "rm /lower/file; echo other > /lower/file; cat /lower/file"))
        tell(open(layer + "/lower/file").read())
    """)
    assert told == [True, [0, "other"], "lower"]


# Mounts


def test_mounts_of_files_folders_and_memory(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        os.makedirs(home + "/volume/deep", exist_ok=True)
        open(home + "/volume/file", "w").write("of the host")
        given = [Mount("bind", "/new/place", home + "/volume"), Mount("bind", "/etc/motd", home + "/volume/file"),
                 Mount("bind", "/fixed", home + "/volume", read_only=True),
                 Mount("tmpfs", "/memory", options="size=1m,mode=700")]
        script = "cat /new/place/file /etc/motd; echo w > /new/place/written; touch /fixed/x;"
        script += "touch /memory/x; stat -c %a /memory; rm /memory/x"
        tell(run(e, c, "sh", "-c", script, mounts=given))
        tell(open(home + "/volume/written").read())
        tell(run(e, c, "sh", "-c", "touch /x; touch /new/place/y && echo volume", mounts=given, read_only=True))
        tell(run(e, c, "sh", "-c", "ls /new/place; wc -c < /etc/motd"))
    """)
    first, written, fixed, without = told
    assert first[0] == 0 and "of the hostof the host" in first[1] and "700" in first[1]
    assert "/fixed/x: Read-only file system" in first[1]
    assert written == "w\n"
    assert fixed[0] == 0 and "/x: Read-only file system" in fixed[1] and "volume" in fixed[1]
    assert without == [0, "0"]


def test_targets_of_mounts_are_never_outside(play, engine):
    """Links in an image lead up, into /proc, round in circles: what is made for a mount is made in the container."""
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        open(home + "/source", "w").write("mounted")
        for target in ("/up/made-by-mount", "/magic/made-by-mount", "/../../../made-by-mount", "/up/../../../made-too",
                       "/lower/../../made-again", "/lower/file/below", "/loop/x"):
            tell(run(e, c, "cat", target, mounts=[Mount("bind", target, home + "/source")]))
    """, deny=deny)
    if name == "proot":  # PRoot makes what is missing up, and finds its way through none
        told = told[:1] + told[2:]
    good = [one for one in told if one == [0, "mounted"]]
    assert len(good) >= 3, told
    for path in ("/etc/made-by-mount", "/made-by-mount", "/made-too", "/made-again", "/etc/made-too"):
        assert not os.path.lexists(path), path
    assert not os.path.lexists(play.home / "made-by-mount")


def test_a_home_does_not_hold_the_mounts_of_its_own_container(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        open(c + "/ROOT/below", "w").close()
        script = f"ls /host{c}/ROOT; grep -c {c}/ROOT /proc/mounts"
        tell(run(e, c, "sh", "-c", script, mounts=[Mount("bind", "/host", "/")]))
    """)
    assert told == [1, "below\n0"]


def test_what_the_host_mounts_later_appears(play, tmp_path):
    """As file systems do that are mounted when somebody looks at them (CVMFS)."""
    shared = tmp_path / "shared"
    shared.mkdir()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if "pytest" in str(parent):
            parent.chmod(0o755)
    try:
        for options in (["--bind", shared, shared], ["--make-shared", shared]):
            subprocess.run(["mount", *options], check=True)
        (shared / "later").mkdir()
        (play.home / "go").unlink(missing_ok=True)
        script = play.person.popen([
            play.person.python, "-IS", "-c", udocker_engine.PRELUDE + f"""
e = engines.choose(STORE, "overlay")
c = container(e)
running = e.start(spec(c, "sleep", "1000", mounts=[Mount("bind", "/shared", {str(shared)!r})]))
tell("started")
sys.stdin.readline()
tell(enter(e, running, c, "cat", "/shared/later/file"))
""", play.home], env={"STORE": str(play.home / "store-shared")}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)  # fmt: skip
        assert script.stdout.readline() == '"started"\n'
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "later"], check=True)
        (shared / "later/file").write_text("mounted later")
        said, _nothing = script.communicate("\n", timeout=60)
        assert said == '[0, "mounted later"]\n'
    finally:
        subprocess.run(["umount", "-R", shared], check=True)


# Limits


def test_limits_hold_in_the_container(play, engine):
    name, deny = engine
    told = play(f"""
        e = engines.choose(STORE, {name!r})
        c = container(e)
        processor = str(min(os.sched_getaffinity(0)))
        tell(run(e, c, "sh", "-c", "ulimit -n; nproc", limits={{"nofile": (99, 99), "cpuset": processor}}))
        tell(run(e, c, "true", limits={{"cpuset": "1000000"}}))
        tell(run(e, c, "true", limits={{"cpuset": "a-b"}}))
        tell(run(e, c, "true", limits={{"nothing": (1, 1)}}))
    """, deny=deny)
    assert told[0] == [0, "99\n1"]
    assert [one[0] for one in told[1:]] == [125, 125, 125]


# Overlay


def test_an_overlay_of_hundreds_of_layers(play):
    told = play("""
        stack = [layer]
        for number in range(200):
            folder = f"{home}/stack/{number:064d},:\\\\"
            os.makedirs(folder + "/stack", exist_ok=True)
            open(f"{folder}/stack/{number}", "w").close()
            open(f"{folder}/last", "w").write(str(number))
            stack.append(folder)
        e = engines.choose(STORE, "overlay")
        c = container(e, layers=stack)
        tell(run(e, c, "sh", "-c", "ls /stack | wc -l; cat /last", layers=stack))
    """)
    assert told == [0, "200\n199"]


def test_an_overlay_that_was_volatile_is_mounted_again(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        for volatile in (True, False, True, True):
            tell(run(e, c, "sh", "-c", "echo x >> /counted; wc -l < /counted", volatile=volatile))
    """)
    assert told == [[0, "1"], [0, "2"], [0, "3"], [0, "4"]]


def test_a_missing_layer_is_named(play):
    told = play("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        tell(run(e, c, "true", layers=[layer, home + "/lost"]))
    """)
    assert told[0] == 125 and "/lost" in told[1]


def test_files_are_not_mounted_twice_at_a_time(many):
    told = many("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        def slow(folder):
            time.sleep(0.5)
            return time.monotonic()
        child = os.fork()
        if not child:
            e.inside(c, layers, slow)
            os._exit(0)
        time.sleep(0.2)
        began = time.monotonic()
        code = run(e, c, "true")[0]
        tell([code, time.monotonic() - began > 0.1])
        os.waitpid(child, 0)
    """)
    assert told == [0, True]


# Choice


def test_engines_are_tried_and_remembered(play):
    told = play("""
        tell(engines.probe(STORE))
        began = time.monotonic()
        e = engines.choose(STORE)
        tell([e.name, time.monotonic() - began < 0.02])
        tell([engines.choose(STORE, mode).name for mode in ("P1", "R1", "overlay", "r2")])
        for wanted in ("F3", "S1", "warp"):
            try:
                engines.choose(STORE, wanted)
            except errors.Error as exc:
                tell([exc.status, str(exc)])
        tell(os.listdir(STORE.path("tmp")))
    """)
    found, chosen, modes, *refused, left = told
    assert [found[name] for name in ("overlay", "directory", "proot")] == [None] * 3
    assert "/dev/fuse" in found["fuse"] or os.stat("/dev/fuse").st_mode & 0o006
    assert chosen == ["overlay", True]
    assert modes == ["proot", "directory", "overlay", "directory"]
    assert [one[0] for one in refused] == [125] * 3
    assert "fakechroot" in refused[0][1] and "singularity" in refused[1][1] and "overlay" in refused[2][1]
    assert left == []


def test_issues_144_243_and_105_namespaces_denied(play):
    told = play("""
        tell(engines.choose(STORE).name)
        tell(userns.mapped())
        for wanted in ("overlay", "R1"):
            try:
                engines.choose(STORE, wanted)
            except errors.Error as exc:
                tell(str(exc))
        os.environ["UDOCKER_PROOT"], os.environ["PATH"] = "/nowhere", "/nowhere"
        userns.program = lambda name: None
        try:
            engines.choose(STORE)
        except errors.Error as exc:
            tell([exc.status, str(exc)])
    """, deny=True)
    name, mapped, overlay, directory, (status, nothing) = told
    assert (name, mapped) == ("proot", "none")
    for text in (overlay, directory):
        assert "seccomp" in text
    assert status == 125
    for word in ("overlay", "directory", "fuse", "proot", "user namespaces", "uidmap", "UDOCKER_PROOT"):
        assert word in nothing


def test_what_a_host_lacks_is_said(single, tmp_path):
    """The kernel's settings are read from stand-ins, since this host's must stay as they are."""
    told = single("""
        real = userns._read
        def settings(**wanted):
            userns._read = lambda path: wanted.get(path.rpartition("/")[2], "")
            tell(userns.hints())
        settings(max_user_namespaces="0")
        settings(unprivileged_userns_clone="0")
        settings(apparmor_restrict_unprivileged_userns="1")
        settings()
    """)
    maximum, clone, apparmor, nothing = told
    assert "user.max_user_namespaces" in maximum
    assert "kernel.unprivileged_userns_clone" in clone
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in apparmor and "profile" in apparmor
    assert nothing == ""


def test_proot_refuses_what_it_cannot_do(many):
    told = many("""
        e = engines.choose(STORE, "proot")
        c = container(e)
        os.makedirs(home + "/mine", exist_ok=True)
        tell(run(e, c, "true", read_only=True))
        tell(run(e, c, "true", network="none"))
        tell(run(e, c, "true", mounts=[Mount("bind", "/x", home + "/mine", read_only=True)]))
        tell(run(e, c, "true", mounts=[Mount("bind", "/x", "/usr/bin", read_only=True)]))
        tell(run(e, c, "sh", "-c", "chown 5:5 /lower/file && mknod /tmp/n c 1 3; id -u"))
    """)
    assert [one[0] for one in told] == [125, 125, 125, 0, 0]
    assert all("proot" in one[1] for one in told[:3])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is for aarch64, which this machine runs itself")
def test_a_program_for_another_architecture(many):
    """What the engine's probe executes, for aarch64: QEMU's user mode runs it under PRoot."""
    told = many("""
        foreign = home + "/foreign"
        os.makedirs(foreign + "/bin", exist_ok=True)
        machine = os.uname
        class System: machine, nodename, release = "aarch64", "x", "y"
        os.uname = lambda: System
        engines._make_layer(foreign + "/made")
        os.uname = machine
        os.makedirs(foreign + "/made/bin")
        os.rename(foreign + "/made/program", foreign + "/made/bin/sh")
        stack = [foreign + "/made"]
        e = engines.choose(STORE, None, "linux/arm64")
        tell(e.name)
        c = container(e, layers=stack)
        tell(run(e, c, "/bin/sh", layers=stack))
        native = engines.choose(STORE, None, "linux/amd64")
        tell(native.name)
    """)
    assert told == ["proot", [42, ""], "overlay"]


# Store


def nested(player, script, more="", **settings):
    """Run a script within a container that sees the host's programs: what is said there comes back."""
    return player(f"""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        shared = ["/usr", "/lib", "/lib64", "/bin", "/etc/passwd"]
        shared = [Mount("bind", path, path) for path in shared if os.path.exists(path)]
        shared += [Mount("bind", "/library", home), Mount("tmpfs", "/memory")]
        {more}
        script = {udocker_engine.PRELUDE + script!r}
        code, output = run(e, c, "/usr/bin/python3", "-IS", "-c", script, "/library", mounts=shared,
                           env={{"PATH": "/usr/bin:/bin", **{settings!r}}})
        print(output)
        tell(code)
    """)


INNER = """
e = engines.choose(STORE)
tell([e.name, bool(getattr(e, "scratch", None)), userns.mapped()])
c = container(e)
tell(run(e, c, "sh", "-c", "echo changed > /lower/file; cat /lower/file; id -u; exit 8"))
running = e.start(spec(c, "sleep", "1000"))
tell(enter(e, running, c, "sh", "-c", "cat /lower/file; exit 6"))
running.kill()
tell(running.wait())
tell("lower" in e.inside(c, layers, os.listdir))
e.remove(c)
tell([os.path.exists(c), os.listdir("/memory/udocker-0") if os.path.isdir("/memory/udocker-0") else []])
"""
RAN = [[8, "changed\n0"], [6, "changed"], 137, True, [False, []], 0]


def test_inside_a_user_namespace_with_a_store_on_an_overlay(play):
    told = nested(play, INNER, STORE="/inner")
    assert told[0] == ["directory", False, "subids" if play.subids else "one"]
    assert told[1:] == RAN


def test_a_store_on_an_overlay_writes_to_a_scratch_folder(play):
    told = nested(play, INNER, STORE="/inner", UDOCKER_SCRATCH="/memory")
    assert told[0] == ["overlay", True, "subids" if play.subids else "one"]
    assert told[1:] == RAN


def test_where_proc_is_hidden_in_part_the_host_s_is_bound(play):
    """As in containers of Docker's and podman's, whose kernel refuses a fresh one."""
    hide = 'shared += [Mount("tmpfs", "/proc/bus")]'
    told = nested(play, INNER + "tell(run(e, container(e, 'd'), 'sh', '-c', 'grep -c /proc/bus /proc/mounts'))\n",
                  hide, STORE="/memory/store")  # fmt: skip
    assert told[0][0] == "overlay"
    assert told[1:] == [*RAN[:-1], [0, "1"], 0]


def test_root_is_confined_to_a_namespace_of_its_own(tmp_path):
    told = udocker_engine.play_as_root("""
        for name in ("overlay", "directory", "proot"):
            e = engines.choose(STORE, name)
            c = container(e, name)
            tell(run(e, c, "sh", "-c", "id -u; chown 33:33 /lower/file; stat -c %u /lower/file; exit 4"))
            tell(run(e, c, "sh", "-c", "touch /sys/kernel/x; mknod /tmp/zero c 1 5; head -c 1 /tmp/zero"))
            e.remove(c)
    """, tmp_path)
    assert [one[0] for one in told[::2]] == [4, 4, 4]
    assert [one[1] for one in told[:4:2]] == ["0\n33"] * 2
    assert all(one[0] != 0 for one in told[1:4:2])


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse cannot be opened, even by root")
def test_fuse_as_whoever_may_open_its_device(tmp_path):
    told = udocker_engine.play_as_root("""
        e = engines.choose(STORE, "fuse")
        c = container(e)
        change = "cat /lower/file; echo new > /lower/file; cat /lower/file; rm -r /lower/inner; ls /lower; exit 3"
        tell(run(e, c, "sh", "-c", change))
        tell(run(e, c, "sh", "-c", "cat /lower/file; ls /lower"))
        running = e.start(spec(c, "sleep", "1000"))
        tell(enter(e, running, c, "cat", "/lower/file"))
        running.kill()
        running.wait()
        tell("lower" in e.inside(c, layers, os.listdir))
        e.remove(c)
        tell(os.path.exists(c))
    """, tmp_path)
    assert told == [[3, "lowernew\nfile"], [0, "new\nfile"], [0, "new"], True, False]
    deadline = time.monotonic() + 10
    while str(tmp_path) in subprocess.run(["pgrep", "-af", "fuse-overlayfs"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Root without further ids


def test_root_with_one_id_may_do_as_if_it_had_all(single):
    told = single("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        tell(run(e, c, "sh", "-c", '''
            set -e
            chown 33:33 /lower/file; chown -R web:web /lower; chgrp 77 /etc/passwd
            mknod /tmp/device c 1 3; mknod /tmp/fifo p; test -p /tmp/fifo; su web -s /bin/sh -c "echo as web"
            stat -c %u /lower/file'''))
        tell(run(e, c, "sh", "-c", "chown 0:0 /nosuch"))
        tell(run(e, c, "chown", "33", "/lower/file", user="web"))
    """)
    assert told[0] == [0, "as web\n0"]
    assert told[1][0] != 0  # what the kernel would do is done, and fails as it does there
    assert told[2][0] == 0


def test_a_filter_costs_next_to_nothing(single):
    told = single("""
        e = engines.choose(STORE, "overlay")
        c = container(e)
        tell(run(e, c, "grep", "Seccomp", "/proc/self/status"))
        tell(run(e, c, "grep", "NoNewPrivs", "/proc/self/status"))
    """)
    assert "2" in told[0][1]
    assert told[1][1].split()[-1] == "0"  # sudo and su keep their bits


# Deleting


def test_trees_are_deleted_whoever_owns_them_and_links_are_not_followed(play):
    told = play("""
        def build(path):
            os.makedirs(path + "/a/b/c")
            for number in range(20):
                open(f"{path}/a/b/{number}", "w").close()
            os.symlink(home + "/precious", path + "/a/link")
            os.symlink(home + "/precious", path + "/a/b/c/link")
            if userns.maps().kind == "subids":
                os.chown(path + "/a/b", 33, 33)
            os.chmod(path + "/a/b", 0)
            os.chmod(path + "/a", 0o500)
        os.makedirs(home + "/precious", exist_ok=True)
        open(home + "/precious/file", "w").close()
        userns.call(build, home + "/tree")
        trees.remove(home + "/tree")
        trees.remove(home + "/tree")
        os.symlink(home + "/precious", home + "/tree")
        trees.remove(home + "/tree")
        deep = home + "/deep"
        os.mkdir(deep)
        here = os.open(deep, os.O_RDONLY)
        for number in range(1500):  # deeper than descriptors may be open
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(here)
        trees.remove(deep)
        tell([os.path.lexists(home + "/tree"), os.path.exists(deep), os.path.exists(home + "/precious/file")])
    """)
    assert told == [False, False, True]


def test_people_leave_nothing_behind():
    with udocker_people.Person("gone", subids=True) as person:
        scratch = "/var/tmp/" + person.name
        script = f"mkdir {scratch}; sleep 1000 & unshare -Ur --map-auto chown 5:5 {scratch}"
        assert person.run(["sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        assert any("sleep 1000" in line for line in person.processes().values())
        home = person.home
    assert not home.exists() and not os.path.exists(scratch) and not person.processes()
    for path in ("/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid"):
        with open(path, encoding="utf-8") as source:
            assert person.name not in source.read()
    assert shutil.which("proot") and shutil.which("newuidmap")
