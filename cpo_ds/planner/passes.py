"""Memory of a forward and backward pass as a function of tokens, layers and recomputed layers."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class PassMemory:
    """Bytes of one micro-batch, without weights and their gradients."""

    held: float  # kept from the body's forward pass to its backward pass
    head: float  # peak while the head runs forward and backward, `held` included
    body: float  # peak while the body runs
    recomputed: float = 0.0  # peak while recomputed layers run, if others do not recompute

    @property
    def peak(self) -> float:
        """Largest of all peaks."""
        return max(self.head, self.body, self.recomputed)

    def __add__(self, other: PassMemory) -> PassMemory:
        return PassMemory(*(x + y for x, y in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> PassMemory:
        return PassMemory(*(factor * value for value in astuple(self)))


@dataclass(frozen=True)
class PassModel:
    """`PassMemory` as a linear function of the tokens in a micro-batch.

    It is linear since flash kernels keep no matrix of tokens by tokens.
    """

    per_token: PassMemory
    fixed: PassMemory

    def at(self, tokens: float) -> PassMemory:
        """Bytes of a micro-batch of `tokens` tokens; a shared prefix counts once."""
        return self.per_token * tokens + self.fixed

    def most_tokens(self, room: float) -> int:
        """Tokens of the largest micro-batch whose peak fits into `room` bytes; 0 if none does."""
        limits = (
            (room - getattr(self.fixed, name)) / max(getattr(self.per_token, name), 1e-9)
            for name in ("head", "body", "recomputed")
        )
        return max(0, int(min(limits)))


@dataclass(frozen=True)
class DepthModel:
    """`PassMemory` as a linear function of tokens and of layers, which are alike.

    Either all layers recompute their activations in the backward pass, or none does.
    """

    sizes: tuple[float, float]  # tokens of two micro-batches
    base: tuple[PassMemory, PassMemory]  # of each size, without any layer
    per_layer: tuple[PassMemory, PassMemory]

    def at(self, layers: int) -> PassModel:
        """The memory of a model of `layers` layers."""
        return _line(self.sizes, *self._measured(layers))

    def with_recomputed(self, other: DepthModel, layers: int, count: int) -> PassModel:
        """The memory of a model of `layers` layers, the first `count` of which recompute.

        `self` recomputes in no layer and `other` in all. From one recomputed layer on, each further
        one saves the same. The top layers run their backward pass first, then the recomputed ones.
        """
        if count == 0:
            return self.at(layers)
        if count == layers:
            return other.at(layers)
        measured = zip(
            self._measured(layers), other._measured(layers), other._measured(count),
            self.per_layer, other.per_layer, strict=True,
        )  # fmt: skip
        mixed = []
        for none, all_, lower, kept, recomputed in measured:
            held = all_.held + (layers - count) * (kept.held - recomputed.held)
            mixed.append(
                PassMemory(
                    held=held,
                    head=held + all_.head - all_.held,
                    body=held + none.body - none.held,
                    recomputed=lower.body,
                )
            )
        return _line(self.sizes, *mixed)

    def _measured(self, layers: int) -> tuple[PassMemory, PassMemory]:
        """Memory of both sizes of micro-batch."""
        small, large = (
            base + layer * layers for base, layer in zip(self.base, self.per_layer, strict=True)
        )
        return small, large


def depth_model(
    sizes: tuple[float, float], runs: dict[int, tuple[PassMemory, PassMemory]]
) -> DepthModel:
    """Draws lines through runs of one or two depths; `runs` is by number of layers."""
    deep, shallow = max(runs), min(runs)
    layers = max(deep - shallow, 1)
    small, large = (
        (more + less * -1.0) * (1 / layers)
        for more, less in zip(runs[deep], runs[shallow], strict=True)
    )
    base = runs[deep][0] + small * -deep, runs[deep][1] + large * -deep
    return DepthModel(sizes, base, (small, large))


def _line(sizes: tuple[float, float], small: PassMemory, large: PassMemory) -> PassModel:
    """The line through the memory of two sizes of micro-batch."""
    slope = (large + small * -1.0) * (1 / (sizes[1] - sizes[0]))
    return PassModel(slope, small + slope * -sizes[0])
