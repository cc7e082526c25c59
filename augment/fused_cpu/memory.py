"""Arrays that are not counted.

numba counts references to an array's memory with atomic additions, at each slice whose counting it cannot prove to be
balanced. In loops over the short lines of a small view that costs as much as the work. An array on loan has no counter.
"""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic


def _borrow(typing_context: Any, array: Any) -> Any:
    """The same array without its reference counter; something else must keep the memory for as long as it is used.

    Arguments of a call from Python are kept by the caller; an array that compiled code made itself is not.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(array)(context, builder, arguments[0])
        view.meminfo, view.parent = view.meminfo.type(None), view.parent.type(None)
        return view._getvalue()

    return array(array), generate


borrow: Any = intrinsic(_borrow)
