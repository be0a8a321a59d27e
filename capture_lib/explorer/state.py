"""What a reader of the explorer has chosen."""

from dataclasses import dataclass, fields, replace

from capture_lib.utils import InputError

OWN = -1  # the number of a reader's own photo among the queries


@dataclass(frozen=True)
class State:
    """All that can be chosen; a browser changes it by `changed`, an explorer makes it fit by `settle`."""

    query: int = 0
    box: int | None = None  # an instance of the query; None: all, merged
    model: str = ""  # the first part of a method's name
    level: str = "instance"
    caption: str | None = None  # in place of the query's own
    worded: bool = True  # False: the query has no caption at all
    brand: str = ""  # of the queries that can be picked; empty: any
    kind: str = ""
    item: int | None = None  # of the gallery, whose neighbours are shown
    map: str = ""  # what colours its points, "brand" or "kind"; empty: no map

    def changed(self, patch: dict) -> "State":
        """Return the state with some of it chosen anew; what belongs to a query goes with it.

        Raises:
            InputError: a name or a type is not that of a field; it comes from a browser.
        """
        types = {field.name: field.type for field in fields(self)}
        for name, value in patch.items():
            fits = name in types and isinstance(value, types[name])
            if not fits or (isinstance(value, bool) and types[name] is not bool):
                raise InputError(f"explorer: {name!r} cannot be {value!r}")
        fresh = {"box": None, "caption": None, "item": None} if "query" in patch else {}
        return replace(self, **fresh | patch)
