# SPDX-License-Identifier: Apache-2.0
"""Which of OE-core's python3 packages has a module of Python's library, and what these packages depend on.

The facts are those of python3-manifest.json in scarthgap and wrynose, both at once; where the layers are at
hand, tests/layer/test_imports.py compares them. A name that is not here is in python3-misc.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# package: packages it depends on, all on core: modules. The last ones of core are built into the interpreter.
_TABLE = """
2to3: : lib2to3
asyncio: io logging netclient numbers stringold: _asyncio asyncio concurrent
audio: : audioop chunk ossaudiodev sndhdr sunau wave
cgitb: crypt html io math pydoc: cgitb
codecs: : _multibytecodec xdrlib
compile: : compileall filecmp py_compile
compression: : _zstd compression gzip tarfile zipfile
core: : UserDict UserList UserString __future__ _abcoll _ast_unparse _bisect _bootlocale _bz2
  _collections_abc _colorize _compression _csv _heapq _lzma _markupbase _opcode _opcode_metadata
  _posixsubprocess _py_warnings _pyrepl _sitebuiltins _struct _sysconfigdata _typing _weakrefset abc
  annotationlib argparse array ast binascii bisect bz2 code codecs codeop collections configparser
  contextlib copy copyreg csv dataclasses dis encodings enum fnmatch functools genericpath getopt gettext
  glob grp heapq imp importlib inspect io ipaddress keyword linecache locale lzma math new ntpath opcode
  operator optparse os parser pathlib pkgutil platform posixpath re readline reprlib rlcompleter runpy
  select selectors shutil signal site sitecustomize sre_compile sre_constants sre_parse stat stringprep
  struct subprocess symbol sysconfig textwrap threading time token tokenize traceback types typing
  unicodedata warnings weakref xreadlines zipimport zlib
  _io _signal _thread errno faulthandler gc itertools marshal posix pwd sys
crypt: math stringold: _blake2 _crypt _hashlib _md5 _sha1 _sha2 _sha3 crypt hashlib
ctypes: crypt io math: _ctypes _ctypes_test ctypes
curses: : _curses _curses_panel curses
datetime: : _datetime _strptime calendar datetime
db: : _dbm dbm
debugger: pprint shell stringold: bdb pdb
difflib: : difflib
doctest: debugger difflib pprint shell stringold unittest: doctest
email: crypt datetime io math mime netclient stringold: email imaplib
ensurepip: : ensurepip
fcntl: : fcntl
gdbm: : _gdbm
html: : html
idle: : idlelib
image: : colorsys imghdr
io: crypt math netclient shell: _pyio _socket _ssl pipes socket ssl tempfile termios
json: : _json json
logging: io netserver pickle stringold threading: logging
mailbox: crypt datetime email io math mime netclient stringold: mailbox
math: crypt: _random cmath random
mime: : quopri uu
mmap: : mmap
multiprocessing: crypt ctypes io math mmap netclient pickle threading: _multiprocessing _posixshmem
  multiprocessing
netclient: crypt datetime email io math mime stringold: _uuid base64 ftplib hmac http mimetypes nntplib
  poplib secrets smtplib telnetlib urllib uuid
netserver: crypt datetime email html io math mime netclient stringold: cgi socketserver
numbers: : _contextvars _decimal _pydecimal contextvars decimal fractions numbers
pickle: : _compat_pickle _pickle pickle pickletools shelve
plistlib: datetime xml: plistlib
pprint: : pprint
profile: : _lsprof cProfile profile pstats
pydoc: : pydoc pydoc_data
resource: : resource
shell: stringold: cmd shlex
sqlite3: datetime: _sqlite3 sqlite3
statistics: crypt math numbers: _statistics statistics
stringold: : string
syslog: : syslog
terminal: io: pty tty
tests: modules: test
threading: : _queue _threading_local queue
tkinter: : _tkinter tkinter
tomllib: : tomllib
turtle: tkinter: turtle
unittest: asyncio difflib io logging netclient numbers pprint stringold: unittest
unixadmin: io: getpass nis
venv: logging stringold: venv
xml: : _elementtree pyexpat xml
xmlrpc: compression crypt datetime email html io math mime netclient netserver numbers pydoc stringold
  xml: xmlrpc
zipapp: compression: zipapp
zoneinfo: datetime: _zoneinfo zoneinfo
"""

_LIBRARY = re.compile(
    r"/usr/lib(?:32|64)?/python3(?:\.\d+)?/(?!(?:site|dist)-packages/)(?:lib-dynload/)?(.+)"
)
_INTERPRETER = re.compile(r"/usr/(?:bin/python3[\d.]*|lib\S*/libpython3\S*\.so\S*)")
CORE = "python3-core"
MISC = "python3-misc"


def _parsed() -> tuple[dict[str, str], dict[str, list[str]]]:
    package_of: dict[str, str] = {}
    depends: dict[str, list[str]] = {}
    for row in _TABLE.replace("\n  ", " ").strip().splitlines():
        name, needs, modules = row.split(":")
        depends[f"python3-{name}"] = [f"python3-{need}" for need in needs.split()]
        package_of.update(dict.fromkeys(modules.split(), f"python3-{name}"))
    return package_of, depends


PACKAGE_OF, DEPENDS = _parsed()


def owner(path: str) -> str:
    """Package of a file of the interpreter or its library, by its absolute path; empty for any other file."""
    if _INTERPRETER.fullmatch(path):
        return CORE
    match = _LIBRARY.fullmatch(path)
    if match is None:
        return ""
    parts = match[1].removeprefix("__pycache__/").split("/")
    if {"test", "tests"} & set(parts[:-1]):
        return "python3-tests"
    return PACKAGE_OF.get(parts[0].split(".")[0], CORE if parts[0].startswith("_sysconfigdata") else MISC)


def closure(packages: Iterable[str]) -> set[str]:
    """These packages with all that they depend on, core included."""
    found = {CORE}
    todo = list(packages)
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += DEPENDS.get(name, [])
    return found
