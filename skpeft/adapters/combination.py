"""Several methods at once."""

from collections.abc import Mapping, Sequence
from itertools import chain

from skpeft.adapters.base import Adapter


class Combination(Adapter):
    """Several methods in one network, what a list given as `adapter` stands for.

    Those that act on one layer stand around each other in the order of the list. The
    default learning rate is the lowest of the members'.

    Parameters
    ----------
    adapters : sequence of Adapter
        The members, at least one; none that trains the encoder itself.

    Examples
    --------
    >>> from skpeft.adapters import BitFit, Combination, LoRA
    >>> Combination([LoRA(4), BitFit()])
    Combination(adapters=[LoRA(rank=4), BitFit()])
    """

    _parameter_constraints = {"adapters": [list, tuple]}

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = adapters

    @property
    def members(self) -> Sequence[Adapter]:
        """The methods that make it up, in the order in which they are attached."""
        return self.adapters

    @property
    def default_learning_rate(self) -> float:  # type: ignore[override]
        """Learning rate used where the estimator's `learning_rate` is None."""
        return min(member.default_learning_rate for member in self.adapters)

    def target_roles(self) -> tuple[str, ...]:
        """Roles at which any member acts."""
        roles = chain.from_iterable(m.target_roles() for m in self.adapters)
        return tuple(dict.fromkeys(roles))

    def roles_in(self, table: Mapping[str, str]) -> tuple[str, ...]:
        """Roles of one encoder at which any member acts."""
        roles = chain.from_iterable(m.roles_in(table) for m in self.adapters)
        return tuple(dict.fromkeys(roles))

    def count(self, sites: dict[str, tuple[int, int]]) -> int:
        """Sum of the members' counts, each over the roles at which it acts."""
        table = {role: role for role in sites}
        return sum(
            member.count({role: sites[role] for role in member.roles_in(table)})
            for member in self.adapters
        )

    def validate(self) -> None:
        """Check the members; raises `ValueError` naming what is wrong."""
        super().validate()
        if not len(self.adapters):
            raise ValueError(
                "An empty list was given as adapter, which would train nothing. Put "
                "adapters in it, or use adapter=None."
            )
        for member in self.adapters:
            is_plain = isinstance(member, Adapter) and not isinstance(
                member, Combination
            )
            if not is_plain or member.trains_encoder:
                raise ValueError(
                    f"{member!r} was given in a list of adapters; specs of adapters are "
                    "expected there, such as [LoRA(4), BitFit()], none that trains the "
                    "encoder itself and no list in the list."
                )
            if member.weights is not None:
                raise ValueError(
                    f"{member!r} was given in a list of adapters, but one that starts from "
                    "saved weights stands by itself. Pass it alone as adapter."
                )
            member.validate()
