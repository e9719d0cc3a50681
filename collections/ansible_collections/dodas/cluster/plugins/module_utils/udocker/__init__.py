# SPDX-License-Identifier: Apache-2.0
"""Containers without root: a registry client, a store of images, engines that run them, a builder.

Runs on hosts where nothing is installed: the standard library of Python 3.8, and no import of anything that start-up
does not need. Imports within the package are relative, since the one-file program carries it under another name.
"""

__version__ = "0.1.0"
