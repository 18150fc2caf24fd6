"""The process that `saelab grade` starts for each submission: its cells without network, then the original's checks.

It is started as a script, ``python -P worker.py``, not as a module: only a process with a single thread can leave the
network, and importing saelab starts more. It reads its order as one line of JSON from stdin and answers in lines of
JSON on the original stdout; both are closed to the submission's code before that begins. Each answer carries the
order's token, which the submission's code is not given, so that it cannot forge verdicts.
"""

import ctypes
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MAX_CHARACTERS = 2000
"""Cap on each text of a verdict, since the submission may determine what a check has seen."""


def leave_the_network() -> bool:
    """Move this process, and all that it starts, to an empty network; False if the system does not allow that."""
    if not sys.platform.startswith("linux"):
        return False
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with suppress(OSError):  # only the names of user and group depend on these
            Path("/proc/self", name).write_text(text, encoding="utf-8")
    return True


def refuse_the_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook that forbids network sockets; Unix sockets stay allowed, as torch and multiprocessing use them."""
    is_lookup = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
    is_reach = event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple)
    if is_lookup or is_reach:
        raise PermissionError("there is no network while a submission is graded")


def checks_of_its_own() -> tuple[ModuleType, type]:
    """A private copy of `saelab.exercises.check` and its Verdict, which no other code can import.

    The copy is not affected by what a submission changes in `saelab.exercises`, or in modules such as torch: it keeps
    references to the state before.
    """
    import saelab
    from saelab.exercises import Verdict, check

    ours = {name for name in sys.modules if name.split(".")[:2] == ["saelab", "exercises"]}
    modules = [sys.modules.pop(name) for name in ours]
    vars(saelab).pop("exercises", None)
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, ModuleType) and value not in modules:
                copy = ModuleType(value.__name__)
                vars(copy).update(vars(value))
                setattr(module, name, copy)
    return check, Verdict


def run_cells(cells: list[tuple[int, str]], tell: Any) -> tuple[dict[str, Any], list[str]]:
    """Run all cells as IPython does, whatever they raise, and return their namespace and the errors."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell: Any = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    errors = []
    for number, source in cells:
        tell(cell=number)
        result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            errors.append(f"cell {number} raised {described(error)}")
    return shell.user_ns, errors


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    order = json.loads(sys.stdin.readline())
    channel, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    write, encode, token = os.write, json.JSONEncoder().encode, order.pop("token")

    def tell(**said: Any) -> None:
        write(channel, (encode({"token": token, **said}) + "\n").encode())

    try:
        leave_the_network()
        sys.addaudithook(refuse_the_network)
        sys.path[:] = order["path"]
        check, verdict_type = checks_of_its_own()
    except BaseException as error:
        tell(broken=described(error))
        raise
    namespace, errors = run_cells(order["cells"], tell)
    for exercise, expression in order["checks"]:
        tell(begins=exercise)
        try:
            verdict: Any = eval(expression, {**namespace, "check": check})
            if type(verdict) is not verdict_type:
                raise TypeError(f"the check gave no verdict, but {type(verdict).__name__}")
            found = {
                name: str(getattr(verdict, name))[:MAX_CHARACTERS] for name in ("state", "seen", "expected", "hint")
            }
        except BaseException as error:  # a missing name, but also sys.exit
            hint = "; ".join(errors[:3]) or "no cell of the notebook defines it"
            if not isinstance(error, NameError):
                hint = "the answer itself must not end the program"
            found = {"state": "failed", "seen": described(error), "expected": "an answer", "hint": hint}
        tell(exercise=exercise, **found)
    os._exit(0)  # without waiting for threads that the submission started


if __name__ == "__main__":
    main()
