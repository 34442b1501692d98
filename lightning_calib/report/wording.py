"""How numbers, counts and names are written in a sentence."""

from collections.abc import Sequence


def percent(share: float) -> str:
    """A share in [0, 1]."""
    return f"{100 * share:.3g} %"


def count(number: int, noun: str) -> str:
    """Such as "1 step" and "1,000 steps"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def was(number: int) -> str:
    """The verb that goes with a count."""
    return "was" if number == 1 else "were"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Some names in code quotes, and how many more there are."""
    shown = [f"`{name}`" for name in names[:most]]
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more:,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def decimal(value: float) -> str:
    """A number to paste: two digits, rounded."""
    return f"{float(f'{value:.1e}'):g}"


def module_line(owner: str) -> str:
    """A module of the LightningModule, to paste: what has a number in its path is no Python as it is."""
    plain = all(part.isidentifier() for part in owner.split("."))
    return f"self.{owner}" if plain else f'self.get_submodule("{owner}")'


def parameter_line(name: str) -> str:
    """A parameter of the LightningModule, to paste, whatever its path."""
    return f'self.get_parameter("{name}")'


def times(factor: float) -> str:
    """How many times: three digits, without an exponent where it can be read."""
    return f"{factor:,.0f}" if 1000 <= factor < 1e7 else f"{factor:.3g}"


def quoted(value: object) -> str:
    """A wrong value in an error, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers of more than 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) < 80 else f"{text[:76]} ..."
