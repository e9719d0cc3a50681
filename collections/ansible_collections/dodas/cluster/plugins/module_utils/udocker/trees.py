# SPDX-License-Identifier: Apache-2.0
"""Whole trees of files: deleted and copied safely, whoever they belong to."""

import os

from . import userns


def remove(path):
    """Delete a tree or a file, in a user namespace where that is needed; nothing when it is not there.

    Symbolic links are deleted, never followed. Raises OSError.
    """
    try:
        _remove(path)
    except PermissionError:
        userns.call(_remove, path)


def _remove(path):
    parent, name = os.path.split(os.path.abspath(path))
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_at(folder, name)
    except FileNotFoundError:
        pass
    finally:
        os.close(folder)


def remove_at(folder, name):
    """The same, of entry `name` in folder descriptor `folder`; as whoever runs this."""
    try:
        os.unlink(name, dir_fd=folder)
        return
    except IsADirectoryError:
        pass
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        inner = os.open(name, flags, dir_fd=folder)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder)
        inner = os.open(name, flags, dir_fd=folder)
    try:
        with os.scandir(inner) as entries:
            names = [entry.name for entry in entries]
        for one in names:
            try:
                remove_at(inner, one)
            except PermissionError:
                os.fchmod(inner, 0o700)
                remove_at(inner, one)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
