# SPDX-License-Identifier: Apache-2.0
"""Devices of the host that a container is given: what exists here, found by looking.

Each function returns (devices, mounts, env): paths of devices, spec.Mounts, and variables to set.
"""

import os

from .spec import Mount

_LIBRARIES = ("/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib/wsl/lib", "/usr/lib",
              "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib")  # fmt: skip
# What belongs to the driver, and therefore must be of the host's version.
_OF_DRIVER = ("libcuda.", "libcudadebugger.", "libnvcuvid.", "libnvidia-", "libnvoptix.", "libOpenCL.",
              "libGLX_nvidia.", "libEGL_nvidia.", "libGLESv1_CM_nvidia.", "libGLESv2_nvidia.", "libvdpau_nvidia.",
              "libdxcore.")  # fmt: skip
_PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control",
             "nvidia-cuda-mps-server")  # fmt: skip
_FILES = ("/etc/vulkan/icd.d/nvidia_icd.json", "/usr/share/vulkan/icd.d/nvidia_icd.json",
          "/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "/etc/OpenCL/vendors/nvidia.icd",
          "/run/nvidia-persistenced/socket")  # fmt: skip
INSIDE = "/usr/local/nvidia/lib64"  # where the container finds the driver's libraries


def dri():
    """Cards for graphics and computing without NVIDIA's driver."""
    return [path for path in ("/dev/dri", "/dev/kfd") if os.path.exists(path)], [], {}


def nvidia():
    """NVIDIA's devices, libraries of its driver and programs; nothing where there is no driver."""
    names = sorted(_listed("/dev"))
    devices = [f"/dev/{name}" for name in names if name.startswith("nvidia") and name != "nvidia-caps"]
    devices += [path for path in ("/dev/nvidia-caps", "/dev/dxg") if os.path.exists(path)]
    if not devices:
        return [], [], {}
    mounts = []
    for name, path in sorted(_libraries().items()):
        mounts.append(Mount("bind", f"{INSIDE}/{name}", path, read_only=True))
    for name in _PROGRAMS:
        path = _program(name)
        if path:
            mounts.append(Mount("bind", f"/usr/bin/{name}", path, read_only=True))
    mounts += [Mount("bind", path, path, read_only=True) for path in _FILES if os.path.exists(path)]
    env = {"LD_LIBRARY_PATH": INSIDE, "NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "all"}
    return devices, mounts, env


def _libraries():
    """{name: path} of the driver's libraries, those that the linker prefers first."""
    found = {}
    folders = [*_LIBRARIES[:4], *os.environ.get("LD_LIBRARY_PATH", "").split(":"), *_LIBRARIES[4:]]
    for folder in filter(None, folders):
        for name in _listed(folder):
            if name.startswith(_OF_DRIVER) and ".so" in name and name not in found:
                found[name] = os.path.realpath(os.path.join(folder, name))
    return found


def _program(name):
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/lib/wsl/lib"):
        path = os.path.join(folder, name)
        if folder and os.access(path, os.X_OK):
            return os.path.realpath(path)
    return None


def _listed(path):
    try:
        return os.listdir(path)
    except OSError:
        return []
