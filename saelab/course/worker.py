"""What `saelab grade` starts for each submission: runs its cells with no network, then the checks of the original.

Started as a script, ``python -P worker.py``, and not as a module: to leave the network it must have one thread,
and importing saelab would start more. It takes its order as a line of JSON on stdin, and answers in lines of JSON on
what was stdout; both are gone before the submission's code begins. Each line has the order's token, which that code is
not told.
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
"""Of each text of a verdict: what is seen may come from the submission."""


def leave_the_network() -> bool:
    """Move this process, and all that it starts, to a network with nothing in it; False where that cannot be."""
    if not sys.platform.startswith("linux"):
        return False
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with suppress(OSError):  # the names of user and group are a comfort
            Path("/proc/self", name).write_text(text)
    return True


def refuse_the_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook. Sockets of the machine's own file system may be: torch and multiprocessing use them."""
    is_lookup = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
    is_reach = event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple)
    if is_lookup or is_reach:
        raise PermissionError("there is no network while a submission is graded")


def checks_of_its_own() -> tuple[ModuleType, type]:
    """`saelab.exercises.check` and its Verdict, in a copy that no other code can import.

    What a submission changes in `saelab.exercises`, or in modules such as torch, the copy does not see: its modules
    hold what was there before.
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
    """Run code as IPython does, in one namespace, which is returned with what was raised; an error does not stop it."""
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
        except BaseException as error:  # a name that is missing, sys.exit
            hint = "; ".join(errors[:3]) or "no cell of the notebook defines it"
            if not isinstance(error, NameError):
                hint = "the answer itself must not end the program"
            found = {"state": "failed", "seen": described(error), "expected": "an answer", "hint": hint}
        tell(exercise=exercise, **found)
    os._exit(0)  # whatever threads the submission has left


if __name__ == "__main__":
    main()
