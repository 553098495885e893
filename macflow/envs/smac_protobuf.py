"""Load StarCraft II's message classes under a current protobuf.

`s2clientprotocol` ships code that an old compiler generated, which protobuf refuses from version 4 on
("Descriptors cannot be created directly"). The serialised descriptors inside that code are all that is
needed to build the same classes anew. The usual way out, protobuf's pure Python implementation, would
hold for the whole process and slow every other user of it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from pathlib import Path

_PACKAGE = "s2clientprotocol"
# Each may import those before it.
_MODULES = ("common", "data", "error", "ui", "spatial", "score", "raw", "debug", "query", "sc2api")


def install_protocol() -> None:
    """Put the modules of `s2clientprotocol` into `sys.modules`, before anything else imports them.

    Modules that are imported already, and code of a newer compiler, stay as they are.

    Raises:
        ModuleNotFoundError: where `s2clientprotocol` or protobuf is not installed.
    """
    package = importlib.import_module(_PACKAGE)
    folder = Path(package.__path__[0])
    for name in _MODULES:
        full = f"{_PACKAGE}.{name}_pb2"
        if full in sys.modules:
            continue
        serialized = _serialized_descriptor(folder / f"{name}_pb2.py")
        if serialized is None:
            importlib.import_module(full)
            continue
        module = _module(full, serialized)
        sys.modules[full] = module
        setattr(package, f"{name}_pb2", module)


def _module(full: str, serialized: bytes) -> types.ModuleType:
    """Build a module of message classes the way the newer generated code does."""
    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    module = types.ModuleType(full)
    descriptor = descriptor_pool.Default().AddSerializedFile(serialized)
    names = vars(module)
    names["DESCRIPTOR"] = descriptor
    builder.BuildMessageAndEnumDescriptors(descriptor, names)
    builder.BuildTopDescriptorsAndMessages(descriptor, full, names)
    return module


def _serialized_descriptor(path: Path) -> bytes | None:
    """Find `serialized_pb=_b('...')` in generated code; None in that of a newer compiler."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb" and isinstance(node.value, ast.Call):
            text = ast.literal_eval(node.value.args[0])
            serialized: bytes = text.encode("latin1")
            return serialized
    return None
