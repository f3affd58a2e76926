"""Doubles of machines, restored from images in the middle of a run: they must act as the originals do."""

from collections import deque
from random import Random
from typing import Any

import msgpack
import pytest

from gps.state import Gps
from lps.state import Lps
from pelago.durable.image import Plain, restore, take
from pelago.wire.messages import Effect, Event

DOUBLES_MAX = 2
"""Of one machine at a time; a new one takes the place of the oldest."""


def restored(machine: Any, settings: Any = None) -> Any:
    """Another machine with the state of this one, encoded as bytes in between; with settings of its own."""
    image = take(machine)
    double = type(machine)(settings or machine.settings)
    restore(double, msgpack.unpackb(msgpack.packb(image)))
    if settings is None:
        assert take(double) == image
        assert everything(double) == everything(machine)
        double.check()
    return double


def everything(value: Any) -> Any:
    """All that is in an object, settings included and methods not: what `take` must not forget."""
    if isinstance(value, dict):
        return [(key, everything(held)) for key, held in value.items()]
    if isinstance(value, list | deque):
        return [everything(each) for each in value]
    if isinstance(value, tuple) or type(value).__module__ == "builtins":
        return None if callable(value) else value
    names = getattr(value, "__slots__", None) or vars(value)
    return {name: everything(getattr(value, name)) for name in names}


def classes(image: Plain) -> set[str]:
    """Names that are in the first place of some list: of all classes in an image."""
    if not isinstance(image, list):
        return set()
    assert isinstance(image[0], str)
    return {image[0]}.union(*map(classes, image[1:]))


class Doubles:
    """From now on the machines of a class have doubles, which handle the same events.

    At random an image is taken, from which another double is made.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, kind: type[Gps] | type[Lps], seed: int, chance: float
    ) -> None:
        self.classes: set[str] = set()
        """That were in some image."""
        self.count = 0
        self._of: dict[Gps | Lps, list[Gps | Lps]] = {}
        random, handle = Random(seed), kind.handle

        def both(machine: Any, event: Event, now: int) -> list[Effect]:
            effects = handle(machine, event, now)
            doubles = self._of.setdefault(machine, [])
            for double in doubles:
                assert handle(double, event, now) == effects  # type: ignore[arg-type]
                double.check()
            if random.random() < chance:
                self.count += 1
                self.classes |= classes(take(machine))
                doubles.append(restored(machine))
                for double in doubles[:-DOUBLES_MAX]:
                    doubles.remove(double)
                    assert take(double) == take(machine)
            return effects

        monkeypatch.setattr(kind, "handle", both)

    def assert_all_are_alike(self) -> None:
        """At the end of the run there are doubles, and their state is what the originals' is."""
        assert all(
            take(double) == take(machine)
            for machine, doubles in self._of.items()
            for double in doubles
        )
        assert any(self._of.values())
