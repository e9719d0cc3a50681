# SPDX-License-Identifier: Apache-2.0
"""Makes a bootable disk of a folder: GPT, GRUB for BIOS and for UEFI, one ext4 file system. Nothing is mounted.

    | partition  | size   | what                                                     |
    | BIOS boot  | 1 MiB  | GRUB's core image, which the boot sector knows by number |
    | EFI system | 63 MiB | GRUB as \\EFI\\BOOT\\BOOTX64.EFI                            |
    | root       | rest   | the last one, so that it can grow with the disk          |
"""

from __future__ import annotations

import math
import os
import struct
import subprocess
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError

SECTOR = 512
MIB = 2**20
LABEL = "dodas-root"
BIOS_AT, EFI_AT, ROOT_AT = MIB, 2 * MIB, 65 * MIB
LAYOUT = f"""label: gpt
start={BIOS_AT // SECTOR}, size={(EFI_AT - BIOS_AT) // SECTOR}, type=21686148-6449-6E6F-744E-656564454649, name=bios
start={EFI_AT // SECTOR}, size={(ROOT_AT - EFI_AT) // SECTOR}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=efi
start={ROOT_AT // SECTOR}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
"""
# Named one by one: what mke2fs takes by itself changes, and GRUB and older kernels must know it.
FEATURES = ("none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
            "huge_file,dir_nlink,extra_isize,metadata_csum")  # fmt: skip
GRUB = Path("/usr/lib/grub")
MODULES = ("part_gpt", "ext2", "search", "search_label", "normal", "linux", "configfile", "echo", "test", "serial",
           "terminal", "minicmd", "sleep", "reboot", "halt")  # fmt: skip
FIRMWARES = {"i386-pc": ("biosdisk",), "x86_64-efi": ("fat", "all_video", "efi_gop")}
# All that GRUB does before it knows the root file system.
EARLY = f"search --no-floppy --set=root --label {LABEL}\nset prefix=($root)/boot/grub\n"
SPARE = 700 * MIB  # free space of a disk that is not larger than its image
TIMEOUT = 1800  # seconds for one step


def make(root, scratch, disk, stream=subprocess.DEVNULL):
    """Make the qcow2 image `disk` of the folder `root`; returns the disk's size in MiB, as a host sees it.

    `scratch` has room for the uncompressed disk; programs write to `stream`. Raises CalledProcessError,
    TimeoutExpired, ImageError.
    """
    scratch, raw = Path(scratch), Path(scratch, "disk.raw")
    size = ROOT_AT + _room(root) + MIB  # the last MiB: GPT's second table
    with raw.open("wb") as file:
        file.truncate(size)
    _run(stream, "sfdisk", "--quiet", raw, input=LAYOUT)
    _run(stream, "mke2fs", "-q", "-F", "-t", "ext4", "-O", FEATURES, "-I", "256", "-m", "1", "-L", LABEL, "-d", root,
         "-E", f"offset={ROOT_AT},lazy_itable_init=1,lazy_journal_init=1", raw,
         f"{(size - MIB - ROOT_AT) // 1024}k")  # fmt: skip
    early = scratch / "early.cfg"
    early.write_text(EARLY, encoding="ascii")
    for firmware, modules in FIRMWARES.items():
        _run(stream, "grub-mkimage", "--directory", GRUB / firmware, "--format", firmware, "--config", early,
             "--prefix", "/boot/grub", "--output", scratch / firmware, *MODULES, *modules)  # fmt: skip
    esp = _efi(scratch, scratch / "x86_64-efi", stream)
    with raw.open("r+b") as file:
        _boot(file, (GRUB / "i386-pc/boot.img").read_bytes(), (scratch / "i386-pc").read_bytes())
        _copy(esp, file, EFI_AT)
    esp.unlink()
    _run(stream, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, disk)
    raw.unlink()
    return size // MIB


def _room(root):
    """Bytes that a file system needs for what is in `root`, to spare some, in whole 256 MiB."""
    used, seen = 0, set()
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            status = os.lstat(os.path.join(folder, name))
            if status.st_nlink == 1 or (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                used += 512 + -(-status.st_size // 4096) * 4096  # its inode, and whole blocks
    return math.ceil((used * 1.08 + SPARE) / (256 * MIB)) * 256 * MIB


def _boot(file, boot, core):
    """Write GRUB's boot sector and core image as grub-install does: each knows by number where the next one is."""
    first = BIOS_AT // SECTOR
    if len(core) > EFI_AT - BIOS_AT:
        raise ImageError(f"GRUB's core image has {len(core)} bytes, and there is room for {EFI_AT - BIOS_AT}")
    file.seek(0)
    old = file.read(SECTOR)
    sector = bytearray(boot[:SECTOR])
    sector[0x03:0x5A] = old[0x03:0x5A]  # parameters of the disk
    sector[0x1B8:] = old[0x1B8:]  # its signature and the partitions
    struct.pack_into("<Q", sector, 0x5C, first)
    sector[0x64] = 0xFF  # boot from the drive that the firmware names
    sector[0x66:0x68] = b"\x90\x90"  # without what corrects that name for floppy disks
    file.seek(0)
    file.write(sector)
    core = bytearray(core)
    # The list of blocks at the end of core's first sector: the rest of it, in one piece, behind itself.
    struct.pack_into("<QHH", core, SECTOR - 12, first + 1, -(-len(core) // SECTOR) - 1, 0x820)
    file.seek(BIOS_AT)
    file.write(core)


def _efi(scratch, program, stream):
    esp = scratch / "esp"
    with esp.open("wb") as file:
        file.truncate(ROOT_AT - EFI_AT)
    _run(stream, "mkfs.vfat", "-F", "32", "-s", "1", "-h", str(EFI_AT // SECTOR), "-n", "DODAS-EFI", esp)
    _run(stream, "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
    _run(stream, "mcopy", "-i", esp, program, "::/EFI/BOOT/BOOTX64.EFI")
    return esp


def _copy(source, file, at):
    with source.open("rb") as stream:
        while block := stream.read(MIB):
            if block.strip(b"\0"):
                file.seek(at)
                file.write(block)
            at += len(block)


def _run(stream, *command, input=None):
    # Where people who are not root log in, they have no sbin.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    subprocess.run(list(map(str, command)), input=input, text=True, stdout=stream, stderr=subprocess.STDOUT,
                   env={**os.environ, "PATH": path, "LC_ALL": "C"}, timeout=TIMEOUT, check=True)  # fmt: skip
