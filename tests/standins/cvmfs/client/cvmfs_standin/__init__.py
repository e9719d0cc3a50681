# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the CVMFS client: its commands, exit statuses and messages as far as dodas relies on them.

It reads repositories in CVMFS's own format through proxies, proves their signatures, caches what it read and shows
them by FUSE. It is for tests, where the real client cannot be had: no nested catalogs, no chunks, and nothing leaves
the cache.
Standard library and the program openssl only, Python 3.9.
"""

VERSION = "2.12.0"
NOTE = "stand-in of dodas, not CernVM-FS"
