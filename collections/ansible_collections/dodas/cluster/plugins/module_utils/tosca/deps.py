# SPDX-License-Identifier: Apache-2.0
"""What this package uses of PyYAML and tosca-parser, imported in one place.

A file of a collection must import where its libraries are missing: the names are None there and MISSING tells why.
"""

from __future__ import annotations

try:
    import yaml
    from toscaparser.common.exception import ExceptionCollector
    from toscaparser.elements.nodetype import NodeType
    from toscaparser.tosca_template import ToscaTemplate
    from yaml import SafeLoader

    MISSING = None
    VERSIONS = tuple(ToscaTemplate.MAIN_TEMPLATE_VERSIONS)
except ImportError as error:
    yaml = ExceptionCollector = NodeType = ToscaTemplate = None
    SafeLoader = object
    MISSING = str(error)
    VERSIONS = ()

__all__ = ["MISSING", "VERSIONS", "ExceptionCollector", "NodeType", "SafeLoader", "ToscaTemplate", "yaml"]
